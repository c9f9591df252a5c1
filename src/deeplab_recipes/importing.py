"""Weights of another program become a checkpoint of this one, with a report of what was found."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from deeplab_recipes.checkpoints import FORMAT_VERSION, why_unwritten, write_whole
from deeplab_recipes.data.sources import ade20k, camvid, cityscapes, voc
from deeplab_recipes.data.sources.base import spread_colours
from deeplab_recipes.data.sources.class_file import read_class_file
from deeplab_recipes.model import importers
from deeplab_recipes.model.choices import choose
from deeplab_recipes.model.dense_prediction_cell import CellSpec
from deeplab_recipes.model.importers.base import Colour, Imported, build
from deeplab_recipes.record import sha256

SETS = {"voc": voc.PascalVOC, "cityscapes": cityscapes.Cityscapes, "ade20k": ade20k.ADE20k, "camvid": camvid.CamVid}
BACKGROUND = "background"
Named = tuple[tuple[str, ...], tuple[Colour, ...], str]  # names, colours, where they are from


@dataclass(frozen=True)
class Report:
    """What an import found and did; `str` of it is for the screen.

    Attributes:
        output: the checkpoint that was written.
        card: what it carries besides weights.
        model: the arguments of `build_deeplab` that the file told.
        parameters: of the model, the auxiliary head's included.
        used: tensors of the file that are in it.
        unused: tensors of the file that are not -> why.
        named_by: where the class names are from.
    """

    output: Path
    card: Mapping[str, Any]
    model: Mapping[str, Any]
    parameters: int
    used: int
    unused: Mapping[str, str]
    named_by: str

    def __str__(self) -> str:
        """Return architecture, classes, counts, and each unused tensor with the reason."""
        model, protocol = self.card["model"], self.card["protocol"]
        names = list(self.card["classes"])
        shown = ", ".join(names[:6]) + (f", ... {names[-1]}" if len(names) > 6 else "")
        named = ("backbone", "head", "num_classes")
        settings = ", ".join(f"{k}={v}" for k, v in self.model.items() if k not in named and v is not None)
        sides = " x ".join(map(str, self.card["evaluate_sizes"][protocol]))
        lines = [
            f"{model['head']} on {model['backbone']}: {settings}",
            f"{len(names)} classes ({self.named_by}): {shown}",
            f"input: (pixel - {_numbers(self.card['mean'])}) / {_numbers(self.card['std'])}, {protocol} at {sides}",
            f"{self.parameters:,} parameters; {self.used} tensors of the file are used, {len(self.unused)} are not",
            *(f"  not used: {name}: {reason}" for name, reason in self.unused.items()),
        ]
        return "\n".join([*lines, f"written to {self.output}"])


def import_model(
    source: str,
    file: str | Path,
    output: str | Path,
    *,
    classes: str | Sequence[str] | None = None,
    overwrite: bool = False,
    output_stride: int | None = None,
    width_multiplier: float | None = None,
    head: str | None = None,
    dense_prediction_cell: CellSpec = None,
    align_corners: bool | None = None,
) -> Report:
    """Read another program's weights and write them as a checkpoint of this package.

    Args:
        source: a name of `importers.SOURCES`.
        file: what that program wrote.
        output: the checkpoint.
        classes: names in the order of the logits; or a file that lists them, one a line or as a classes.yaml; or voc,
            cityscapes, ade20k, camvid. None: those of the file, or else numbers.
        overwrite: whether `output` may be there already.
        output_stride, width_multiplier, head, dense_prediction_cell, align_corners: hints, as model.* of a training,
            where the file does not say. An importer refuses those that tell nothing of its files.

    Raises:
        FileNotFoundError: there is no such file.
        FileExistsError: `output` is there.
        ValueError: the file is of another program or model, a hint or the number of classes does not fit it.
        ImportError: the source needs a package that is not installed.
    """
    file, output = Path(file).expanduser(), Path(output).expanduser()
    hints = {"output_stride": output_stride, "width_multiplier": width_multiplier, "head": head}
    hints |= {"dense_prediction_cell": dense_prediction_cell, "align_corners": align_corners}
    given = {key: value for key, value in hints.items() if value is not None}
    read = _reader(source, given)
    _refuse_overwriting(output, overwrite)
    imported = read(file, **given)
    names, palette, named_by = _named(imported, classes)
    model = build(imported)
    card = _card(source, file, imported, names, palette, model.arguments)
    _write({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}, "deeplab": card}, output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    used = len(imported.state) if imported.used is None else imported.used
    return Report(output, card, imported.model, parameters, used, imported.unused, named_by)


def _reader(source: str, given: Mapping[str, Any]) -> Any:
    """Return an importer, after a look at the hints that it takes."""
    modules = {name: f"{importers.__name__}.{name}" for name in importers.SOURCES}
    read = import_module(choose("source", source, modules)).read
    valid = [n for n, p in inspect.signature(read).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for key, value in given.items():
        if key not in valid:
            raise ValueError(f"{key}={value} tells nothing of a file of source={source}; it takes {', '.join(valid)}")
    return read


def _refuse_overwriting(output: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise FileExistsError(f"output={output} is a folder; name the checkpoint in it")
    if output.exists() and not overwrite:
        raise FileExistsError(f"output={output} is there already; choose another, or replace it: overwrite=true")


def _named(imported: Imported, classes: str | Sequence[str] | None) -> Named:
    """Return a name and a colour for every class."""
    count = imported.model["num_classes"]
    if classes is not None:
        names, palette, named_by = _given(classes, count)
    elif imported.classes is not None:
        names, palette, named_by = imported.classes, imported.palette, "named in the file"
    else:
        names, palette, named_by = tuple(f"class {i}" for i in range(count)), None, "numbered; classes=... names them"
    if len(names) != count:
        raise ValueError(f"classes={classes} has {len(names)} names, the model {count} classes; name each of them")
    if len(set(names)) != count:
        raise ValueError(f"classes: {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return tuple(names), palette or spread_colours(count), named_by


def _given(classes: str | Sequence[str], count: int) -> tuple[tuple[str, ...], tuple[Colour, ...] | None, str]:
    if not isinstance(classes, str):
        return tuple(map(str, classes)), None, "as given"
    if classes in SETS:
        names, palette = tuple(SETS[classes].classes), tuple(SETS[classes].palette)
        if count == len(names) + 1 and BACKGROUND not in names:  # TensorFlow counts what is not labelled as a class
            names, palette = (BACKGROUND, *names), ((0, 0, 0), *palette)
        return names, palette, f"those of {classes}"
    path = Path(classes).expanduser()
    if not path.is_file():
        raise ValueError(f"classes={classes} is neither a file nor one of {', '.join(SETS)}; or give [name, name, ...]")
    if path.suffix in (".yaml", ".yml"):
        listed = read_class_file(path)
        colours = tuple(colour for colour in listed.colours if colour is not None)
        return listed.names, colours if len(colours) == len(listed.names) else None, f"of {path}"
    lines = [line.strip() for line in path.read_text().splitlines()]
    return tuple(line for line in lines if line), None, f"of {path}"


def _card(
    source: str,
    file: Path,
    imported: Imported,
    names: tuple[str, ...],
    palette: tuple[Colour, ...],
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what a checkpoint carries besides weights; see `training.Run.card`."""
    hashed = sha256(file) if file.is_file() else None  # TensorFlow names a checkpoint by a prefix, which is no file
    return {
        "format_version": FORMAT_VERSION,
        "recipe": f"imported from {source}",
        "classes": list(names),
        "palette": [list(colour) for colour in palette],
        "model": dict(arguments),
        **imported.size,
        "mean": list(imported.mean),
        "std": list(imported.std),
        "on_corrupt": "raise",
        "training": {},
        "imported": {"source": source, "file": file.name, "sha256": hashed, "unused": dict(imported.unused)},
    }


def _write(checkpoint: Mapping[str, Any], output: Path) -> None:
    try:
        write_whole(checkpoint, output)
    except (OSError, RuntimeError) as error:
        reason = why_unwritten(error)
        raise OSError(f"cannot write {output}: {reason}; make room, or choose another: output=FILE") from error


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"
