"""How labels are drawn: class colours, a legend and a typeface, for every picture that shows them."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
IGNORE_COLOUR: Colour = (255, 255, 255)
MARGIN = 8
LINE = 20
TEXT: Colour = (30, 30, 30)
FRAME: Colour = (120, 120, 120)


def colourise(labels: np.ndarray, palette: Sequence[Colour]) -> np.ndarray:
    """Return labels (H, W) as colours (H, W, 3) uint8; 255 becomes white."""
    table = np.empty((256, 3), np.uint8)
    table[:] = IGNORE_COLOUR
    table[: len(palette)] = palette
    return table[labels]


def legend(
    present: list[int], classes: Sequence[str], palette: Sequence[Colour], width: int, *, ignored: bool
) -> Image.Image:
    """Draw swatches and names in rows of `width` pixels, or more where a name needs it.

    Args:
        present: numbers of the classes to show, in this order.
        classes, palette: names and colours by class number.
        width: of a row.
        ignored: whether to show the colour of what is not labelled too.
    """
    entries = [(classes[c], tuple(palette[c])) for c in present]
    if ignored:
        entries.append(("not labelled", IGNORE_COLOUR))
    lengths = [18 + int(font_for(name).getlength(name)) + 14 for name, _ in entries]
    width = max(width, *lengths)
    places, x, y = [], 0, 0
    for length in lengths:
        if x + length > width:
            x, y = 0, y + LINE
        places.append((x, y))
        x += length
    canvas = Image.new("RGB", (width, y + LINE), "white")
    draw = ImageDraw.Draw(canvas)
    for (left, top), (name, colour) in zip(places, entries, strict=True):
        draw.rectangle((left, top + 3, left + 12, top + 15), fill=colour, outline=FRAME)
        draw.text((left + 18, top + 2), name, fill=TEXT, font=font_for(name))
    return canvas


@cache
def font(size: int = 12, *, wide: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the typeface of all pictures; with `wide` one that has more than ASCII."""
    package = find_spec("matplotlib") if wide else None  # which brings DejaVu Sans; Pillow's own has no umlauts
    if package and package.submodule_search_locations:
        file = Path(package.submodule_search_locations[0]) / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if file.exists():
            return ImageFont.truetype(str(file), size - 1)  # its letters are larger
    return ImageFont.load_default(size=size)


def font_for(text: str, size: int = 12) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the typeface that can write `text`."""
    return font(size, wide=not text.isascii())
