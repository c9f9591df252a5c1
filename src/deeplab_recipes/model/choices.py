"""One way to look up a name that a user wrote, and to check a number."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

Option = TypeVar("Option")


def choose(kind: str, name: str, options: Mapping[str, Option]) -> Option:
    """Return ``options[name]``.

    Raises:
        ValueError: the name is not among the options; names it, the valid ones and the closest one.
    """
    if name not in tuple(options):  # not in options: a list, from a user's file, has no hash
        raise ValueError(f"unknown {kind} {name!r}; valid: {', '.join(options)}{did_you_mean(name, options)}")
    return options[name]


def did_you_mean(name: object, options: Iterable[str]) -> str:
    """Return the end of an error message: the closest option, or nothing where none is close."""
    closest = get_close_matches(str(name), list(options), n=1)
    return f". Did you mean {closest[0]!r}?" if closest else ""


def acting(
    kind: str, name: str, options: Mapping[str, Any], owners: Mapping[str, tuple[Any, tuple[str, ...]]]
) -> dict[str, Any]:
    """Return the options that act on ``name``.

    Args:
        kind: what ``name`` names, for the error.
        name: a backbone or head.
        options: as they were given.
        owners: for options that only some have, the value that stands for none, and those that have it.

    Raises:
        ValueError: an option is set that ``name`` would ignore.
    """
    for option, value in options.items():
        neutral, having = owners.get(option, (value, ()))
        if value != neutral and name not in having:
            valid = ", ".join(having)
            rest = "null (None)" if neutral is None else neutral
            raise ValueError(f"{option}={value} acts on {kind} {valid} only, not on {name}: leave it at {rest}")
    return {option: value for option, value in options.items() if name in owners.get(option, (None, (name,)))[1]}


def is_positive(value: object) -> bool:
    """Return whether this is an integer above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
