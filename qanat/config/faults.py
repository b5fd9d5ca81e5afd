"""What is wrong with a configuration file: every fault with its place, and the error that carries them.

Nothing here knows what a configuration means.  `qanat.config.document` and `qanat.config.section`
collect faults; `qanat.config.load` raises them; `qanat.cli` prints them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qanat.base.errors import UsageError
from qanat.base.redaction import hide_tokens

_LONG = re.compile(r"[A-Za-z0-9_-]{40,}")
_MIN_HIDDEN = 4


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault; `line` and `column` count from 1.  `str()` is `file:line:column: text`."""

    line: int
    column: int
    text: str
    file: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.text}"


class ConfigError(UsageError):
    """A configuration file with faults; `faults` has all of them, in the order of the file."""

    def __init__(self, file: str, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__(f"{file} has {count}")

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


class Faults:
    """Collects what is wrong with one file, and keeps secrets out of it."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._noted: list[tuple[int, int, str]] = []
        self._inserted: dict[str, str] = {}

    def add(self, line: int, column: int, text: str) -> None:
        """Note a fault at `line` and `column`, counted from 1; `text` is a plain sentence without a full stop."""
        self._noted.append((line, column, text))

    def hide(self, value: str, name: str) -> None:
        """Show `${name}` wherever `value`, which came from the environment, would be shown."""
        if len(value) >= _MIN_HIDDEN:
            self._inserted[value] = "${" + name + "}"

    def found(self) -> list[Fault]:
        """Return all faults so far, each once, in the order of the file."""
        return sorted({Fault(line, column, self._clean(text), self._file) for line, column, text in self._noted})

    def raise_if_any(self) -> None:
        """Raise ConfigError with all that was found."""
        found = self.found()
        if found:
            raise ConfigError(self._file, found)

    def _clean(self, text: str) -> str:
        # The parsers of single values do not repeat them.  This is for those that name a key or a path,
        # when that is a token that was pasted into the wrong place.
        return _LONG.sub("[long text, hidden]", hide_tokens(_replace(text, self._inserted)))


def _replace(text: str, replacements: Mapping[str, str]) -> str:
    for value in sorted(replacements, key=len, reverse=True):
        text = text.replace(value, replacements[value])
    return text
