"""Text on its way to a person, a log or the wire: made printable, cut at a character, and what a name is.

Pure.  What untrusted peers send as bytes is turned into text by `untrusted`, which uses this.
"""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
"""A client's name, and a server's among several."""


def printable(text: str, limit: int | None = None) -> str:
    """Return at most `limit` characters of `text`, fit for a terminal and a log.

    What could move a cursor, change a color or begin a line is replaced.
    """
    text = text[:limit]
    if text.isprintable():  # nearly all
        return text
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def format_count(number: int, what: str, several: str = "") -> str:
    """Return so many of `what`: 1 stream, 2 streams; `several` where that takes more than an s."""
    return f"{number} {what if number == 1 else several or what + 's'}"


def decode_text(content: bytes) -> str:
    """Return a peer's text for people, which is UTF-8; what is not becomes U+FFFD, since no text is worth a session."""
    return content.decode("utf-8", "replace")


def encode_cut(text: str, limit: int) -> bytes:
    """Return at most `limit` bytes of `text` in UTF-8, cut at a character."""
    content = text.encode("utf-8", "replace")
    return content if len(content) <= limit else content[:limit].decode("utf-8", "ignore").encode("utf-8")
