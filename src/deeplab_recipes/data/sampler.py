"""Which sample a step sees: a function of seed, epoch and step, whatever the number of devices or workers."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

NOTHING = -1  # index of the blank sample that evens out the ranks in evaluation; it counts nowhere


class Draw(NamedTuple):
    """What a worker needs to make a training sample: its draws follow from (seed, epoch, index)."""

    epoch: int
    index: int


class TrainingSampler(Sampler[Draw]):
    """This rank's slice of every global batch of an epoch, in order; the last incomplete one is dropped.

    Global batch b is permutation[b * batch_size : (b + 1) * batch_size], and rank r takes its r-th part.

    Args:
        size: number of training samples.
        batch_size: global batch size.
        seed: of the permutations.
        rank, world_size: this device and their number.
        steps_done: gives the steps that were taken so far, which say where to go on, in mid-epoch too.
            (Lightning begins an epoch more than once and before it says which one it is.) None: `set_epoch`
            says it.

    Raises:
        ValueError: if the batch is larger than the set or not divisible by the world size.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        steps_done: Callable[[], int] | None = None,
    ) -> None:
        if batch_size > size:
            raise ValueError(f"batch_size={batch_size} is larger than the training part ({size} samples)")
        if batch_size % world_size:
            raise ValueError(f"batch_size={batch_size} is not divisible by {world_size} devices")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size, self.steps_done = rank, world_size, steps_done
        self.epoch = 0

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches in a whole epoch."""
        return self.size // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to iterate next, where `steps_done` does not."""
        self.epoch = epoch

    def global_batch(self, epoch: int, batch: int) -> list[int]:
        """Return the sample indices of a global batch, in rank order."""
        return self._order(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()

    def __len__(self) -> int:
        return self.steps_per_epoch * (self.batch_size // self.world_size)

    def __iter__(self) -> Iterator[Draw]:
        epoch, start = divmod(self.steps_done(), self.steps_per_epoch) if self.steps_done else (self.epoch, 0)
        order = self._order(epoch)[: self.steps_per_epoch * self.batch_size]
        shares = order.reshape(self.steps_per_epoch, self.world_size, -1)
        for index in shares[start:, self.rank].ravel().tolist():
            yield Draw(epoch, index)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.size)


class EvaluationSampler(Sampler[int]):
    """Every sample exactly once over all ranks: rank r takes r, r + world_size, ...

    Ranks that come up short get `NOTHING`, so that all take the same number of steps.
    """

    def __init__(self, size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.size, self.rank, self.world_size = size, rank, world_size

    def __len__(self) -> int:
        return -(-self.size // self.world_size)

    def __iter__(self) -> Iterator[int]:
        for index in range(self.rank, len(self) * self.world_size, self.world_size):
            yield index if index < self.size else NOTHING
