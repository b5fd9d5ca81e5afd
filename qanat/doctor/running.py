"""What a running client says and remembers: its connection now, the ways that worked, and recent failures.

The client is asked at its control socket; `transport: auto` writes the ways that it found into `ways` in its state
directory; older failures stand in its log, if that is a file.  What is not there, or not as it should be, is passed
over: the examination does not depend on it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import replace

from qanat.base.errors import QanatError
from qanat.base.redaction import hide_tokens
from qanat.base.text import printable
from qanat.config.client_settings import ClientSettings
from qanat.control.asking import NotRunning, ask
from qanat.control.paths import control_path
from qanat.doctor.report import Outcome, Report, Step

ANSWER_TIMEOUT = 3.0
"""Seconds that the running client may take to answer."""
WAYS = "ways"
_LARGEST = 262_144
_SHOWN = 5
_TAIL, _LINES, _LONGEST = 65_536, 500, 300
_FAILED = re.compile(r"cannot connect|was lost|did not answer|refused", re.I)


def with_memory(report: Report, settings: ClientSettings) -> Report:
    """Return the report with what the running client says and remembers of its URL, if there is anything.

    Blocks for ANSWER_TIMEOUT at most.
    """
    steps = [*_connection(report, settings), *_ways(report, settings), *_failures(report, settings)]
    return replace(report, steps=(*report.steps, *steps)) if steps else report


def _connection(report: Report, settings: ClientSettings) -> Iterator[Step]:
    """Yield what the running client says of its connection to the server, and of its last failure."""
    path = control_path(settings)
    if path is None:
        return
    try:
        status = ask(path, "status", timeout=ANSWER_TIMEOUT)["status"]
        tried = f"the running client, process {int(status['pid'])}"
        servers = [one for one in status["servers"] if one["url"] == report.url]
        for one in servers:
            over = f" over {one['transport']}" if one["transport"] else ""
            text = f"{one['state']}{over} since {_when(str(int(one['since'])))}"
            failure = one["last_failure"]
            if failure is not None:
                text += f"; its last failure, {_when(str(int(failure['at'])))}: {failure['text']}"
            connected = one["state"] == "connected"
            outcome = Outcome.OK if connected else Outcome.NOTE
            yield Step("running", tried, printable(hide_tokens(text), _LONGEST), outcome)
    except NotRunning:
        return
    except QanatError as error:
        yield Step("running", "the running client, at its control socket", error.message, Outcome.NOTE)
    except (KeyError, TypeError, ValueError):
        return  # of another version


def _ways(report: Report, settings: ClientSettings) -> Iterator[Step]:
    """Yield the ways in the file: NETWORK URL TRANSPORT WHEN, the latest last."""
    found = []
    for words in _lines(settings, WAYS):
        if len(words) == 4 and words[1] == report.url and words[3].isdigit():
            found.append(f"{words[2]} on the network {words[0]}, {_when(words[3])}")
    if found:
        yield Step("remembered", "ways of the running client", "; ".join(found[-_SHOWN:]), Outcome.OK)


def _failures(report: Report, settings: ClientSettings) -> Iterator[Step]:
    """Yield what the client's log says of late about connections that failed or were lost, if it is a file."""
    if settings.log.file is None:
        return
    try:
        with settings.log.file.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            text = file.read(_TAIL).decode("utf-8", "replace")
    except OSError:
        return
    found = [printable(hide_tokens(line), _LONGEST) for line in text.splitlines()[-_LINES:] if _FAILED.search(line)]
    if found:
        yield Step("failures", "the running client's log, of late", "; ".join(found[-_SHOWN:]), Outcome.NOTE)


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
