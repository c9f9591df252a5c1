"""Photometric changes: what is drawn for each sample, and the changes on the host. `data.device` has the device's."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

Photometric = Literal["square", "keep_ratio", "none"]
LEVELS = np.arange(256, dtype=np.float32)


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


def change_colours(image: np.ndarray, colour: np.ndarray, kind: Photometric) -> np.ndarray:
    """Change the colours of (H, W, 3) uint8 RGB as drawn, rounding to whole levels between the changes.

    Args:
        image: what is not padding.
        colour: (5,), see `draw_colour`.
        kind: whose arithmetic, Composer's ("square") or mmsegmentation's ("keep_ratio"), or "none".
    """
    if kind == "square":
        return _blended(image, *map(float, colour))
    return _shifted(image, *map(float, colour)) if kind == "keep_ratio" else image


def _shifted(
    image: np.ndarray, offset: float, before: float, saturation: float, hue: float, after: float
) -> np.ndarray:
    """mmsegmentation: an offset and a factor, saturation and hue in HSV of 180 steps, a factor."""
    if offset != 0 or before != 1:
        image = cv2.LUT(image, _levels(np.clip(LEVELS + offset, 0, 255) * before))
    if saturation != 1 or hue != 0:
        steps = (LEVELS + round(hue * 180)) % 180
        table = np.stack([steps, np.clip(LEVELS * saturation, 0, 255), LEVELS], -1).astype(np.uint8)
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table[None])
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return cv2.LUT(image, _levels(LEVELS * after)) if after != 1 else image


def _blended(
    image: np.ndarray, factor: float, before: float, saturation: float, hue: float, after: float
) -> np.ndarray:
    """Pillow's blends with black, the mean grey and grey, then hue in 256 steps, as torchvision has them."""
    if factor != 1:
        image = cv2.LUT(image, _levels(LEVELS * factor))
    image = _contrast(image, before)
    if saturation != 1:
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = cv2.addWeighted(image, saturation, grey, 1 - saturation, 0)
    if hue != 0:
        table = np.stack([(LEVELS + round(hue * 255)) % 256, LEVELS, LEVELS], -1).astype(np.uint8)
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL), table[None])
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return _contrast(image, after)


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
    if factor == 1:
        return image
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return cv2.LUT(image, _levels(mean + (LEVELS - mean) * factor))


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
