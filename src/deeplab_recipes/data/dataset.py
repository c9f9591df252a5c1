"""Reading pairs and turning them into samples; what a worker process runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from deeplab_recipes.data.labels import IGNORE, decode_labels
from deeplab_recipes.data.sampler import NOTHING, Draw
from deeplab_recipes.data.sources.base import Pair, Source
from deeplab_recipes.data.transforms import MEAN_PIXEL, EvaluationTransform, TrainingTransform

OnCorrupt = Literal["raise", "skip"]
BLANK_SIZE = 33  # the smallest image the models take


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture; what Pillow raises about a broken one becomes a ValueError that names the file."""
    try:
        with Image.open(path) as picture:
            yield picture
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = f"cannot be read as a picture ({error}); replace it or remove the pair"
        raise ValueError(f"{path}: {reason}") from None


def read_image(pair: Pair) -> np.ndarray:
    """Decode a photograph to (H, W, 3) uint8 RGB.

    Raises:
        ValueError: if it cannot be decoded or has more than 8 bits a channel; names the file.
    """
    with open_picture(pair.image) as image:
        if image.mode[0] in "IF":  # Pillow would clip their values to 255
            raise ValueError(f"{pair.image}: an image must have 8 bits a channel, this one is {image.mode}")
        return np.asarray(image.convert("RGB"))


def read_labels(pair: Pair, table: np.ndarray) -> np.ndarray:
    """Decode a label picture to (H, W) uint8 classes and 255.

    Raises:
        ValueError: if it cannot be decoded or holds a value outside the classes; names file and value.
    """
    with open_picture(pair.label) as picture:
        stored = np.asarray(picture)
    return decode_labels(stored, table, name=str(pair.label))


def read_pair(pair: Pair, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return image (H, W, 3) and labels (H, W).

    Raises:
        ValueError: as `read_image` and `read_labels`, or if their sizes differ.
    """
    image, labels = read_image(pair), read_labels(pair, table)
    require_same_size(pair, image.shape[:2], labels.shape)
    return image, labels


def require_same_size(pair: Pair, image: tuple[int, ...], label: tuple[int, ...]) -> None:
    """Raise ValueError that names both files if the (height, width) of an image and of its labels differ."""
    if image != label:
        raise ValueError(
            f"{pair.image} is {image[1]} x {image[0]} pixels but {pair.label} is {label[1]} x {label[0]}; "
            "an image and its labels must have the same size"
        )


class SegmentationDataset(Dataset[dict[str, Any]]):
    """Pairs of one part as samples.

    A sample is {"image" (H, W, 3) uint8, "label" (H, W) uint8, "index" int, "corrupt" bool} and what the
    transform adds. Training samples are asked for by `Draw`, evaluation samples by index.

    Args:
        source: the data set, for its label table.
        split: the part.
        transform: a `TrainingTransform` or an `EvaluationTransform`.
        seed: of the training draws.
        on_corrupt: "raise", or "skip": an unusable pair becomes a blank sample with every pixel ignored, and
            is marked, so that the order of all others stays.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        transform: TrainingTransform | EvaluationTransform,
        *,
        seed: int = 0,
        on_corrupt: OnCorrupt = "raise",
    ) -> None:
        self.table, self.split, self.transform = source.table, split, transform
        self.pairs = source.pairs(split)
        self.seed, self.on_corrupt = seed, on_corrupt

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Draw | int) -> dict[str, Any]:
        index = key.index if isinstance(key, Draw) else int(key)
        if index == NOTHING:
            return {**_blank((BLANK_SIZE, BLANK_SIZE)), "index": index, "corrupt": False}
        corrupt = False
        try:
            image, labels = read_pair(self.pairs[index], self.table)
        except ValueError:
            if self.on_corrupt == "raise":
                raise
            corrupt = True
            blank = _blank((BLANK_SIZE, BLANK_SIZE))
            image, labels = blank["image"], blank["label"]
        sample = self._transform(image, labels, key)
        return {**sample, "index": index, "corrupt": corrupt}

    def _transform(self, image: np.ndarray, labels: np.ndarray, key: Draw | int) -> dict[str, np.ndarray]:
        if isinstance(self.transform, EvaluationTransform):
            return self.transform(image, labels)
        if not isinstance(key, Draw):
            raise TypeError("a training sample is asked for by Draw(epoch, index)")
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        return self.transform(image, labels, rng)


def _blank(size: tuple[int, int]) -> dict[str, np.ndarray]:
    image = np.empty((*size, 3), np.uint8)
    image[:] = MEAN_PIXEL
    return {"image": image, "label": np.full(size, IGNORE, np.uint8)}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Stack samples of one size; images become (B, 3, H, W) uint8 (in channels-last memory, for free)."""
    batch = {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0]}
    batch["image"] = batch["image"].permute(0, 3, 1, 2)
    return batch


def collate_by_size(samples: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]]:
    """Stack samples into one batch for each pair of image and label size, in order of first appearance."""
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for sample in samples:
        groups.setdefault((*sample["image"].shape, *sample["label"].shape), []).append(sample)
    return [collate(group) for group in groups.values()]
