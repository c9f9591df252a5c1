"""Settings: YAML to objects. Every key is known or refused, and nothing is built before all keys are.

A section with `_target_` names a callable of this package or of the libraries it stands on; the other keys are its
arguments. With `_partial_: true` the callable is prepared rather than called.
"""

import difflib
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

MISSING = "???"  # what a mandatory setting holds until it is given
PLAIN_TYPES = (int, float, bool, str, list, NoneType)  # what a YAML holds, sections aside
ALLOWED_PACKAGES = ("deeplab_recipes", "torch", "torchvision", "pytorch_lightning", "torchmetrics", "optuna")
EXTRAS = {"optuna": "sweep"}  # packages that come with an extra of this one
# Settings that say where and how fast, not what: a change of these is no deviation from a published result.
NEUTRAL = (
    *("name", "run_dir", "resume", "pictures", "logger", "published", "measure", "trial"),
    *("data.root", "data.workers", "data.keep_decoded", "data.check_samples", "data.cache", "evaluate_batch_size"),
    *("trainer.devices", "trainer.num_nodes", "trainer.accelerator", "trainer.precision", "trainer.deterministic"),
    *("trainer.evaluate_every", "trainer.log_every", "trainer.progress"),
)


def yamls_folder() -> Path:
    """Return the folder of the YAMLs: inside an installed package, or beside src/ in a checkout."""
    here = Path(__file__).parent
    installed = here / "yamls"
    return installed if installed.is_dir() else here.parents[1] / "yamls"


def locate(target: str) -> Callable[..., Any]:
    """Return the callable that a `_target_` names.

    Raises:
        ValueError: if it is outside the allowed packages or does not exist.
    """
    package = target.split(".")[0]
    if package not in ALLOWED_PACKAGES:
        raise ValueError(f"_target_ {target} is outside the packages that may be named: {', '.join(ALLOWED_PACKAGES)}")
    module_name, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        if package in EXTRAS and find_spec(package) is None:
            raise ImportError(missing_extra(package, EXTRAS[package])) from None
        raise ValueError(f"_target_ {target} does not exist ({error})") from None


def missing_extra(what: str, extra: str) -> str:
    """Return how to install what is optional."""
    return f"{what} is not installed; it comes with an extra: pip install 'deeplab-recipes[{extra}]'"


def build(section: Any, path: str) -> Any:
    """Turn a section of plain containers into what its `_target_`s make; other values pass as they are.

    Args:
        section: plain containers.
        path: the section's name, for messages.

    Raises:
        ValueError: for an unknown or missing argument; names the key, the valid ones and the closest.
    """
    if isinstance(section, Mapping):
        values = {key: build(value, f"{path}.{key}") for key, value in section.items() if not key.startswith("_")}
        if "_target_" not in section:
            return values
        prepared = section.get("_partial_", False)
        function = locate(section["_target_"])
        check_arguments(function, values, path, complete=not prepared)
        return partial(function, **values) if prepared else function(**values)
    if isinstance(section, list):
        return [build(value, f"{path}[{i}]") for i, value in enumerate(section)]
    return section


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any], path: str, *, complete: bool) -> None:
    """Compare keys with a callable's arguments.

    Raises:
        ValueError: for a key that the callable does not take, or (if `complete`) one that it needs and lacks.
    """
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in values:
        if key not in parameters:
            raise ValueError(f"unknown setting {path}.{key}; {suggestion(key, parameters)}")
    check_types(function, values, path)
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in values and n != "self"]
    if complete and missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")


