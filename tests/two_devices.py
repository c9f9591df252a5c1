"""Two ranks, each of which trains on its half of every batch and saves what it got; see test_module.py."""

from pathlib import Path

import test_module
import tiny
import torch

from deeplab_recipes.hard_pixels import OHEM, TopPixels
from deeplab_recipes.losses import SegmentationLoss
from deeplab_recipes.training import quiet

SCENARIOS = {
    "global_valid": {"normalize": "global"},
    "global_valid_microbatch_1": {"normalize": "global", "microbatch_size": 1},
    "global_all": {"normalize": "global", "denominator": "all"},
    "global_dice": {"normalize": "global", "cross_entropy": 0, "dice": 1},
    "global_sum": {"normalize": "global", "cross_entropy": 0.375, "dice": 1.125},
    "global_weights": {"normalize": "global", "denominator": "weights", "class_weights": [1.0, 3.0, 0.25]},
    "global_weights_microbatch_1": {
        **{"normalize": "global", "denominator": "weights", "class_weights": [1.0, 3.0, 0.25]},
        "microbatch_size": 1,
    },
    "device_top_k": {"hard_pixels": TopPixels(0.25)},
    "device_ohem": {"hard_pixels": OHEM(0.4, 3), "denominator": "all"},
    "device_valid": {},
    "device_valid_microbatch_1": {"microbatch_size": 1},
    "device_all": {"denominator": "all"},
    "device_dice": {"cross_entropy": 0, "dice": 1},
}


def train(folder: Path, data: list[tiny.Batch], **loss: object) -> list[torch.Tensor]:
    microbatch_size = loss.pop("microbatch_size", None)
    module = tiny.module(SegmentationLoss(**loss), microbatch_size=microbatch_size)
    trainer = tiny.trainer(folder, devices=2, strategy="ddp", use_distributed_sampler=False)
    rank = trainer.global_rank
    mine = [{key: value.chunk(2)[rank] for key, value in batch.items()} for batch in data]
    trainer.fit(module, tiny.loader(mine), tiny.loader(test_module.evaluation_batches()[:1]))
    return [p.detach() for p in module.parameters()]


def evaluate(folder: Path) -> dict:
    module = tiny.module()
    trainer = tiny.trainer(folder, devices=2, strategy="ddp", use_distributed_sampler=False)
    mine = test_module.evaluation_batches()[trainer.global_rank :: 2]
    trainer.validate(module, tiny.loader(mine), verbose=False)
    return module.evaluation


def main(folder: str) -> None:
    with quiet():
        weights = {name: train(Path(folder), tiny.batches(5), **settings) for name, settings in SCENARIOS.items()}
        one_pixel = tiny.batches(1)
        one_pixel[0]["label"].fill_(tiny.IGNORE)[3, 2, 2] = 1
        weights["one_pixel"] = train(Path(folder), one_pixel, normalize="global")
        evaluation = evaluate(Path(folder))
    rank = torch.distributed.get_rank()
    torch.save({"weights": weights, "evaluation": evaluation}, Path(folder) / f"{rank}.pt")
