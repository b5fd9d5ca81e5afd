"""Options, each declared once: on the field of the settings that it sets.

    lanes: int = option(1, low=1, high=16, doc="Connections side by side.", flag=Flag("--lanes", metavar="N"))

The field's annotation says whether it is a number, a path, a text, a list or a section, and the declaration all else.
From there come the reading of YAML (`reader`), the command line (`command_line`, `qanat.cli.flags`) and the JSON
Schema (`schema`); config.example.yaml is held against it by a test.  So a new option is a field here and a line where
it is used.  What has a form of its own (tokens, forwards, a proxy with its password) declares its keys with their
schemas, and is read by a function of its own.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, Union, get_type_hints

P = ParamSpec("P")
T = TypeVar("T")

Schema = Mapping[str, Any]
"""A JSON Schema, or a part of one."""

_DECLARED = "option"


class Kind(Enum):
    """What a value in a file looks like."""

    SWITCH = auto()
    WHOLE = auto()
    NUMBER = auto()
    CHOICE = auto()
    TEXT = auto()
    TEXTS = auto()
    """One text, or a list of them."""
    PATH = auto()
    SECTION = auto()
    OWN = auto()
    """Read by a function of its own."""


class Flag:
    """How a command line sets an option."""

    def __init__(
        self,
        *names: str,
        dest: str = "",
        metavar: str = "",
        help: str = "",
        const: object = None,
        repeated: bool = False,
        beside_file: bool = False,
    ) -> None:
        """`help` stands in place of the option's own documentation; `const` is the value of a flag that takes none.

        A `repeated` flag may come several times.  With `beside_file` it goes with a configuration file as well as with
        a URL, and comes before the file.
        """
        self.names = names
        self.name = names[-1]
        """What messages call it."""
        self.dest = dest or self.name.lstrip("-").replace("-", "_")
        """Its name as a keyword of Python."""
        self.metavar = metavar
        self.help = help
        self.const = const
        self.repeated = repeated
        self.beside_file = beside_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a declaration says beside the field's name, type and default."""

    doc: str
    """A sentence, or several, of which the first goes into --help."""
    unit: str = ""
    """What a number counts."""
    key: str = ""
    """The name in a file, where that is not the field's."""
    low: float | None = None
    high: float | None = None
    """The bounds of a number, which are allowed themselves."""
    choices: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    """Turns a text into the value; raises UsageError with a message that goes on after the key."""
    parse_next: Callable[[str, Any], Any] | None = None
    """The same for an entry of a list, with the values of those before it."""
    check: Callable[[Path], object] | None = None
    """Looks at a path; raises UsageError as `parse` does."""
    port_alone: str = ""
    """The form of an address, as `127.0.0.1:{}`, for who gave a port alone."""
    empty: str = ""
    """Why a list may not be empty; goes on after the key."""
    required: str = ""
    """What a key that is missing is for."""
    unset: str = ""
    """What None, or an empty default, stands for."""
    pattern: str = ""
    """A regular expression, of Python's and ECMA-262's, that every value matches; for the schema."""
    own: Mapping[str, Schema] | None = None
    """The keys, with their schemas, of an option with a form of its own."""
    own_needed: bool = False
    """Whether one of these keys, and no more, must be there."""
    entries: type | None = None
    """What each entry of a list of sections sets."""
    entry_may_stand_here: bool = False
    """Whether the keys of one entry may stand here in place of the list."""
    flag: Flag | tuple[Flag, ...] = ()

    @property
    def flags(self) -> tuple[Flag, ...]:
        """The flags that set it."""
        return self.flag if isinstance(self.flag, tuple) else (self.flag,)

    def value_of(self, text: str, before: Sequence[Any] = ()) -> Any:
        """Return what `text` means, after those `before` it in a list.  Raises UsageError."""
        if self.parse_next is not None:
            return self.parse_next(text, before)
        return text if self.parse is None else self.parse(text)


def _metadata(declare: Callable[P, Declared]) -> Callable[P, dict[str, Declared]]:
    def metadata(*positional: P.args, **named: P.kwargs) -> dict[str, Declared]:
        return {_DECLARED: declare(*positional, **named)}

    return metadata


