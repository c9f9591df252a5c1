"""One way to look up a name that a user wrote."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

Option = TypeVar("Option")


def choose(kind: str, name: str, options: Mapping[str, Option]) -> Option:
    """Return ``options[name]``.

    Raises:
        ValueError: the name is not among the options; names it, the valid ones and the closest one.
    """
    if name not in options:
        raise ValueError(f"unknown {kind} {name!r}; valid: {', '.join(options)}{did_you_mean(name, options)}")
    return options[name]


def did_you_mean(name: object, options: Iterable[str]) -> str:
    """Return the end of an error message: the closest option, or nothing where none is close."""
    closest = get_close_matches(str(name), list(options), n=1)
    return f". Did you mean {closest[0]!r}?" if closest else ""
