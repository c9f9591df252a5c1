"""Supervisely projects: meta.json, and a JSON file of drawn objects for each image."""

import base64
import binascii
import io
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from deeplab_recipes.data.labels import IGNORE, INVALID
from deeplab_recipes.data.packed import Packed
from deeplab_recipes.data.pictures import PNG_START
from deeplab_recipes.data.sources.base import Colour, Pair, require_folder, require_split
from deeplab_recipes.data.sources.class_file import parse_colour

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jfif", ".mpo")
LAYOUT = "meta.json and DATASET/img/ and DATASET/ann/ in it"
BACKGROUND_COLOUR: Colour = (34, 34, 34)  # Supervisely's, where the project has no such class
AGAIN = "export the project anew"
POINTS_LIMIT = 1 << 24  # beyond any picture; OpenCV wants 32-bit numbers


class Supervisely:
    """A Supervisely project: objects drawn one over the other, in the order of their file.

    Class 0 is the background: what no object covers, and objects of the class `background`. The other classes follow
    by name, from 1. Pixels of objects of the class `neutral` are ignored. Bitmaps, polygons and rectangles are drawn;
    lines, points and other shapes cover no area and are refused. Image tags say which images train and which
    validate; an image without such a tag takes no part.

    Args:
        root: the folder that holds meta.json, or one that holds just one such folder.
        train_tag, validation_tag: names of the image tags.
        background, neutral: names of the special classes; the project need not have them.

    Raises:
        FileNotFoundError: if `root` holds no project, or an image has no annotation.
        ValueError: if meta.json or an annotation is not as it should be, a class is listed twice, or no image has
            one of the tags.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train_tag: str = "train",
        validation_tag: str = "val",
        background: str = "bg",
        neutral: str = "neutral",
    ) -> None:
        if background == neutral or train_tag == validation_tag:
            raise ValueError(
                f"background={background} and neutral={neutral}, and train_tag={train_tag} and "
                f"validation_tag={validation_tag}, must differ"
            )
        self.root = _project(require_folder(Path(root), layout=LAYOUT))
        meta = _read_json(self.root / "meta.json")
        self.shapes, colours = _read_classes(meta, self.root / "meta.json")
        special = {background, neutral}
        self.classes = (background, *sorted(self.shapes.keys() - special))
        if not 1 < len(self.classes) <= INVALID:
            raise ValueError(
                f"{self.root / 'meta.json'} has {len(self.classes) - 1} classes besides {background} and {neutral}; "
                f"there must be at least 1 and at most {INVALID - 1}"
            )
        self.palette = tuple(colours.get(name, BACKGROUND_COLOUR) for name in self.classes)
        self.numbers = {**{name: i for i, name in enumerate(self.classes)}, neutral: IGNORE}
        self.tags = {"train": train_tag, "validation": validation_tag}
        self._parts = self._split()

    def pairs(self, split: str) -> list[Pair]:
        """Return the pairs of "train" or "validation": images and their annotation files, dataset by dataset."""
        require_split(split, self.tags)
        return list(self._parts[split])

    def labels(self, pair: Pair) -> np.ndarray:
        """Return classes (H, W) and 255, drawn.

        Raises:
            ValueError: if the annotation or one of its objects cannot be drawn; names file and object.
        """
        annotation = _read_json(pair.label)
        canvas = np.zeros(_size(annotation, pair.label), np.uint8)
        for number, item in enumerate(_objects(annotation, pair.label)):
            title = item.get("classTitle") if isinstance(item, dict) else None
            where = f"{pair.label}: object {number + 1} ({title})"
            if not isinstance(title, str) or title not in self.numbers:
                raise ValueError(f"{where} is of a class that meta.json lacks; it has {', '.join(self.shapes)}")
            try:
                _draw(canvas, item, self.shapes.get(title, ""), self.numbers[title])
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                raise ValueError(f"{where} lacks what its shape needs, or has it in another form ({error!r})") from None
            except ValueError as error:
                raise ValueError(f"{where} {error}") from None
        return canvas

    def label_size(self, pair: Pair) -> tuple[int, int]:
        """Return (height, width) as the annotation says."""
        return _size(_read_json(pair.label), pair.label)

    def _split(self) -> dict[str, Packed[Pair]]:
        """Read the tags of all images."""
        parts: dict[str, list[Pair]] = {part: [] for part in self.tags}
        seen: set[str] = set()
        for pair in tqdm(_all_pairs(self.root), desc="reading tags", unit=" images", leave=False, disable=None):
            tags = _tag_names(_read_json(pair.label), pair.label)
            seen |= tags
            chosen = [part for part, tag in self.tags.items() if tag in tags]
            if len(chosen) == 2:
                raise ValueError(f"{pair.label} has both tags, {' and '.join(self.tags.values())}; an image takes one")
            for part in chosen:
                parts[part].append(pair)
        for part, tag in self.tags.items():
            if not parts[part]:
                there = ", ".join(sorted(seen)) or "none"
                raise ValueError(
                    f"no image of {self.root} has the tag {tag!r}; tags found: {there}. Tag the images in Supervisely, "
                    f"or name the tag: data.source.{part}_tag=NAME"
                )
        return {part: Packed(pairs) for part, pairs in parts.items()}


def _project(root: Path) -> Path:
    if (root / "meta.json").is_file():
        return root
    found = sorted(path.parent for path in root.glob("*/meta.json"))
    if len(found) != 1:
        names = f"; it holds several projects: {', '.join(path.name for path in found)}" if found else ""
        raise FileNotFoundError(f"data.root={root} has no meta.json; expected {LAYOUT}{names}")
    return found[0]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); export it anew") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, not an object as Supervisely writes")
    return content


def _read_classes(meta: Mapping[str, Any], path: Path) -> tuple[dict[str, str], dict[str, Colour]]:
    """Return shape and colour of each class by its title."""
    shapes: dict[str, str] = {}
    colours: dict[str, Colour] = {}
    rows = meta.get("classes")
    for row in rows if isinstance(rows, list) else [None]:
        if not isinstance(row, dict) or not isinstance(row.get("title"), str):
            raise ValueError(f"{path}: classes must be a list of objects with a title, shape and color; found {row!r}")
        title = row["title"]
        if title in shapes:
            raise ValueError(f"{path}: class {title!r} is listed twice; each may occur once")
        shapes[title] = str(row.get("shape", ""))
        try:
            colours[title] = parse_colour(row.get("color"))
        except ValueError as error:
            raise ValueError(f"{path}: color of class {title!r} is {error}") from None
    return shapes, colours


def _all_pairs(project: Path) -> list[Pair]:
    """Return every image of every dataset, nested ones too, with its annotation."""
    walk = os.walk(project, followlinks=True)
    datasets = sorted(Path(place) for place, folders, _ in walk if "img" in folders)
    pairs = [pair for dataset in datasets for pair in _pairs_of_dataset(dataset)]
    if not pairs:
        raise FileNotFoundError(f"{project} holds no image in DATASET/img/; expected {LAYOUT}")
    return pairs


def _pairs_of_dataset(dataset: Path) -> list[Pair]:
    annotations = {name: dataset / "ann" / name for name in _names(dataset / "ann", (".json",))}
    pairs = []
    for image in _names(dataset / "img", IMAGE_SUFFIXES):
        first_years = f"{os.path.splitext(image)[0]}.json"
        label = annotations.pop(f"{image}.json", None) or annotations.pop(first_years, None)
        if label is None:
            raise FileNotFoundError(
                f"{dataset / 'img' / image} has no annotation {dataset / 'ann' / image}.json; {AGAIN}"
            )
        pairs.append(Pair(dataset / "img" / image, label))
    if annotations:
        raise FileNotFoundError(f"{next(iter(annotations.values()))} has no image in {dataset / 'img'}; {AGAIN}")
    return pairs


def _names(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the names of a folder's files with one of the suffixes, in order; a.jpg and a.png are two."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected {LAYOUT}")
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.is_dir() and not entry.name.startswith(".")]
    return sorted(name for name in names if os.path.splitext(name)[1].lower() in suffixes)


def _tag_names(annotation: Mapping[str, Any], path: Path) -> set[str]:
    """Return the names of an image's tags: plain words in the first years, later objects with a name."""
    tags = annotation.get("tags") or []
    names = {tag.get("name") if isinstance(tag, dict) else tag for tag in tags} if isinstance(tags, list) else {None}
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: tags is {tags!r}; expected a list of names, or of objects with a name")
    return names


