"""Stopping on request: a cluster's notice or Ctrl-C ends a run after the step it is in, with a checkpoint."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl

from deeplab_recipes.notices import FROM_CLUSTERS, REQUEUE, Stopped, handled

INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C ended
GRACE_SECONDS = 3.0  # in which the others may fail by themselves and say why
NOTICES = (*FROM_CLUSTERS, signal.SIGINT)


class StopOnSignal(pl.Callback):
    """Saves and stops a run that gets SIGTERM, SIGUSR1 or Ctrl-C; a second Ctrl-C stops at once.

    One device stops after the step it is in. Several have to stop after the same one: they ask each other every `every`
    steps, and in evaluations. An evaluation that is due or under way is ended first, since a resumed run would not
    repeat it; but it is begun with a checkpoint, or one is written in it, in case that the time does not suffice. Put
    this callback behind those that act on evaluations.

    Args:
        save: writes the checkpoint.
        every: steps between the questions.
        how: to go on, for the message; None where the run's own directory says it.

    Raises:
        Stopped: in training. The first process carries the exit code, REQUEUE or INTERRUPTED, the others 0: a launcher
            that sees a process fail kills the rest.
    """

    def __init__(self, save: Callable[[pl.Trainer], None], *, every: int = 20, how: str | None = None) -> None:
        self.save, self.every, self.how = save, every, how
        self.received: int | None = None
        self.saved_step = -1

    def listening(self) -> AbstractContextManager[None]:
        """Note what comes before Lightning's loops begin and after they end; put this around them."""
        return handled(FROM_CLUSTERS, self._note)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, which puts back at the end what was there before it."""
        self._take_over(trainer)
        # Lightning would exchange and read its own flag in every step, for which a GPU has to stand still.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing

    def _take_over(self, trainer: pl.Trainer) -> None:
        lightnings = trainer._signal_connector
        # What came before the first step, Lightning noted: it would stop after that step, and save nothing.
        if lightnings.received_sigterm:
            self.received, lightnings.received_sigterm = signal.SIGTERM, False
        if threading.current_thread() is threading.main_thread():
            for notice in NOTICES:
                signal.signal(notice, self._note)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if asked, unless an evaluation or the end comes next."""
        evaluation_is_due = trainer.global_step % int(trainer.val_check_batch) == 0
        at_the_end = trainer.global_step >= trainer.estimated_stepping_batches
        asks = trainer.world_size == 1 or trainer.global_step % self.every == 0
        if asks and not evaluation_is_due and not at_the_end:
            self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save before the evaluation if asked; an evaluation after training begins here."""
        if trainer.state.fn == "validate":
            self._take_over(trainer)
        elif self._asked(trainer):
            self._save_once(trainer)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Save if asked and go on; after training, when all is saved, stop."""
        if not (trainer.world_size == 1 or batch_idx % self.every == 0) or not self._asked(trainer):
            return
        if trainer.state.fn == "validate":
            self._stop(trainer)
        self._save_once(trainer)

    def _save_once(self, trainer: pl.Trainer) -> None:
        if self.saved_step != trainer.global_step:
            self.save(trainer)
            self.saved_step = trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop here if asked."""
        if trainer.state.fn == "fit" and trainer.global_step < trainer.estimated_stepping_batches:
            self._stop_if_asked(trainer)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum

    def _asked(self, trainer: pl.Trainer) -> bool:
        """Whether any device was; all of them call it."""
        asked = self.received is not None
        return trainer.strategy.reduce_boolean_decision(asked, all=False) if trainer.world_size > 1 else asked

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        if self._asked(trainer):
            self.save(trainer)
            self._stop(trainer)

    def _stop(self, trainer: pl.Trainer) -> NoReturn:
        name = signal.Signals(self.received or signal.SIGTERM).name
        how = self.how or f"go on with run_dir={trainer.default_root_dir} resume=auto"
        message = f"{name} after step {trainer.global_step}; {how}"
        if not trainer.is_global_zero:
            raise Stopped(0, message)
        print(f"stopped: {message}", file=sys.stderr)
        raise Stopped(INTERRUPTED if name == "SIGINT" else REQUEUE, message)


def _nothing() -> None:
    pass


def end_launched_processes(trainer: pl.Trainer) -> None:
    """End the processes that Lightning started for the other devices, once this one has failed.

    They may be waiting for it in a collective, where nothing else would ever reach them.
    """
    launched = getattr(trainer.strategy.launcher, "procs", [])
    deadline = time.monotonic() + GRACE_SECONDS
    while any(process.poll() is None for process in launched) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in launched:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def held_back() -> Iterator[None]:
    """Let notices wait, here and in the processes that are forked meanwhile: those get ready for them first."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_notices_to_parent(parent: int) -> None:
    """Let a loader's worker live through a signal that the whole process group gets: its parent still needs batches.

    SIGTERM from the parent itself (a process number) ends it, as when an interpreter that exits takes its helpers
    along. Where the system cannot tell who sent a signal, SIGTERM does what it always did.
    """
    for notice in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(notice, signal.SIG_IGN)
    waits = hasattr(signal, "sigwaitinfo")
    # From `held_back` all are blocked. Only who waits for a blocked signal learns who sent it.
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM} if waits else ())
    if waits:
        threading.Thread(target=_end_when_told_by, args=(parent,), daemon=True).start()


def _end_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
