"""What a data source is: pairs of image and label files, class names, colours, and how labels are read."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from deeplab_recipes.data.files import File, Piece
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


def pair_by_stem(images: Path, labels: Path, *, image_suffixes: Iterable[str] = (".jpg",)) -> list[Pair]:
    """Pair the pictures of two folders by file stem, in the order of their names.

    Raises:
        FileNotFoundError: if a folder is missing or holds no picture.
        ValueError: if an image has no label or a label no image, or two have the same stem; names them.
    """
    suffixes = {s.lower() for s in image_suffixes}
    found_images = _by_stem(images, suffixes)
    found_labels = _by_stem(labels, {".png"})
    if not found_images:
        raise FileNotFoundError(f"{images} holds no image ({', '.join(sorted(suffixes))}); check data.root")
    _refuse_unpaired(found_images, found_labels, "image", "label", labels)
    _refuse_unpaired(found_labels, found_images, "label", "image", images)
    return [Pair(found_images[stem], found_labels[stem]) for stem in sorted(found_images)]


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


def _refuse_unpaired(have: dict[str, Path], want: dict[str, Path], what: str, partner: str, where: Path) -> None:
    alone = sorted(have.keys() - want.keys())
    if alone:
        names = ", ".join(have[stem].name for stem in alone[:3])
        raise ValueError(
            f"{len(alone)} of {len(have)} {what}s have no {partner} in {where}: {names}"
            f"{', ...' if len(alone) > 3 else ''}; add the missing files or move these away"
        )
