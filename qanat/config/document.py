"""From a file to YAML nodes that know their place, and from a node to its text.

Nodes, not values, because only these have line and column; nothing is constructed, so no tag in a
file can run anything.  What a file may cost is bounded: its size, its depth and its aliases.  Here,
too, `${NAME}` in a text is replaced from the environment.  `qanat.config.section` looks into the
nodes; what the keys mean is in `qanat.config.settings`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qanat.base.errors import UsageError
from qanat.base.private_files import Exposure, open_regular, read_exposure, reading_hint
from qanat.config.faults import Faults

MAX_FILE = 1_048_576
"""Bytes in a configuration file at most."""
MAX_ALIASES = 256
"""Uses of YAML aliases in one file at most; without a bound a few lines could stand for billions."""

_ODD = re.compile(r"[\ufeff\x85\u2028\u2029]|\r(?!\n)|^(?! *#).*(?:[\t?|>]|---|(?:^|[\s\[{,]|[\"']:)!)", re.MULTILINE)
"""What libyaml and PyYAML do not read alike; most of it does not matter in a comment."""
_ALIAS = re.compile(r"(?:^|[\s\[{,]|[\"']:)\*", re.MULTILINE)
"""All that may be an alias, and more."""
_FAST_LOADER: Any = getattr(yaml, "CSafeLoader", None)
"""PyYAML's face of libyaml; None where it was built without."""
_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<name>[^}]*)(?P<end>\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHELL_DEFAULT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(:[-=?+])")


@dataclass(frozen=True, slots=True)
class Place:
    """A position in the file, counted from 1."""

    line: int
    column: int


def place_of(node: yaml.Node) -> Place:
    """Return where `node` begins."""
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


@dataclass(frozen=True, slots=True)
class Text:
    """A text of the file.  `literal` is false when all of it came from one environment variable.

    `written` is what stands in the file, with the `${NAME}` that are replaced in `value`.
    """

    value: str
    place: Place
    literal: bool
    written: str


class Document:
    """One configuration file being read: where it is, its environment, and the faults so far."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self.path = path
        self.base = _absolute(path).parent  # not resolved: a link beside its secrets is how some deploy
        self.environ = environ
        self.faults = Faults(str(path))
        self.exposure: Exposure | None = None  # who else can read it; known once it is read
        self.named: list[Path] = []  # every path that a section asked for

    def fault(self, place: Place, text: str) -> None:
        """Note a fault at `place`."""
        self.faults.add(place.line, place.column, text)

    def read(self) -> yaml.Node | None:
        """Return the root of the file, or None with a fault.  Blocks on the disk only; never on a pipe."""
        start = Place(1, 1)
        try:
            content = self._content()
        except OSError as error:
            hint = reading_hint(error, self.path)
            if isinstance(error, FileNotFoundError):
                hint = "correct the path, or have `tunnel.py init` write a server's and a client's configuration"
            self.fault(start, f"cannot be read: {error.strerror} ({hint})")
            return None
        if len(content) > MAX_FILE:
            self.fault(start, f"is longer than {MAX_FILE} bytes, which no configuration is")
            return None
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = content[: error.start].decode("utf-8", "replace")
            self.fault(_end_of(before), "is not UTF-8 from here on; save the file in that encoding")
            return None
        return self._compose(text)

    def _content(self) -> bytes:
        with open_regular(self.path) as file:
            self.exposure = read_exposure(file, self.path)
            return file.read(MAX_FILE + 1)

    def _compose(self, text: str) -> yaml.Node | None:
        try:
            root = _compose_fast(text)
            if root is None:
                root = yaml.compose(text, _BoundedLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
            self.fault(place, _explain(error, text))
            return None
        except yaml.reader.ReaderError as error:
            self.fault(_end_of(text[: error.position]), "has a control character here, which YAML does not allow")
            return None
        except RecursionError:
            self.fault(Place(1, 1), "is nested deeper than any configuration is")
            return None
        if root is None:
            self.fault(Place(1, 1), "the file is empty; it needs a `server:` or a `client:` section")
        return root

    def substitute(self, node: yaml.ScalarNode) -> Text:
        """Return the text of `node` with `${NAME}` replaced and `$${` made `${`.  Raises UsageError."""
        raw: str = node.value
        problems: list[str] = []

        def value_of(match: re.Match[str]) -> str:
            name = match["name"]
            if name is None:
                return "${"
            if match["end"] and (shell := _SHELL_DEFAULT.match(name)):
                problems.append(
                    f"has `${{NAME{shell[1]}…}}`: defaults are not available here; set the variable, or write the value"
                )
                return ""
            if not match["end"] or not _NAME.fullmatch(name):
                problems.append("has a `${` that is not followed by a variable's name and `}`; `$${` stands for `${`")
                return ""
            value = self.environ.get(name)
            if value is None:
                problems.append(f"needs the environment variable {name}, which is not set")
                return ""
            self.faults.hide(value, name)
            return value

        value = _REFERENCE.sub(value_of, raw)
        if problems:
            raise UsageError(" and ".join(problems))
        whole = _REFERENCE.fullmatch(raw)
        return Text(value, place_of(node), literal=whole is None or whole["name"] is None, written=raw)


def _compose_fast(text: str) -> yaml.Node | None:
    """Return what libyaml makes of a plain `text`, ten times as fast; None where PyYAML has to say what it is.

    The faults are PyYAML's to tell, so that they read the same on every machine, and so is what only it refuses.
    """
    if _FAST_LOADER is None or _ODD.search(text) or len(_ALIAS.findall(text)) > MAX_ALIASES:
        return None
    try:
        return yaml.compose(text, _FAST_LOADER)
    except yaml.YAMLError:
        return None


class _BoundedLoader(yaml.SafeLoader):
    """Composes nodes, and no more of them from aliases than a person would write."""

    _aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > MAX_ALIASES:
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.composer.ComposerError(None, None, f"there are more than {MAX_ALIASES} aliases", mark)
        return super().compose_node(parent, index)


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except OSError:  # the current directory was removed; nothing that is relative to it can be read
        return path


def _explain(error: yaml.MarkedYAMLError, text: str) -> str:
    if error.context == "expected a single document in the stream":
        return "a second document begins here (`---`); a configuration is one, so take the line out"
    problem = error.problem or "it cannot be understood"
    context = f" {error.context}" if error.context else ""
    mark = error.problem_mark
    if context and mark and error.context_mark and error.context_mark.line != mark.line:
        context += f" that begins in line {error.context_mark.line + 1}"
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    hint = ""
    if "'\\t'" in problem:
        hint = "; indent with spaces, not with tabs"
    elif re.search(r"\[[0-9A-Fa-f:.%]*:[0-9A-Fa-f:.%]*\]", line):
        hint = '; an IPv6 address needs quotes: "[::1]:8443"'
    elif re.search(r"[\s\[{,]::", line):
        hint = '; an IPv6 address needs brackets, and quotes: "[::1]:8443"'
    elif re.search(r"[\[{].*\$\{", line):
        hint = '; inside { } and [ ] a variable needs quotes: "${NAME}"'
    return f"this is not YAML: {problem}{context}{hint}"


def _end_of(text: str) -> Place:
    return Place(text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1)
