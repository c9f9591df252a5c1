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
