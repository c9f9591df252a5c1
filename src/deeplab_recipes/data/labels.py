"""Label encodings: every source's own values become 0..C-1 and 255 = ignore as soon as they are read."""

from collections.abc import Mapping

import cv2
import numpy as np

IGNORE = 255
INVALID = 254  # marks stored values that the encoding does not know; never leaves `decode_labels`


def encoding(mapping: Mapping[int, int]) -> np.ndarray:
    """Return a table (256,) uint8 from stored value to class; values that `mapping` lacks are invalid.

    Raises:
        ValueError: if a stored value is not in 0..255, or a class is neither in 0..253 nor 255.
    """
    table = np.full(256, INVALID, dtype=np.uint8)
    for stored, label in mapping.items():
        if not (0 <= stored <= 255 and (0 <= label < INVALID or label == IGNORE)):
            raise ValueError(
                f"label {stored} -> class {label} does not fit: a label picture stores 0..255, and there can "
                f"be at most {INVALID} classes (0..{INVALID - 1}; {IGNORE} is ignored)"
            )
        table[stored] = label
    return table


def plain_encoding(num_classes: int, *, ignore: tuple[int, ...] = (IGNORE,)) -> np.ndarray:
    """Return the table of a set that stores 0..C-1 as they are; the values in `ignore` become 255."""
    return encoding({**{c: c for c in range(num_classes)}, **dict.fromkeys(ignore, IGNORE)})


def shifted_encoding(num_classes: int) -> np.ndarray:
    """Return ADE20k's table: 0 is unlabelled (255), 1..C become 0..C-1; 255 stays ignored."""
    return encoding({0: IGNORE, IGNORE: IGNORE, **{c + 1: c for c in range(num_classes)}})


def decode_labels(stored: np.ndarray, table: np.ndarray, *, name: str) -> np.ndarray:
    """Map stored label values (H, W) to classes and 255.

    Raises:
        ValueError: if the picture is not one uint8 channel, or holds a value that the encoding does not know;
            names the file, the value and how many pixels have it.
    """
    if stored.ndim != 2 or stored.dtype != np.uint8:
        shape = "x".join(map(str, stored.shape))
        raise ValueError(
            f"{name}: a label picture must have one 8-bit channel of class numbers, this one is {shape} {stored.dtype}"
        )
    steps, regular = _regular(table)
    if stored.size and stored.max() < regular:
        return stored + steps  # four times as fast as a look at the table
    labels = cv2.LUT(stored, table)  # ten times as fast as table[stored]
    wrong = labels == INVALID
    if wrong.any():
        values, counts = np.unique(stored[wrong], return_counts=True)
        known = np.flatnonzero(table != INVALID)
        raise ValueError(
            f"{name}: label value {values[0]} ({counts[0]} pixels) is outside the classes; valid are "
            f"{_ranges(known)}. All wrong values: {', '.join(map(str, values[:10]))}"
        )
    return labels


def _regular(table: np.ndarray) -> tuple[np.uint8, int]:
    """Return how many values from 0 on differ from their classes by the same step (modulo 256), and that step."""
    steps = table - np.arange(256, dtype=np.uint8)
    irregular = (steps != steps[0]) | (table == INVALID)
    return steps[0], int(irregular.argmax()) if irregular.any() else 256


def _ranges(values: np.ndarray) -> str:
    runs = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    return ", ".join(f"{r[0]}..{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
