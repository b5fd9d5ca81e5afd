"""What the `server:` and `client:` sections have in common: tokens, keepalive, flow, log and state.

`qanat.config.server` and `qanat.config.client` call this; `qanat.config.command_line` uses its checks of single texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from qanat.base.errors import UsageError
from qanat.config.document import Place
from qanat.config.secret_files import read_token_file, token_secret
from qanat.config.section import Section
from qanat.config.settings import Flow, Keepalive, LogSettings
from qanat.handshake.messages import NAME
from qanat.transports.dial.urls import TunnelUrl

MAX_LANES = 16
"""Connections side by side that a client may ask for, and a server grant."""


def read_tokens(s: Section, *, most: int) -> list[tuple[bytes, Place]]:
    """The secrets of `token` or `token_file`, with their places: at most `most`, and one or the other key.

    A token written out in the file is refused when others can read the file.
    """
    found: list[tuple[bytes, Place]] = []
    texts = {key: s.texts(key, several=most > 1) for key in ("token", "token_file")}
    if "token" in s and "token_file" in s:
        s.refuse("token_file", "and `token` are both given; keep one of them")
    elif "token" not in s and "token_file" not in s:
        s.lacks(f"`{s.name}` needs `token_file` or `token`; `tunnel.py token` makes a token")
    for text in texts["token"]:
        if text.literal and (exposure := s.document.exposure):
            cure = f"{exposure.cure}, or use `token_file`"
            s.refuse("token", f"stands in a file that others can read ({cure})", text.place)
        try:
            found.append((token_secret(text.value, "is no token"), text.place))
        except UsageError as error:
            s.refuse("token", str(error), text.place)
    for text in texts["token_file"]:
        secret = s.parsed("token_file", text, None, lambda value: read_token_file(s.resolve(value)))
        if secret is not None:
            found.append((secret, text.place))
    for key in texts:
        s.not_empty(key, "is an empty list")
        if len(texts[key]) > most:
            s.refuse(key, f"has more than {most} entries: one, and a second while it is being changed")
    return found


def read_keepalive(s: Section) -> Keepalive:
    default = Keepalive()
    keepalive = Keepalive(
        interval=s.seconds("interval", default.interval, 1, 3600),
        timeout=s.seconds("timeout", default.timeout, 2, 86400),
    )
    if keepalive.timeout <= keepalive.interval:
        key = "timeout" if "timeout" in s else "interval"
        s.refuse(key, "leaves `timeout` no longer than `interval`, so that a quiet link would count as dead")
    s.finish()
    return keepalive


def read_flow(s: Section) -> Flow:
    default = Flow()
    flow = Flow(
        initial_window=s.integer("initial_window", default.initial_window, 16_384, 1 << 30),
        max_window=s.integer("max_window", default.max_window, 16_384, 1 << 30),
        window_budget=s.integer("window_budget", default.window_budget, 0, 1 << 40),
        outbox=s.integer("outbox", default.outbox, 1 << 20, 1 << 30),
    )
    if flow.initial_window > flow.max_window:
        key = "initial_window" if "initial_window" in s else "max_window"
        s.refuse(key, "makes `initial_window` larger than `max_window`")
    s.finish()
    return flow


def read_log(s: Section) -> LogSettings:
    default = LogSettings()
    log = LogSettings(
        level=s.choice("level", default.level, ("error", "warning", "info", "debug")),
        format=s.choice("format", default.format, ("text", "json")),
        file=s.path("file"),
    )
    s.finish()
    return log


def read_state_dir(s: Section) -> Path:
    """`state_dir`, else $STATE_DIRECTORY, else the configuration file's directory."""
    return s.path("state_dir") or environment_state_dir(s.document.environ) or s.document.base


def environment_state_dir(environ: Mapping[str, str]) -> Path | None:
    """The first directory of $STATE_DIRECTORY, which systemd sets to a list with colons."""
    first = environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(first) if first else None


def check_name(text: str) -> str:
    """A name as the protocol carries it.  Raises UsageError."""
    if not NAME.fullmatch(text):
        raise UsageError("must be 1 to 64 of A-Z a-z 0-9 . _ -")
    return text


def check_url(text: str) -> str:
    """`text` as it was, when it can be dialled.  Raises UsageError."""
    try:
        TunnelUrl.parse(text)
    except UsageError as error:
        raise UsageError(f"cannot be used: {error.message}", hint=error.hint) from error
    return text


def keys_of(section: str, settings: type) -> dict[str, str]:
    """Each field of `settings`, with the section that it belongs into, for messages."""
    return {field.name: f"`{section}:`" for field in fields(settings)}
