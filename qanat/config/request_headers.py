"""Headers of the user's own in the client's requests: which may be given, and which look like secrets.

Checks of single texts; messages go on after the header's name and repeat no value.  `qanat.config.route` and
`qanat.config.command_line` call this.
"""

from __future__ import annotations

import re

from qanat.base.errors import UsageError

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_VALUE = re.compile(r"[\x20-\x7e\t]*")
HOST_PATTERN = r"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
_HOST = re.compile(HOST_PATTERN)

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    }
)
_OURS = frozenset({"content-length", "content-type", "expect", "origin", "grpc-timeout", "grpc-encoding"})
_SECRET = re.compile(r"authorization|cookie|secret|token|password|passwd|api-?key|credential|jwt", re.IGNORECASE)


def check_header_name(name: str) -> None:
    """Raise UsageError unless a request may have a header of this name beside ours."""
    lower = name.lower()
    if not _TOKEN.fullmatch(name):
        raise UsageError("is no name that a header can have")
    if lower == "host":
        raise UsageError("has a key of its own: `host`")
    if lower == "proxy-authorization":
        raise UsageError("would go to the server; a proxy's user and password belong in the URL in `proxy`")
    if lower in _HOP_BY_HOP:
        raise UsageError("is about one connection, which a proxy ends and this program rules; it cannot be set")
    if lower in _OURS or lower.startswith(("sec-", "grpc-")):
        raise UsageError("belongs to the transport, which sets it itself or must not have it; it cannot be set")


def check_header_value(value: str) -> None:
    """Raise UsageError unless `value` can be sent as it is."""
    if not _VALUE.fullmatch(value):
        raise UsageError("has a value with a character beyond printable ASCII, which not every proxy passes on")
    if value != value.strip():
        raise UsageError("has a value with space around it, which would be lost")


def looks_secret(name: str) -> bool:
    """Whether a header of this name usually holds what others must not read."""
    return _SECRET.search(name) is not None


def check_host_header(text: str) -> str:
    """Return `text`, when it may stand in a Host header (RFC 9110 §7.2).  Raises UsageError."""
    if not _HOST.fullmatch(text):
        raise UsageError("must be NAME or NAME:PORT, as it stands in a URL")
    return text
