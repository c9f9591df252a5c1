"""Pascal VOC 2012 segmentation, and the larger training list with the labels of SBD."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np

from deeplab_recipes.data.labels import decode_labels, plain_encoding
from deeplab_recipes.data.sources.base import (
    NumberedLabels,
    Pair,
    files_by_stem,
    require_folder,
    require_images,
    require_split,
    spread_colours,
)

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
LAYOUT = "JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/ in it, or VOCdevkit/VOC2012/ that has them"
SBD_FOLDERS = ("benchmark_RELEASE/dataset", "VOCaug/dataset")
TrainingList = Literal["train", "trainaug", "trainval"]


class PascalVOC(NumberedLabels):
    """Pascal VOC 2012: 21 classes with the background as class 0; the stored value 255 (borders) is ignored.

    The list `trainaug` (10,582 images) is taken from ImageSets/Segmentation/trainaug.txt, train_aug.txt, or aug.txt
    added to train.txt; or it is made of SBD's own train.txt and val.txt, without VOC's validation images. An image
    has VOC's own label (SegmentationClass/) where there is one, else SBD's: a PNG in SegmentationClassAug/, or SBD's
    cls/*.mat.

    Args:
        root: VOC2012, VOCdevkit, or the folder that holds VOCdevkit/; SBD's benchmark_RELEASE/ (or VOCaug/) may lie in
            any of them.
        training_list: "train" (1,464), "trainaug", or "trainval" (2,913; holds the validation images too, so that
            validation then says nothing).

    Raises:
        FileNotFoundError: if `root` does not hold VOC.
        ValueError: for an unknown list.
    """

    classes = CLASSES
    palette = spread_colours(len(CLASSES))

    def __init__(self, root: str | Path, *, training_list: TrainingList = "trainaug") -> None:
        root = require_folder(Path(root), layout=LAYOUT)
        if training_list not in get_args(TrainingList):
            raise ValueError(
                f"data.source.training_list is {training_list!r}; valid are {', '.join(get_args(TrainingList))}"
            )
        above = (root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2012", root / "VOC2012")
        found = [folder for folder in above if (folder / "JPEGImages").is_dir()]
        if not found:
            raise FileNotFoundError(f"data.root={root} has no JPEGImages/ folder; expected {LAYOUT}")
        self.root = found[0]
        self.training_list = training_list
        places = (folder / name for folder in (*above, root.parent) for name in SBD_FOLDERS)
        self.sbd = next((place for place in places if (place / "cls").is_dir()), None)
        self.table = plain_encoding(len(CLASSES))

    def pairs(self, split: str) -> list[Pair]:
        """Return the pairs of "train" or "validation" in the order of their names."""
        name = require_split(split, {"train": self.training_list, "validation": "val"})
        names = self._augmented() if name == "trainaug" else _read_list(self._list(name))
        images = files_by_stem(self.root / "JPEGImages", (".jpg",))
        require_images(images, self.root / "JPEGImages", (".jpg",))
        labels = self._labels(augmented=name == "trainaug")
        _refuse_missing(names, images, f"{self.root / 'JPEGImages'}")
        others = ", SegmentationClassAug/ or SBD" if name == "trainaug" else ""
        _refuse_missing(names, labels, f"{self.root / 'SegmentationClass'}{others}")
        return [Pair(images[name], labels[name]) for name in sorted(names)]

    def labels(self, pair: Pair) -> np.ndarray:
        """Return classes (H, W) and 255, from a PNG or from SBD's .mat file."""
        if not _is_mat(pair):
            return super().labels(pair)
        return decode_labels(_read_mat(pair.label), self.table, name=str(pair.label))

    def label_size(self, pair: Pair) -> tuple[int, int]:
        """Return (height, width)."""
        return _read_mat(pair.label).shape if _is_mat(pair) else super().label_size(pair)

    def _list(self, name: str) -> Path:
        return self.root / "ImageSets" / "Segmentation" / f"{name}.txt"

    def _augmented(self) -> set[str]:
        for name in ("trainaug", "train_aug"):
            if self._list(name).is_file():
                return _read_list(self._list(name))
        if self._list("aug").is_file():
            return _read_list(self._list("train")) | _read_list(self._list("aug"))
        if self.sbd is None:
            raise FileNotFoundError(
                f"data.source.training_list=trainaug needs {self._list('trainaug')} (or aug.txt) with "
                f"SegmentationClassAug/, or SBD's benchmark_RELEASE/ in {self.root}; "
                "data.source.training_list=train does without"
            )
        added = _read_list(self.sbd / "train.txt") | _read_list(self.sbd / "val.txt")
        return (_read_list(self._list("train")) | added) - _read_list(self._list("val"))

    def _labels(self, *, augmented: bool) -> dict[str, Path]:
        """Return the label files by name; where there are several, the most trusted."""
        found: dict[str, Path] = {}
        if augmented and self.sbd is not None:
            found |= files_by_stem(self.sbd / "cls", (".mat",))
        if augmented and (self.root / "SegmentationClassAug").is_dir():
            found |= files_by_stem(self.root / "SegmentationClassAug", (".png",))
        return found | files_by_stem(self.root / "SegmentationClass", (".png",))


def _read_list(path: Path) -> set[str]:
    """Read names, one a line; some lists in circulation give paths of image and label instead."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it lists the images of a part")
    names = {PurePosixPath(line.split()[0]).stem for line in path.read_text().splitlines() if line.strip()}
    if not names:
        raise ValueError(f"{path} lists no image; is the download complete?")
    return names


def _refuse_missing(names: Iterable[str], found: dict[str, Path], where: str) -> None:
    missing = sorted(set(names) - found.keys())
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(f"{len(missing)} listed names are not in {where}: {some}; is the download complete?")


def _is_mat(pair: Pair) -> bool:
    return isinstance(pair.label, Path) and pair.label.suffix.lower() == ".mat"


def _read_mat(path: Path) -> np.ndarray:
    """Return GTcls.Segmentation (H, W) uint8 of an SBD file."""
    from scipy.io import loadmat

    try:
        return np.asarray(loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0], dtype=np.uint8)
    except Exception as error:  # scipy raises whatever the broken bytes led to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} holds no GTcls.Segmentation as SBD's files do ({reason}); fetch it anew") from None
