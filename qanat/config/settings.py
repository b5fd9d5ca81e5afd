"""The settings of one process, as frozen values, each declared with its default, its bounds and its documentation.

Here are those that both ends have; `server_settings`, `client_settings` and `forward_settings` beside it have the
others.  Nowhere else does an option stand: `qanat.config.options` says what a declaration holds and what is made
from it.  `qanat.config.load` fills these in from YAML, `qanat.config.command_line` from a URL and flags; the running
client and server read nothing else.  config.example.yaml documents each key at length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qanat.config.monitoring import check_monitor_listen, check_monitor_token, is_open_to_others, is_unix_listen
from qanat.config.options import Conflict, Flag, declared, option
from qanat.config.published_names import MODE_PATTERN, check_mode
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE
from qanat.handshake.hello import MAX_INITIAL_WINDOW

MAX_LANES = 16
"""Connections side by side that a client may ask for, and a server grant."""
MAX_RATE = 100_000_000_000
"""Bytes a second beyond which nothing is limited."""
MAX_IDLE = 7 * 86_400
RATE = "bytes a second"
NO_LIMIT = "0 is no limit."
IDLE_DOC = "Time without a byte either way after which a stream is reset."
TOKEN_DOC = "The token, as ${NAME} from the environment, or written out in a file that only you can read."
TOKEN_FILE_DOC = "The file that holds the token, which only you can read."


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Sealed PINGs inside the tunnel, both ways."""

    interval: float = option(15.0, low=1, high=3600, unit="seconds", doc="Time between PINGs.")
    timeout: float = option(
        45.0, low=2, high=86_400, unit="seconds", doc="Time without one byte until the link counts as dead."
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Yield what does not go together."""
        if self.timeout <= self.interval:
            yield Conflict(
                ("timeout", "interval"),
                "leaves `timeout` no longer than `interval`, so that a quiet link would count as dead",
            )


@dataclass(frozen=True, slots=True)
class ApplicationProbes:
    """When an application's machine that is silent has vanished, so that its stream is reset."""

    idle: float = option(
        DEFAULT_KEEPALIVE.idle, low=0, high=32_767, unit="seconds", doc="Silence until the first probe; 0 never asks."
    )
    interval: float = option(DEFAULT_KEEPALIVE.interval, low=1, high=32_767, unit="seconds", doc="Time between probes.")
    count: int = option(
        DEFAULT_KEEPALIVE.count,
        low=1,
        high=127,
        unit="probes",
        doc="Probes without an answer until it counts as vanished.",
    )
    unacknowledged: float = option(
        DEFAULT_KEEPALIVE.unacknowledged,
        low=0,
        high=86_400,
        unit="seconds",
        doc="Time without an acknowledgment of what was sent until it counts as vanished; 0 leaves that to the system. "
        "An application that pauses is left alone, since its machine answers.",
    )


@dataclass(frozen=True, slots=True)
class Flow:
    """Windows and queues."""

    initial_window: int = option(
        131_072,
        low=16_384,
        high=MAX_INITIAL_WINDOW,
        unit="bytes",
        doc="Bytes that each stream may receive unread from the start.",
    )
    max_window: int = option(
        16_777_216,
        low=16_384,
        high=1 << 30,
        unit="bytes",
        doc="Bytes to which one stream's window may grow on a long, fast path.",
    )
    window_budget: int = option(
        67_108_864,
        low=0,
        high=1 << 40,
        unit="bytes",
        doc="Bytes by which all windows of a session may grow, together.",
    )
    outbox: int = option(
        16_777_216,
        low=1 << 20,
        high=1 << 30,
        unit="bytes",
        doc="Bytes kept until the other end has acknowledged them, for each connection and direction.",
    )

    def conflicts(self) -> Iterator[Conflict]:
        """Yield what does not go together."""
        if self.initial_window > self.max_window:
            yield Conflict(("initial_window", "max_window"), "makes `initial_window` larger than `max_window`")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, how, and where."""

    level: str = option(
        "info",
        choices=("error", "warning", "info", "debug"),
        doc="How much is logged; debug shows frames.",
        flag=Flag("-v", "--verbose", const="debug", help="log frames and other details", beside_file=True),
    )
    format: str = option(
        "text",
        choices=("text", "json"),
        doc="Text for people, or json: one object a line.",
        flag=Flag("--log-format", help="how to log", beside_file=True),
    )
    file: Path | None = option(
        None,
        doc="The log's file, opened again on SIGHUP for logrotate; a symbolic link is not followed.",
        unset="stderr",
        flag=Flag("--log-file", metavar="FILE", help="where to log; SIGHUP opens it again", beside_file=True),
    )


WATCH_CONFIG_DOC = "Whether to reload when this file changes, as on SIGHUP and with `tunnel.py reload`."


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """What others can see of this end, over HTTP."""

    listen: str = field(
        metadata=declared(
            doc="Where metrics are served: ADDRESS:PORT, or the absolute path of a Unix socket.",
            parse=check_monitor_listen,
            required="for example 127.0.0.1:9480",
        )
    )
    token_file: Path | None = option(
        None,
        doc="The file of the token that must be sent, as a bearer token or as a password; only you can read it.",
        check=check_monitor_token,
        unset="none, on loopback and Unix sockets",
    )
    mode: str = option(
        "0600", doc="Permission bits of the Unix socket, in octal.", parse=check_mode, pattern=MODE_PATTERN
    )
    group: str | None = option(None, doc="Its group, as www-data: the proxy's.", unset="this user's")
    max_clients: int = option(
        50,
        low=0,
        high=10_000,
        unit="clients",
        doc="Clients that have metrics of their own, the first of the configuration; the others are one together.",
    )

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket that is listened on."""
        return is_unix_listen(self.listen)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield what does not go together."""
        if self.listen and self.token_file is None and is_open_to_others(self.listen):  # "" for a faulty one
            yield Conflict(
                ("listen",),
                "is open to other machines, so it needs `token_file`; or listen on 127.0.0.1 or a Unix socket, behind "
                "a proxy that asks for a password",
            )


MONITOR_DOC = "What others can see of this end, over HTTP: a live page, and metrics for Prometheus."
PID_FILE = Flag("--pid-file", metavar="FILE", help="holds the process number while it runs", beside_file=True)
