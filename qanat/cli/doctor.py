"""`doctor`: find out what a path lets through, name the cause of what it does not, and say what to change."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qanat.base.errors import UsageError
from qanat.cli.bench import carries_unicode, wants_color
from qanat.cli.flags import add_flags, given_flags
from qanat.cli.main import DONE, FAILED, REFUSED
from qanat.cli.output import write_out
from qanat.cli.parser import add_config
from qanat.config.client_settings import ClientSettings
from qanat.config.command_line import TOKEN_VARIABLE, client_from_options
from qanat.config.load import load_config
from qanat.config.settings import LogSettings
from qanat.handshake.tokens import generate_token
from qanat.process.log import setup_logging

if TYPE_CHECKING:
    from qanat.doctor.proxy_config.read import ProxyFile
    from qanat.doctor.report import Report

FLAWED = 4
"""The exit code when it gets through and something should be changed."""

DETAILS = """\
It tries every step from the name to the last byte, all side by side, in at most 20 s: name, addresses, proxy, TLS,
clock, HTTP/1.1 and HTTP/2, Upgrade, every transport, what is held back, limits, who stands there.  With a token
it shakes hands too, and says whether token and fingerprint are right.  Nothing is changed anywhere.

With a URL no token is needed; with -c FILE all of its servers and URLs are examined, and what its running client
remembers is read.  --proxy-config FILE reads a proxy's configuration, and needs no URL.

exit codes of doctor:
  0    it gets through, and nothing has to be changed
  1    nothing gets through
  3    the server refuses the token, or is not the one that is pinned
  4    it gets through, and something should be changed

"""

_NOT_HERE = frozenset(
    {
        "local", "udp", "remote", "dynamic", "allow_connect", "publish", "exit_on_forward_failure", "lanes", "transport"
    }
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("urls", nargs="*", metavar="URL", help="wss://[NAME@]HOST[:PORT]/PATH, instead of -c FILE")
    add_config(parser, required=False)
    parser.add_argument("--idle", action="store_true", help="find out how long silence survives, too (2.5 minutes)")
    parser.add_argument(
        "--proxy-config",
        type=Path,
        metavar="FILE",
        help="read this configuration of nginx, HAProxy, Apache, Caddy, nghttpx or Squid, and print a patch for it",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each URL instead of text")
    parser.add_argument("-v", "--verbose", dest="details", action="store_true", help="show settings for every proxy")
    add_flags(parser.add_argument_group("with a URL"), ClientSettings, beside_file=False, without=_NOT_HERE)


def run(options: argparse.Namespace) -> int:
    """Examine, print what was found, and return the exit code.  Blocks.  Raises QanatError before there is anything."""
    if options.proxy_config is None or options.urls or options.config is not None:
        settings, has_token = _settings(options)
    else:
        settings, has_token = None, False
    setup_logging(LogSettings(level="error"))
    file = None
    if options.proxy_config is not None:
        from qanat.doctor.proxy_config.read import read_file

        file = read_file(options.proxy_config)  # what cannot be read ends it before anything is measured
    reports = _examine_paths(options, settings, has_token) if settings is not None else []
    codes = [DONE, *(_code_of(report) for report in reports)]
    if file is not None:
        codes.append(_examine_proxy_config(options, file, reports))
    return max(codes, key=_BADNESS.index)


_BADNESS = (DONE, FLAWED, FAILED, REFUSED)


def _settings(options: argparse.Namespace) -> tuple[ClientSettings, bool]:
    """Return what the command line says about a client, and whether it has a token of its own."""
    if (options.config is None) == (not options.urls):
        raise UsageError("doctor needs either -c FILE or a URL", hint="see: doctor --help")
    if options.config is not None:
        return load_config(options.config, want="client"), True
    given = given_flags(options, ClientSettings)
    has_token = bool(given.get("token_file") or os.environ.get(TOKEN_VARIABLE))
    environ: Mapping[str, str] = os.environ if has_token else {**os.environ, TOKEN_VARIABLE: generate_token()}
    return client_from_options(urls=options.urls, environ=environ, **given), has_token


def _examine_paths(options: argparse.Namespace, settings: ClientSettings, has_token: bool) -> list[Report]:
    from qanat.doctor.examination import examine
    from qanat.doctor.running import with_memory
    from qanat.transports.dial.urls import TunnelUrl

    reports = []
    for server in settings.servers:
        for text in server.urls:
            progress = _Progress(sys.stderr)
            try:
                report = examine(
                    settings,
                    server,
                    TunnelUrl.parse(text),
                    has_token=has_token,
                    idle=options.idle,
                    progress=progress.show,
                )
            finally:
                progress.clear()
            if options.config is not None:
                report = with_memory(report, settings)
            write_out(report.to_json() if options.json else _text(report, options.details))
            reports.append(report)
    return reports


def _code_of(report: Report) -> int:
    from qanat.doctor.report import Verdict

    return {
        Verdict.SOUND: DONE,
        Verdict.FLAWED: FLAWED,
        Verdict.BLOCKED: FAILED,
        Verdict.REFUSED: REFUSED,
    }[report.verdict]


def _text(report: Report, details: bool) -> str:
    from qanat.doctor.text import report_text
    from qanat.measure.chart import Style

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 100
    return report_text(report, Style(width, carries_unicode(sys.stdout), terminal and wants_color()), details=details)


def _examine_proxy_config(options: argparse.Namespace, file: ProxyFile, reports: list[Report]) -> int:
    from qanat.doctor.proxy_config.fault import Tunnel

    tunnel = Tunnel()
    if reports:
        from qanat.transports.dial.urls import TunnelUrl

        first = reports[0]
        tunnel = Tunnel(TunnelUrl.parse(first.url).path.partition("?")[0], first.found, first.refuted)
    result = file.examine(tunnel)
    write_out(result.to_json() if options.json else result.to_text())
    return FLAWED if result.faults else DONE


class _Progress:
    """How far it is, on stderr: a bar on a terminal, else nothing."""

    def __init__(self, stream: Any) -> None:
        from qanat.measure.chart import Style

        self._stream = stream
        self._terminal = stream.isatty()
        width = shutil.get_terminal_size().columns if self._terminal else 80
        self._style = Style(width, carries_unicode(stream), self._terminal and wants_color())
        self._drawn = False

    def show(self, what: str, done: float) -> None:
        """Show what is being done, and that `done` of it all is over, from 0 to 1."""
        from qanat.measure.chart import progress_bar

        if self._terminal:
            self._write("\r" + progress_bar(what[:28], done, self._style) + "\x1b[K")
            self._drawn = True

    def clear(self) -> None:
        """Take the bar away."""
        if self._drawn:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        with suppress(OSError):  # the findings count
            self._stream.write(text)
            self._stream.flush()
