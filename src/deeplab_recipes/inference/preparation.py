"""How a photograph becomes a network's input, and the network's logits those of the photograph."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from deeplab_recipes.data.device import normalize
from deeplab_recipes.data.transforms import evaluated_size, resize_image
from deeplab_recipes.module import resize_logits

Size = tuple[int, int]


class Preparation(Protocol):
    """Input and output of a network, as a checkpoint's card has them."""

    def input(self, image: np.ndarray, device: torch.device) -> Tensor:
        """Return normalised floats (1, 3, H', W') for (H, W, 3) uint8 RGB."""

    def logits(self, output: Tensor, size: Size) -> Tensor:
        """Return logits (1, C, H, W) at the `size` of the photograph for the network's (1, C, H', W')."""

    def labels(self, output: Tensor, size: Size) -> Tensor:
        """Return labels (1, H, W) int64 at the `size` of the photograph."""


def preparation(card: Mapping[str, Any]) -> Preparation:
    """Return the preparation that a card names: an evaluation protocol, or ``padded``."""
    return Padded(card) if card["protocol"] == "padded" else Resized(card)


class Resized:
    """The image resized as its evaluation protocol does, the logits resized back bilinearly."""

    def __init__(self, card: Mapping[str, Any]) -> None:
        self.card, self.protocol = card, card["protocol"]

    def input(self, image: np.ndarray, device: torch.device) -> Tensor:
        """See `Preparation`."""
        target = evaluated_size(self.protocol, image.shape[:2], tuple(self.card["evaluate_sizes"][self.protocol]))
        return _normalised(resize_image(image, target, self.protocol), self.card, device)

    def logits(self, output: Tensor, size: Size) -> Tensor:
        """See `Preparation`."""
        return resize_logits(output, size)

    def labels(self, output: Tensor, size: Size) -> Tensor:
        """See `Preparation`."""
        return self.logits(output, size).argmax(1)


class Padded:
    """What graphs exported by TensorFlow's research/deeplab do: the image padded right and below to a fixed size.

    The padding is the mean pixel. An image that is larger is first shrunk until it fits, as that project's
    demonstration does (by Pillow, Lanczos), and the logits are enlarged bilinearly, corners aligned. Where the card
    says so (``resize_range``: min, max and perhaps factor), the graph resizes every image itself, bilinearly with
    corners aligned, and takes the labels back to the image's size as the nearest ones.
    """

    def __init__(self, card: Mapping[str, Any]) -> None:
        self.card, self.range = card, card.get("resize_range")
        self.crop: Size = tuple(card["evaluate_sizes"]["padded"])

    def input(self, image: np.ndarray, device: torch.device) -> Tensor:
        """See `Preparation`.

        Raises:
            ValueError: the image would be larger than what it is padded to.
        """
        size = self._inner(image.shape[:2])
        if self.range is None and size != image.shape[:2]:
            image = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))
        pixels = _normalised(image, self.card, device)
        if self.range is not None:
            pixels = _resize(pixels, size)
        return pad(pixels, (0, self.crop[1] - size[1], 0, self.crop[0] - size[0]))

    def logits(self, output: Tensor, size: Size) -> Tensor:
        """See `Preparation`."""
        return _resize(self._inside(output, size), size)

    def labels(self, output: Tensor, size: Size) -> Tensor:
        """See `Preparation`."""
        if self.range is None:
            return self.logits(output, size).argmax(1)
        return _nearest(self._inside(output, size).argmax(1), size)

    def _inside(self, output: Tensor, size: Size) -> Tensor:
        height, width = self._inner(size)
        return output[..., :height, :width]

    def _inner(self, size: Size) -> Size:
        """Return the size of what is not padding."""
        inner = fitting(size, self.crop) if self.range is None else size_in_range(size, **self.range)
        if inner[0] > self.crop[0] or inner[1] > self.crop[1]:
            raise ValueError(
                f"an image of {size[0]} x {size[1]} pixels becomes {inner[0]} x {inner[1]}, which does not fit into "
                f"{self.crop[0]} x {self.crop[1]}; shrink it, or cut it into parts"
            )
        return inner


def fitting(size: Size, crop: Size) -> Size:
    """Return the (height, width) at which an image fits into `crop`: its own, or that of the same aspect."""
    factor = min(crop[0] / size[0], crop[1] / size[1], 1.0)
    return max(int(size[0] * factor), 1), max(int(size[1] * factor), 1)


def size_in_range(size: Size, *, min: int, max: int | None = None, factor: int | None = None) -> Size:
    """Return the (height, width) that research/deeplab's ``resize_to_range`` gives an image, in float32 as there.

    Args:
        size: (height, width) of the image.
        min: of the shorter side.
        max: of the longer side, which wins.
        factor: sides become a multiple of it plus one.
    """
    sides = np.asarray(size, np.float32)
    if max is not None and factor is not None:
        max = max - (max - 1) % factor
    found = np.floor(sides * (np.float32(min) / sides.min())).astype(int)
    if max is not None and found.max() > max:
        found = np.floor(sides * (np.float32(max) / sides.max())).astype(int)
    if factor is not None:
        found = found + (factor - (found - 1) % factor) % factor
    return int(found[0]), int(found[1])


def _normalised(image: np.ndarray, card: Mapping[str, Sequence[float]], device: torch.device) -> Tensor:
    # A copy, as torch wants memory that it may write to.
    batch = torch.from_numpy(np.array(image, order="C")).to(device).permute(2, 0, 1).unsqueeze(0)
    return normalize(batch, mean=card["mean"], std=card["std"])


def _resize(values: Tensor, size: Size) -> Tensor:
    if values.shape[-2:] == torch.Size(size):
        return values
    return interpolate(values, size=size, mode="bilinear", align_corners=True)


def _nearest(labels: Tensor, size: Size) -> Tensor:
    """Resize (1, H, W) to the nearest pixel, corners aligned, halves rounded up: as TensorFlow does."""
    rows, columns = (_sources(before, after) for before, after in zip(labels.shape[1:], size, strict=True))
    return labels[:, rows.to(labels.device)][:, :, columns.to(labels.device)]


def _sources(before: int, after: int) -> Tensor:
    scale = np.float32(before - 1) / np.float32(after - 1) if after > 1 else np.float32(0)
    places = np.floor(np.arange(after, dtype=np.float32) * scale + np.float32(0.5)).astype(np.int64)
    return torch.from_numpy(places.clip(max=before - 1))
