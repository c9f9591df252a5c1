"""What ranks do in test_many_devices.py."""

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from small_run import built

from deeplab_recipes.training import quiet

STEPS = 10
EXACT = [  # all that makes a batch's gradient a sum over its images
    "loss.normalize=global", "loss.cross_entropy=1.0", "loss.dice=1.0", "model.freeze_batchnorm=true",
    "model.dropout=0", "trainer.precision=64-true", "trainer.max_epochs=4", f"trainer.max_steps={STEPS}",
]  # fmt: skip
COUNTS = (1, 2, 5, 7)


class Samples(pl.Callback):
    """Notes the samples of each step."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        self.steps.append(batch["index"].tolist())


def train(root: str, folder: str, world_size: str) -> None:
    run = built(root, Path(folder) / "run", *EXACT, f"trainer.devices={world_size}")
    run.run_dir.mkdir(exist_ok=True)
    samples = Samples()
    run.lightning.callbacks.append(samples)
    with quiet():
        run.lightning.fit(run.module(), datamodule=run.data)
    kept = {"weights": list(run.network.parameters()), "samples": samples.steps}
    torch.save(kept, Path(folder) / f"{world_size}_{os.environ.get('RANK', '0')}.pt")


def train_frozen(root: str, folder: str, world_size: str) -> None:
    """Train with frozen stages and batch norms; keeps the weights before and after."""
    settings = ["model.freeze_backbone=3", "model.freeze_batchnorm=both", "trainer.max_steps=2", "parameters.bias_lr=2"]
    run = built(root, Path(folder) / "run", *settings, f"trainer.devices={world_size}")
    run.run_dir.mkdir(exist_ok=True)
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    with quiet():
        run.lightning.fit(run.module(), datamodule=run.data)
    kept = {"before": before, "after": run.network.state_dict()}
    torch.save(kept, Path(folder) / f"{world_size}_{os.environ.get('RANK', '0')}.pt")


def evaluate(root: str, folder: str, world_size: str) -> None:
    """Score the same untrained network on sets of 1, 2, 5 and 7 images."""
    counted = {}
    for images in COUNTS:
        settings = ["protocol=keep_ratio", "batch_size=6", "evaluate_batch_size=2", "trainer.max_steps=1"]
        run = built(f"{root}/{images}", Path(folder) / "run", *settings, f"trainer.devices={world_size}")
        module = run.module()
        run.lightning.callbacks.clear()  # nothing is trained, so there is nothing to report or save
        with quiet():
            run.lightning.validate(module, datamodule=run.data, verbose=False)
        counted[images] = {"evaluation": module.evaluation, "pixels": module.miou.confusion}
    torch.save(counted, Path(folder) / f"{world_size}_{os.environ.get('RANK', '0')}.pt")


def train_synchronised(root: str, folder: str, world_size: str, accelerator: str) -> None:
    """Train with batch norm in training mode; two processes take the same device, as two machines with one each."""
    rank = os.environ.get("RANK", "0")
    if "RANK" in os.environ:
        os.environ.update({"NODE_RANK": rank, "LOCAL_RANK": "0"})
    settings = [*EXACT, "model.freeze_batchnorm=false", f"trainer.accelerator={accelerator}", "trainer.devices=1"]
    run = built(root, Path(folder) / "run", *settings, f"trainer.num_nodes={world_size}", "batch_size=8")
    run.run_dir.mkdir(exist_ok=True)
    if world_size == "2":
        run.lightning.strategy._process_group_backend = "gloo"  # NCCL takes one process per device only
    with quiet():
        run.lightning.fit(run.module(), datamodule=run.data)
    kept = {"weights": [value.cpu() for value in run.network.state_dict().values()], "bn_batch": run.split.bn_batch}
    kept["notes"] = run.notes()
    torch.save(kept, Path(folder) / f"{world_size}_{rank}.pt")
