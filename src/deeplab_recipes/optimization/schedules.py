"""Learning-rate factors: functions of tau, the fraction of the steps done (clipped to [0, 1]), or of the step."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


def polynomial(tau: float, *, power: float = 0.9, alpha_f: float = 0.0) -> float:
    """alpha_f + (1 - alpha_f) (1 - tau)^power: the "poly" policy, ending at alpha_f."""
    return alpha_f + (1 - alpha_f) * (1 - _clip(tau)) ** power


def cosine(tau: float, *, alpha_f: float = 0.0) -> float:
    """alpha_f + (1 - alpha_f) (1 + cos(pi tau)) / 2: half a cosine wave, ending at alpha_f."""
    return alpha_f + (1 - alpha_f) * (1 + math.cos(math.pi * _clip(tau))) / 2


def constant(tau: float) -> float:
    """1 at every tau."""
    return 1.0


def _clip(tau: float) -> float:
    return min(max(tau, 0.0), 1.0)


class StepSchedule(ABC):
    """A factor that follows from the step, however many there are in all."""

    @abstractmethod
    def at(self, step: int, steps_per_epoch: int) -> float:
        """Return the factor of the step (0-based)."""


@dataclass(frozen=True)
class Exponential(StepSchedule):
    """factor^n, n the steps or the whole epochs done.

    Args:
        factor: in (0, 1].
        every: "epoch" or "step".

    Raises:
        ValueError: for another value.
    """

    factor: float
    every: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1:
            raise ValueError(f"schedule.factor is {self.factor}; it must be in (0, 1]")
        if self.every not in ("epoch", "step"):
            raise ValueError(f"schedule.every is {self.every!r}; valid are epoch, step")

    def at(self, step: int, steps_per_epoch: int) -> float:
        """Return the factor of the step."""
        return self.factor ** (step // steps_per_epoch if self.every == "epoch" else step)


@dataclass(frozen=True)
class InverseTime(StepSchedule):
    """1 / (1 + decay * step): the `decay` of Keras' optimizers.

    Raises:
        ValueError: for a negative decay.
    """

    decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.decay < math.inf:
            raise ValueError(f"schedule.decay is {self.decay}; it must be a number of at least 0")

    def at(self, step: int, steps_per_epoch: int) -> float:
        """Return the factor of the step."""
        return 1 / (1 + self.decay * step)


Schedule = Callable[[float], float] | StepSchedule


def by_step(
    schedule: Schedule, *, total: int, steps_per_epoch: int | None, at_last_step: bool = False
) -> Callable[[int], float]:
    """Return a schedule's factor as a function of the step.

    Args:
        schedule: a function of tau, or a `StepSchedule`.
        total: steps of the whole run.
        steps_per_epoch: what a `StepSchedule` counts epochs by.
        at_last_step: the last step is taken at tau 1, as mmengine does, not one step before it.

    Raises:
        ValueError: for a `StepSchedule` without `steps_per_epoch`, or with an end.
    """
    if not isinstance(schedule, StepSchedule):
        span = max(total - 1, 1) if at_last_step else total
        return lambda step: schedule(step / span)
    if at_last_step:
        raise ValueError(
            "schedule_ends=at_last_step has no effect: this schedule has no end; leave it at after_last_step"
        )
    if steps_per_epoch is None:
        raise ValueError("a schedule by steps or epochs needs steps_per_epoch")
    return lambda step: schedule.at(step, steps_per_epoch)
