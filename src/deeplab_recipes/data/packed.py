"""Lists of pairs: one that loader processes share, and a sample of any."""

import pickle
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar, overload

import numpy as np

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return up to `count` items, spread evenly from the first to the last."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]


class Packed(Sequence[T], Generic[T]):
    """A list kept as one block of bytes.

    A forked process that touches an object writes its reference count, and so gets a copy of the memory page: with a
    list of 20,000 pairs every worker's memory would grow for a whole epoch. A block of bytes is one object.

    Args:
        items: whatever pickle takes.
    """

    def __init__(self, items: Iterable[T]) -> None:
        pickled = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = np.cumsum([len(item) for item in pickled], dtype=np.int64)
        self._bytes = b"".join(pickled)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a list of {len(self)}")
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        return pickle.loads(memoryview(self._bytes)[start : self._ends[index]])
