"""A control command's answer as a line of JSON: `encoded`, in pieces, since one may have megabytes.

`json.dumps` keeps the interpreter until it is done: for as long nothing else moves in this process, no byte either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

PIECE = 32
"""Members that a list may have to be encoded at once."""
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


def encoded(answer: dict[str, Any]) -> bytes:
    """Return the line."""
    return b"".join([*(piece.encode() for piece in _pieces(answer)), b"\n"])


def _pieces(value: Any) -> Iterator[str]:
    if not _is_long(value):
        yield _ENCODE(value)
    elif isinstance(value, dict):
        before = "{"
        for key, each in value.items():
            yield f"{before}{_ENCODE(key)}:"
            yield from _pieces(each)
            before = ","
        yield "}"
    else:
        before = "["
        for each in value:
            yield before
            yield from _pieces(each)
            before = ","
        yield "]"


def _is_long(value: Any) -> bool:
    """Return whether there is a list in it that has more members than are encoded at once."""
    kind = type(value)
    if kind is dict:
        value = value.values()
    elif kind is not list:
        return False
    elif len(value) > PIECE:
        return True
    for each in value:  # plainly: a large server's answer has a hundred thousand members, most of them no containers
        kind = type(each)
        if (kind is dict or kind is list) and _is_long(each):
            return True
    return False
