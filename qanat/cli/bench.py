"""`bench`: measure a tunnel as its users feel it, through the real path, beside the running client of the same name."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qanat.base.errors import QanatError, UsageError
from qanat.cli.client import settings_of
from qanat.cli.flags import add_flags, flags_of
from qanat.cli.main import DONE, FAILED, INTERRUPTED, complain
from qanat.cli.output import write_out
from qanat.cli.parser import add_config
from qanat.config.client_settings import ClientSettings
from qanat.config.settings import LogSettings
from qanat.process.log import setup_logging

if TYPE_CHECKING:
    from qanat.client.measuring import MeasuringSession
    from qanat.measure.figures import Step
    from qanat.measure.report import Report
    from qanat.session.messages import Measurement

LONGEST_STEP = 120.0
"""Seconds of a step; a server ends a stream that measures after five minutes."""

DETAILS = """\
It connects as the client does, beside a client that runs with the same name, and measures, each for --seconds:
the latency of 64-byte questions while nothing else is measured, then download and upload, with the latency that
other connections feel meanwhile.  What users carry at the same time counts too, on both sides.

With -c the file says how to connect; only --transport may stand beside it.  With a URL the token, the name and
the proxy are found as `client --help` explains.  The server must be as new as this program, and not have bench: false.
Ctrl-C and SIGTERM end it with exit code 130; what was measured until then is printed.

"""

_NOT_HERE = frozenset(
    {flag.dest for option, flag in flags_of(ClientSettings) if option.field == "forwards"}
    | {"allow_connect", "exit_on_forward_failure", "lanes"}
)
"""The `dest` of flags of a client that mean nothing to a measurement, such as all that make forwards."""
_BESIDE_FILE = frozenset({"transport"})
_C_LOCALES = frozenset({"C", "POSIX", "C.UTF-8", "C.utf8", "UTF-8"})
"""Those in which Python assumes UTF-8 by itself: the C locale, and what it puts into LC_CTYPE in its place."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("urls", nargs="*", metavar="URL", help="wss://[NAME@]HOST[:PORT]/PATH, instead of -c FILE")
    add_config(parser, required=False)
    parser.add_argument(
        "--seconds", type=float, default=5.0, metavar="N", help="how long each step takes (0.1 to 120; default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table and the plot")
    parser.add_argument("-v", "--verbose", dest="details", action="store_true", help="log details on stderr")
    add_flags(parser.add_argument_group("with a URL"), ClientSettings, beside_file=False, without=_NOT_HERE)


def run(options: argparse.Namespace) -> int:
    """Measure, print what was found, and return the exit code.  Blocks.  Raises QanatError before there is anything."""
    seconds: float = options.seconds
    if not (math.isfinite(seconds) and 0.1 <= seconds <= LONGEST_STEP):
        raise UsageError(f"--seconds must be 0.1 to {LONGEST_STEP:g}")
    settings = settings_of(options, "a measurement", "bench", _BESIDE_FILE)
    settings = replace(settings, forwards=(), lanes=1)
    # What goes wrong is said at the end, once; a file that the running client logs to is its own.
    setup_logging(LogSettings(level="debug" if options.details else "error"))
    from qanat.client.measuring import measuring_session

    code, failure = DONE, None
    steps: dict[str, Step] = {}
    progress = _Progress(sys.stderr, seconds)
    with _terminated_as_interrupted(), measuring_session(settings) as session:
        try:
            _measure(session, seconds, steps, progress)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except QanatError as error:
            code, failure = FAILED, _explained(session, error, list(steps)[-1])
        finally:
            progress.clear()
        report = _report(settings, session, seconds, steps, complete=code == DONE)
    if report.has_figures:
        write_out(report.to_json() if options.json else _text(report))
    if failure is not None:
        complain(failure)
    return code


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Have SIGTERM do what Ctrl-C does, while the block lasts.  Main thread only."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _measure(session: MeasuringSession, seconds: float, steps: dict[str, Step], progress: _Progress) -> None:
    """Take the steps in their order; `steps` has what was timed, also of one that is cut short."""
    from qanat.measure.near_end import MeasuredStep
    from qanat.measure.report import DOWNLOAD, IDLE, UPLOAD
    from qanat.session.messages import Measurement

    loads: dict[str, Measurement | None] = {IDLE: None, DOWNLOAD: Measurement.SOURCE, UPLOAD: Measurement.SINK}
    for name, load in loads.items():
        with MeasuredStep(load, session.open) as measured:
            try:
                measured.run(
                    seconds,
                    lambda done, name=name: progress.show(name, done),  # type: ignore[misc]
                    lambda name=name: progress.wait(name),  # type: ignore[misc]
                )
            finally:
                steps[name] = measured.step


