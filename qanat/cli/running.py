"""What `server` and `client` have in common: a log, a PID file, signals, and an exit code at the end."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from qanat.base.errors import QanatError
from qanat.cli.main import DONE, FAILED, exit_code
from qanat.config.settings import LogSettings
from qanat.process.daemon import Run, run_daemon
from qanat.process.log import flush_log, setup_logging

log = logging.getLogger("qanat.tunnel")

SIGNALS = """\
signals:
  SIGTERM, SIGINT   stop: open streams get a few seconds to finish; a second one ends at once
  SIGHUP            open the log file again, after logrotate has moved it, and reload the
                    configuration: what changed in it takes effect, all else goes on

"""


def run_logged(
    run: Run,
    log_settings: LogSettings,
    pid_file: Path | None,
    *,
    hangup_stops: bool | None = None,
    on_hangup: Callable[[], None] | None = None,
) -> int:
    """Call `run` until a signal stops it, and return the exit code.  Blocks.

    `hangup_stops` says whether SIGHUP does; by default what logs to a terminal ends with it.  Otherwise SIGHUP calls
    `on_hangup` too.  Raises QanatError
    for `main` to show, unless a log that somebody else reads has it already.
    """
    setup_logging(log_settings)
    # What logs to a terminal ends with it, as any program does; what logs to a file stays.
    if hangup_stops is None:
        hangup_stops = log_settings.file is None and sys.stderr.isatty()
    try:
        run_daemon(run, pid_file=pid_file, hangup_stops=hangup_stops, on_hangup=on_hangup)
    except QanatError as error:
        # A text log on stderr says it once, in `complain`, which must not wait where nobody reads; any other reader of
        # the log must hear of it too.
        if log_settings.file is None and log_settings.format == "text":
            if not flush_log():
                return exit_code(error)
            raise
        log.error("%s", error, extra={"event": "failed", "exit_code": exit_code(error), "hint": error.hint})
        if log_settings.file is not None:
            raise
        return exit_code(error)
    except ModuleNotFoundError:
        raise  # `main` says which package it is, and who has it
    except Exception:
        log.exception("ended by an unexpected error; please report it", extra={"event": "bug"})
        return FAILED
    return DONE
