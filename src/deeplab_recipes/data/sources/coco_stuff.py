"""COCO-Stuff 164k: 171 classes of things and stuff."""

import csv
from pathlib import Path

import numpy as np

from deeplab_recipes.data.labels import IGNORE, encoding, plain_encoding
from deeplab_recipes.data.reading import read_labels
from deeplab_recipes.data.sources.base import (
    NumberedLabels,
    Pair,
    files_by_stem,
    pair_up,
    require_folder,
    require_images,
    require_split,
    spread_colours,
)

FOLDERS = {"train": "train2017", "validation": "val2017"}
LAYOUT = "images/{train2017,val2017}/ and annotations/{train2017,val2017}/ (or stuffthingmaps/) in it"
TRAIN_IDS = "_labelTrainIds"


def _read_classes() -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Read what is stored for each class (its number in COCO-Stuff's labels.txt, less 1) and the names there.

    Eleven numbers of COCO's first list of things were never annotated.
    """
    with Path(__file__).with_name("coco_stuff_classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple(int(row["stored"]) for row in rows), tuple(row["name"] for row in rows)


STORED, CLASSES = _read_classes()


class COCOStuff(NumberedLabels):
    """COCO-Stuff: images/PART/*.jpg and annotations/PART/*.png (or stuffthingmaps/PART/*.png).

    The pixel maps as published store 0..181 with gaps, and 255 for unlabelled, which is ignored; the 171 numbers that
    occur become 0..170. Where there are only mmsegmentation's *_labelTrainIds.png, which store 0..170, these are read.

    Args:
        root: the folder that holds images/ (or train2017/ and val2017/ themselves) and the labels.

    Raises:
        FileNotFoundError: if `root` holds no labels.
    """

    classes = CLASSES
    palette = spread_colours(len(CLASSES), first=1)

    def __init__(self, root: str | Path) -> None:
        self.root = require_folder(Path(root), layout=LAYOUT)
        self.images = self.root / "images" if (self.root / "images").is_dir() else self.root
        names = ("annotations", "stuffthingmaps")
        found = [self.root / name for name in names if any((self.root / name / f).is_dir() for f in FOLDERS.values())]
        if not found:
            raise FileNotFoundError(f"data.root={root} has no folder of labels; expected {LAYOUT}")
        self.annotations = found[0]
        self.table = encoding({IGNORE: IGNORE, **{stored: c for c, stored in enumerate(STORED)}})
        self.train_ids = plain_encoding(len(CLASSES))

    def pairs(self, split: str) -> list[Pair]:
        """Return the pairs of "train" or "validation" in the order of their names."""
        part = require_split(split, FOLDERS)
        images = files_by_stem(self.images / part, (".jpg",))
        require_images(images, self.images / part, (".jpg",))
        folder = self.annotations / part
        converted = files_by_stem(folder, (".png",), ending=TRAIN_IDS)
        labels = {k: v for k, v in files_by_stem(folder, (".png",)).items() if not k.endswith(TRAIN_IDS)}
        return pair_up(images, labels or converted, self.images / part, folder)

    def labels(self, pair: Pair) -> np.ndarray:
        """Return classes (H, W) and 255; see `read_labels`."""
        return read_labels(pair.label, self.train_ids if pair.label.stem.endswith(TRAIN_IDS) else self.table)
