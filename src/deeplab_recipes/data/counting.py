"""How many pixels of each class the training labels show."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from deeplab_recipes.data.labels import IGNORE
from deeplab_recipes.data.sources.base import Pair, Source
from deeplab_recipes.machine import cores


def count_classes(
    source: Source, pairs: Sequence[Pair], *, skip_unreadable: bool = False
) -> tuple[list[int], list[int]]:
    """Count labelled pixels by class, at the labels' own size.

    Args:
        source: reads the labels.
        pairs: to count over.
        skip_unreadable: leave out pairs whose labels cannot be read.

    Returns:
        For each class its pixels, and the labelled pixels of all classes in the images in which it occurs.

    Raises:
        ValueError: for labels that cannot be read; names the file.
    """

    def count(pair: Pair) -> np.ndarray:
        try:
            return np.bincount(source.labels(pair).ravel(), minlength=IGNORE)[: len(source.classes)]
        except ValueError:
            if skip_unreadable:
                return np.zeros(len(source.classes), np.int64)
            raise

    pixels, in_images = np.zeros((2, len(source.classes)), np.int64)
    with ThreadPoolExecutor(cores()) as pool:  # decoding holds no interpreter lock
        for counts in pool.map(count, pairs):
            pixels += counts
            in_images += np.where(counts > 0, counts.sum(), 0)
    return pixels.tolist(), in_images.tolist()
