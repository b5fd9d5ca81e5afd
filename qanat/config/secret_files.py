"""Tokens and other secrets of one line: read from files that only we can read, and told apart from what they are not.

`qanat.base.private_files` says which files are private.  Used for tokens and passwords by the configuration and the
command line, and to look at private keys before the programs that load them do.  No message here holds anything of a
file's content.  Everything here raises UsageError with a message that goes on after the name of what named the file.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import BinaryIO

from qanat.base.errors import UsageError
from qanat.base.private_files import open_regular, read_exposure, reading_hint
from qanat.handshake.tokens import PREFIX, parse_token

MAX_SECRET = 4096
"""Bytes in a token's file at most."""
MAX_LINES_BYTES = 1 << 20
"""Bytes in a file of several secrets at most."""

_ALONE = "the token stands alone there: qanat1-… and nothing else"
_QUOTES = "\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb"
_ASSIGNMENT = re.compile(r"(export\s+)?[A-Za-z_][A-Za-z0-9_.-]*\s*[=:]")


def read_token_file(path: Path) -> bytes:
    """Return the 32-byte secret of the token in `path`; space around it and a byte order mark are ignored."""
    with _open_private(path) as file:
        content = file.read(MAX_SECRET + 1)
    if len(content) > MAX_SECRET:
        raise UsageError(f"names {path}, which is too long to hold one token", hint=_ALONE)
    problem = f"names {path}, which holds no token"
    if _is_utf_16(content):
        raise UsageError(
            f"{problem}: it is text in UTF-16, as Windows writes it", hint="save it as UTF-8 or plain ASCII"
        )
    return token_secret(content.decode("utf-8-sig", "replace"), problem)


def read_secret_file(path: Path) -> str:
    """Return the one line of text in `path`; space around it and a byte order mark are ignored."""
    with _open_private(path) as file:
        content = file.read(MAX_SECRET + 1)
    if len(content) > MAX_SECRET:
        raise UsageError(f"names {path}, which is longer than {MAX_SECRET} bytes", hint="one line is read")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        what = ", but in UTF-16" if _is_utf_16(content) else ""
        raise UsageError(f"names {path}, which is not text in UTF-8{what}", hint="save it as UTF-8") from None
    if not text:
        raise UsageError(f"names {path}, which is empty", hint="write the one line into it")
    if not text.isprintable():
        raise UsageError(
            f"names {path}, which has more than one line, or a control character", hint="keep the one line that counts"
        )
    return text


def read_private_text(path: Path) -> str:
    """Return the lines of text in `path`, MAX_LINES_BYTES bytes at most; a byte order mark is ignored."""
    with _open_private(path) as file:
        content = file.read(MAX_LINES_BYTES + 1)
    if len(content) > MAX_LINES_BYTES:
        raise UsageError(f"names {path}, which is longer than {MAX_LINES_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"names {path}, which is not text in UTF-8", hint="save it as UTF-8") from None


def token_secret(text: str, problem: str) -> bytes:
    """Return the 32-byte secret in `text`, or raise UsageError: `problem`, and what is there instead of a token."""
    text = text.strip()
    try:
        return parse_token(text)
    except UsageError as error:
        what = _instead_of_token(text)
        raise UsageError(f"{problem}: {what or error.message}", hint=_ALONE if what else error.hint) from None


def check_private(path: Path) -> None:
    """Raise UsageError unless `path` is a file that we, and nobody else, can read."""
    _open_private(path).close()


def check_readable(path: Path) -> None:
    """Raise UsageError unless `path` is a file that we can read."""
    _open(path).close()


def _instead_of_token(text: str) -> str:
    """Return what `text`, which is no token, looks like, or ""."""
    if not text:
        return "nothing is in it"
    if text[0] in _QUOTES or text[-1] in _QUOTES:
        return "it is in quotes"
    if not text.startswith(PREFIX) and _ASSIGNMENT.match(text):
        return "a name is in front of it, as in NAME=TOKEN"
    if len(text.splitlines()) > 1:
        return "it has more than one line"
    return ""


def _is_utf_16(content: bytes) -> bool:
    return content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content


def _open(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        text = f"names {path}, which cannot be read: {error.strerror}"
        raise UsageError(text, hint=reading_hint(error, path)) from error


def _open_private(path: Path) -> BinaryIO:
    file = _open(path)
    exposure = read_exposure(file, path)
    if exposure is not None:
        file.close()
        raise UsageError(f"names {path}, which others can read (mode {exposure.mode:04o})", hint=exposure.cure)
    return file
