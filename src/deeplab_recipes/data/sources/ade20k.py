"""ADE20k scene parsing, 150 classes, in the layout of ADEChallengeData2016."""

import csv
from pathlib import Path

from deeplab_recipes.data.labels import shifted_encoding
from deeplab_recipes.data.sources.base import Colour, NumberedLabels, Pair, pair_by_stem, require_folder, require_split

FOLDERS = {"train": "training", "validation": "validation"}
# Grey photographs that Composer leaves out of training.
GREY_TRAINING_IMAGES = frozenset(f"ADE_train_{n}" for n in ("00001701", "00003020", "00008455", "00013508"))


def _read_classes() -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Names as in ADE20k's objectInfo150.csv (the first of each), colours as in its development kit."""
    with Path(__file__).with_name("ade20k_classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = tuple(row["name"] for row in rows)
    return names, tuple((int(row["red"]), int(row["green"]), int(row["blue"])) for row in rows)


CLASSES, PALETTE = _read_classes()


class ADE20k(NumberedLabels):
    """ADE20k: images/{training,validation}/*.jpg and annotations/{training,validation}/*.png.

    Stored labels are 0 = unlabelled (ignored) and 1..150.

    Args:
        root: ADEChallengeData2016 or the folder that holds it.
        drop_grey: leave out the four grey training images, as Composer does.

    Raises:
        FileNotFoundError: if `root` has neither images/ nor ADEChallengeData2016/.
    """

    classes = CLASSES
    palette = PALETTE

    def __init__(self, root: str | Path, *, drop_grey: bool = True) -> None:
        layout = "images/ and annotations/ in it, or ADEChallengeData2016/ that has them"
        root = require_folder(Path(root), layout=layout)
        nested = root / "ADEChallengeData2016"
        self.root = nested if nested.is_dir() else root
        if not (self.root / "images").is_dir():
            raise FileNotFoundError(f"data.root={root} has no images/ folder; expected {layout}")
        self.drop_grey = drop_grey
        self.table = shifted_encoding(len(self.classes))

    def pairs(self, split: str) -> list[Pair]:
        """Return the pairs of "train" or "validation" in the order of their names."""
        folder = require_split(split, FOLDERS)
        pairs = pair_by_stem(self.root / "images" / folder, self.root / "annotations" / folder)
        if not self.drop_grey:
            return pairs
        return [pair for pair in pairs if pair.image.stem not in GREY_TRAINING_IMAGES]
