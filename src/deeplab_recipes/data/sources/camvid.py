"""CamVid road scenes as published with SegNet: train/, trainannot/, val/, valannot/, test/, testannot/."""

from pathlib import Path

from deeplab_recipes.data.labels import plain_encoding
from deeplab_recipes.data.sources.base import Colour, NumberedLabels, Pair, pair_by_stem, require_folder, require_split

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
PALETTE: tuple[Colour, ...] = (
    (70, 130, 180), (128, 0, 0), (192, 192, 128), (128, 64, 128), (244, 35, 232), (107, 142, 35),
    (220, 220, 0), (190, 153, 153), (0, 0, 142), (220, 20, 60), (0, 128, 192),
)  # fmt: skip
UNLABELLED = 11
FOLDERS = {"train": "train", "validation": "val", "test": "test"}


class CamVid(NumberedLabels):
    """CamVid with 11 classes; the stored value 11 (unlabelled) is ignored.

    Args:
        root: the folder that holds train/ and trainannot/.

    Raises:
        FileNotFoundError: if `root` is not a folder.
    """

    classes = CLASSES
    palette = PALETTE

    def __init__(self, root: str | Path) -> None:
        self.root = require_folder(Path(root), layout="train/, trainannot/, val/ and valannot/ in it")
        self.table = plain_encoding(len(CLASSES), ignore=(UNLABELLED, 255))

    def pairs(self, split: str) -> list[Pair]:
        """Return the pairs of "train", "validation" or "test" in the order of their names."""
        folder = require_split(split, FOLDERS)
        return pair_by_stem(self.root / folder, self.root / f"{folder}annot", image_suffixes=(".jpg", ".png"))
