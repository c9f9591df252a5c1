"""A cluster's notice where nothing is trained: while a run starts, or after its last evaluation; and a parent's end.

In training a run has something to save, and stops by `signals.StopOnSignal`. This module imports nothing heavy: the
notice may come while the libraries are still being read.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later
RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")  # where launchers say which process this is
FROM_CLUSTERS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(SystemExit):
    """A run that was asked to stop and saved where it is.

    Args:
        code: exit code of the process.
        message: what happened, and how to go on.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code)
        self.message = message

    def __str__(self) -> str:
        return self.message


def rank() -> str | None:
    """Return this process's number as the launcher gave it, or None where there is one process."""
    return next((os.environ[key] for key in RANKS if key in os.environ), None)


@contextmanager
def handled(notices: Sequence[int], handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Give signals a handler, and back the one that they had; in the main thread, where alone that can be done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {notice: signal.signal(notice, handler) for notice in notices}
    try:
        yield
    finally:
        for notice, earlier in before.items():
            signal.signal(notice, signal.SIG_DFL if earlier is None else earlier)


@contextmanager
def ending_on_notice(how: str = "go on with run_dir=... resume=auto") -> Iterator[None]:
    """End the process at a notice, with the exit code by which a cluster knows that it may start it again.

    Args:
        how: what to do then, for the message.

    Raises:
        Stopped: where the notice comes. As in training the first process carries the code, the others 0.
    """
    stops: list[Stopped] = []

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        stops.append(Stopped(0 if rank() not in (None, "0") else REQUEUE, f"{signal.Signals(signum).name}; {how}"))
        raise stops[-1]

    with handled(FROM_CLUSTERS, end):
        try:
            yield
        except Stopped as stop:
            if stop in stops and stop.code == REQUEUE:
                print(f"stopped: {stop}", file=sys.stderr)
            raise


def end_with_parent() -> None:
    """End this process soon after the one that forked it, which may be killed without having told it."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
