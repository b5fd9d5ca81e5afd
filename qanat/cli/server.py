"""`server`: run the end that accepts connections until a signal stops it."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable

from qanat.cli.flags import add_flags, given_flags
from qanat.cli.main import DONE
from qanat.cli.parser import add_config, add_lock
from qanat.cli.running import SIGNALS, run_logged
from qanat.config.command_line import with_flags
from qanat.config.load import load_config
from qanat.config.server_settings import ServerSettings
from qanat.process.daemon import take_lock
from qanat.process.reloading import Reloader

DETAILS = SIGNALS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    add_config(parser, required=True)
    add_lock(parser)
    group = parser.add_argument_group("logs and files; these override the configuration")
    add_flags(group, ServerSettings, beside_file=True)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal comes, and return the exit code.  Blocks.  Raises QanatError."""
    if options.lock is not None and take_lock(options.lock) is None:
        return DONE

    def load() -> ServerSettings:
        return with_flags(load_config(options.config, want="server"), given_flags(options, ServerSettings))

    settings, reloader = load(), Reloader(options.config, load)

    def serve(stop: threading.Event, ready: Callable[[], None]) -> None:
        from qanat.server.server import run_server

        run_server(settings, stop, ready, reloader)

    return run_logged(serve, settings.log, settings.pid_file, on_hangup=reloader.hangup)
