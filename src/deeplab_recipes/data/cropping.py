"""A crop of a resized picture, without resizing all of it.

The window of the source that the crop comes from is resized alone, at the same factor and (nearly) the same phase. What
comes out differs from resizing first and cropping then by the interpolation of at most 1/16 of a source pixel, or 1/4
of one of the crop if that is less; labels do not differ at all.
"""

from dataclasses import dataclass
from math import ceil, floor
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch

from deeplab_recipes.data.pictures import Photograph

Pipeline = Literal["square", "keep_ratio"]
MARGINS = 16  # output pixels that a window may be larger than the crop, to begin where the phase is right
WORST_PHASE = 1 / 16  # in source pixels


class Box(NamedTuple):
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def crop_image(photograph: Photograph, size: tuple[int, int], box: Box, pipeline: Pipeline) -> np.ndarray:
    """Return the box (height, width, 3) of the photograph resized to `size` as the pipeline's original does."""
    antialias = pipeline == "square"
    rows = window(photograph.extent[0], size[0], box.top, box.height, antialias=antialias)
    columns = window(photograph.extent[1], size[1], box.left, box.width, antialias=antialias)
    pixels = photograph.region(rows.start, rows.end, columns.start, columns.end)
    resize = resize_antialiased if antialias else resize_linear
    return resize(pixels, rows, columns, (box.height, box.width))


def crop_labels(labels: np.ndarray, size: tuple[int, int], box: Box, pipeline: Pipeline) -> np.ndarray:
    """Return the box (height, width) of labels resized to `size` as the pipeline's original does."""
    centred = pipeline == "square"
    rows = nearest(labels.shape[0], size[0], box.top, box.height, centred=centred)
    columns = nearest(labels.shape[1], size[1], box.left, box.width, centred=centred)
    return pick(labels, rows, columns)


@dataclass(frozen=True)
class Window:
    """Source pixels [start, end) of one axis, and where the crop begins once they are resized by 1 / factor."""

    start: int
    end: int
    skip: int
    factor: float


def window(source: float, resized: int, first: int, count: int, *, antialias: bool = False) -> Window:
    """Find the window for output pixels [first, first + count) of an axis that goes from `source` to `resized` pixels.

    Output pixel i of a resized picture lies at (i + 1/2) * factor - 1/2 in the source. A window that starts at a whole
    source pixel near (first - skip) * factor has the same phase to within the rounding, for a good choice of `skip`.

    Args:
        source, resized: length of the axis before (its last pixel need not be whole) and after.
        first, count: the crop's pixels after.
        antialias: the filter reaches `factor` source pixels to each side, not 1, where the picture shrinks.
    """
    factor = source / resized
    reach = max(factor, 1.0) if antialias else 1.0
    least = ceil(reach / factor)
    if first <= least + MARGINS:
        start, skip = 0, first
    else:
        starts = [(first - margin) * factor for margin in range(least, least + MARGINS)]
        errors = [abs(value - round(value)) for value in starts]
        best = min(range(MARGINS), key=errors.__getitem__)
        start, skip = round(starts[best]), least + best
        # Factors near a whole number hardly change the phase; small ones make several crop pixels of 1/16 of a pixel.
        if errors[best] > min(WORST_PHASE, factor / 4):
            start, skip = 0, first
    end = min(ceil(source), floor((first + count) * factor + reach) + 2)
    return Window(start, end, skip, factor)


def resize_linear(pixels: np.ndarray, rows: Window, columns: Window, size: tuple[int, int]) -> np.ndarray:
    """Resize the source, cut to the windows, as OpenCV's bilinear resize does; return the crop of (height, width)."""
    if rows.factor == 1 and columns.factor == 1:
        grown = pixels
    else:
        grown = cv2.resize(pixels, None, fx=1 / columns.factor, fy=1 / rows.factor, interpolation=cv2.INTER_LINEAR)
    return grown[rows.skip : rows.skip + size[0], columns.skip : columns.skip + size[1]]


def resize_antialiased(pixels: np.ndarray, rows: Window, columns: Window, size: tuple[int, int]) -> np.ndarray:
    """The same as Pillow's bilinear resize does, which widens the filter where the picture shrinks."""
    pixels = pixels if pixels.flags.writeable else pixels.copy()  # torch warns of it
    image = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)  # channels-last memory: torch's fast path
    ends = rows.skip + size[0], columns.skip + size[1]
    # Where an axis keeps its length torch does nothing, whatever the factor: it is asked for one pixel more.
    asked = [
        end + (end == length and axis.factor != 1)
        for end, length, axis in zip(ends, pixels.shape, (rows, columns), strict=False)
    ]
    grown = torch.ops.aten._upsample_bilinear2d_aa(image, asked, False, 1 / rows.factor, 1 / columns.factor)
    return grown[0].permute(1, 2, 0).numpy()[rows.skip : ends[0], columns.skip : ends[1]]


def nearest(source: int, resized: int, first: int, count: int, *, centred: bool) -> np.ndarray:
    """Return which source pixel each of the output pixels [first, first + count) shows.

    Args:
        source, resized: length of the axis before and after.
        first, count: the crop's pixels after.
        centred: look from the output pixel's centre, as Pillow does, or from its edge, as OpenCV does.
    """
    if centred:
        steps = np.full(first + count, source / resized)
        steps[0] /= 2
        positions = np.add.accumulate(steps)[first:]  # added up, as in Pillow, with the same rounding errors
    else:
        positions = np.arange(first, first + count) * (1 / (resized / source))
    return np.minimum(positions.astype(np.intp), source - 1)


def pick(labels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return labels[rows][:, columns] for increasing rows and columns; the longer way round, which is faster."""
    top, left = rows[0], columns[0]
    band = labels[top : rows[-1] + 1, left : columns[-1] + 1]
    return band.take(columns - left, axis=1).take(rows - top, axis=0)