def _objects(annotation: Mapping[str, Any], path: Path) -> list[Any]:
    objects = annotation.get("objects") or []
    if not isinstance(objects, list):
        raise ValueError(f"{path}: objects is {objects!r}; expected a list")
    return objects


def _size(annotation: Mapping[str, Any], path: Path) -> tuple[int, int]:
    size = annotation.get("size")
    numbers = [size.get(key) for key in ("height", "width")] if isinstance(size, dict) else []
    if len(numbers) != 2 or not all(type(n) is int and 0 < n < POINTS_LIMIT for n in numbers):
        raise ValueError(f"{path}: size is {size!r}; expected height and width of the image in pixels")
    if numbers[0] * numbers[1] > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise ValueError(f"{path}: size {numbers[1]} x {numbers[0]} is beyond {Image.MAX_IMAGE_PIXELS} pixels")
    return numbers[0], numbers[1]


def _draw(canvas: np.ndarray, item: Mapping[str, Any], class_shape: str, label: int) -> None:
    """Draw an object; its shape is its own (`geometryType`) or, in the first years, that of its class."""
    shape = item.get("geometryType") or class_shape
    if shape == "bitmap":
        _draw_bitmap(canvas, item["bitmap"], label)
    elif shape == "polygon":
        _draw_polygon(canvas, item["points"], label)
    elif shape == "rectangle":
        corners = _points(item["points"]["exterior"]).tolist()
        if len(corners) != 2:
            raise ValueError(f"has a rectangle of {len(corners)} corners; it takes two opposite ones")
        cv2.rectangle(canvas, *corners, label, cv2.FILLED)
    else:
        raise ValueError(
            f"is a {shape}, which covers no area that could be labelled; valid are bitmap, polygon and rectangle. "
            "Convert or delete such objects in Supervisely"
        )


