"""One mapping of a configuration file, asked key by key.

Whoever reads a section asks for each key with its default and the parser of its value, then calls
`finish`, which reports every key that nobody asked for with the nearest that somebody did.  A fault
never ends the reading: it is noted with its place, the default stands in, and the file is refused at the
end with all its faults.  Parsers of single texts raise UsageError with a message that goes on after
the key ("is not …") and does not repeat the value, which may be a secret.

This is written by hand, not with cattrs, because cattrs structures plain values: positions, duplicate
keys, `${NAME}` and the difference between a number and a text in quotes are gone by then, and bringing
them back takes more code than these few methods.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

import yaml

from qanat.base.errors import UsageError
from qanat.config.document import Document, Place, Text, place_of
from qanat.config.texts import any_of, did_you_mean

T = TypeVar("T")

_KINDS = {
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:bool": "a yes or no",
    "tag:yaml.org,2002:timestamp": "a date",
    "tag:yaml.org,2002:null": "nothing",
}
_TEXT = "tag:yaml.org,2002:str"
_INTEGER = re.compile(r"-?(0|[1-9][0-9_]*)")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9_]*)(\.[0-9]*)?")
_MAX_DIGITS = 300
"""Digits of a whole number that are told apart; no bound is near that."""
_PORT = re.compile(r"[0-9]{1,5}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Section:
    """The mapping `name` of `document`; every method but `finish` makes its key a known one."""

    def __init__(self, document: Document, node: yaml.Node | None, name: str, place: Place) -> None:
        """`node` is None for a section that is not there; its faults then point to `place`."""
        self.document = document
        self.name = name
        self.place = place
        self._readable = True
        self._known: dict[str, None] = {}  # in the order in which they became known
        self._places: dict[str, Place] = {}
        self._values: dict[str, yaml.Node] = {}
        if isinstance(node, yaml.MappingNode):
            self._take_keys(node)
        elif node is not None and not _is_null(
            node
        ):  # a section of which every key is commented out is null, and right
            document.fault(place_of(node), f"`{name}` must be a section of `key: value` lines, not {_kind(node)}")
            self._readable = False  # what is missing in it is not worth a word then

    def __contains__(self, key: str) -> bool:
        return key in self._values

    @property
    def keys(self) -> tuple[str, ...]:
        """What stands in it, in its order; for a section whose keys are the user's own."""
        return tuple(self._values)

    def is_section(self, key: str) -> bool:
        """Return whether the value of `key` is a section itself."""
        return isinstance(self._values.get(key), yaml.MappingNode)

    def value_place(self, key: str) -> Place:
        """Return where the value of `key` stands."""
        return place_of(self._values[key])

    def place_of(self, key: str) -> Place:
        """Return where `key` stands, or the section when it does not."""
        return self._places.get(key, self.place)

    def knows(self, *keys: str) -> None:
        """Make `keys` known ones, though they are not asked for here."""
        for key in keys:
            self._known[key] = None

    def refuse(self, key: str, text: str, place: Place | None = None) -> None:
        """Note that the value of `key` is wrong; `text` goes on after its name."""
        self.document.fault(place or self.place_of(key), f"`{key}` {text}")

    def require(self, key: str, hint: str) -> None:
        """Note it when `key` is missing."""
        if key not in self._values:
            self.lacks(f"`{self.name}` has no `{key}`; {hint}")

    def lacks(self, text: str) -> None:
        """Note that something is missing in the section."""
        if self._readable:
            self.document.fault(self.place, text)

    def not_empty(self, key: str, text: str) -> None:
        """Note it when `key` is a list without an entry; `text` goes on after its name."""
        node = self._values.get(key)
        if isinstance(node, yaml.SequenceNode) and not node.value:
            self.refuse(key, text, place_of(node))

    def text(self, key: str, default: T, parse: Callable[[str], T], *, port_alone: str = "") -> T:
        """Return the text of `key`, parsed.  `port_alone` is the form of an address, for who gave a number alone."""
        for text in self.texts(key, several=False, port_alone=port_alone):
            return self.parsed(key, text, default, parse)
        return default

    def tuple_of(
        self, key: str, default: tuple[T, ...], parse: Callable[[str], T], *, port_alone: str = ""
    ) -> tuple[T, ...]:
        """Return one text or a list of them, each parsed; those with faults are left out."""
        if key not in self._values:
            self.knows(key)
            return default
        found = (self.parsed(key, text, None, parse) for text in self.texts(key, port_alone=port_alone))
        return tuple(value for value in found if value is not None)

    def texts(self, key: str, *, several: bool = True, port_alone: str = "") -> list[Text]:
        """Return the text of `key`, or each of its list, as they are."""
        node = self._value(key)
        if node is None:
            return []
        entries = node.value if several and isinstance(node, yaml.SequenceNode) else [node]
        return [text for entry in entries if (text := self._text(key, entry, several, port_alone)) is not None]

    def parsed(self, key: str, text: Text, default: T, parse: Callable[[str], T]) -> T:
        """Return `parse` of one of `texts`, or `default` with a fault at its place."""
        if _CONTROL.search(text.value):
            self.refuse(key, "has a control character in it", text.place)
            return default
        try:
            return parse(text.value)
        except UsageError as error:
            self.refuse(key, str(error), text.place)
            return default

    def path(self, key: str, check: Callable[[Path], object] | None = None) -> Path | None:
        """Return a path, relative to the configuration file's directory; `check` raises UsageError for a wrong one."""

        def parse(value: str) -> Path | None:
            path = self.resolve(value)
            if check is not None:
                check(path)
            return path

        return self.text(key, None, parse)

    def resolve(self, value: str) -> Path:
        """Return the path that a text of this file means.  Raises UsageError."""
        if not value:
            raise UsageError("is empty")
        if value.startswith("~"):
            raise UsageError("begins with ~, which is not expanded here", hint="write ${HOME} or the whole path")
        path = self.document.base / value
        self.document.named.append(path)
        return path

    def choice(self, key: str, default: str, choices: Collection[str]) -> str:
        """Return one of `choices`."""

        def parse(value: str) -> str:
            if value not in choices:
                raise UsageError(f"must be {any_of(choices)}", hint=did_you_mean(value, choices))
            return value

        return self.text(key, default, parse)

    def switch(self, key: str, default: bool) -> bool:
        """Return whether `key` is true."""
        node = self._value(key)
        if node is None:
            return default
        if isinstance(node, yaml.ScalarNode) and not node.style and node.value in ("true", "false"):
            return bool(node.value == "true")
        self.refuse(key, "must be true or false", place_of(node))
        return default

    def number(self, key: str, *, whole: bool, wanted: str) -> float | None:
        """Return the number of `key`, or None; `wanted` says what it must be when it is none."""
        node = self._value(key)
        if node is None:
            return None
        form = _INTEGER if whole else _DECIMAL
        if isinstance(node, yaml.ScalarNode) and not node.style and form.fullmatch(node.value):
            digits = node.value.replace("_", "")
            return int(digits) if whole and len(digits) <= _MAX_DIGITS else float(digits)
        self.refuse(key, wanted, place_of(node))
        return None

    def section(self, key: str) -> Section:
        """Return the section below `key`; an empty one when there is none."""
        return Section(self.document, self._value(key, empty_is_fault=False), key, self.place_of(key))

    def sections(self, key: str) -> list[Section]:
        """Return each section of the list below `key`."""
        node = self._value(key)
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.refuse(key, f"must be a list, each entry with a dash in front, not {_kind(node)}", place_of(node))
            return []
        return [Section(self.document, entry, key, place_of(entry)) for entry in node.value]

    def finish(self, elsewhere: Mapping[str, str] | None = None) -> None:
        """Note every key that nobody asked for; `elsewhere` tells where keys of other sections belong."""
        for key in self._values:
            if key in self._known:
                continue
            if elsewhere and key in elsewhere:
                hint = f"it belongs in {elsewhere[key]}"
            else:
                hint = did_you_mean(key, self._known) or f"known are {', '.join(sorted(self._known))}"
            self.document.fault(self._places[key], f"unknown key `{_CONTROL.sub('?', key)}` in `{self.name}`; {hint}")

    # ---- inside ----

    def _take_keys(self, node: yaml.MappingNode) -> None:
        for key_node, value in node.value:
            place = place_of(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TEXT:
                what = "a merge (<<) is not available" if key_node.tag.endswith(":merge") else "a key must be a word"
                self.document.fault(place, f"{what} in `{self.name}`")
                continue
            key: str = key_node.value
            if key in self._values:
                first = self._places[key].line
                self.document.fault(place, f"`{_CONTROL.sub('?', key)}` is here twice; it is in line {first} already")
                continue
            self._places[key], self._values[key] = place, value

    def _value(self, key: str, *, empty_is_fault: bool = True) -> yaml.Node | None:
        self.knows(key)
        node = self._values.get(key)
        if node is not None and _is_null(node) and empty_is_fault:
            self.refuse(key, "has no value; give one, or leave the key out for its default")
            return None
        return node

    def _text(self, key: str, node: yaml.Node, several: bool, port_alone: str) -> Text | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == _TEXT:
            try:
                return self.document.substitute(node)
            except UsageError as error:
                self.refuse(key, str(error), place_of(node))
                return None
        wanted = "text, or a list of texts" if several else "text"
        hint = "; put it in quotes" if isinstance(node, yaml.ScalarNode) and node.tag in _KINDS else ""
        if hint and port_alone and _PORT.fullmatch(node.value) and int(node.value) <= 65535:
            hint += f', with its address: "{port_alone.format(node.value)}"'
        self.refuse(key, f"must be {wanted}, not {_kind(node)}{hint}", place_of(node))
        return None


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a section"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return _KINDS.get(node.tag, "text" if node.tag == _TEXT else "a value with a tag of its own")
