"""What a table of older settings is made of: each key, and what its values are called here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deeplab_recipes.config import literal, suggestion
from deeplab_recipes.legacy.kinds import Kind

SHOWN = 100  # characters of a value in a message


@dataclass(frozen=True)
class Refused:
    """A key, or one of its values, that cannot be had here.

    Attributes:
        why: and what to do instead.
    """

    why: str


To = str | Callable[[Any, Mapping[str, Any]], str | Sequence[str]]


@dataclass(frozen=True)
class Key:
    """A key that is mapped.

    Attributes:
        kind: its values.
        to: overrides: a template (KEY={}), several separated by blanks, or what makes them of the value and of all
            values; "" where it goes into another key's.
        note: what the user should know wherever it is given; may be a template.
    """

    kind: Kind
    to: To
    note: str = ""

    def overrides(self, value: Any, values: Mapping[str, Any]) -> list[str]:
        """Return what a checked value is called here."""
        if callable(self.to):
            made = self.to(value, values)
            return [made] if isinstance(made, str) else list(made)
        return [template.replace("{}", literal(value)) for template in self.to.split()]


@dataclass(frozen=True)
class Choice:
    """A key of which each value has its own meaning.

    Attributes:
        of: value -> overrides separated by blanks, or why it is refused.
        note: as in `Key`.
    """

    of: Mapping[Any, str | Refused]
    note: str = ""

    @property
    def kind(self) -> Kind:
        """The values."""
        says = ", ".join(literal(value) for value, to in self.of.items() if isinstance(to, str))
        # 1 == True in Python, not in a configuration.
        return Kind(says, lambda v: any(v == known and type(v) is type(known) for known in self.of))

    def overrides(self, value: Any, values: Mapping[str, Any]) -> list[str]:
        """Return what a checked value is called here.

        Raises:
            ValueError: for one that is refused.
        """
        to = self.of[value]
        if isinstance(to, Refused):
            raise ValueError(to.why)
        return to.split()


Table = Mapping[str, Key | Choice | Refused]


@dataclass
class Translation:
    """An older configuration in this package's words.

    Attributes:
        system: whose configuration it is.
        overrides: the equivalent settings, as on the command line.
        notes: what could not be said by a setting.
        needed: settings that the file does not hold -> why they are needed.
    """

    system: str
    overrides: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    needed: dict[str, str] = field(default_factory=dict)


def shown(value: Any) -> str:
    """Return a value for a message, of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def sizes(height: int, width: int, protocol: str) -> list[str]:
    """Return overrides that squash or fit images to one size, in training and in evaluation by a protocol."""
    keys = ("data.crop_size", "data.base_size", f"data.evaluate_sizes.{protocol}")
    return [f"{key}=[{height},{width}]" for key in keys]


def flatten(content: Mapping[str, Any], table: Table, prefix: str = "") -> dict[str, Any]:
    """Return nested content as {"a.b": value} by the keys of a table.

    Raises:
        ValueError: for a key that the table does not have, or a value where it has keys below.
    """
    flat: dict[str, Any] = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key in table and "." not in str(name):
            flat[key] = value
            continue
        below = [known for known in table if known.startswith(f"{key}.") and "." not in str(name)]
        if not below:
            known = {k.removeprefix(prefix).split(".")[0] for k in table if k.startswith(prefix)}
            raise ValueError(f"unknown key {key}; {suggestion(str(name), sorted(known))}")
        if not isinstance(value, Mapping):
            names = ", ".join(sorted({k.removeprefix(f"{key}.").split(".")[0] for k in below}))
            raise ValueError(f"{key} is {shown(value)}; it takes keys: {names}")
        flat.update(flatten(value, table, f"{key}."))
    return flat


def check(values: Mapping[str, Any], table: Table) -> None:
    """Raise ValueError for a refused key, or for a value that its key does not take."""
    for key, value in values.items():
        row = table[key]
        if isinstance(row, Refused):
            raise ValueError(f"{key}={literal(value)} cannot be had here: {row.why}")
        if not row.kind.accepts(value):
            raise ValueError(f"{key} is {shown(value)}; it takes {row.kind.says}")


def apply(table: Table, given: Mapping[str, Any], defaults: Mapping[str, Any], into: Translation) -> Mapping[str, Any]:
    """Add what a table makes of flat values to a translation.

    Args:
        table: of the system.
        given: what the file says, see `flatten`.
        defaults: what the system takes for keys that are not given.
        into: gets the overrides, in the table's order, and the notes of given keys.

    Returns:
        All values, given or default.

    Raises:
        ValueError: as `check`.
    """
    check(given, table)
    values = {**defaults, **given}
    for key, value in _in_order(table, values):
        try:
            into.overrides += table[key].overrides(value, values)
        except ValueError as error:
            raise ValueError(f"{key}={literal(value)} cannot be had here: {error}") from None
        if key in given and table[key].note:
            into.notes.append(f"{key}={literal(value)}: {table[key].note}")
    return values


def _in_order(table: Table, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((key, values[key]) for key in table if key in values)
