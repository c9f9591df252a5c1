"""classes.yaml: the classes of one's own data set."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from deeplab_recipes.data.labels import INVALID
from deeplab_recipes.data.sources.base import Colour

NAME = "classes.yaml"
EXAMPLE = "classes: [{name: road, color: [128, 64, 128]}, {name: car, color: [0, 0, 142]}]"
CLASS_KEYS = ("name", "color", "value")
KEYS = ("classes", "ignore", "masks")
Masks = Literal["index", "color"]


@dataclass(frozen=True)
class ClassList:
    """What a classes.yaml says.

    Args:
        path: the file.
        names: of the classes, in order.
        colours: of each class; None where it has none.
        values: what index masks store for each class.
        ignored_values, ignored_colours: what masks hold where no class is.
        masks: how all masks are to be read, or None: colour pictures by colour, others by number.
    """

    path: Path
    names: tuple[str, ...]
    colours: tuple[Colour | None, ...]
    values: tuple[int, ...]
    ignored_values: tuple[int, ...]
    ignored_colours: tuple[Colour, ...]
    masks: Masks | None


def read_class_file(path: Path) -> ClassList:
    """Read the classes of a data set, in order, from YAML.

    `classes` is a list of names, or of {name, color, value}: `color` is [r, g, b] or "#rrggbb"; `value` is what index
    masks store for the class, by default its position from 0. `ignore` gives a value or "#rrggbb" to ignore, or a list
    of values and colours ([[r, g, b]]; [r, g, b] are three values). `masks: index` or `masks: color` says how to read
    all masks.

    Raises:
        FileNotFoundError: if there is no such file; shows an example.
        ValueError: if it is not as described, or lists a name, value or colour twice; names it.
    """
    content = _load(path)
    _refuse_unknown(content, KEYS, path)
    listed = content.get("classes")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{path}: classes is {listed!r}; it takes a list of at least one class, like {EXAMPLE}")
    if len(listed) > INVALID:
        raise ValueError(f"{path} lists {len(listed)} classes; there can be at most {INVALID}")
    rows = [_class(item, number, path) for number, item in enumerate(listed)]
    names, colours, values = zip(*rows, strict=True)
    ignored = [_ignored(item, path) for item in _as_list(content.get("ignore"))]
    numbers = tuple(item for item in ignored if isinstance(item, int))
    ignored_colours = tuple(item for item in ignored if not isinstance(item, int))
    _refuse_twice("class", names, path)
    position = "; a class without a value has its position, from 0"
    _refuse_twice("value", (*values, *numbers), path, hint=position)
    masks = _masks(content.get("masks"), path)
    if masks != "index":
        hint = ", unless colors are only to draw with: masks: index"
        _refuse_twice("color", (*(c for c in colours if c is not None), *ignored_colours), path, hint=hint)
    return ClassList(path, names, colours, values, numbers, ignored_colours, masks)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it says what the classes are, like\n{EXAMPLE}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}; expected keys {', '.join(KEYS)}, like\n{EXAMPLE}")
    return content


def _class(item: Any, number: int, path: Path) -> tuple[str, Colour | None, int]:
    item = item if isinstance(item, dict) else {"name": item}
    where = f"class {number + 1}"
    _refuse_unknown(item, CLASS_KEYS, path, where=f" of {where}")
    name, value = item.get("name"), item.get("value", number)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{path}: the name of {where} is {name!r}; it takes text (in quotes, if it looks like more)")
    colour = _colour(item["color"], f"color of {name!r}", path) if "color" in item else None
    return name, colour, _value(value, f"value of {name!r}", path)


def _ignored(item: Any, path: Path) -> int | Colour:
    return _value(item, "ignore", path) if isinstance(item, int) else _colour(item, "ignore", path)


def _as_list(ignore: Any) -> list[Any]:
    if ignore is None:
        return []
    return ignore if isinstance(ignore, list) else [ignore]


def _value(value: Any, what: str, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
        raise ValueError(f"{path}: {what} is {value!r}; it takes a whole number 0..255")
    return value


def _colour(value: Any, what: str, path: Path) -> Colour:
    try:
        return parse_colour(value)
    except ValueError as error:
        raise ValueError(f"{path}: {what} is {error}") from None


def parse_colour(value: Any) -> Colour:
    """Return (r, g, b) of a list of three numbers 0..255 or of "#rrggbb"; ValueError for what is neither."""
    numbers = value
    if isinstance(value, str) and len(value) == 7 and value[0] == "#":
        try:
            numbers = list(bytes.fromhex(value[1:]))
        except ValueError:
            numbers = None
    plain = isinstance(numbers, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in numbers)
    if not plain or len(numbers) != 3 or not all(0 <= v <= 255 for v in numbers):
        raise ValueError(f'{value!r}; a color is [r, g, b] with numbers 0..255, or "#rrggbb" in quotes')
    return numbers[0], numbers[1], numbers[2]


def _masks(value: Any, path: Path) -> Masks | None:
    if value is not None and value not in get_args(Masks):
        raise ValueError(f"{path}: masks is {value!r}; valid are {', '.join(get_args(Masks))}")
    return value


def _refuse_unknown(given: Mapping[Any, Any], known: Iterable[str], path: Path, *, where: str = "") -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}{where}; valid are {', '.join(known)}")


def _refuse_twice(what: str, items: Iterable[Any], path: Path, *, hint: str = "") -> None:
    seen: set[Any] = set()
    for item in items:
        if item in seen:
            shown = list(item) if isinstance(item, tuple) else repr(item)
            raise ValueError(f"{path}: {what} {shown} is listed twice; each may occur once{hint}")
        seen.add(item)
