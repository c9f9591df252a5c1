"""Ranks that train a small run, stop it by a signal or not, and go on with it; see test_stopping.py."""

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from small_run import built

from deeplab_recipes.checkpoints import load_checkpoint
from deeplab_recipes.notices import Stopped
from deeplab_recipes.training import Run, train

STEPS = 7  # in epochs of 3, evaluated after 2, 4, 6 and at the end
LENGTH = ["trainer.max_epochs=3", f"trainer.max_steps={STEPS}", "trainer.evaluate_every=0.67", "trainer.log_every=3"]
MANY_STEPS = 120
SAVED_OFTEN = [*LENGTH, "trainer.max_epochs=40", f"trainer.max_steps={MANY_STEPS}", "trainer.evaluate_every=0.34"]


class Watch(pl.Callback):
    """Writes the samples of each step to a file, and sends this process a signal in a given step."""

    def __init__(self, path: Path, *, signal_at: int | None = None, notices: Sequence[int] = ()) -> None:
        self.path, self.signal_at, self.notices = path, signal_at, notices

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        with self.path.open("a") as file:
            print(trainer.global_step + 1, *batch["index"].tolist(), file=file)
        if trainer.global_step + 1 == self.signal_at:
            for notice in self.notices:
                os.kill(os.getpid(), notice)


def attempt(run: Run, *, signal_at: int | None = None, notices: Sequence[int] = (signal.SIGTERM,)) -> int:
    """Train or go on; returns the exit code that the process would have."""
    rank = os.environ.get("RANK", "0")
    run.run_dir.mkdir(parents=True, exist_ok=True)
    mine = signal_at if rank == "0" else None  # the others hear of it from the first
    run.lightning.callbacks.insert(0, Watch(run.run_dir / f"samples.{rank}", signal_at=mine, notices=notices))
    try:
        train(run, resume="auto")
    except Stopped as stop:
        return stop.code
    return 0


def stop_and_go_on(root: str, folder: str, workers: str, world_size: str, *stops: str) -> None:
    """Train once without a stop and once for each of `stops` with one; leaves exit codes beside the runs."""
    settings = [*LENGTH, f"data.workers={workers}", f"trainer.devices={world_size}"]
    torch.set_num_threads(1)
    attempt(built(root, Path(folder) / "whole", *settings))
    for stop in stops:
        run_dir = Path(folder) / f"stopped_{stop}"
        first = attempt(built(root, run_dir, *settings), signal_at=int(stop))
        second = attempt(built(root, run_dir, *settings))
        (run_dir / f"codes.{os.environ.get('RANK', '0')}").write_text(f"{first} {second}")


def train_whole(root: str, run_dir: str) -> None:
    attempt(built(root, run_dir, *SAVED_OFTEN))


def kill_and_go_on(root: str, run_dir: str, kills: str) -> None:
    """Go on with a run as often as it is killed, and then to its end; prints where each kill left it."""
    rng, left, torn = random.Random(0), [], 0
    for _ in range(int(kills)):
        child = os.fork()
        if child == 0:
            attempt(built(root, run_dir, *SAVED_OFTEN))
            os._exit(1)  # too early: the kill was to come first
        wait_for_steps(Path(run_dir) / "samples.0", rng.randint(1, 6))
        time.sleep(rng.uniform(0, 0.4))
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        folder = Path(run_dir) / "checkpoints"
        torn += any(folder.glob(".*.part"))
        newest = folder / "last.ckpt"
        left.append(load_checkpoint(newest)["global_step"] if newest.exists() else 0)
    attempt(built(root, run_dir, *SAVED_OFTEN))
    print("killed after steps", *left, "of them while writing:", torn)


def wait_for_steps(samples: Path, count: int) -> None:
    def begun() -> int:
        return len(samples.read_text().splitlines()) if samples.exists() else 0

    before = begun()
    while begun() < before + count:
        time.sleep(0.005)


def interrupt_twice(root: str, run_dir: str) -> None:
    """Ctrl-C twice in the fourth step: the second does not wait for its end."""
    try:
        attempt(built(root, run_dir, *LENGTH), signal_at=4, notices=(signal.SIGINT, signal.SIGINT))
    except KeyboardInterrupt:
        print("interrupted")
    attempt(built(root, run_dir, *LENGTH))


