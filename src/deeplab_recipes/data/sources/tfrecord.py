"""TFRecords of images and labels, as research/deeplab's scripts and asahi417's wrote them; read without TensorFlow."""

import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from deeplab_recipes.data.files import Piece
from deeplab_recipes.data.labels import IGNORE, encoding
from deeplab_recipes.data.record_files import DamagedRecord, damaged, features, records
from deeplab_recipes.data.sources import ade20k, cityscapes, voc
from deeplab_recipes.data.sources.base import (
    Colour,
    NumberedLabels,
    Pair,
    require_folder,
    require_split,
    spread_colours,
)

IMAGE_KEYS = ("image/encoded",)
LABEL_KEYS = ("image/segmentation/class/encoded", "image/segmentation/encoded")  # the second is asahi417's
NAME_KEY = "image/filename"
# What the scripts call the parts.
PART_NAMES = {"train": ("train", "training", "train_fine"), "validation": ("val", "validation", "val_fine")}
KNOWN: Mapping[str, tuple[tuple[str, ...], tuple[Colour, ...], int]] = {
    "voc": (voc.CLASSES, spread_colours(len(voc.CLASSES)), 255),
    "cityscapes": (cityscapes.CLASSES, cityscapes.PALETTE, 255),
    "ade20k": (("unlabelled", *ade20k.CLASSES), ((0, 0, 0), *ade20k.PALETTE), 0),
}


class TFRecords(NumberedLabels):
    """Record files of tf.train.Example, NAME-00000-of-00004.tfrecord or NAME.tfrecord, in one folder.

    Each example holds an image file (image/encoded: JPEG or PNG), its label PNG (image/segmentation/class/encoded; or
    image/segmentation/encoded, as asahi417 wrote it) and a name (image/filename). Images and labels are read from
    where they lie in the record files, and nothing is held in memory. The framing (lengths and their checksums) of
    all records is checked on opening, their content only with `verify`.

    Args:
        root: the folder of the record files.
        classes: "voc" (21), "cityscapes" (19), "ade20k" (151, of which 0 stands for unlabelled and is never trained),
            or a list of names.
        ignore: the stored value to ignore; None: what research/deeplab ignores (255; with ade20k, 0).
        training, validation: the NAME of each part's files; None: train, training or train_fine, and val, validation
            or val_fine, whichever is there.
        verify: read everything once on opening, about 50 MB a second, and compare the checksums.

    Raises:
        FileNotFoundError: if `root` is not a folder.
        ValueError: for classes that are not known.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes: str | Sequence[str] = "voc",
        ignore: int | None = None,
        training: str | None = None,
        validation: str | None = None,
        verify: bool = False,
    ) -> None:
        self.root = require_folder(Path(root), layout="NAME-00000-of-00004.tfrecord or NAME.tfrecord in it")
        names, palette, usual = _classes(classes)
        self.classes, self.palette = names, palette
        self.table = encoding({**{c: c for c in range(len(names))}, usual if ignore is None else ignore: IGNORE})
        self.names = {"train": training, "validation": validation}
        self.verify = verify

    def pairs(self, split: str) -> list[Pair]:
        """Return the pairs of "train" or "validation", in the order of their records.

        Raises:
            FileNotFoundError: if there are no such files, or one of a set is missing.
            ValueError: if a file is cut short or damaged, or a record lacks a key; names file and byte.
        """
        require_split(split, {part: part for part in PART_NAMES})
        name = self.names[split] or self._usual_name(split)
        files = self._files(name)
        pairs = []
        for path in tqdm(files, desc=f"reading {name} records", unit=" files", leave=False, disable=None):
            pairs += list(read_pairs(path, verify=self.verify))
        if not pairs:
            raise FileNotFoundError(f"{files[0]} holds no record; check data.root")
        return pairs

    def _usual_name(self, split: str) -> str:
        found = [name for name in PART_NAMES[split] if _shards(self.root, name)]
        if len(found) == 1:
            return found[0]
        setting = f"data.source.{'training' if split == 'train' else split}=NAME"
        if found:
            raise ValueError(f"{self.root} holds records of {' and '.join(found)}; say which: {setting}")
        there = sorted({re.sub(r"(-\d+-of-\d+)?\.tfrecord$", "", p.name) for p in self.root.glob("*.tfrecord")})
        raise FileNotFoundError(
            f"{self.root} holds no records of {', '.join(PART_NAMES[split])}; there are {', '.join(there) or 'none'}. "
            f"Say which: {setting}"
        )

    def _files(self, name: str) -> list[Path]:
        files = _shards(self.root, name)
        if not files:
            raise FileNotFoundError(f"{self.root} holds no {name}-*-of-*.tfrecord and no {name}.tfrecord")
        match = re.search(r"-of-(\d+)\.tfrecord$", files[0].name)
        if match and len(files) != int(match[1]):
            raise FileNotFoundError(f"{self.root} holds {len(files)} of {int(match[1])} files {name}-*.tfrecord")
        return files


def _classes(classes: str | Sequence[str]) -> tuple[tuple[str, ...], tuple[Colour, ...], int]:
    if isinstance(classes, str):
        if classes not in KNOWN:
            raise ValueError(f"data.source.classes is {classes!r}; valid are {', '.join(KNOWN)}, or a list of names")
        return KNOWN[classes]
    names = tuple(map(str, classes))
    if not names or len(set(names)) < len(names):
        raise ValueError(f"data.source.classes is {list(names)}; it takes names, each once")
    return names, spread_colours(len(names)), 255


def _shards(root: Path, name: str) -> list[Path]:
    pattern = re.compile(rf"{re.escape(name)}(-\d+-of-\d+)?\.tfrecord")
    return sorted(path for path in root.iterdir() if pattern.fullmatch(path.name))


def read_pairs(path: Path, *, verify: bool = False) -> Iterator[Pair]:
    """Give image and label of each record of a file, as pieces of it.

    Raises:
        ValueError: if the file is cut short or damaged, or a record lacks a key; names file and byte.
    """
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for number, (start, length) in enumerate(records(content, path, verify=verify)):
                try:
                    found = features(content, start, start + length)
                except (IndexError, DamagedRecord):
                    raise damaged(path, number, start, "holds no tf.train.Example") from None
                yield _pair(found, content, path, number, start)


def _pair(found: Mapping[str, tuple[int, int]], content: mmap.mmap, path: Path, number: int, start: int) -> Pair:
    image = next((found[key] for key in IMAGE_KEYS if key in found), None)
    label = next((found[key] for key in LABEL_KEYS if key in found), None)
    if image is None or label is None:
        lacking = IMAGE_KEYS[0] if image is None else " or ".join(LABEL_KEYS)
        keys = ", ".join(sorted(found)) or "nothing"
        raise ValueError(f"{path}: record {number + 1} at byte {start} has no {lacking}; it has {keys}")
    offset, length = found.get(NAME_KEY, (0, 0))
    name = content[offset : offset + length].decode(errors="replace") or f"record_{number + 1:06d}"
    stem = PurePosixPath(name).stem if PurePosixPath(name).suffix else PurePosixPath(name).name
    kind = ".png" if content[image[0] : image[0] + 4] == b"\x89PNG" else ".jpg"
    return Pair(Piece(path, *image, f"{stem}{kind}"), Piece(path, *label, f"{stem}.label.png"))