def _explained(session: MeasuringSession, error: QanatError, step: str) -> QanatError:
    from qanat.measure.near_end import TooSlow

    if isinstance(error, TooSlow):
        return QanatError(f"the {step} step was given up: {error.message}", hint=error.hint)
    why = session.why_over()
    text = f"the {step} step was cut short: {error.message}" + (f": {why}" if why else "")
    hint = "the server's log says more; run it again, and if it is cut again see docs/ERRORS.md"
    return QanatError(text, hint=error.hint or hint)


def _report(
    settings: ClientSettings, session: MeasuringSession, seconds: float, steps: Mapping[str, Step], *, complete: bool
) -> Report:
    from qanat.measure.report import Report

    reached = session.reached
    return Report(
        client=settings.name,
        url=str(reached.candidate.url),
        transport=reached.candidate.transport,
        node=reached.node,
        agent=reached.agent,
        seconds=seconds,
        steps=steps,
        complete=complete,
    )


def _text(report: Report) -> str:
    from qanat.measure.chart import Style, report_text

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 80
    return report_text(report, Style(width, carries_unicode(sys.stdout), terminal and wants_color()))


def wants_color() -> bool:
    """Return whether a terminal may be given colors (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def carries_unicode(stream: Any) -> bool:
    """Return whether `stream` takes every character, and its reader is expected to.

    In the C locale, which is ASCII, Python writes UTF-8 though nobody asked for it (PEP 538, PEP 540).
    """
    if (getattr(stream, "encoding", None) or "").lower().replace("-", "") != "utf8":
        return False
    asked = "utf8" in sys._xoptions or any(os.environ.get(name) for name in ("PYTHONUTF8", "PYTHONIOENCODING"))
    locale = next((os.environ[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(name)), "C")
    return asked or not sys.flags.utf8_mode or locale not in _C_LOCALES


class _Progress:
    """How far the measurement is, on stderr: a bar on a terminal, else one line for each step."""

    def __init__(self, stream: Any, seconds: float) -> None:
        from qanat.measure.chart import Style

        self._stream = stream
        self._seconds = seconds
        self._terminal = stream.isatty()
        width = shutil.get_terminal_size().columns if self._terminal else 80
        self._style = Style(width, carries_unicode(stream), self._terminal and wants_color())
        self._said = ""
        self._drawn = False

    def show(self, step: str, done: float) -> None:
        """Show that `step` is `done`, from 0 to 1."""
        from qanat.measure.chart import progress_bar

        if self._terminal:
            self._write("\r" + progress_bar(step, done, self._style))
            self._drawn = True
        elif step != self._said:
            self._said = step
            self._write(f"measuring {step} for {self._seconds:g} s\n")

    def wait(self, step: str) -> None:
        """Tell that the time of `step` is up, and that it waits for what is under way."""
        from qanat.measure.near_end import END

        self.clear()
        self._write(f"waiting for what is under way of {step}, up to {END:.0f} s: the path is slow\n")

    def clear(self) -> None:
        """Take the bar away."""
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        with suppress(OSError):  # the figures count
            self._stream.write(text)
            self._stream.flush()
