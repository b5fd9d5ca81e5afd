"""Logging: text for people or JSON for machines, to stderr or to a file that logrotate may move.

Every module logs to a logger called `qanat.…`; structured facts ride along as `extra={"event": …}`
and become keys of the JSON object.  Whatever reaches an output here has lost anything that looks
like a token: the program never logs one on purpose, and this is the last defense should it happen
by accident, in a traceback or in what the other end sent.

Not here: what is logged, and the signal that asks for `reopen` (qanat.process.daemon).  The command
line calls `setup_logging`, once for each process.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from qanat.base.errors import NoThread, UsageError
from qanat.base.redaction import hide_tokens
from qanat.config.settings import LogSettings
from qanat.process.log_output import LineWriter, may_block

log = logging.getLogger("qanat.log")

LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}

_OURS = "qanat"

# Texts of the other end are logged too: a line break in one must not forge a line of ours, and an
# escape sequence must not reach a terminal, nor what reverses the direction of its text.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x09}
_CONTROL.update({0x0A: "\\n", 0x0D: "\\r"})
_TURNING = (*range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0x061C, 0xFEFF)
_CONTROL.update({code: f"\\u{code:04x}" for code in _TURNING})

# What every record has by itself; all else came in through `extra`.
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

FLOOD = 1000
"""Lines of one kind an interval.  Debug lines are not counted: who asks for all gets all."""
INTERVAL = 60.0
"""Seconds."""

FLUSH = 1.0
"""Seconds that a reader of the log who has fallen behind gets at the end."""

_STANDARD_STREAMS = (Path("/dev/stdout"), Path("/dev/stderr"))
"""Links that the system has made, to whatever the caller has opened."""
_LINK = "it is a symbolic link, which a log does not follow: name the file that it leads to"
_PIPE = "it is not a file: a pipe without a reader would stop the program; name a file, or log to stderr"

_installed: logging.Handler | None = None
_configured = logging.INFO
"""The level that the configuration says."""


def setup_logging(settings: LogSettings) -> None:
    """Send what this process logs to where `settings` says; a second call replaces the first.

    Raises UsageError when the file cannot be opened.  Other libraries' loggers are heard from
    `warning` upward only: their chatter is not ours to explain.
    """
    use_log(open_log(settings), settings)


def open_log(settings: LogSettings) -> logging.Handler:
    """Return what writes to where `settings` says, for `use_log`.  Raises UsageError when the file cannot be opened."""
    handler: logging.Handler
    if settings.file is None:
        handler = ForgivingHandler(sys.stderr)
    else:
        handler = ReopeningFileHandler(settings.file)
    handler.addFilter(FloodFilter())
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    return handler


def use_log(handler: logging.Handler, settings: LogSettings) -> None:
    """Have what this process logs written by `handler`, which was made for `settings`, and by no other any more."""
    global _installed, _configured
    root = logging.getLogger()
    if _installed is not None:
        root.removeHandler(_installed)
        _installed.close()
    root.addHandler(handler)
    _installed = handler
    _configured = LEVELS[settings.level]
    logging.getLogger(_OURS).setLevel(_configured)
    logging.captureWarnings(True)


def set_log_level(level: str, logger: str = "") -> None:
    """Have `logger` and what is below it log from `level` on, until a reload or a restart; all of ours by default.

    A name without "qanat." at its front is one of ours; level "default" takes back what was set for one, or for all.
    Raises UsageError for a level or a logger that there is not.
    """
    name = logger if logger == _OURS or logger.startswith(f"{_OURS}.") else f"{_OURS}.{logger}" if logger else _OURS
    known = [each for each in logging.root.manager.loggerDict if each == _OURS or each.startswith(f"{_OURS}.")]
    if name not in known:
        names = ", ".join(sorted(each.removeprefix(f"{_OURS}.") for each in known if each != _OURS))
        raise UsageError(f"there is no logger {logger!r} in this process", hint=f"there are {names}")
    if level == "default" and name == _OURS:
        number = _configured
        for each in known:
            logging.getLogger(each).setLevel(logging.NOTSET)
    elif level == "default":
        number = logging.NOTSET
    elif level in LEVELS:
        number = LEVELS[level]
    else:
        raise UsageError(
            f"there is no log level {level!r}",
            hint=f"there are {', '.join(LEVELS)}, and `default` for what the configuration says",
        )
    logging.getLogger(name).setLevel(number)
    log.warning("the level of %s is %s now", name, level, extra={"event": "log level"})


def log_levels() -> dict[str, str]:
    """Return the level of each logger of ours that has one of its own."""
    found = {}
    for name, each in sorted(logging.root.manager.loggerDict.items()):
        if isinstance(each, logging.Logger) and each.level and (name == _OURS or name.startswith(f"{_OURS}.")):
            found[name] = logging.getLevelName(each.level).lower()
    return found


def reopen() -> bool:
    """Open the log file by its name again, after logrotate moved it; False when that was not to be done.

    It is not when the log goes to stderr, or when the name cannot be opened: then logging goes on
    into the file that is open already, and says so.
    """
    handler = _installed
    if not isinstance(handler, ReopeningFileHandler):
        return False
    try:
        handler.reopen()
    except OSError as error:
        log.error("cannot open the log file %s again, the old one stays in use: %s", handler.path, error.strerror)
        return False
    return True


def flush_log(timeout: float = FLUSH) -> bool:
    """Block until what was logged is written, `timeout` seconds at most; return whether it is."""
    return not isinstance(_installed, ForgivingHandler) or _installed.wait_written(timeout)


class FloodFilter(logging.Filter):
    """Leaves lines out when the same place in the code has logged FLOOD of them within INTERVAL.

    Whoever can make us log, a client that is refused a million times or an unauthenticated peer that comes so often,
    must not fill the disk.  The last line of an interval says that others are missing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, int], tuple[float, int]] = {}  # place: since when, how many

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line goes out."""
        if record.levelno < logging.INFO:
            return True
        place = (record.pathname, record.lineno)
        with self._lock:
            since, count = self._counts.get(place, (record.created, 0))
            if not 0 <= record.created - since < INTERVAL:
                since, count = record.created, 0
            self._counts[place] = (since, count + 1)
        if count == FLOOD - 1:
            left = since + INTERVAL - record.created
            record.msg = f"{record.msg} [too many: others like this are left out for {left:.0f} s]"
        return count < FLOOD


class ForgivingHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream that may fail, or that nobody reads: lines are lost then, and nothing else."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._complain_at = 0.0
        self._left_out = 0  # lines, since the reader does not read
        self._writer = self._writer_for(stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line; never block on whoever reads it."""
        if self._writer is None:
            super().emit(record)
            return
        try:
            if self._left_out and self._queue(self._writer, _lines_left_out(self._left_out)):
                self._left_out = 0
            self._left_out += not self._queue(self._writer, record)
        except NoThread:
            self._left_out += 1
        except Exception:
            self.handleError(record)

    def wait_written(self, timeout: float) -> bool:
        """Block until all lines are written, `timeout` seconds at most; return whether they are."""
        return self._writer is None or self._writer.flush(timeout)

    def close(self) -> None:
        """Write what waits, if that can be done in FLUSH seconds.  Idempotent."""
        if self._writer is not None:
            self._writer.close(FLUSH)
        super().close()

    def _queue(self, writer: LineWriter, record: logging.LogRecord) -> bool:
        line = self.format(record) + self.terminator
        return writer.write(line.encode(self.stream.encoding, self.stream.errors or "backslashreplace"))

    def _writer_for(self, stream: TextIO) -> LineWriter | None:
        try:
            descriptor = stream.fileno()
            return LineWriter(descriptor, self._complain) if may_block(descriptor) else None
        except OSError:  # no descriptor, as in a test
            return None

    @property
    def where(self) -> str:
        """What messages call it."""
        return "stderr"

    def handleError(self, record: logging.LogRecord) -> None:
        """Say so, once an INTERVAL, where that can be read; whatever is no failure to write is logging's to show."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._complain(error)
        else:
            super().handleError(record)

    def _complain(self, error: OSError) -> None:
        if self.stream is not sys.stderr and time.monotonic() >= self._complain_at:
            self._complain_at = time.monotonic() + INTERVAL
            with contextlib.suppress(OSError, ValueError):
                print(
                    f"qanat: warning: cannot write the log {self.where}: {error.strerror}; lines are lost until it can "
                    "be written again (make room there, or name another file)",
                    file=sys.stderr,
                )


class ReopeningFileHandler(ForgivingHandler):
    """Appends to a file, and follows its name to a new file when told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            stream = self._open()
        except OSError as error:
            raise UsageError(
                f"cannot open the log file {path}: {error.strerror}",
                # Those two say what to do themselves, and a directory would not help.
                hint="" if error.strerror in (_LINK, _PIPE) else "create its directory, and let this user write there",
            ) from error
        super().__init__(stream)

    def _open(self) -> TextIO:
        """Open without following a link, which someone else may have put there, or waiting for a pipe's reader."""
        follow = 0 if self.path in _STANDARD_STREAMS else getattr(os, "O_NOFOLLOW", 0)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | follow | getattr(os, "O_CLOEXEC", 0)
        try:
            descriptor = os.open(self.path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OSError(error.errno, _LINK) from error
            if error.errno == errno.ENXIO:
                raise OSError(error.errno, _PIPE) from error
            raise
        try:
            mode = os.fstat(descriptor).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode) or self.path in _STANDARD_STREAMS):
                raise OSError(errno.EINVAL, _PIPE)
            if hasattr(os, "set_blocking"):
                os.set_blocking(descriptor, True)
            return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def where(self) -> str:
        """What messages call it."""
        return str(self.path)

    def reopen(self) -> None:
        """Go over to the file that bears the name now.  Raises OSError and changes nothing on failure."""
        opened = self._open()
        writer = self._writer_for(opened)
        self.acquire()
        try:
            old_stream, self.stream = self.stream, opened
            old_writer, self._writer = self._writer, writer
        finally:
            self.release()
        if old_writer is not None:
            old_writer.close(FLUSH)
        old_stream.close()

    def close(self) -> None:
        """Close the file; idempotent."""
        super().close()
        with contextlib.suppress(OSError):  # of what could not be written before
            self.stream.close()


