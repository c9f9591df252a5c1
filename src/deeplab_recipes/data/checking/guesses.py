"""What may have gone wrong with labels that do not fit: guesses from what their pictures hold."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from deeplab_recipes.data.files import File
from deeplab_recipes.data.labels import IGNORE, INVALID
from deeplab_recipes.data.pictures import open_picture, stored_numbers
from deeplab_recipes.data.sources.base import Colour, Source

COLOURS_KEPT = 256  # a picture with more is no mask with a colour for each class
STRAY_SHARE = 0.01
# Largest class number of well-known label pictures: theirs, and what reads them.
KNOWN = {
    11: "CamVid's (0..11): data=camvid reads those",
    20: "Pascal VOC's (0..20)",
    33: "Cityscapes' labelIds (0..33), which are to become the 19 trainIds: its own source does that",
    150: "ADE20k's (0 = unlabelled, 1..150): did you mean data=ade20k?",
    181: "COCO-Stuff's (0..181)",
    182: "COCO-Stuff's (0..181, or 1..182)",
}
RENUMBER = (
    "reduce_zero_label, with which 0 is ignored and 1..C become 0..C-1: so data=ade20k reads them, and data=folder "
    "with ignore: [0] and value: 1, 2, ... for the classes of classes.yaml"
)


@dataclass
class Stored:
    """What label pictures hold before any encoding is applied to it.

    Args:
        modes: pictures by Pillow's mode.
        values: (256,) pixels by value, of pictures with one 8-bit channel.
        colours: colours of pictures with more channels, at most `COLOURS_KEPT` + 1.
        deepest: the largest number in pictures with more than 8 bits.
    """

    modes: Counter[str] = field(default_factory=Counter)
    values: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    colours: set[Colour] = field(default_factory=set)
    deepest: int = 0

    def add(self, other: "Stored") -> None:
        """Take over the counts of others."""
        self.modes += other.modes
        self.values += other.values
        self.colours = set(sorted(self.colours | other.colours)[: COLOURS_KEPT + 1])
        self.deepest = max(self.deepest, other.deepest)


def look_at_labels(file: File) -> Stored | None:
    """Return what a label picture holds, or None where the file is no picture that can be decoded."""
    try:
        with open_picture(file) as picture:
            mode, pixels = picture.mode, stored_numbers(picture)
    except ValueError:
        return None
    stored = Stored(modes=Counter([mode]))
    if pixels.ndim == 3:
        stored.colours = _distinct(pixels)
    elif pixels.dtype in (np.uint8, np.bool_):
        stored.values = np.bincount(pixels.ravel(), minlength=256)
    else:
        stored.deepest = int(pixels.max(initial=0))
    return stored


def _distinct(pixels: np.ndarray) -> set[Colour]:
    """Return the colours of (H, W, 2..4), grey and alpha counting as grey, at most `COLOURS_KEPT` + 1 of them."""
    red, green, blue = (pixels[..., i if pixels.shape[2] > 2 else 0].astype(np.int32) for i in range(3))
    numbers = np.unique(red << 16 | green << 8 | blue)[: COLOURS_KEPT + 1]
    return {(n >> 16, n >> 8 & 255, n & 255) for n in numbers.tolist()}


def look_at_all(files: Iterable[File]) -> Stored:
    """Return what label pictures hold together; files that are no pictures count for nothing."""
    together = Stored()
    for file in files:
        together.add(look_at_labels(file) or Stored())
    return together


def guess(stored: Stored, source: Source) -> str | None:
    """Return what may have gone wrong with labels that `source` cannot use, in one sentence, or None."""
    return next((text for rule in RULES if (text := rule(stored, source))), None)


def guess_numbering(occurs: np.ndarray, source: Source) -> str | None:
    """Return a suspicion about class numbers that are read without an error but may be off by one.

    Args:
        occurs: (C,) whether a class has any pixel.
        source: the data set; only one with a table from stored numbers to classes can be suspected.
    """
    count, table = len(occurs), getattr(source, "table", None)
    if table is None or count < 3 or occurs.sum() < 0.8 * count:
        return None
    if table[0] == IGNORE and table[1] == 0 and not occurs[-1]:
        return (
            f"the last class ({source.classes[-1]}) never occurs and stored 0 is read as not labelled: if the pictures "
            "number the classes from 0, all are read off by one (the contact sheet shows it)"
        )
    if table[0] == 0 and not occurs[0]:
        return (
            f"the first class ({source.classes[0]}) never occurs: if the pictures number the classes from 1, all are "
            f"read off by one; then use {RENUMBER}"
        )
    return None


def guess_sizes(image: tuple[int, ...], labels: tuple[int, ...]) -> str:
    """Return what may have made the (height, width) of an image and of its labels differ, as the end of a message."""
    if image == labels[::-1]:
        return ". Guess: one of them is turned by 90 degrees (a camera's EXIF orientation?)"
    (tall, wide), (high, broad) = image, labels
    if abs(tall * broad - wide * high) <= max(tall, wide, high, broad):
        return f". Guess: one of them was resized ({wide / broad:.3g} times)"
    return ""


def _colours(stored: Stored, source: Source) -> str | None:
    if not stored.colours:
        return None
    count = len(stored.colours)
    if all(red == green == blue for red, green, blue in stored.colours):
        return "all channels hold the same number: save the labels with one channel (Pillow's mode L)"
    if count > COLOURS_KEPT:
        return f"more than {COLOURS_KEPT} colours: photographs, or masks that were resized smoothly or saved as JPEG"
    lacking = sorted(stored.colours - {tuple(colour) for colour in source.palette})
    if 0 < len(lacking) < count:
        blurred = ": masks that were resized smoothly or saved as JPEG?" if len(lacking) > count / 2 else ""
        are = "are" if len(lacking) > 1 else "is"
        return (
            f"an RGB mask, and {len(lacking)} of its {count} colours {are} not in the palette, like {lacking[0]}"
            f"{blurred or '; data=folder with classes.yaml reads colours'}"
        )
    own = "" if lacking else "; the colours are this data set's own"
    return f"an RGB mask of {count} colour{'s' * (count > 1)}: give a palette (data=folder with classes.yaml){own}"


def _deep(stored: Stored, source: Source) -> str | None:
    if not any(mode[0] in "IF" for mode in stored.modes):
        return None
    return (
        f"more than 8 bits a pixel, numbers up to {stored.deepest}: class numbers belong in 8 bits, at most "
        f"{INVALID} classes from 0 on, and {IGNORE} is ignored"
    )


def _binary(stored: Stored, source: Source) -> str | None:
    values = _values(stored)
    if set(stored.modes) == {"1"}:
        return "a binary mask of one bit a pixel: store its two classes as 0 and 1 in 8 bits (mode L)"
    if values in ([0, IGNORE], [IGNORE]):
        return f"only 0 and {IGNORE}: a binary mask? Store its two classes as 0 and 1, {IGNORE} is ignored"
    if len(values) == 2 and values[0] == 0 and len(source.classes) == 2:
        return f"only 0 and {values[1]}: a binary mask? Store its two classes as 0 and 1"
    return None


def _off_by_one(stored: Stored, source: Source) -> str | None:
    count, values = len(source.classes), [v for v in _values(stored) if v != IGNORE]
    if not values or values[-1] != count or _readable(source)[count]:
        return None
    if values[0] > 0:
        return f"values {values[0]}..{count}: numbered from 1? Did you mean {RENUMBER}?"
    if count in KNOWN:
        return f"values 0..{count} are {KNOWN[count]}"
    return f"values 0..{count} are one more than the {count} classes, off by one: is 0 no class? Then use {RENUMBER}"


def _well_known(stored: Stored, source: Source) -> str | None:
    values = [v for v in _values(stored) if v != IGNORE]
    if not values or len(values) < 3:
        return None
    if values[-1] in KNOWN:
        return f"values up to {values[-1]}, as {KNOWN[values[-1]]}"
    if 19 <= values[-1] < 33 and len(source.classes) == 19:
        return f"values up to {values[-1]}: perhaps {KNOWN[33]}"
    if 100 < values[-1] < 150 and len(values) > 30:
        return f"values up to {values[-1]}: perhaps {KNOWN[150]}"
    return None


def _shades(stored: Stored, source: Source) -> str | None:
    values = _values(stored)
    step = math.gcd(*values)
    if 3 <= len(values) <= len(source.classes) + 1 and step >= 5:
        steps = ", ".join(map(str, values[:4]))
        return f"multiples of {step} ({steps}, ...): classes painted as shades of grey? Divide by {step}"
    return None


def _smooth(stored: Stored, source: Source) -> str | None:
    count = len(_values(stored))
    if count < max(60, 2 * len(source.classes)):
        return None
    return f"{count} different values: masks that were resized smoothly or saved as JPEG, or no masks at all?"


def _stray(stored: Stored, source: Source) -> str | None:
    outside = int(stored.values[~_readable(source)].sum())
    share = outside / max(int(stored.values.sum()), 1)
    if not 0 < share < STRAY_SHARE:
        return None
    return f"{outside} stray pixels ({100 * share:.2g} % of these pictures): set them to {IGNORE}, which is ignored"


def _indices(stored: Stored, source: Source) -> str | None:
    values = _values(stored)
    if not stored.modes["P"] or not values:
        return None
    return (
        f"palette pictures whose indices are {_span(values)}: the indices are read, not the colours, and have to be "
        "the class numbers"
    )


def _beyond(stored: Stored, source: Source) -> str | None:
    values = [v for v in _values(stored) if v != IGNORE]
    if not values:
        return None
    return f"the pictures hold values {_span(values)}, this data set has {len(source.classes)} classes: the right one?"


RULES: tuple[Callable[[Stored, Source], str | None], ...] = (
    *(_colours, _deep, _binary, _off_by_one, _well_known, _shades, _smooth, _stray, _indices, _beyond),
)


def _values(stored: Stored) -> list[int]:
    return np.flatnonzero(stored.values).tolist()


def _span(values: list[int]) -> str:
    return ", ".join(map(str, values)) if len(values) <= 4 else f"{values[0]}..{values[-1]} ({len(values)} of them)"


def _readable(source: Source) -> np.ndarray:
    """Return (256,) whether a stored value is known; a source without a table is taken to store class numbers."""
    table = getattr(source, "table", None)
    if table is not None:
        return table != INVALID
    return (np.arange(256) < len(source.classes)) | (np.arange(256) == IGNORE)
