"""What a data source is: pairs of image and label files, class names, colours, and how labels are read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from deeplab_recipes.data.files import File, guess_names
from deeplab_recipes.data.reading import picture_size, read_image, read_labels

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Pair:
    """One photograph and its labels, as files."""

    image: File
    label: File


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


def read_pair(pair: Pair, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return image (H, W, 3) and labels (H, W), both uint8.

    Raises:
        ValueError: if one cannot be read, or their sizes differ; names the file.
    """
    image, labels = read_image(pair.image), source.labels(pair)
    require_same_size(pair, image.shape[:2], labels.shape)
    return image, labels


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
    suffixes = {s.lower() for s in image_suffixes}
    found_images = _by_stem(images, suffixes)
    found_labels = _by_stem(labels, {".png"})
    if not found_images:
        raise FileNotFoundError(f"{images} holds no image ({', '.join(sorted(suffixes))}); check data.root")
    pairs = [Pair(path, found_labels[stem]) for stem, path in sorted(found_images.items()) if stem in found_labels]
    bare = [path for stem, path in sorted(found_images.items()) if stem not in found_labels]
    loose = [path for stem, path in sorted(found_labels.items()) if stem not in found_images]
    if bare or loose:
        told = [(bare, len(found_images), f"images have no label in {labels}")] if bare else []
        told += [(loose, len(found_labels), f"labels have no image in {images}")] if loose else []
        text = "; ".join(f"{len(alone)} of {total} {what}: {_first_names(alone)}" for alone, total, what in told)
        cause = guess_names(bare, loose)
        text += f"; add the missing files or move these away{f'. Guess: {cause}' if cause else ''}"
        raise UnpairedError(text, bare, loose, pairs)
    return pairs


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


def _by_stem(folder: Path, suffixes: set[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; check data.root")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in found:
            raise ValueError(f"{folder} holds both {found[path.stem].name} and {path.name}; keep one of them")
        found[path.stem] = path
    return found


def _first_names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
