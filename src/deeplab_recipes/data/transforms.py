"""The two published ADE20k pipelines: draws and geometry on the host, colour and normalisation on the device.

`square` is Composer's: image and labels are squashed to a square of the drawn scale (Pillow, with
antialiasing), padded on all sides. `keep_ratio` is mmsegmentation's: the aspect stays (OpenCV, without
antialiasing), padded right and below.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from deeplab_recipes.data.labels import IGNORE

Pipeline = Literal["square", "keep_ratio"]
Photometric = Literal["square", "keep_ratio", "none"]
Size = tuple[int, int]
MEAN_PIXEL = (123, 116, 103)
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
CROP_TRIES = 10
PIPELINES = ("square", "keep_ratio")


def resized_size(pipeline: Pipeline, source: Size, base: Size, scale: float = 1.0) -> Size:
    """Return the (height, width) that an image of size `source` is resized to.

    Args:
        pipeline: "square": `base` (height, width) times scale, whatever the aspect; "keep_ratio": as large as
            fits into `base` = (long side, short side) times scale.
        source: (height, width) of the image.
        base: see `pipeline`.
        scale: factor on `base`.
    """
    first, second = max(int(base[0] * scale), 1), max(int(base[1] * scale), 1)
    if pipeline == "square":
        return first, second
    factor = min(max(first, second) / max(source), min(first, second) / min(source))
    return max(int(source[0] * factor + 0.5), 1), max(int(source[1] * factor + 0.5), 1)


def resize_image(image: np.ndarray, size: Size, pipeline: Pipeline) -> np.ndarray:
    """Resize (H, W, 3) uint8 bilinearly, as the pipeline's original does."""
    if image.shape[:2] == size:
        return image
    if pipeline == "square":
        return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_labels(labels: np.ndarray, size: Size, pipeline: Pipeline) -> np.ndarray:
    """Resize (H, W) uint8 to the nearest pixel, as the pipeline's original does."""
    if labels.shape == size:
        return labels
    if pipeline == "square":
        return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)


def is_varied(labels: np.ndarray, max_class_share: float) -> bool:
    """Whether a crop has at least two classes and none fills `max_class_share` of its labelled pixels."""
    counts = np.bincount(labels.ravel(), minlength=256)[:IGNORE]
    return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < max_class_share


def draw_crop(
    labels: np.ndarray, crop: Size, max_class_share: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) inside labels (H, W); redrawn up to ten times until `is_varied`.

    Where the picture is smaller than the crop, all of it is taken in that direction. After ten failures the
    eleventh draw stands, as in both originals.
    """
    height, width = min(crop[0], labels.shape[0]), min(crop[1], labels.shape[1])
    free = labels.shape[0] - height, labels.shape[1] - width

    def draw() -> tuple[int, int]:
        return int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1))

    top, left = draw()
    if max_class_share < 1 and any(free):
        for _ in range(CROP_TRIES):
            if is_varied(labels[top : top + height, left : left + width], max_class_share):
                break
            top, left = draw()
    return top, left, height, width


@dataclass(frozen=True)
class ColourRanges:
    """Ranges of the photometric changes, each applied with probability 1/2 (FACTS of both originals).

    `brightness` is a factor 1 +/- x in `square` and an offset +/- x in levels of 255 in `keep_ratio`; `hue`
    is a fraction of the full circle.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float


COLOUR_RANGES = {
    "square": ColourRanges(brightness=32 / 255, contrast=0.5, saturation=0.5, hue=18 / 255),
    "keep_ratio": ColourRanges(brightness=32.0, contrast=0.5, saturation=0.5, hue=18 / 180),
}
NEUTRAL_COLOUR = {
    "square": np.array([1, 1, 1, 0, 1], np.float32),
    "keep_ratio": np.array([0, 1, 1, 0, 1], np.float32),
}


