"""A data set of numbered labels on disk, as small and as wrong as a test wants it."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from deeplab_recipes.data.labels import plain_encoding, shifted_encoding
from deeplab_recipes.data.sources.base import NumberedLabels, Pair, pair_by_stem

HEIGHT, WIDTH = 40, 52
NAMES = ("wall", "tree", "sky", "road", "car", "lamp")


class LabelledSet(NumberedLabels):
    """PART/NAME.jpg (or .png) and PARTlabels/NAME.png, the stored number being the class."""

    classes = NAMES
    palette = tuple((40 * c, 255 - 40 * c, 90) for c in range(len(NAMES)))

    def __init__(self, root: Path, *, classes: tuple[str, ...] = NAMES, shifted: bool = False):
        self.root, self.classes = root, classes
        self.palette = tuple((40 * c % 256, 255 - 40 * c % 256, 90 + c // 6) for c in range(len(classes)))
        self.table = (shifted_encoding if shifted else plain_encoding)(len(classes))

    def pairs(self, split: str) -> list[Pair]:
        """The pairs of a part."""
        return pair_by_stem(self.root / split, self.root / f"{split}labels", image_suffixes=(".jpg", ".png"))


def write_set(root: Path, *, train: int = 6, validation: int = 3) -> LabelledSet:
    """Write a sound set: all photographs differ, every class occurs in both parts, some pixels are ignored."""
    for number, (part, count) in enumerate((("train", train), ("validation", validation))):
        for i in range(count):
            write_pair(root, part, f"{part}_{i:03d}", photograph(100 * number + i), bands(i))
    return LabelledSet(root)


def write_pair(root: Path, part: str, name: str, image: np.ndarray, labels: np.ndarray, *, mode: str = "") -> None:
    """Write one pair; the photograph as JPEG in another Pillow mode if one is given."""
    for folder in (root / part, root / f"{part}labels"):
        folder.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(root / part / f"{name}.jpg", quality=90)
    Image.fromarray(labels).save(root / f"{part}labels" / f"{name}.png")


def photograph(seed: int) -> np.ndarray:
    """A smooth picture (H, W, 3) that no other seed gives."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def bands(seed: int = 0, values: tuple[int, ...] = (*range(len(NAMES)), 255)) -> np.ndarray:
    """Labels (H, W) in upright bands of all the values."""
    order = np.roll(np.array(values, np.uint8), seed)
    return np.broadcast_to(order[np.arange(WIDTH) * len(order) // WIDTH], (HEIGHT, WIDTH)).copy()


def relabel(source: LabelledSet, change: object, part: str = "train") -> None:
    """Replace every label picture of a part by what `change` makes of its array."""
    for path in sorted((source.root / f"{part}labels").iterdir()):
        Image.fromarray(change(np.array(Image.open(path)))).save(path)
