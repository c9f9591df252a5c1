"""Reading pairs and turning them into samples; what a worker process runs."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deeplab_recipes.data.labels import IGNORE
from deeplab_recipes.data.packed import Packed
from deeplab_recipes.data.sampler import NOTHING, Draw
from deeplab_recipes.data.sources.base import Source, read_pair
from deeplab_recipes.data.transforms import MEAN_PIXEL, EvaluationTransform, TrainingTransform

OnCorrupt = Literal["raise", "skip"]
BLANK_SIZE = 33  # the smallest image the models take


class SegmentationDataset(Dataset[dict[str, Any]]):
    """Pairs of one part as samples.

    A sample is {"image" (H, W, 3) uint8, "label" (H, W) uint8, "index" int, "corrupt" bool} and what the
    transform adds. Training samples are asked for by `Draw`, evaluation samples by index.

    Args:
        source: the data set.
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
        self.source, self.split, self.transform = source, split, transform
        self.pairs = Packed(source.pairs(split))
        self.seed, self.on_corrupt = seed, on_corrupt

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Draw | int) -> dict[str, Any]:
        index = key.index if isinstance(key, Draw) else int(key)
        if index == NOTHING:
            return {**_blank((BLANK_SIZE, BLANK_SIZE)), "index": index, "corrupt": False}
        corrupt = False
        try:
            image, labels = read_pair(self.pairs[index], self.source)
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
