"""Values that a key of an older configuration may have."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """Values that a key may have.

    Attributes:
        says: them in words, after "it takes".
        accepts: whether a value is one.
    """

    says: str
    accepts: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


POSITIVE = Kind("a number above 0", lambda v: _is_number(v) and v > 0)
NOT_NEGATIVE = Kind("a number of at least 0", lambda v: _is_number(v) and v >= 0)
SHARE = Kind("a number of at least 0 and below 1", lambda v: _is_number(v) and 0 <= v < 1)
WHOLE = Kind("a whole number", _is_whole)
COUNT = Kind("a whole number of at least 1", lambda v: _is_whole(v) and v > 0)
NATURAL = Kind("a whole number of at least 0", lambda v: _is_whole(v) and v >= 0)
SWITCH = Kind("true or false", lambda v: isinstance(v, bool))
# Unprintable characters cannot be typed on the command line that is printed, and ${...} would be looked up there.
TEXT = Kind(
    "a word of printable characters, without ${",
    lambda v: isinstance(v, str) and v.strip() != "" and v.isprintable() and "${" not in v,
)


def list_of(kind: Kind, *, empty: bool = False) -> Kind:
    """Return lists of a kind of values."""

    def accepts(value: Any) -> bool:
        return isinstance(value, list) and (empty or len(value) > 0) and all(map(kind.accepts, value))

    return Kind(f"a list of values that are each {kind.says}", accepts)
