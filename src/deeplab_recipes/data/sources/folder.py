"""One's own photographs and masks in a folder."""

import hashlib
import os
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deeplab_recipes.data.files import File
from deeplab_recipes.data.labels import IGNORE, INVALID, decode_labels, encoding
from deeplab_recipes.data.pictures import open_picture, picture_size, stored_numbers
from deeplab_recipes.data.sources.base import (
    Colour,
    Pair,
    keep_one,
    pair_up,
    require_folder,
    require_images,
    spread_colours,
)
from deeplab_recipes.data.sources.class_file import NAME, ClassList, read_class_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
LAYOUT = f"images/, masks/ and {NAME} in it"
PARTS: Mapping[str, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
HOW_TO_SPLIT = (
    "say which photographs train and which validate by subfolders train/ and validation/ in images/ and masks/, by "
    "lists train.txt and validation.txt beside them, or by neither: then data.source.validation_share are held out"
)


class Folder:
    """Photographs in images/ and masks of the same names in masks/, in subfolders too; classes in classes.yaml.

    A mask that is a colour picture is read by the colours of its classes, any other by the numbers it stores; see
    `read_class_file`. What belongs to which part is said by train.txt and validation.txt (or val.txt; one name a line,
    as it is below images/, the suffix may be left out), else by subfolders train/ and validation/ (or val/) of both
    folders. Where there are neither, a share is held out for validation; which, depends on the names alone.

    Args:
        root: the folder that holds images/, masks/ and classes.yaml.
        validation_share: of the photographs, held out where neither lists nor subfolders say which.

    Raises:
        FileNotFoundError: if one of the three is missing.
        ValueError: for a share outside 0..1, or a classes.yaml that is not as `read_class_file` says.
    """

    def __init__(self, root: str | Path, *, validation_share: float = 0.2) -> None:
        self.root = require_folder(Path(root), layout=LAYOUT)
        for name in ("images", "masks"):
            if not (self.root / name).is_dir():
                raise FileNotFoundError(f"data.root={root} has no {name}/ folder; expected {LAYOUT}")
        if not 0 < validation_share < 1:
            raise ValueError(f"data.source.validation_share is {validation_share}; it must be between 0 and 1, as 0.2")
        self.validation_share = validation_share
        self.listed = read_class_file(self.root / NAME)
        self.classes = self.listed.names
        spread = spread_colours(len(self.classes))
        self.palette = tuple(c or s for c, s in zip(self.listed.colours, spread, strict=True))
        numbers = {value: label for label, value in enumerate(self.listed.values)}
        self.table = encoding({**numbers, **dict.fromkeys(self.listed.ignored_values, IGNORE)})

    @property
    def meaning(self) -> list[Any]:
        """What masks mean: all that classes.yaml says of them, beside the names. Shards made with another are old."""
        listed = self.listed
        return [listed.colours, listed.values, listed.ignored_values, listed.ignored_colours, listed.masks]

    def pairs(self, split: str) -> list[Pair]:
        """Return the pairs of "train", "validation" or (if there is one) "test" in the order of their names."""
        if split not in PARTS:
            raise ValueError(f"split is {split!r}; valid are {', '.join(PARTS)}")
        images, masks = self.root / "images", self.root / "masks"
        found = _files_below(images, IMAGE_SUFFIXES)
        require_images(found, images, IMAGE_SUFFIXES)
        labels = _files_below(masks, MASK_SUFFIXES)
        if not labels:
            _refuse_lossy(masks)
        whole = dict(zip(sorted(found), pair_up(found, labels, images, masks), strict=True))
        chosen = self._parts(list(whole)).get(split)
        if chosen is None:
            raise ValueError(f"{self.root} has no part {split!r}; {HOW_TO_SPLIT}")
        return [whole[key] for key in chosen]

    def labels(self, pair: Pair) -> np.ndarray:
        """Return classes (H, W) and 255.

        Raises:
            ValueError: if the mask cannot be read or holds a colour or number that is no class's; names file, colour
                or number, and how many pixels have it.
        """
        with open_picture(pair.label) as picture:
            coloured = picture.mode in ("RGB", "RGBA") if self.listed.masks is None else self.listed.masks == "color"
            if coloured:
                return decode_colours(picture, self.listed, pair.label)
            _refuse_ambiguous(picture, self.listed, pair.label)
            stored = stored_numbers(picture)
            stored = stored.astype(np.uint8) if picture.mode == "1" else stored
        try:
            return decode_labels(stored, self.table, name=str(pair.label))
        except ValueError as error:
            raise ValueError(f"{error}. {self.listed.path} says what is stored: value of a class, or ignore") from None

    def label_size(self, pair: Pair) -> tuple[int, int]:
        """Return (height, width)."""
        return picture_size(pair.label)

    def _parts(self, keys: list[str]) -> dict[str, list[str]]:
        """Return the keys of each part."""
        lists = {part: [self.root / f"{n}.txt" for n in names] for part, names in PARTS.items()}
        lists = {part: [path for path in paths if path.is_file()] for part, paths in lists.items()}
        if any(lists.values()):
            return _complete(self.root, {part: _read_lists(paths, keys) for part, paths in lists.items() if paths})
        tops = {key.split("/")[0] for key in keys if "/" in key}
        if tops & {name for names in PARTS.values() for name in names}:
            return _complete(self.root / "images", _by_subfolder(self.root / "images", keys))
        return self._held_out(keys)

    def _held_out(self, keys: list[str]) -> dict[str, list[str]]:
        """Hold out by a hash of the name, so that photographs that come later hardly move the others."""
        if len(keys) < 2:
            raise ValueError(f"{self.root / 'images'} holds one photograph; training and validation need one each")
        count = min(max(1, round(self.validation_share * len(keys))), len(keys) - 1)
        by_hash = sorted(keys, key=lambda key: hashlib.sha256(os.fsencode(key)).digest())
        held_out = set(by_hash[:count])
        return {
            "train": [key for key in keys if key not in held_out],
            "validation": [key for key in keys if key in held_out],
        }


def decode_colours(picture: Image.Image, listed: ClassList, file: File) -> np.ndarray:
    """Map a colour mask to classes (H, W) uint8 and 255.

    Raises:
        ValueError: if it has transparent pixels, a class has no colour, or a colour is no class's; names the file,
            the colour and how many pixels have it.
    """
    lacking = [name for name, colour in zip(listed.names, listed.colours, strict=True) if colour is None]
    if lacking:
        raise ValueError(
            f"{file} is a colour picture, but {listed.path} gives {lacking[0]!r} no color: give every class one, or "
            "save masks with one channel of class numbers"
        )
    codes = np.asarray(picture.convert("RGBA")).view("<u4")[..., 0]
    transparent = int(np.count_nonzero(codes < 0xFF000000))
    if transparent:
        raise ValueError(f"{file} has {transparent} transparent pixels, which belong to no class; save it without")
    codes = codes & 0xFFFFFF
    labels = _colour_table(listed.colours, listed.ignored_colours)[codes]
    unknown = labels == INVALID
    if unknown.any():
        raise ValueError(_unknown_colours(codes[unknown], listed, file))
    return labels


@lru_cache(maxsize=2)
def _colour_table(colours: tuple[Colour, ...], ignored: tuple[Colour, ...]) -> np.ndarray:
    """Return the class of each of the 2^24 colours r + 256 g + 65536 b, as uint8; 16 MiB, and one look-up a pixel."""
    table = np.full(1 << 24, INVALID, np.uint8)
    for label, colour in [*enumerate(colours), *((IGNORE, colour) for colour in ignored)]:
        table[colour[0] | colour[1] << 8 | colour[2] << 16] = label
    return table


def _refuse_ambiguous(picture: Image.Image, listed: ClassList, file: File) -> None:
    """Refuse a picture of numbers with a palette whose colours are those of other classes than the numbers."""
    if picture.mode != "P" or listed.masks is not None or None in listed.colours:
        return
    palette = picture.getpalette("RGB") or []
    drawn = {number: tuple(palette[3 * number : 3 * number + 3]) for _, number in picture.getcolors(256) or []}
    meant = dict(zip(listed.values, listed.colours, strict=True))
    coloured = set(drawn.values()) <= {*listed.colours, *listed.ignored_colours}
    if coloured and any(meant.get(number, colour) != colour for number, colour in drawn.items()):
        raise ValueError(
            f"{file} stores numbers with a palette, and the colours of this are of other classes than the numbers; say "
            f"in {listed.path} which of them to read: masks: index, or masks: color"
        )


def _unknown_colours(codes: np.ndarray, listed: ClassList, file: File) -> str:
    values, counts = np.unique(codes, return_counts=True)
    most = int(values[counts.argmax()])
    colour = [most & 255, most >> 8 & 255, most >> 16]
    others = f" (and {len(values) - 1} other unknown colours)" if len(values) > 1 else ""
    hint = f"add it to a class of {listed.path}, or ignore it: ignore: [{colour}]"
    if len(values) > 64:
        hint = "so many suggest a mask that was saved as JPEG or resized with smoothing; export it anew"
    return f"{file}: color {colour} of {counts.max()} pixels is no class's{others}; {hint}"


def _files_below(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Return files by path below `folder` without suffix; umlauts written in either of Unicode's ways are the same."""
    found: dict[str, Path] = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix.lower() in suffixes and not name.startswith("."):
                keep_one(found, _key(path.relative_to(folder).with_suffix("").as_posix()), path)
    return found


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _refuse_lossy(masks: Path) -> None:
    lossy = _files_below(masks, LOSSY_SUFFIXES)
    reason = f"holds no mask ({', '.join(MASK_SUFFIXES)})"
    if lossy:
        name = next(iter(lossy.values())).name
        reason += f"; {name} is compressed with loss, which changes labels: save masks as PNG"
    raise FileNotFoundError(f"{masks} {reason}")


def _by_subfolder(images: Path, keys: list[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    names = {name: part for part, folders in PARTS.items() for name in folders}
    for key in keys:
        top = key.split("/")[0] if "/" in key else None
        if top not in names:
            raise ValueError(
                f"{images} has subfolders of parts, but {key} is in none of them ({', '.join(names)}); move it"
            )
        parts.setdefault(names[top], []).append(key)
    return parts


def _read_lists(paths: list[Path], keys: list[str]) -> list[str]:
    """Return the keys that a list names, in order."""
    if len(paths) > 1:
        raise ValueError(f"there are both {paths[0]} and {paths[1]}; keep one of them")
    text = paths[0].read_text(encoding="utf-8-sig", errors="surrogateescape")
    lines = [_key(line.strip()) for line in text.split("\n") if line.strip()]
    known, chosen = set(keys), set()
    for line in lines:
        key = line if line in known else os.path.splitext(line)[0]
        if key not in known:
            raise ValueError(f"{paths[0]} lists {line}, which is no photograph in {paths[0].parent / 'images'}")
        chosen.add(key)
    return sorted(chosen)


def _complete(where: Path, parts: dict[str, list[str]]) -> dict[str, list[str]]:
    """Refuse what has only one of the parts, or a photograph in two."""
    for part in ("train", "validation"):
        if not parts.get(part):
            raise ValueError(f"{where} names no photograph for {part}; {HOW_TO_SPLIT}")
    seen: dict[str, str] = {}
    for part, keys in parts.items():
        for key in keys:
            if seen.setdefault(key, part) != part:
                raise ValueError(f"{key} is listed for both {seen[key]} and {part}; keep it in one of them")
    return parts
