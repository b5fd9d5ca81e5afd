"""Files that hold secrets: read them only when nobody else can.

Used for tokens by `qanat.config.load` and `qanat.config.command_line`, and to look at private keys before the
programs that load them do.  No message here holds anything of a file's content.
"""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path
from typing import BinaryIO

from qanat.base.errors import UsageError
from qanat.handshake.tokens import parse_token

MAX_SECRET = 4096
"""Bytes in a token's file at most."""

_TOO_OPEN = stat.S_IRWXG | stat.S_IRWXO


def read_token_file(path: Path) -> bytes:
    """The 32-byte secret of the token in `path`; space round it is ignored.

    Raises UsageError, as all here, with a message that goes on after the name of what named the file.
    """
    with _open_private(path) as file:
        content = file.read(MAX_SECRET + 1)
    if len(content) > MAX_SECRET:
        raise UsageError(f"names {path}, which is too long to hold one token")
    return token_secret(content.decode("ascii", "replace"), f"names {path}, which holds no token")


def read_secret_file(path: Path) -> str:
    """The one line of text in `path`; space round it is ignored."""
    with _open_private(path) as file:
        content = file.read(MAX_SECRET + 1)
    if len(content) > MAX_SECRET:
        raise UsageError(f"names {path}, which is longer than {MAX_SECRET} bytes")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UsageError(f"names {path}, which is not text in UTF-8") from None
    if not text:
        raise UsageError(f"names {path}, which is empty")
    if not text.isprintable():
        raise UsageError(f"names {path}, which has more than one line, or a control character")
    return text


def token_secret(text: str, problem: str) -> bytes:
    """The 32-byte secret in `text`, or UsageError: `problem`, and what is wrong with the token."""
    try:
        return parse_token(text.strip())
    except UsageError as error:
        raise UsageError(f"{problem}: {error.message}", hint=error.hint) from None


def check_private(path: Path) -> None:
    """Raise UsageError unless `path` is a file that we, and nobody else, can read."""
    _open_private(path).close()


def check_readable(path: Path) -> None:
    """Raise UsageError unless `path` is a file that we can read."""
    _open(path).close()


def may_be_read_by_others(mode: int) -> bool:
    """Whether permission bits let the group or others in; `how_to_close` tells the cure."""
    return bool(mode & _TOO_OPEN)


def how_to_close(path: Path) -> str:
    """The command that keeps others out of `path`."""
    return f"chmod 600 {shlex.quote(str(path))}"


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe or a device is refused before it could block us.  Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is not a file")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def mode_of(file: BinaryIO) -> int:
    """The permission bits of an open file; 0600 where the system has none."""
    return stat.S_IMODE(os.fstat(file.fileno()).st_mode) if os.name == "posix" else 0o600


def _open(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        raise UsageError(f"names {path}, which cannot be read: {error.strerror}") from error


def _open_private(path: Path) -> BinaryIO:
    file = _open(path)
    mode = mode_of(file)
    if may_be_read_by_others(mode):
        file.close()
        raise UsageError(f"names {path}, which others can read (mode {mode:04o})", hint=how_to_close(path))
    return file
