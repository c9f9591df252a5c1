"""A sheet of image-and-label pairs, to see in one look whether labels fit their images and names their labels."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from deeplab_recipes.data.files import shown
from deeplab_recipes.data.labels import IGNORE
from deeplab_recipes.data.sources.base import Pair, Source, read_pair
from deeplab_recipes.drawing import FRAME, LINE, MARGIN, TEXT, colourise, font_for, legend

PANEL = (240, 180)  # width and height of the place of an image or a label
ACROSS = 3  # pairs in a row
GAP = 4  # between an image and its label
SMALL = 11  # pixels of the names that are written on regions
NAMED_SHARE = 0.02  # a class that fills less of a label is not named on it
Box = tuple[int, int, int, int]


def contact_sheet(pairs: Mapping[str, Sequence[Pair]], source: Source, *, count: int) -> Image.Image | None:
    """Draw pairs spread evenly over each part, two thirds of them from the first, with a legend of their classes.

    Args:
        pairs: usable ones, by part.
        source: what reads them.
        count: how many to draw.

    Returns:
        The sheet, or None where there is nothing to draw.
    """
    chosen = _choose(pairs, count)
    if not chosen:
        return None
    across = min(ACROSS, len(chosen))
    cell = (2 * PANEL[0] + GAP + 2 * MARGIN, PANEL[1] + LINE + MARGIN)
    rows = -(-len(chosen) // across)
    canvas = Image.new("RGB", (across * cell[0], rows * cell[1] + MARGIN), "white")
    present: set[int] = set()
    for place, (part, pair) in enumerate(chosen):
        corner = (place % across * cell[0] + MARGIN, place // across * cell[1] + MARGIN)
        present |= _draw_pair(canvas, corner, f"{part}  {shown(pair.image.stem)}", pair, source)
    names = [shown(name) for name in source.classes]
    numbers = sorted(present - {IGNORE})
    key = legend(numbers, names, source.palette, canvas.width - 2 * MARGIN, ignored=IGNORE in present)
    sheet = Image.new("RGB", (key.width + 2 * MARGIN, canvas.height + key.height + MARGIN), "white")
    sheet.paste(canvas, (0, 0))
    sheet.paste(key, (MARGIN, canvas.height))
    return sheet


def _choose(pairs: Mapping[str, Sequence[Pair]], count: int) -> list[tuple[str, Pair]]:
    chosen: list[tuple[str, Pair]] = []
    first = True
    for part, there in pairs.items():
        share = -(-2 * count // 3) if first and len(pairs) > 1 else count - len(chosen)
        first = False
        places = np.unique(np.linspace(0, len(there) - 1, min(share, len(there))).astype(int))
        chosen += [(part, there[i]) for i in places]
    return chosen


def _draw_pair(canvas: Image.Image, corner: tuple[int, int], title: str, pair: Pair, source: Source) -> set[int]:
    """Draw a pair with its title at `corner`; return the labels that show."""
    image, labels = read_pair(pair, source)
    size = _fit(labels.shape)
    labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    picture = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    draw = ImageDraw.Draw(canvas)
    left, top = corner[0], corner[1] + LINE - 2
    title = _shortened(title, 2 * PANEL[0] + GAP)
    draw.text(corner, title, fill=TEXT, font=font_for(title))
    painted = _name_regions(Image.fromarray(colourise(labels, source.palette)), labels, source.classes)
    for x, panel in ((left, picture), (left + size[0] + GAP, painted)):
        canvas.paste(panel, (x, top))
        draw.rectangle((x - 1, top - 1, x + size[0], top + size[1]), outline=FRAME)
    return set(np.unique(labels).tolist())


def _fit(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (width, height) with which a picture of (height, width) fits into a panel."""
    scale = min(PANEL[0] / shape[1], PANEL[1] / shape[0])
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def _name_regions(painted: Image.Image, labels: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """Write the names of classes on their largest regions, the largest first, where there is room."""
    counts = np.bincount(labels.ravel(), minlength=256)[: len(classes)]
    draw, taken = ImageDraw.Draw(painted), []
    for number in np.argsort(-counts, kind="stable"):
        if counts[number] < NAMED_SHARE * labels.size:
            break
        name = shown(classes[number]).split(",")[0].split(";")[0]
        box = _place(draw, name, _middle(labels == number), painted.size)
        if box is not None and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            draw.text(box[:2], name, fill="black", font=font_for(name, SMALL), stroke_width=2, stroke_fill="white")
    return painted


def _middle(mask: np.ndarray) -> tuple[int, int]:
    """Return (x, y) of the point deepest inside a region."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def _place(draw: ImageDraw.ImageDraw, name: str, middle: tuple[int, int], size: tuple[int, int]) -> Box | None:
    """Return where a name goes around `middle`, moved into the panel; None where it is too long for it."""
    wide, tall = int(draw.textlength(name, font=font_for(name, SMALL))) + 2, SMALL + 3
    if wide > size[0] or tall > size[1]:
        return None
    left = min(max(middle[0] - wide // 2, 1), size[0] - wide)
    top = min(max(middle[1] - tall // 2, 0), size[1] - tall)
    return left, top, left + wide, top + tall


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _shortened(text: str, width: int) -> str:
    """Cut a title to `width` pixels; the end of a file's name tells most."""
    letters = font_for(text)
    if letters.getlength(text) <= width:
        return text
    part, _, name = text.partition("  ")
    while name and letters.getlength(f"{part}  ...{name}") > width:
        name = name[1:]
    return f"{part}  ...{name}"