def check_types(function: Callable[..., Any], values: Mapping[str, Any], path: str) -> None:
    """Compare what a YAML can hold (numbers, words, switches, lists) with a callable's annotations.

    Raises:
        ValueError: for a value of another type.
    """
    try:
        hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, TypeError):  # annotations that cannot be resolved promise nothing
        return
    for key, value in values.items():
        if isinstance(value, PLAIN_TYPES) and not _fits(value, hints.get(key, Any)):
            name = key if path == "settings" else f"{path}.{key}"
            raise ValueError(f"{name} is {value!r}; it takes {_spelled(hints[key])}")


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return any(_fits(value, kind) for kind in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    kind = get_origin(hint) or hint
    if not inspect.isclass(kind):
        return True
    if kind in (int, float):
        return type(value) is int or (type(value) is float and kind is float)
    if kind in (Sequence, tuple):
        return isinstance(value, list)
    return isinstance(value, kind) if kind is not Any else True


SECTION = "a section with _target_, as the YAMLs of its group have"


def _spelled(hint: Any) -> str:
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return " or ".join(sorted(map(_spelled, get_args(hint)), key=SECTION.__eq__))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    names = {NoneType: "null", int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    if hint in names:
        return names[hint]
    kind = get_origin(hint) or hint
    if kind is Mapping:
        return "{name: value}"
    return "a list" if kind in (Sequence, tuple, list) else SECTION


def quoted(text: str) -> str:
    """Return a text as a value in Hydra's grammar, with quotes where it would be read as something else."""
    plain = re.fullmatch(r"[A-Za-z0-9/._+~ -]*[A-Za-z/._+~-][A-Za-z0-9/._+~ -]*", text) and text.strip() == text
    if plain and text.lower() not in ("true", "false", "null", "nan", "inf") and not _is_number(text):
        return text
    # A backslash escapes only before a quote, where it is doubled itself.
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text)
    return f"'{escaped}'"


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False


def literal(value: Any) -> str:
    """Return a value as it is written on the command line: numbers, words, switches, null, lists and mappings."""
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{literal(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(literal, value)) + "]"
    return repr(value)


def suggestion(key: str, valid: Iterable[str]) -> str:
    """Return "did you mean X? Valid are ..." for a name that does not exist."""
    names = list(valid)
    folded = [name for name in names if str(name).casefold() == str(key).casefold()]
    close = folded or difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}Valid are {', '.join(names)}"


def leaves(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as {"a.b.c": value}; lists count as values."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat.update(leaves(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def differences(recipe: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the leaves, beyond neutral ones, in which a run differs from its recipe: name -> (recipe's, run's)."""
    then, now = leaves(recipe), leaves(run)
    return {
        key: (then.get(key), now.get(key))
        for key in {**then, **now}
        if then.get(key) != now.get(key) and not any(key == n or key.startswith(f"{n}.") for n in NEUTRAL)
    }


def explain_override(
    message: str,
    known: Sequence[str],
    options: Sequence[str],
    leaves_of: Callable[[str, str], Collection[str]] = lambda group, choice: (),
) -> str:
    """Turn Hydra's message about an override into one that names the closest valid key.

    Args:
        message: Hydra's.
        known: all settings, as dotted names.
        options: all choices of the groups, as group/choice.
        leaves_of: gives the settings that there are with another choice of a group.
    """
    match = re.search(r"Could not override '([^']+)'", message) or re.search(r"Key '([^']+)' is not in struct", message)
    if match and match[1] in {option.split("/")[0] for option in options}:
        return f"{match[1]} has no default to replace: +{match[1]}=NAME adds one"
    if match and (owners := _owners(match[1], options, leaves_of)):
        group = match[1].partition(".")[0]
        return f"{match[1]} is no setting of this {group}; it is one of {', '.join(f'{group}={o}' for o in owners)}"
    if match:
        return f"unknown setting {match[1]}{_closest(match[1], [k for k in known if '._' not in k])}"
    match = re.search(r"Could not find '([^']+)'", message)
    if match:
        group, _, choice = match[1].rpartition("/")
        valid = [option.split("/")[-1] for option in options if option.startswith(f"{group}/")]
        if valid:
            return f"there is no {group} {choice!r}; {suggestion(choice, valid)}"
        return f"there is no group {group or choice!r}{_closest(group or choice, {o.split('/')[0] for o in options})}"
    return message.strip()


def _owners(key: str, options: Sequence[str], leaves_of: Callable[[str, str], Collection[str]]) -> list[str]:
    """Return the choices of a setting's group with which it exists."""
    group, _, below = key.partition(".")
    choices = [option.partition("/")[2] for option in options if below and option.startswith(f"{group}/")]
    return [choice for choice in choices if key in leaves_of(group, choice)]


def _closest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else "; --cfg job shows all settings"


LATER = ("run_dir", "logger", "published")  # may be null here, and are made of what is
CONVERTED = ("root", "workers", "on_corrupt")  # what a conversion reads of the data's settings, beside the source's
DATA_SETTINGS = ("batch_size", "evaluate_batch_size", "protocol")


def require_known(values: Mapping[str, Any]) -> None:
    """Look at the settings outside the sections.

    Raises:
        ValueError: for one that was added (+key=value) but nothing reads, or a value of another type.
    """
    from deeplab_recipes.data import SegmentationDataModule
    from deeplab_recipes.training import Run

    fields = Run.__dataclass_fields__.keys() - {"overrides"}
    known = sorted({*fields, *DATA_SETTINGS, "resume"})
    for key in values:
        if key not in known:
            raise ValueError(f"unknown setting {key}; {suggestion(key, [*known, 'recipe'])}")
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    check_types(SegmentationDataModule, {key: plain[key] for key in DATA_SETTINGS}, "settings")
    check_types(Run, {key: plain[key] for key in plain if key in fields and key not in LATER}, "settings")
    if values["pictures"] < 0:
        raise ValueError(f"pictures is {values['pictures']}; it takes a whole number of at least 0")


def require_settings(function: Callable[..., Any], values: Mapping[str, Any], *, mandatory: Mapping[str, str]) -> None:
    """Compare the settings of a small verb with what it calls.

    Args:
        function: its keyword arguments with plain defaults are settings.
        values: the settings.
        mandatory: further settings, which have no default -> what each is.

    Raises:
        ValueError: for one that is missing, unknown or of another type.
    """
    parameters = inspect.signature(function).parameters
    keywords = [
        name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY and isinstance(p.default, PLAIN_TYPES)
    ]
    for key in values:
        if key not in keywords and key not in mandatory:
            raise ValueError(f"unknown setting {key}; {suggestion(key, [*mandatory, *keywords])}")
    for key, meaning in mandatory.items():
        if values[key] == MISSING:
            raise ValueError(f"{key}=... is missing: {meaning}")
    check_types(function, {key: values[key] for key in values if key in keywords}, "settings")


def build_parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Build every section of the settings; sections that need others first stay callables.

    Raises:
        ValueError: for an unknown key in any section.
    """
    from deeplab_recipes.planning import Published

    parts = {key: build(value, key) for key, value in values.items()}
    if values["published"]:
        check_arguments(Published, values["published"], "published", complete=True)
        parts["published"] = Published(**values["published"])
    return parts


def require_data_root(values: Mapping[str, Any]) -> None:
    """Raise ValueError where no folder of data is named."""
    if values["data"]["root"] == MISSING:
        raise ValueError("data.root is not set; say where the data set is: data.root=DIR")


def assemble_source(values: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """Build the data source that the settings name, and nothing else; needs no torch.

    Args:
        values: all settings.
        known: those that there are without the command line's; a key beyond them is a typo.

    Raises:
        ValueError, OSError: for a setting that cannot work, or where there is no such data set.
    """
    for key in values:
        if key not in known:
            raise ValueError(f"unknown setting {key}; {suggestion(key, known)}")
    require_data_root(values)
    data = values["data"]
    if data["source"] == MISSING:
        raise ValueError("data.source is not set; choose a data set: data=NAME")
    if data["on_corrupt"] not in ("raise", "skip"):
        raise ValueError(f"data.on_corrupt is {data['on_corrupt']!r}; valid are raise, skip")
    for name, value in (("data.workers", data["workers"]), ("sheet_pairs", values["sheet_pairs"])):
        if (type(value) is not int or value < 0) and (name, value) != ("data.workers", "auto"):
            raise ValueError(f"{name} is {value!r}; it takes a whole number of at least 0")
    from deeplab_recipes.data.shards.source import open_source

    return open_source(build(data["source"], "data.source"), data["root"], cache=data["cache"])


def assemble(values: Mapping[str, Any], overrides: Mapping[str, tuple[Any, Any]]) -> Any:
    """Build a `training.Run` from all settings.

    Raises:
        ValueError, OSError: for a setting or data that cannot work; before anything is trained.
    """
    from deeplab_recipes.training import Run

    require_known(values)
    require_data_root(values)
    parts = build_parts({key: value for key, value in values.items() if key != "resume"})
    data = parts.pop("data")
    shared = {key: parts.pop(key) for key in DATA_SETTINGS}
    return Run(**parts, data=data(**shared, seed=values["seed"]), overrides=overrides)


def assemble_plan(values: Mapping[str, Any], overrides: Mapping[str, tuple[Any, Any]]) -> str:
    """Work out the text of a plan from all settings; needs no data where their classes are known, and fetches nothing.

    Raises:
        ValueError, OSError: for a setting that cannot work, or a file that is not there: what training refuses.
    """
    from deeplab_recipes.planning import describe

    values = dict(values)
    measure = values.pop("measure")
    require_known(values)
    parts = build_parts({key: value for key, value in values.items() if key != "resume"})
    classes = _classes(parts)
    images = _training_images(parts)
    model, notes = _planned_network(parts, values, classes, images)
    weights = values["model"].get("backbone_weights")
    if values["weights"]:
        weights = f"with all others from {values['weights']} ({values['init']})"
    return describe(
        name=values["name"],
        model=model,
        backbone_weights=weights,
        crop=tuple(values["data"]["crop_size"]),
        training_images=images,
        batch_size=values["batch_size"],
        microbatch_size=values["microbatch_size"],
        trainer=parts["trainer"],
        published=parts["published"],
        overrides=overrides,
        normalize=parts["loss"].normalize,
        measure=measure,
        notes=notes,
    )


def _planned_network(
    parts: Mapping[str, Any], values: Mapping[str, Any], classes: Sequence[str], images: int
) -> tuple[Any, list[str]]:
    """Build the network that training would begin with, and list what training would note of it.

    Weights are loaded where they are on this machine already.
    """
    from deeplab_recipes import agreement, initial_weights, planning
    from deeplab_recipes.model.weights import weights_at_hand

    weights, trainer, loss = values["weights"], parts["trainer"], parts["loss"]
    initial_weights.check_choice(weights, values["init"])
    data = _data_without_files(parts, classes)
    split = planning.split_for(
        data.batch_size, trainer, parts["model"].keywords, microbatch_size=values["microbatch_size"]
    )
    backbone = str(parts["model"].keywords.get("backbone_weights") or "none")
    fetched = not Path(backbone).expanduser().is_file()
    network = agreement.build_network(
        parts["model"],
        classes=classes,
        split=split,
        count=None,
        crop=data.training_transform.crop_size,
        **{key: parts[key] for key in ("loss", "optimizer", "parameters", "schedule", "schedule_ends")},
        **({"backbone_weights": None} if weights or fetched else {}),
    )
    if not weights and backbone.lower() != "none":
        weights_at_hand(backbone, network.arguments["backbone"])
    begun = _planned_beginning(network, data, parts, values, images)
    expected = agreement.notes(
        network,
        split=split,
        loss=loss,
        trainer=trainer,
        parameters=parts["parameters"],
        steps=trainer.steps(images // data.batch_size),
        trained=weights is not None,
        trained_backbone=weights is not None or backbone.lower() != "none",
    )
    missing = [f"not on this machine: {problem}" for problem in trainer.problems_here()]
    return network, [*begun, *missing, *expected]


def _planned_beginning(
    network: Any, data: Any, parts: Mapping[str, Any], values: Mapping[str, Any], images: int
) -> list[str]:
    """Look at the checkpoint to go on from, or the weights to begin with; return what training would note of them."""
    from deeplab_recipes import resuming
    from deeplab_recipes.checkpoints import card_of
    from deeplab_recipes.initial_weights import load_initial_weights, weights_at_hand

    weights = values["weights"]
    card = card_of(name=values["name"], seed=values["seed"], data=data, network=network, optimizer=parts["optimizer"])
    checkpoint, step = resuming.find_checkpoint(
        values["resume"],
        run_dir=Path(values["run_dir"]) if values["run_dir"] else None,
        weights=weights,
        card=card,
        steps=parts["trainer"].steps(images // values["batch_size"]),
        settings=values,
    )
    if checkpoint is not None:
        return [f"goes on from {checkpoint}, which has done {step} steps"]
    if weights is None or weights_at_hand(weights) is None:
        return [] if weights is None else [f"{weights} is fetched when training begins"]
    begun = load_initial_weights(network, weights, init=values["init"], classes=card["classes"], card=card)
    return begun.notes()


def _data_without_files(parts: Mapping[str, Any], classes: Sequence[str]) -> Any:
    """Return the data module over no data: its constructor is where its settings are checked."""
    shared = {key: parts[key] for key in (*DATA_SETTINGS, "seed")}
    nothing = SimpleNamespace(classes=classes, palette=())
    return parts["data"](source=lambda root: nothing, root=os.devnull, **{**shared, "cache": None})


def _classes(parts: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of the classes; where they are the data's own, the data have to be there."""
    from deeplab_recipes.data.shards.source import open_source

    data = parts["data"].keywords
    classes = getattr(data["source"].func, "classes", None)
    if classes is None and not _is_there(data["root"]):
        raise ValueError(
            f"data.root={data['root']} is not there, and only the data say how many classes: data.root=DIR"
        )
    return classes or open_source(data["source"], data["root"], cache=data.get("cache")).classes


def _is_there(root: str) -> bool:
    from deeplab_recipes.data.shards.stores import is_bucket

    return root != MISSING and (is_bucket(root) or Path(root).exists())


def _training_images(parts: Mapping[str, Any]) -> int:
    """Count the training images on disk; without data, take the number that is drawn or was published."""
    from deeplab_recipes.data.shards.source import open_source

    data = parts["data"].keywords
    if _is_there(data["root"]):
        return len(open_source(data["source"], data["root"], cache=data.get("cache")).pairs("train"))
    drawn = data["source"].keywords.get("training")
    if drawn is None and parts["published"] is None:
        raise ValueError(f"data.root={data['root']} is not there, so the training images cannot be counted")
    return drawn or parts["published"].training_images


def assemble_conversion(values: Mapping[str, Any], data: Mapping[str, Any]) -> Callable[..., Any]:
    """Return a conversion, ready to be called, from all settings of `deeplab convert`.

    Args:
        values: the settings.
        data: what the section `data` is where nothing in it was changed on the command line.

    Raises:
        ValueError: for a setting that cannot work, or that has no part in a conversion.
    """
    from deeplab_recipes.data.shards.convert import convert

    values = dict(values)
    require_data_root(values)
    if values["output"] == MISSING:
        raise ValueError("output is not set; say where the shards go: output=DIR or output=s3://BUCKET/PREFIX")
    section, then = values.pop("data"), leaves(data)
    for key, value in leaves(section).items():
        if then.get(key) != value and key not in CONVERTED and not key.startswith("source."):
            raise ValueError(
                f"data.{key}={value} has no part in a conversion: whole images are stored, and it acts in training"
            )
    prepared = build(section, "data").keywords
    given = {**{key: prepared[key] for key in ("source", *CONVERTED)}, **values}
    check_arguments(convert, given, "settings", complete=True)
    return partial(convert, **given)
