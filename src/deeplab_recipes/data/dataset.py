"""Reading pairs and turning them into samples; what a worker process runs."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from deeplab_recipes.data.kept import KeptPairs
from deeplab_recipes.data.labels import IGNORE
from deeplab_recipes.data.packed import Packed
from deeplab_recipes.data.pictures import Decoded, Photograph
from deeplab_recipes.data.sampler import NOTHING, Draw
from deeplab_recipes.data.sources.base import Source, open_pair
from deeplab_recipes.data.transforms import MEAN_PIXEL, SMALLEST, EvaluationTransform, TrainingTransform

OnCorrupt = Literal["raise", "skip"]


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
        self.kept: KeptPairs | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Draw | int) -> dict[str, Any]:
        """Return one sample."""
        index = key.index if isinstance(key, Draw) else int(key)
        if index == NOTHING:
            return {"image": _blank().pixels(), "label": _ignored(), "index": index, "corrupt": False}
        return self._sample(key, index)

    def __getitems__(self, keys: Sequence[Draw | int]) -> list[dict[str, Any]] | dict[str, Tensor]:
        """Return training samples as the batch that `collate` would make of them, made in place."""
        if isinstance(self.transform, EvaluationTransform):
            return [self[key] for key in keys]
        size = self.transform.crop_size
        images, labels = _room(len(keys), *size, 3), _room(len(keys), *size)
        rest = []
        for key, image, label in zip(keys, images.numpy(), labels.numpy(), strict=True):
            sample = self._sample(key, key.index, image_out=image, label_out=label)
            rest.append({name: value for name, value in sample.items() if name not in ("image", "label")})
        return {"image": images.permute(0, 3, 1, 2), "label": labels, **_stacked(rest)}

    def _sample(self, key: Draw | int, index: int, **out: np.ndarray) -> dict[str, Any]:
        corrupt = False
        try:
            sample = self._transform(*self._open(index), key, **out)
        except ValueError:
            if self.on_corrupt == "raise":
                raise
            corrupt = True
            sample = self._transform(_blank(), _ignored(), key, **out)
        return {**sample, "index": index, "corrupt": corrupt}

    def _open(self, index: int) -> tuple[Photograph, np.ndarray]:
        pair = self.pairs[index]
        if self.kept is None:
            return open_pair(pair, self.source)
        found = self.kept.get(index, pair.image)
        if found is None:
            photograph, labels = open_pair(pair, self.source)
            self.kept.put(index, photograph.pixels(), labels)
            return self.kept.get(index, pair.image) or (photograph, labels)
        return found

    def _transform(
        self, photograph: Photograph, labels: np.ndarray, key: Draw | int, **out: np.ndarray
    ) -> dict[str, np.ndarray]:
        if isinstance(self.transform, EvaluationTransform):
            return self.transform(photograph.pixels(), labels)
        if not isinstance(key, Draw):
            raise TypeError("a training sample is asked for by Draw(epoch, index)")
        rng = np.random.default_rng([self.seed, key.epoch, key.index])
        return self.transform(photograph, labels, rng, **out)


def _blank() -> Decoded:
    return Decoded(np.full((SMALLEST, SMALLEST, 3), MEAN_PIXEL, np.uint8))


def _ignored() -> np.ndarray:
    return np.full((SMALLEST, SMALLEST), IGNORE, np.uint8)


def _room(*shape: int) -> Tensor:
    """Return an empty uint8 tensor; in a loader process, in memory that the main process sees without a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)


def _stacked(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0]}


def collate(samples: Sequence[dict[str, Any]] | dict[str, Tensor]) -> dict[str, Tensor]:
    """Stack samples of one size; images become (B, 3, H, W) uint8 (in channels-last memory, for free)."""
    if isinstance(samples, dict):  # a batch already
        return samples
    batch = _stacked(samples)
    batch["image"] = batch["image"].permute(0, 3, 1, 2)
    return batch


def collate_by_size(samples: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]]:
    """Stack samples into one batch for each pair of image and label size, in order of first appearance."""
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for sample in samples:
        groups.setdefault((*sample["image"].shape, *sample["label"].shape), []).append(sample)
    return [collate(group) for group in groups.values()]
