"""How far a long piece of work is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

QUIET_SECONDS = 15.0  # between lines where the output is a file
LONGEST = 40  # characters of what is being done: the bar needs its room


class Meter:
    """Shows what is done, the rate and the time left.

    Args:
        what: what is being done.
        total: bytes or other units in all, or None where that is not known.
        done: of them, what was there before.
        unit: what is counted, in the plural; "B" for bytes.
        visible: False shows nothing.
    """

    def __init__(self, what: str, total: int | None, *, done: int = 0, unit: str = "B", visible: bool = True) -> None:
        what = self.what = what if len(what) <= LONGEST else f"{what[: LONGEST - 13]}...{what[-10:]}"
        terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=what,
            unit=unit if unit == "B" else f" {unit}",
            unit_scale=unit == "B",
            dynamic_ncols=True,
            disable=not (visible and terminal),
        )
        self.unit, self.lines = unit, visible and not terminal
        self.total, self.done, self.before = total, done, done
        self.began = self.said = time.monotonic()

    def add(self, count: int) -> None:
        """Count what was done."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.lines and now - self.said >= QUIET_SECONDS:
            self.said = now
            print(self.line(now), file=sys.stderr)

    def reach(self, position: int) -> None:
        """Say how much is done in all."""
        self.add(position - self.done)

    def expect(self, count: int) -> None:
        """Add to what there is to do."""
        self.total = self.bar.total = (self.total or 0) + count

    def line(self, now: float) -> str:
        """Return "NAME  312MB of 967MB  12.3MB/s  00:53 left"."""
        rate = (self.done - self.before) / max(now - self.began, 1e-9)
        text = f"{self.what}  {self._amount(self.done)}"
        if self.total is not None:
            text += f" of {self._amount(self.total)}"
        text += f"  {self._amount(rate)}/s"
        if self.total is not None and rate > 0:
            text += f"  {tqdm.format_interval((self.total - self.done) / rate)} left"
        return text

    def _amount(self, amount: float) -> str:
        return f"{tqdm.format_sizeof(amount)}B" if self.unit == "B" else f"{amount:,.0f} {self.unit}"

    def __enter__(self) -> "Meter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
