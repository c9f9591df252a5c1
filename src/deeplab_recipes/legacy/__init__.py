"""Configurations of the five programs that this package stands in for, as this package's settings.

Each module holds one table from their keys to ours. A file is recognised by its content; a key that is unknown, or that
cannot be had here, is refused by name.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deeplab_recipes.legacy import asahi417, bonlime, composer, supervisely, tonandr
from deeplab_recipes.legacy.tables import Translation

__all__ = ["Translation", "translate", "translate_file"]

CALLS = {
    bonlime.CALL: (bonlime.ORDER, bonlime.translate_call),
    composer.CALL: (("num_classes",), composer.translate_call),
}
LARGEST = 1 << 18  # bytes; the published ones have about a thousand
DEEPEST = 50  # values in values of YAML
LONGEST = 18  # digits of a whole number
KNOWN = (
    "Supervisely's training JSON (lr, epochs, ...), tonandr's JSON (hps, nn_arch), Composer's YAML (model.deeplabv3), "
    "asahi417's command line (python ./bin/train.py ...), and the calls Deeplabv3(...) and composer_deeplabv3(...)"
)


def translate_file(path: str | Path) -> Translation:
    """Translate a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no configuration of a known program, or has a key or value that cannot be had here.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"+from={path} is no file; it takes {KNOWN}")
    if path.stat().st_size > LARGEST:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, far more than a configuration has; it takes {KNOWN}"
        )
    try:
        return translate(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 (byte {error.start}); save it as that. It takes {KNOWN}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def translate(text: str) -> Translation:
    """Translate a configuration.

    Raises:
        ValueError: as `translate_file`.
    """
    text = text.replace("\N{NO-BREAK SPACE}", " ")  # pages have such, and what is copied from them
    if not text.strip():
        raise ValueError(f"it is empty; it takes {KNOWN}")
    try:
        return _translate(text)
    except (RecursionError, MemoryError):  # the second is what Python's own parser says of deep nesting
        raise ValueError(f"its values are nested more deeply than those of any configuration: {KNOWN}") from None


def _translate(text: str) -> Translation:
    if text.lstrip().startswith("{"):
        return _translate_json(_read_json(text))
    calls = _calls(text)
    if calls:
        return _translate_call(calls)
    if asahi417.SCRIPTS.search(text):
        return asahi417.translate(text)
    content = _read_yaml(text)
    if isinstance(content.get("model"), Mapping) and "deeplabv3" in content["model"]:
        return composer.translate(content)
    raise ValueError(f"this is no configuration that is known here: {KNOWN}")


def _translate_json(content: dict[str, Any]) -> Translation:
    if "hps" in content or "nn_arch" in content:
        return tonandr.translate(content)
    if "mode" in content and isinstance(content.get("model", {}), Mapping):
        supervisely.refuse_inference(content)
    if content.keys() & {key.split(".")[0] for key in supervisely.TABLE}:
        return supervisely.translate(content)
    raise ValueError(f"this is no configuration that is known here: {KNOWN}")


def _read_json(text: str) -> dict[str, Any]:
    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"key {name} stands there twice")
            found[name] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=unique, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not JSON: {error}") from None


def _whole(digits: str) -> int:
    if len(digits) > LONGEST:
        raise ValueError(f"{digits[:LONGEST]}... is no number that a setting can have")
    return int(digits)


def _read_yaml(text: str) -> dict[str, Any]:
    """Return a mapping of plain values; {} for what is none."""
    try:
        if not _is_plain_mapping(text):
            return {}
        return OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        what = str(getattr(error, "problem", None) or error).splitlines()[0]
        where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(
            f"this is neither YAML nor anything else that is known here ({what}{where}): {KNOWN}"
        ) from None


def _is_plain_mapping(text: str) -> bool:
    """Return whether YAML is a mapping.

    Raises:
        ValueError: for an alias: a few of them, one in another, stand for more than memory holds, or for themselves.
        RecursionError: it is nested too deeply to be built.
    """
    depth, mapping = 0, False
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {event.start_mark.line + 1}: *{event.anchor} is an alias; write it out")
        mapping |= depth == 0 and isinstance(event, yaml.MappingStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise RecursionError
    return mapping


def _calls(text: str) -> list[ast.Call]:
    """Return the calls that build a network.

    Raises:
        ValueError: for statements beside them, imports apart, which would be left out.
    """
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError):  # a command line, or YAML
        return []
    found = {statement: _calls_in(statement) for statement in statements}
    others = [s for s, calls in found.items() if not calls and not isinstance(s, ast.Import | ast.ImportFrom)]
    calls = [call for below in found.values() for call in below]
    if calls and others:
        raise ValueError(
            f"line {others[0].lineno}, {ast.unparse(others[0])!r}, does not build a network; leave in the call and "
            "imports only: training is set by settings here"
        )
    return calls


def _calls_in(statement: ast.stmt) -> list[ast.Call]:
    return [node for node in ast.walk(statement) if isinstance(node, ast.Call) and _name(node.func) in CALLS]


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _translate_call(calls: Sequence[ast.Call]) -> Translation:
    """Read a call's arguments as literals; nothing is run."""
    if len(calls) > 1:
        lines = ", ".join(f"{_name(call.func)} in line {call.lineno}" for call in calls)
        raise ValueError(f"it builds {len(calls)} networks ({lines}); leave one of them")
    name = _name(calls[0].func)
    order, translate_arguments = CALLS[name]
    return translate_arguments(_arguments(calls[0], name, order))


def _arguments(call: ast.Call, name: str, order: Sequence[str]) -> dict[str, Any]:
    if len(call.args) > len(order):
        raise ValueError(f"{name}: by their place it takes {', '.join(order)}; write the others as name=value")
    pairs = [*zip(order, call.args, strict=False), *((keyword.arg, keyword.value) for keyword in call.keywords)]
    found: dict[str, Any] = {}
    for key, node in pairs:
        if key is None:
            raise ValueError(f"{name}(**...): arguments are read by name; write them out")
        if key in found:
            raise ValueError(f"{name}: {key} stands there twice")
        found[key] = _literal(node, f"{name}: {key}")
    return found


def _literal(node: ast.expr, where: str) -> Any:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{where} is {ast.unparse(node)}, which only running it would tell; write its value") from None
    return list(value) if isinstance(value, tuple) else value
