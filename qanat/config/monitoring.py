"""What `monitor:` may hold: where metrics are served, and the token that others need for them."""

from __future__ import annotations

import shlex
from pathlib import Path

from qanat.base.addresses import check_unix_path, is_loopback, parse_listen
from qanat.base.errors import UsageError
from qanat.config.secret_files import read_secret_file

LEAST_TOKEN = 16
"""Characters of a token: fewer can be guessed by who tries for long."""


def check_monitor_listen(text: str) -> str:
    """Return `text`, when it is ADDRESS:PORT or the absolute path of a Unix socket.  Raises UsageError."""
    if text.startswith(("/", "@")):
        return check_unix_path(text)
    parse_listen(text)
    return text


def check_monitor_token(path: Path) -> None:
    """Raise UsageError unless `path` is a file of ours alone with one line that is long enough.  Blocks on the disk."""
    if len(read_secret_file(path)) < LEAST_TOKEN:
        raise UsageError(
            f"names {path}, whose token is shorter than {LEAST_TOKEN} characters",
            hint=f"`tunnel.py token > {shlex.quote(str(path))}` makes one",
        )


def is_unix_listen(listen: str) -> bool:
    """Return whether a place to listen is a Unix socket."""
    return listen.startswith(("/", "@"))


def is_open_to_others(listen: str) -> bool:
    """Return whether other machines may reach a place to listen, which has been checked."""
    if is_unix_listen(listen):
        return False
    return not is_loopback(parse_listen(listen)[0])
