"""Cityscapes: fine annotations, 19 classes."""

from pathlib import Path

import numpy as np

from deeplab_recipes.data.labels import IGNORE, encoding, plain_encoding
from deeplab_recipes.data.reading import read_labels
from deeplab_recipes.data.sources.base import (
    Colour,
    NumberedLabels,
    Pair,
    files_by_stem,
    pair_up,
    require_folder,
    require_split,
)

CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
PALETTE: tuple[Colour, ...] = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
# The labelIds of the 19 classes, in the order of their trainIds; 0..33 exist, -1 (licence plate) is stored as 255.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
LAST_LABEL_ID = 33
FOLDERS = {"train": "train", "validation": "val", "test": "test"}
LAYOUT = "leftImg8bit/ and gtFine/ in it"
ENDINGS = ("_gtFine_labelIds", "_gtFine_labelTrainIds")  # the first that a city has is used


def _label_ids() -> np.ndarray:
    ignored = dict.fromkeys((*range(LAST_LABEL_ID + 1), IGNORE), IGNORE)
    return encoding({**ignored, **{stored: c for c, stored in enumerate(LABEL_IDS)}})


class Cityscapes(NumberedLabels):
    """Cityscapes: leftImg8bit/PART/CITY/*_leftImg8bit.png and gtFine/PART/CITY/*_gtFine_labelIds.png.

    Stored labelIds become the 19 trainIds; all others are ignored. Where a city has no labelIds, its
    *_gtFine_labelTrainIds.png (as made by Cityscapes' own script) are read as they are. The labels of the test part
    are not published: what is stored there is all ignored.

    Args:
        root: the folder that holds leftImg8bit/ and gtFine/.

    Raises:
        FileNotFoundError: if `root` holds neither.
    """

    classes = CLASSES
    palette = PALETTE

    def __init__(self, root: str | Path) -> None:
        self.root = require_folder(Path(root), layout=LAYOUT)
        for name in ("leftImg8bit", "gtFine"):
            if not (self.root / name).is_dir():
                raise FileNotFoundError(f"data.root={root} has no {name}/ folder; expected {LAYOUT}")
        self.table, self.train_ids = _label_ids(), plain_encoding(len(CLASSES))

    def pairs(self, split: str) -> list[Pair]:
        """Return the pairs of "train", "validation" or "test", city by city in the order of their names."""
        part = require_split(split, FOLDERS)
        images, labels = self.root / "leftImg8bit" / part, self.root / "gtFine" / part
        cities = sorted(_folders_in(images) | _folders_in(labels))
        pairs = [pair for city in cities for pair in _pairs_of_city(images / city, labels / city)]
        if not pairs:
            raise FileNotFoundError(f"{images} holds no image (CITY/*_leftImg8bit.png); check data.root")
        return pairs

    def labels(self, pair: Pair) -> np.ndarray:
        """Return classes (H, W) and 255; see `read_labels`."""
        table = self.train_ids if pair.label.stem.endswith(ENDINGS[1]) else self.table
        return read_labels(pair.label, table)


def _folders_in(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; check data.root")
    return {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _pairs_of_city(images: Path, labels: Path) -> list[Pair]:
    found = [files_by_stem(labels, (".png",), ending=ending) for ending in ENDINGS]
    return pair_up(files_by_stem(images, (".png",), ending="_leftImg8bit"), found[0] or found[1], images, labels)
