"""What untrusted peers send becomes numbers, times and text here, within bounds, and none of it raises.

Whoever answers a request may be anything: a proxy, a captive portal, an attacker on the path.  Python's own parsers
trust their input (`int` refuses more than 4,300 digits with a ValueError, `parsedate_to_datetime` overflows, `decode`
stops at half a character), so nothing else in `transports/` and in the server's front door calls them; a test holds
that.  Pure.
"""

from __future__ import annotations

import datetime
import email.utils
from urllib.parse import unquote

from qanat.base.text import printable

MAX_TEXT = 200
"""Characters of an untrusted peer's text in a message or a log line."""
MAX_RETRY_AFTER = 3600.0
"""Seconds; whoever answers may be nobody of ours, and must not silence a client for a day."""

_MAX_DIGITS = 19
_MAX_DATE = 64  # characters; the longest form of an HTTP date has 33


def number(text: str, highest: int) -> int | None:
    """Return the decimal number `text`, without sign or spaces, or None when it is none or above `highest`."""
    if not 1 <= len(text) <= _MAX_DIGITS or not (text.isascii() and text.isdigit()):
        return None
    value = int(text)
    return value if value <= highest else None


def http_status(text: str) -> int:
    """Return an HTTP status, 100 to 999, or 0 for what is none (RFC 9110 §15)."""
    return (number(text, 999) or 0) if len(text) == 3 and not text.startswith("0") else 0


def retry_after(value: str, now: datetime.datetime) -> float | None:
    """Return a Retry-After header's seconds, at most MAX_RETRY_AFTER, or None when it makes no sense.

    It is a number or a date (RFC 9110 §10.2.3); `now` has a time zone.
    """
    text = value.strip()
    if text.isascii() and text.isdigit():
        seconds = number(text, 10**9)
        return MAX_RETRY_AFTER if seconds is None else min(float(seconds), MAX_RETRY_AFTER)
    at = http_date(text)
    if at is None:
        return None
    try:
        return min(max(0.0, (at - now).total_seconds()), MAX_RETRY_AFTER)
    except OverflowError:
        return None


def http_date(text: str) -> datetime.datetime | None:
    """Return an HTTP date (RFC 9110 §5.6.7), or None when it is none."""
    if not text or len(text) > _MAX_DATE:
        return None
    try:
        at = email.utils.parsedate_to_datetime(text)
        return at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def retry_after_milliseconds(value: str) -> float | None:
    """Return gRPC's `grpc-retry-pushback-ms` in seconds, at most MAX_RETRY_AFTER, or None when it makes no sense."""
    if not (value.isascii() and value.isdigit()):
        return None
    milliseconds = number(value, 10**9)
    return MAX_RETRY_AFTER if milliseconds is None else min(milliseconds / 1000, MAX_RETRY_AFTER)


def header_text(value: bytes | str) -> str:
    """Return a name or value of an HTTP head as text, each byte one character (RFC 9110 §5.5).

    It may hold anything that fits into a head: use `words` before a person sees it.
    """
    return value if isinstance(value, str) else value.decode("latin-1")


def words(value: bytes | bytearray | memoryview | str, limit: int = MAX_TEXT) -> str:
    """Return an untrusted text, fit for a terminal and a log; bytes are taken for UTF-8, which may be cut or broken."""
    if not isinstance(value, str):
        value = bytes(value[: 4 * limit]).decode("utf-8", "replace")
    return printable(value, limit)


def percent_decoded(value: str) -> str:
    """Return an untrusted percent-encoded text, as `words` does; what is malformed stays as it is."""
    return words(unquote(value[: 4 * MAX_TEXT]))
