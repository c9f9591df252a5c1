"""A run on two devices, one of which fails while the other waits for ever: python failing.py ROOT RUN_DIR RANK."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from small_run import built

from deeplab_recipes.cli import report_errors
from deeplab_recipes.training import train


class Fail(pl.Callback):
    """In the second step one rank raises and the other hangs."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        if trainer.global_step == 1:
            if trainer.global_rank == self.rank:
                raise ValueError("this one is broken")
            time.sleep(1000)


def main(root: str, run_dir: str, rank: str) -> None:
    run = built(root, run_dir, "trainer.max_steps=5", "trainer.max_epochs=3", "trainer.devices=2")
    run.lightning.callbacks.append(Fail(int(rank)))
    report_errors(lambda: train(run))


if __name__ == "__main__":
    main(*sys.argv[1:])