def _draw_polygon(canvas: np.ndarray, points: Mapping[str, Any], label: int) -> None:
    """Fill the exterior, borders included, and leave out the interiors, borders included."""
    area = np.zeros_like(canvas)
    cv2.fillPoly(area, [_points(points["exterior"])], 1)
    for hole in points.get("interior") or []:
        cv2.fillPoly(area, [_points(hole)], 0)
    canvas[area == 1] = label


def _points(points: Any) -> np.ndarray:
    """Return (N, 2) int32 of x, y."""
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 2 or not len(array) or not (np.abs(array) < POINTS_LIMIT).all():
        raise ValueError("has points that are not a list of [x, y]")
    return np.round(array).astype(np.int32)


def _draw_bitmap(canvas: np.ndarray, bitmap: Mapping[str, Any], label: int) -> None:
    """Set the pixels of a mask whose upper left corner is at `origin` (x, y)."""
    x, y = (int(v) for v in bitmap["origin"])
    with _open_bitmap(bitmap["data"], limit=8 * canvas.size + (1 << 20)) as picture:
        width, height = picture.size
        if x < 0 or y < 0 or x + width > canvas.shape[1] or y + height > canvas.shape[0]:
            image = f"{canvas.shape[1]} x {canvas.shape[0]}"
            raise ValueError(f"has a bitmap of {width} x {height} pixels at ({x}, {y}), outside the image of {image}")
        try:
            mask = _mask(picture)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"has a bitmap whose PNG is damaged ({error})") from None
    canvas[y : y + height, x : x + width][mask] = label


def _open_bitmap(data: Any, *, limit: int) -> Image.Image:
    """Open base64 of a PNG, which zlib has compressed once more (or not, as Supervisely accepts it too)."""
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"has a bitmap that is not base64 ({error})") from None
    if not content.startswith(PNG_START):
        try:
            inflate = zlib.decompressobj()
            content = inflate.decompress(content, limit)
        except zlib.error as error:
            raise ValueError(f"has a bitmap that zlib cannot unpack ({error})") from None
        if not inflate.eof:
            raise ValueError("has a bitmap whose zlib data are cut short, or larger than the image could need")
    try:
        return Image.open(io.BytesIO(content), formats=["PNG"])
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"has a bitmap that holds no PNG ({error})") from None


def _mask(picture: Image.Image) -> np.ndarray:
    """Return where a bitmap is set (H, W): where it is opaque or, without transparency, not black."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        return np.asarray(picture.convert("RGBA"))[..., 3] > 0
    pixels = np.asarray(picture if picture.mode != "P" else picture.convert("L"))
    return pixels.any(axis=-1) if pixels.ndim == 3 else pixels > 0
