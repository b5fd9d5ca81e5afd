"""Which transport a connection without TLS speaks, told from its first bytes as anyone on the path could."""

from __future__ import annotations

from collections.abc import Callable

from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS = 1


def _packed(text: bytes) -> bytes:
    """The last byte may hold bits of what follows."""
    return HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)[:-1]


_OF_HTTP2 = {"grpc": b"application/grpc", "websocket-h2": b":protocol"}


class Spoken:
    """`feed` it what the client sends; it calls `heard` once, with the name of the transport, when it can tell."""

    def __init__(self, heard: Callable[[str], None]) -> None:
        self._heard = heard
        self._begin = b""
        self._told = False

    def feed(self, data: bytes) -> None:
        if self._told:
            return
        self._begin += data
        transport = _transport(self._begin)
        if transport is not None:
            self._told = True
            self._heard(transport)


def _transport(begin: bytes) -> str | None:
    """None: too few bytes to tell."""
    if begin[: len(_PREFACE)] != _PREFACE[: len(begin)]:
        return "websocket"
    at = len(_PREFACE)
    while len(begin) >= at + 9:
        end = at + 9 + int.from_bytes(begin[at : at + 3], "big")
        if begin[at + 3] == _HEADERS:
            if len(begin) < end:
                return None
            block = begin[at + 9 : end]
            return next((name for name, text in _OF_HTTP2.items() if text in block or _packed(text) in block), "http2")
        at = end
    return None