def _lines_left_out(count: int) -> logging.LogRecord:
    text = "%d lines are left out here, since nobody read the log"
    return log.makeRecord(log.name, logging.WARNING, __file__, 0, text, (count,), None, extra={"event": "left out"})


class _ScrubbingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without anything that looks like a token."""
        return hide_tokens(self.line(record))

    def line(self, record: logging.LogRecord) -> str:
        """Return what `format` makes of the record, tokens and all."""
        raise NotImplementedError

    def traceback_of(self, record: logging.LogRecord) -> str:
        """Return the record's traceback, or ""."""
        parts = []
        if record.exc_info and record.exc_info[0] is not None:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        return "\n".join(parts)


class TextFormatter(_ScrubbingFormatter):
    """`2026-01-31 12:00:00.123 info    connected to …`, in local time; tracebacks follow, indented."""

    def line(self, record: logging.LogRecord) -> str:
        """Return the record as this class writes it."""
        moment = datetime.fromtimestamp(record.created).isoformat(sep=" ", timespec="milliseconds")
        line = f"{moment} {record.levelname.lower():<7} {record.getMessage().translate(_CONTROL)}"
        traceback = self.traceback_of(record)
        if traceback:
            line += "".join(f"\n    {part.translate(_CONTROL)}" for part in traceback.split("\n"))
        return line


class JsonFormatter(_ScrubbingFormatter):
    """One object a line: ts (UTC), level, logger, message, the extras, and traceback where there is one."""

    def line(self, record: logging.LogRecord) -> str:
        """Return the record as this class writes it."""
        facts = {key: value for key, value in vars(record).items() if key not in _OWN_ATTRIBUTES}
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry: dict[str, object] = {
            "ts": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in facts.items() if key not in entry}
        traceback = self.traceback_of(record)
        if traceback:
            entry["traceback"] = traceback
        return json.dumps(entry, default=str)
