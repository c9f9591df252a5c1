"""The drawn scenes of `quickstart` as a data source: no download, no account."""

from pathlib import Path

from deeplab_recipes.data.labels import shifted_encoding
from deeplab_recipes.data.sources import shapes
from deeplab_recipes.data.sources.ade20k import FOLDERS
from deeplab_recipes.data.sources.base import NumberedLabels, Pair, pair_by_stem, require_split


class DrawnScenes(NumberedLabels):
    """Scenes drawn on first use and kept on disk in ADE20k's layout (stored labels 0 = ignored, then 1..C).

    Args:
        root: the folder that is to hold them, or holds them already.
        training, validation: how many scenes of each part.
        height, width: their size in pixels.
        seed: of the drawings.

    Raises:
        ValueError: if `root` holds something else.
    """

    classes = shapes.CLASSES
    palette = shapes.PALETTE

    def __init__(self, root: str | Path, *, training: int, validation: int, height: int, width: int, seed: int) -> None:
        self.root = Path(root)
        self.table = shifted_encoding(len(self.classes))
        shapes.write_scenes(self.root, training=training, validation=validation, height=height, width=width, seed=seed)

    def pairs(self, split: str) -> list[Pair]:
        """Return the pairs of "train" or "validation" in the order of their names."""
        folder = require_split(split, FOLDERS)
        return pair_by_stem(self.root / "images" / folder, self.root / "annotations" / folder)