def _field(declare: Callable[P, Declared]) -> Callable[Concatenate[T, P], T]:
    def make(default: T, /, *positional: P.args, **named: P.kwargs) -> T:
        return field(default=default, metadata={_DECLARED: declare(*positional, **named)})

    return make


declared = _metadata(Declared)
"""The metadata of a field without a default, or that `repr` leaves out: `field(metadata=declared(doc=...))`."""
option = _field(Declared)
"""A field that is an option: its default, then what `Declared` says by name."""


@dataclass(frozen=True, slots=True)
class Option:
    """One declared option."""

    field: str
    key: str
    kind: Kind
    default: Any
    settings: type | None
    """What a section sets."""
    declared: Declared

    @property
    def keys(self) -> tuple[str, ...]:
        """What stands for it in a file; several where it has a form of its own."""
        return tuple(self.declared.own) if self.declared.own is not None else (self.key,)

    @property
    def bounds(self) -> str:
        """The bounds of a number: "1 to 16"."""
        return f"{self.declared.low:.12g} to {self.declared.high:.12g}"

    @property
    def wanted(self) -> str:
        """What a number must be; goes on after the key."""
        if self.kind is Kind.WHOLE:
            return f"must be a whole number from {self.bounds}"
        if self.declared.unit == "seconds":
            return f"must be a number of seconds from {self.bounds}, without a unit"
        return f"must be a number from {self.bounds}"

    def allows(self, number: float) -> bool:
        """Whether `number` is within the bounds."""
        low, high = self.declared.low, self.declared.high
        return (low is None or low <= number) and (high is None or number <= high)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two values that do not go together: `text` goes on after the first of `keys` that stands in the file."""

    keys: tuple[str, ...]
    text: str


def options_of(settings: type) -> tuple[Option, ...]:
    """Return the options of a class of settings, in their order."""
    return _options_of(settings)


@cache
def _options_of(settings: Hashable) -> tuple[Option, ...]:
    assert isinstance(settings, type)
    assert is_dataclass(settings)
    hints = get_type_hints(settings)
    found = []
    for item in fields(settings):
        if _DECLARED in item.metadata:
            declaration: Declared = item.metadata[_DECLARED]
            default = None if item.default is MISSING else item.default
            kind, section = _kind(hints[item.name], declaration)
            found.append(Option(item.name, declaration.key or item.name, kind, default, section, declaration))
    return tuple(found)


def option_of(settings: type, name: str) -> Option:
    """Return the option that sets the field `name`."""
    return next(option for option in options_of(settings) if option.field == name)


def keys_below(settings: type) -> dict[str, str]:
    """Return the keys of the sections below, each with the section that it belongs to, for messages."""
    found: dict[str, str] = {}
    for option in options_of(settings):
        inner, where = option.settings, f"`{option.key}:`"
        if option.declared.entries is not None:
            inner, where = option.declared.entries, f"an entry of {where}"
        if inner is not None:
            for below in options_of(inner):
                found |= {key: where for key in below.keys if key not in found}
    return found


def conflicts_of(settings: object) -> list[Conflict]:
    """Return what does not go together in `settings`, as their class says in a method `conflicts`."""
    return list(getattr(settings, "conflicts", list)())


_KINDS: dict[object, Kind] = {
    bool: Kind.SWITCH,
    int: Kind.WHOLE,
    float: Kind.NUMBER,
    str: Kind.TEXT,
    Path: Kind.PATH,
    tuple: Kind.TEXTS,
}


def _kind(hint: Any, declaration: Declared) -> tuple[Kind, type | None]:
    if typing.get_origin(hint) in (Union, types.UnionType):
        (hint, *others) = (part for part in typing.get_args(hint) if part is not type(None))
        assert not others or declaration.own is not None, hint
    section = hint if isinstance(hint, type) and is_dataclass(hint) else None
    if declaration.own is not None:
        return Kind.OWN, None
    if section is not None:
        return Kind.SECTION, section
    kind = _KINDS[typing.get_origin(hint) or hint]
    if kind is Kind.TEXTS and typing.get_args(hint)[-1] is not Ellipsis:
        kind = Kind.TEXT  # a pair, as HOST:PORT is
    return Kind.CHOICE if kind is Kind.TEXT and declaration.choices else kind, None