def draw_colour(kind: Photometric, rng: np.random.Generator) -> np.ndarray:
    """Draw (brightness, contrast before, saturation, hue, contrast after) as float32 (5,).

    Each is neutral where it is not applied. Contrast comes first or last, never both.
    """
    if kind == "none":
        return NEUTRAL_COLOUR["square"].copy()
    ranges, values = COLOUR_RANGES[kind], NEUTRAL_COLOUR[kind].copy()
    applied = rng.random(4) < 0.5
    contrast_slot = 1 if rng.random() < 0.5 else 4
    uniform = rng.uniform(-1, 1, size=4)
    if applied[0]:
        values[0] += ranges.brightness * uniform[0]
    if applied[1]:
        values[contrast_slot] += ranges.contrast * uniform[1]
    if applied[2]:
        values[2] += ranges.saturation * uniform[2]
    if applied[3]:
        values[3] += _hue(kind, ranges.hue * uniform[3])
    return values


def _hue(kind: Photometric, turn: float) -> float:
    """mmsegmentation turns the hue by whole steps of 1/180 circle in [-18, 17], Composer by any fraction."""
    return np.floor(turn * 180) / 180 if kind == "keep_ratio" else turn


@dataclass(frozen=True)
class TrainingTransform:
    """Resize at a random scale, crop, flip and pad; draws colour changes that the device applies.

    Args:
        pipeline: "square" or "keep_ratio", see the module.
        crop_size: (height, width) that every sample leaves with.
        base_size: "square": (height, width) at scale 1; "keep_ratio": (long side, short side) to fit into.
        scale_range: scale is uniform in it.
        max_class_share: a crop is drawn again when one class fills this share of it; 1 switches the rule off.
        flip: probability of a horizontal flip.
        photometric: which original's colour changes to draw, or "none".
    """

    pipeline: Pipeline
    crop_size: Size
    base_size: Size
    scale_range: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    flip: float = 0.5
    photometric: Photometric = "none"

    def __call__(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return image (H, W, 3), label (H, W), content (top, left, height, width) and colour (5,)."""
        size = resized_size(self.pipeline, labels.shape, self.base_size, rng.uniform(*self.scale_range))
        image = resize_image(image, size, self.pipeline)
        labels = resize_labels(labels, size, self.pipeline)
        top, left, height, width = draw_crop(labels, self.crop_size, self.max_class_share, rng)
        image = image[top : top + height, left : left + width]
        labels = labels[top : top + height, left : left + width]
        if rng.random() < self.flip:
            image, labels = cv2.flip(image, 1), cv2.flip(labels, 1)  # much faster than copying image[:, ::-1]
        colour = draw_colour(self.photometric, rng)
        return {**pad(image, labels, self.crop_size, self.pipeline), "colour": colour}


def pad(image: np.ndarray, labels: np.ndarray, size: Size, pipeline: Pipeline) -> dict[str, np.ndarray]:
    """Pad to `size` with the mean pixel and 255: evenly ("square") or right and below ("keep_ratio").

    `content` in the result is the (top, left, height, width) of what is not padding.
    """
    height, width = labels.shape
    centred = pipeline == "square"
    top = (size[0] - height) // 2 if centred else 0
    left = (size[1] - width) // 2 if centred else 0
    padded = np.empty((*size, 3), np.uint8)
    padded.reshape(size[0], -1)[:] = np.tile(np.uint8(MEAN_PIXEL), size[1])  # by rows: pixels are slow
    padded[top : top + height, left : left + width] = image
    padded_labels = np.full(size, IGNORE, np.uint8)
    padded_labels[top : top + height, left : left + width] = labels
    content = np.array([top, left, height, width], np.int32)
    return {"image": padded, "label": padded_labels, "content": content}


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize for an evaluation protocol.

    Args:
        protocol: "square" squashes image and labels to `size` = (height, width); "keep_ratio" fits the image
            into `size` = (long side, short side) and leaves the labels at their own size.
        size: see `protocol`.
    """

    protocol: Pipeline
    size: Size

    def __call__(self, image: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Return image (H, W, 3) and label (H', W'), both uint8."""
        target = resized_size(self.protocol, labels.shape, self.size)
        image = resize_image(image, target, self.protocol)
        if self.protocol == "square":
            labels = resize_labels(labels, target, self.protocol)
        return {"image": image, "label": labels}
