"""What a running client remembers: the ways that worked, and the failures that it met of late.  Reads files only.

`transport: auto` writes the ways that it found into `ways` in the client's state directory.  What is not there, or not
as it should be, is passed over: the examination does not depend on it.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import replace

from qanat.base.text import printable
from qanat.config.settings import ClientSettings
from qanat.doctor.report import Outcome, Report, Step

WAYS, FAILURES = "ways", "failures"
_LARGEST = 262_144
_SHOWN = 8


def with_memory(report: Report, settings: ClientSettings) -> Report:
    """Return the report with what the running client remembers of its URL, if there is anything."""
    steps = [*_ways(report, settings), *_failures(report, settings)]
    return replace(report, steps=(*report.steps, *steps)) if steps else report


def _ways(report: Report, settings: ClientSettings) -> Iterator[Step]:
    """Yield the ways in the file: NETWORK URL TRANSPORT WHEN, the latest last."""
    found = []
    for words in _lines(settings, WAYS):
        if len(words) == 4 and words[1] == report.url and words[3].isdigit():
            found.append(f"{words[2]} on the network {words[0]}, {_when(words[3])}")
    if found:
        yield Step("remembered", "ways of the running client", "; ".join(found[-_SHOWN:]), Outcome.OK)


def _failures(report: Report, settings: ClientSettings) -> Iterator[Step]:
    """Yield the failures in the file: WHEN URL TRANSPORT TEXT, the latest last."""
    found = []
    for words in _lines(settings, FAILURES):
        if len(words) >= 4 and words[0].isdigit() and words[1] == report.url:
            found.append(f"{_when(words[0])} over {words[2]}: {' '.join(words[3:])}")
    if found:
        yield Step("failures", "of the running client, of late", "; ".join(found[-_SHOWN:]), Outcome.NOTE)


def _lines(settings: ClientSettings, name: str) -> Iterator[list[str]]:
    if settings.state_dir is None:
        return
    try:
        with (settings.state_dir / name).open("rb") as file:
            text = file.read(_LARGEST).decode("utf-8", "replace")
    except OSError:
        return
    for line in text.splitlines():
        if line and not line.startswith("#"):
            yield printable(line).split()


def _when(seconds: str) -> str:
    try:
        at = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return "at some time"
    return f"{at:%Y-%m-%d %H:%M} UTC"
