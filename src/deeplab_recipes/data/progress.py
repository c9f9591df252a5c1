"""How far a long piece of work with bytes is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

QUIET_SECONDS = 15.0  # between lines where the output is a file
LONGEST = 40  # characters of what is being done: the bar needs its room


class Meter:
    """Shows bytes done, rate and time left.

    Args:
        what: what is being done.
        total: bytes in all, or None where that is not known.
        done: bytes that were there before.
    """

    def __init__(self, what: str, total: int | None, *, done: int = 0) -> None:
        what = self.what = what if len(what) <= LONGEST else f"{what[: LONGEST - 13]}...{what[-10:]}"
        visible = sys.stderr.isatty()
        self.bar = tqdm(
            total=total, initial=done, desc=what, unit="B", unit_scale=True, dynamic_ncols=True, disable=not visible
        )
        self.total, self.done, self.before = total, done, done
        self.began = self.said = time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.bar.disable and now - self.said >= QUIET_SECONDS:
            self.said = now
            print(self.line(now), file=sys.stderr)

    def reach(self, position: int) -> None:
        """Say how many bytes are done in all."""
        self.add(position - self.done)

    def line(self, now: float) -> str:
        """Return "NAME  312M of 967M  12.3M/s  00:53 left"."""
        rate = (self.done - self.before) / max(now - self.began, 1e-9)
        text = f"{self.what}  {tqdm.format_sizeof(self.done)}B"
        if self.total is not None:
            text += f" of {tqdm.format_sizeof(self.total)}B"
        text += f"  {tqdm.format_sizeof(rate)}B/s"
        if self.total is not None and rate > 0:
            text += f"  {tqdm.format_interval((self.total - self.done) / rate)} left"
        return text

    def __enter__(self) -> "Meter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
