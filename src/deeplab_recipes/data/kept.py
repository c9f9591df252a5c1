"""Decoded pairs in memory that all loader processes of a device share: small sets are decoded once, not every epoch."""

import mmap
import multiprocessing
from collections.abc import Sequence

import numpy as np

from deeplab_recipes.data.files import File
from deeplab_recipes.data.packed import spread
from deeplab_recipes.data.pictures import Decoded, Photograph, picture_size
from deeplab_recipes.data.reading import open_photograph
from deeplab_recipes.data.sources.base import Pair
from deeplab_recipes.machine import free_memory

SHARE = 0.25  # of the free memory that they may take
SPREAD = 64  # pairs whose sizes are looked at
RESERVE = 1.25  # sizes differ, and those 64 may be the smaller ones


class KeptPairs:
    """Room for the images and labels of a part, in memory that forked processes see too.

    Pages are taken as they are written. A process that is not forked gets a pickled copy: it is empty and has no room.

    Args:
        count: pairs of the part.
        capacity: bytes.
    """

    def __init__(self, count: int, capacity: int) -> None:
        self.capacity = capacity
        self._pixels = np.frombuffer(mmap.mmap(-1, max(capacity, 1)), np.uint8)
        self._places = np.frombuffer(mmap.mmap(-1, 24 * max(count, 1)), np.int64).reshape(-1, 3)  # end, height, width
        self._used = multiprocessing.Value("q", 0)

    def __reduce__(self) -> tuple[type, tuple[int, int]]:
        return KeptPairs, (0, 0)

    def get(self, index: int, file: File) -> tuple[Photograph, np.ndarray] | None:
        """Return the photograph (that `file` holds) and the labels of a pair, or None."""
        if index >= len(self._places):
            return None
        with self._used.get_lock():  # whoever has the place sees the pixels, too
            end, height, width = self._places[index].tolist()
        if not end:
            return None
        size = height * width
        image = self._pixels[end - 4 * size : end - size].reshape(height, width, 3)
        return _Kept(image, file), self._pixels[end - size : end].reshape(height, width)

    def put(self, index: int, image: np.ndarray, labels: np.ndarray) -> None:
        """Keep image (H, W, 3) and labels (H, W) of a pair, if there is room."""
        with self._used.get_lock():
            end = self._used.value + 4 * labels.size
            if end > self.capacity:
                return
            self._used.value = end
        self._pixels[end - 4 * labels.size : end - labels.size] = image.ravel()
        self._pixels[end - labels.size : end] = labels.ravel()
        with self._used.get_lock():
            self._places[index] = end, *labels.shape


class _Kept(Decoded):
    """A photograph of which the file is there, too."""

    def __init__(self, pixels: np.ndarray, file: File) -> None:
        super().__init__(pixels)
        self.file = file

    def reduced(self, factor: int) -> Photograph:
        """Decode the file again, so that a sample does not depend on what is kept."""
        return open_photograph(self.file).reduced(factor)


def keep(pairs: Sequence[Pair], *, devices: int) -> KeptPairs | None:
    """Return room for all pairs if they are likely to fit into this device's share of the free memory.

    Args:
        pairs: of the part.
        devices: how many of this machine train, each with room of its own.
    """
    try:
        areas = [np.prod(picture_size(pair.image)) for pair in spread(pairs, SPREAD)]
    except ValueError:  # a broken picture is for the loader to report
        return None
    needed = int(4 * np.mean(areas) * len(pairs) * RESERVE)
    forks = multiprocessing.get_start_method(allow_none=False) == "fork"
    return KeptPairs(len(pairs), needed) if forks and needed <= SHARE * free_memory() / devices else None
