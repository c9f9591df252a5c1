"""What a data source is: pairs of image and label files, class names, colours, and how labels are read."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from deeplab_recipes.data.files import File, Piece, guess_names
from deeplab_recipes.data.pictures import Photograph, picture_size
from deeplab_recipes.data.reading import open_photograph, read_labels

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Pair:
    """One photograph and its labels, as files."""

    image: File
    label: File

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle paths as words, which is read several times as fast."""
        return _pair, tuple(str(file) if isinstance(file, Path) else file for file in (self.image, self.label))


def _pair(*files: str | Piece) -> Pair:
    return Pair(*(Path(file) if isinstance(file, str) else file for file in files))


@runtime_checkable
class Source(Protocol):
    """A data set on disk. Loader processes get copies of it, so it has to be small and picklable."""

    classes: tuple[str, ...]
    palette: tuple[Colour, ...]

    def pairs(self, split: str) -> list[Pair]:
        """Return the pairs of a part ("train" or "validation") in a fixed order."""
        ...

    def labels(self, pair: Pair) -> np.ndarray:
        """Return a pair's labels (H, W) uint8: classes and 255, which is ignored.

        Raises:
            ValueError: if they cannot be read or hold what is no class; names the file.
        """
        ...

    def label_size(self, pair: Pair) -> tuple[int, int]:
        """Return (height, width) of a pair's labels, if possible without reading them whole."""
        ...


class NumberedLabels:
    """A source whose label pictures hold a number for each pixel; `table` gives its class, see `data.labels`."""

    table: np.ndarray

    def labels(self, pair: Pair) -> np.ndarray:
        """Return classes (H, W) and 255; see `read_labels`."""
        return read_labels(pair.label, self.table)

    def label_size(self, pair: Pair) -> tuple[int, int]:
        """Return (height, width)."""
        return picture_size(pair.label)


def open_pair(pair: Pair, source: Source) -> tuple[Photograph, np.ndarray]:
    """Return the photograph, to be decoded as far as it is needed, and labels (H, W) uint8.

    Raises:
        ValueError: if one cannot be read, or their sizes differ; names the file.
    """
    photograph, labels = open_photograph(pair.image), source.labels(pair)
    require_same_size(pair, photograph.shape, labels.shape)
    return photograph, labels


def read_pair(pair: Pair, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return image (H, W, 3) and labels (H, W), both uint8.

    Raises:
        ValueError: as `open_pair`.
    """
    photograph, labels = open_pair(pair, source)
    return photograph.pixels(), labels


def require_same_size(pair: Pair, image: tuple[int, ...], label: tuple[int, ...]) -> None:
    """Raise ValueError that names both files if the (height, width) of an image and of its labels differ."""
    if image != label:
        raise ValueError(
            f"{pair.image} is {image[1]} x {image[0]} pixels but {pair.label} is {label[1]} x {label[0]}; "
            "an image and its labels must have the same size"
        )


class UnpairedError(ValueError):
    """Images without labels, or labels without images.

    Args:
        message: names some of them.
        images, labels: all that are alone.
        pairs: what does have a partner.
    """

    def __init__(
        self, message: str, images: Sequence[File] = (), labels: Sequence[File] = (), pairs: Sequence[Pair] = ()
    ) -> None:
        super().__init__(message)
        self.images, self.labels, self.pairs = images, labels, pairs


def pair_by_stem(images: Path, labels: Path, *, image_suffixes: Iterable[str] = (".jpg",)) -> list[Pair]:
    """Pair the pictures of two folders by file stem, in the order of their names.

    Raises:
        FileNotFoundError: if a folder is missing or holds no picture.
        UnpairedError: if an image has no label or a label no image; names them.
        ValueError: if two have the same stem; names them.
    """
    found_images, found_labels = files_by_stem(images, image_suffixes), files_by_stem(labels, (".png",))
    require_images(found_images, images, image_suffixes)
    return pair_up(found_images, found_labels, images, labels)


def files_by_stem(folder: Path, suffixes: Iterable[str], *, ending: str = "") -> dict[str, Path]:
    """Return the files of a folder by stem, in the order of their names; hidden and other files are left out.

    Args:
        folder: where they are.
        suffixes: of the files that count, in small letters.
        ending: what the stems end with; it is cut off, and other stems do not count.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if two files have the same stem; names them.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; check data.root")
    suffixes, found = set(suffixes), {}
    with os.scandir(folder) as entries:  # asks the system about no file by itself, of which there may be 100,000
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir())
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in suffixes and stem.endswith(ending):
            keep_one(found, stem.removesuffix(ending), folder / name)
    return found


def keep_one(found: dict[str, Path], key: str, path: Path) -> None:
    """Add a file under its key, or raise ValueError that names both if there is one already."""
    if key in found:
        raise ValueError(f"{path.parent} holds both {found[key].name} and {path.name}; keep one of them")
    found[key] = path


def require_images(found: dict[str, Path], folder: Path, suffixes: Iterable[str]) -> None:
    """Raise FileNotFoundError that names folder and suffixes if no image was found."""
    if not found:
        raise FileNotFoundError(f"{folder} holds no image ({', '.join(sorted(suffixes))}); check data.root")


def pair_up(images: dict[str, Path], labels: dict[str, Path], image_folder: Path, label_folder: Path) -> list[Pair]:
    """Pair images and labels of the same key, in the order of the keys.

    Raises:
        UnpairedError: if an image has no label or a label no image; names them.
    """
    bare = [images[key] for key in sorted(images.keys() - labels.keys())]
    loose = [labels[key] for key in sorted(labels.keys() - images.keys())]
    pairs = [Pair(images[key], labels[key]) for key in sorted(images.keys() & labels.keys())]
    if bare or loose:
        told = [(bare, len(images), f"images have no label in {label_folder}")] if bare else []
        told += [(loose, len(labels), f"labels have no image in {image_folder}")] if loose else []
        text = "; ".join(f"{len(alone)} of {total} {what}: {_first_names(alone)}" for alone, total, what in told)
        cause = guess_names(bare, loose)
        text += f"; add the missing files or move these away{f'. Guess: {cause}' if cause else ''}"
        raise UnpairedError(text, bare, loose, pairs)
    return pairs


def spread_colours(count: int, *, first: int = 0) -> tuple[Colour, ...]:
    """Return `count` colours that are easy to tell apart, from number `first` on: the map of Pascal VOC.

    Bits 0, 1, 2 of a number are the highest bits of red, green, blue; bits 3, 4, 5 the next ones, and so on.
    """

    def channel(number: int, offset: int) -> int:
        return sum((number >> (3 * step + offset) & 1) << (7 - step) for step in range(8))

    return tuple((channel(n, 0), channel(n, 1), channel(n, 2)) for n in range(first, first + count))


def require_folder(root: Path, *, layout: str) -> Path:
    """Return `root` if it is a folder, else raise FileNotFoundError that shows the expected layout."""
    if not root.is_dir():
        raise FileNotFoundError(f"data.root={root} is not a folder; expected {layout}")
    return root


def require_split(split: str, folders: dict[str, str]) -> str:
    """Return the folder name of a part, or raise ValueError that names the valid parts."""
    if split not in folders:
        raise ValueError(f"split is {split!r}; valid are {', '.join(folders)}")
    return folders[split]


def _first_names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