def stop_with_auxiliary_head(root: str, folder: str) -> None:
    settings = [*LENGTH, "model.auxiliary_head=true", "loss.auxiliary=0.4"]
    attempt(built(root, Path(folder) / "whole", *settings))
    attempt(built(root, Path(folder) / "stopped", *settings), signal_at=4)
    attempt(built(root, Path(folder) / "stopped", *settings))


def stop_in_the_last_step(root: str, folder: str) -> None:
    """The last evaluation comes after training: the signal is not forgotten on the way there."""
    attempt(built(root, Path(folder) / "whole", *LENGTH))
    codes = [attempt(built(root, Path(folder) / "stopped", *LENGTH), signal_at=at) for at in (STEPS, None)]
    print("codes", *codes)


def train_longer(root: str, folder: str) -> None:
    """Stop at a step in mid-epoch, and go on to a later one."""
    longer = [*LENGTH, "schedule=constant", f"trainer.max_steps={STEPS + 2}"]
    attempt(built(root, Path(folder) / "whole", *longer))
    attempt(built(root, Path(folder) / "longer", *longer, f"trainer.max_steps={STEPS - 2}"))
    attempt(built(root, Path(folder) / "longer", *longer))


class SignalWhileStarting(pl.Callback):
    """Sends this process SIGTERM when Lightning's handler is in place, and ours is not yet."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def stop_before_the_first_step(root: str, run_dir: str) -> None:
    run = built(root, run_dir, *LENGTH)
    run.lightning.callbacks.insert(0, SignalWhileStarting())
    print("code", attempt(run))


class SignalInEvaluation(pl.Callback):
    """Sends this process signals in the first evaluation batch after a step, and keeps what is saved by the second."""

    def __init__(self, step: int, *notices: int) -> None:
        self.step, self.notices = step, notices

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            for notice in self.notices:
                os.kill(os.getpid(), notice)
            self.notices = ()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        newest = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if trainer.global_step == self.step and batch_idx == 1 and newest.exists():
            newest.with_name("during.ckpt").write_bytes(newest.read_bytes())


def stop_in_evaluation(root: str, run_dir: str, step: str, notice: str) -> None:
    """Print the exit code, or the exception that the command would turn into one."""
    devices = os.environ.get("WORLD_SIZE", "1")
    run = built(root, run_dir, *LENGTH, "trainer.evaluate_every=1.0", f"trainer.devices={devices}")
    if os.environ.get("RANK", "0") == "0":
        run.lightning.callbacks.append(SignalInEvaluation(int(step), int(notice)))
    try:
        code = attempt(run)
        print(f"[{os.environ.get('RANK', '0')}] code {code}")
    except KeyboardInterrupt:
        print("interrupted")


def go_on_from(root: str, run_dir: str, checkpoint: str) -> None:
    train(built(root, run_dir, *LENGTH, "trainer.evaluate_every=1.0"), resume=checkpoint)


def train_evaluated_by_epoch(root: str, run_dir: str) -> None:
    train(built(root, run_dir, *LENGTH, "trainer.evaluate_every=1.0"))


def stop_while_drawing(root: str, run_dir: str) -> None:
    """SIGTERM when the pictures are begun; gone on with, the run has them."""
    from deeplab_recipes import training

    drawn = training.comparison

    def signal_first(*arguments: Any, **named: Any) -> Any:
        training.comparison = drawn
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    training.comparison = signal_first
    print("codes", *(attempt(built(root, run_dir, *LENGTH, "pictures=1")) for _ in range(2)))


def stop_while_looking_at_the_checkpoint(root: str, run_dir: str) -> None:
    """SIGTERM before anything is trained, and before Lightning has a part."""
    from deeplab_recipes import training

    def signal_instead(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    training._resume_from = signal_instead
    handler = signal.getsignal(signal.SIGTERM)
    print("code", attempt(built(root, run_dir, *LENGTH)), signal.getsignal(signal.SIGTERM) is handler)
