"""Finding unusable data before training: sizes of every pair from the file headers, content of a sample of them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from PIL import Image

from deeplab_recipes.data.dataset import read_pair
from deeplab_recipes.data.sources.base import Pair


def check_pairs(
    pairs: list[Pair], table: np.ndarray, *, samples: int, on_corrupt: Literal["raise", "skip"] = "raise"
) -> None:
    """Compare image and label sizes of all pairs, and decode `samples` pairs spread evenly over them.

    With `on_corrupt="skip"` unreadable pairs are left for training to skip and count.

    Raises:
        ValueError: names the first file that cannot be used, and why.
    """
    if on_corrupt == "skip" or samples == 0:
        return
    chosen = pairs if samples >= len(pairs) else [pairs[i] for i in np.linspace(0, len(pairs) - 1, samples).astype(int)]
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(_check_sizes, pairs):
            pass
        for _ in pool.map(lambda pair: read_pair(pair, table), chosen):
            pass


def _check_sizes(pair: Pair) -> None:
    image, label = _size(pair.image), _size(pair.label)
    if image != label:
        raise ValueError(
            f"{pair.image} is {image[0]} x {image[1]} pixels but {pair.label} is {label[0]} x {label[1]}; "
            "an image and its labels must have the same size"
        )


def _size(path: object) -> tuple[int, int]:
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error}); replace it or remove the pair") from None
