"""Pictures of results: photograph, truth and prediction side by side, with a legend."""

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from PIL import Image, ImageDraw

from deeplab_recipes.data.labels import IGNORE
from deeplab_recipes.drawing import FRAME, IGNORE_COLOUR, LINE, MARGIN, TEXT, Colour, colourise, font, legend

__all__ = ["IGNORE_COLOUR", "LINE", "MARGIN", "colourise", "comparison", "stack"]
COLUMN = 64  # the least width of a panel's place, for its title


def comparison(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    classes: Sequence[str],
    palette: Sequence[Colour],
    scale: int = 1,
) -> Image.Image:
    """Draw image, truth and prediction in a row, and a legend of the classes that occur.

    Args:
        image, truth, prediction: (H, W, 3), (H, W) and (H, W), uint8.
        classes, palette: names and colours by class number.
        scale: whole factor by which the pictures are enlarged.
    """
    shown = np.where(truth == IGNORE, IGNORE, prediction).astype(np.uint8)
    panels = [
        ("image", image),
        ("truth", colourise(truth, palette)),
        ("prediction", colourise(shown, palette)),
    ]
    height, width = truth.shape[0] * scale, truth.shape[1] * scale
    column = max(width, COLUMN) + MARGIN
    present = sorted({*np.unique(truth).tolist(), *np.unique(shown).tolist()} - {IGNORE})
    key = legend(present, classes, palette, 3 * column - MARGIN, ignored=bool((truth == IGNORE).any()))
    canvas = Image.new("RGB", (key.width + 2 * MARGIN, LINE + height + key.height + 3 * MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (title, pixels) in enumerate(panels):
        left, top = MARGIN + i * column, LINE + MARGIN // 2
        draw.text((left, MARGIN // 2), title, fill=TEXT, font=font())
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline=FRAME)
        canvas.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (left, top))
    canvas.paste(key, (MARGIN, LINE + height + 2 * MARGIN))
    return canvas


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures under each other."""
    width = max(p.width for p in pictures)
    canvas = Image.new("RGB", (width, sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def picture_names(paths: Sequence[PurePath]) -> list[str]:
    """Return a name for the picture of each image: its own, with as many of its folders as tell all of them apart."""
    parts = [path.relative_to(path.anchor).with_suffix("").parts for path in paths]
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["_".join(words[-count:]) for words in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path.stem}_{number}" for number, path in enumerate(paths)]
