"""What is wrong in a file, where, and the changes of lines that cure it.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qanat.config.options import option_of
from qanat.config.server_settings import ServerSettings

USUAL_PATH = str(option_of(ServerSettings, "path").default)
"""What a server serves unless its server.yaml says otherwise, and what is looked for in a file without a URL."""

LEAST = 30.0
"""Seconds that every timeout on silence must allow: Qanat says something every 15 s."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """What is known of the tunnel beside the file: its path in the URL, and what was measured on the way there."""

    path: str = USUAL_PATH
    found: bool | None = None
    """Whether the server answered at this path; None where nothing was measured, or no answer could tell."""
    refuted: frozenset[str] = frozenset()
    """Codes that the measurement showed not to be so, whatever the file looks like."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replaces `count` lines, from `line` on, by others; lines count from 1.  With `count` 0 it inserts before."""

    line: int
    lines: tuple[str, ...]
    count: int = 1


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: its code (docs/DOCTOR.md), the line, what is wrong there, and what to change."""

    code: str
    line: int
    text: str
    edits: tuple[Edit, ...] = ()


def rewritten(tunnel: Tunnel, line: int, text: str, edits: tuple[Edit, ...], *, only_stripped: bool) -> Iterator[Fault]:
    """Yield that the tunnel's path is rewritten, if that may be to blame; `edits` are to leave it as it is.

    Somebody who wrote a path there knows what the server serves, so that is blamed only if the server was missed, and
    changed never.  A usual path that is merely taken away is what people do by mistake.
    """
    by_mistake = only_stripped and tunnel.path == USUAL_PATH
    if by_mistake and not tunnel.found:
        yield Fault("wrong-path", line, text, edits)
    elif tunnel.found is False:
        yield Fault("wrong-path", line, f"{text}, and no tunnel answers: write there what server.yaml has in `path`")


def replace(line: int, *lines: str) -> tuple[Edit, ...]:
    """Return the edit that puts others in a line's place."""
    return (Edit(line, lines),)


def insert_after(line: int, *lines: str) -> tuple[Edit, ...]:
    """Return the edit that adds lines below a line."""
    return (Edit(line + 1, lines, 0),)


def remove(line: int, count: int = 1) -> tuple[Edit, ...]:
    """Return the edit that takes lines out."""
    return (Edit(line, (), count),)


def apply(text: str, faults: Sequence[Fault]) -> str:
    """Return the text with all edits made; one that touches what another one replaces is left out."""
    lines = text.split("\n")
    edits = list(dict.fromkeys(edit for fault in faults for edit in fault.edits))
    taken: set[int] = set()
    chosen = []
    for edit in edits:
        touched = set(range(edit.line, edit.line + edit.count))
        if not touched & taken:
            taken |= touched
            chosen.append(edit)
    # From the bottom up, so that numbers stay right; what was found first stands first.
    for _, edit in sorted(enumerate(chosen), key=lambda pair: (-pair[1].line, -pair[1].count, -pair[0])):
        lines[edit.line - 1 : edit.line - 1 + edit.count] = edit.lines
    return "\n".join(lines)


def indent_of(line: str) -> str:
    """Return the white space at a line's beginning."""
    return line[: len(line) - len(line.lstrip())]


_UNITS = {"us": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds(text: str, default: str = "s") -> float | None:
    """Return what a time such as 60, 60s, 5m, 1h30m or 500ms is in seconds; None when it is none."""
    total, rest = 0.0, text.strip().lower()
    if not re.fullmatch(r"(\d+(\.\d+)?(us|ms|min|[smhd])?)+", rest):
        return None
    for number, _, unit in re.findall(r"(\d+(\.\d+)?)(us|ms|min|[smhd])?", rest):
        total += float(number) * _UNITS[unit or default]
    return total
