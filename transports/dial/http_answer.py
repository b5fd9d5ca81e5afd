"""The head of an HTTP/1.1 answer, read from a wire by a client: bounded in size and time, and nothing behind it lost.

Used by the WebSocket client for the server's answer, and by `http_connect` for a proxy's.  What an answer means
is theirs to say.
"""

from __future__ import annotations

import re

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.base.untrusted import header_text, http_status, number, words
from qanat.transports.dial.answer_fields import mapping
from qanat.transports.pipe import Wire

MAX_HEAD = 64 * 1024
"""Bytes of an answer's head; CDNs send several KiB of headers."""

MAX_REASON = 300
"""Bytes of a body in which a reason is looked for."""

_HEAD_END = re.compile(rb"\r?\n\r?\n")


class AnswerReader:
    """Reads one head after the other, and says in words what is no answer."""

    def __init__(self, wire: Wire, deadline: Deadline, who: str, *, check: str, no_answer: str, use_tls: str) -> None:
        """`who` answers.  The others are hints: where its address stands (`check`), what to do when nothing comes,
        and what to write when it expects TLS on a wire without."""
        self._wire = wire
        self._deadline = deadline
        self._who = who
        self._check = check
        self._no_answer = no_answer
        self._use_tls = use_tls
        self.rest = b""
        """What came after the last head."""

    def read(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer, as `answer_fields.mapping` has them.

        Blocks until the deadline.  Raises TransportError whose hint says what to do.
        """
        return self._parse(self._read_head())

    def read_reason(self, headers: dict[str, str]) -> str:
        """Return the reason in the short plain body that a Qanat server's refusal has, "" without one.

        Blocks until it is there, at most until the deadline, and never raises: the answer's head is known already.
        """
        size = number(headers.get("content-length", ""), MAX_REASON)
        if size is None or not headers.get("content-type", "").startswith("text/plain"):
            return ""
        body = self.rest
        buffer = memoryview(bytearray(MAX_REASON))
        try:
            while len(body) < size:
                body += buffer[: self._receive(buffer)]
        except TransportError:
            return ""
        first, _, reason = words(body[:size].strip(), MAX_REASON).partition(": ")
        return reason if first == "Bad Request" else ""

    def _read_head(self) -> bytes:
        received = self.rest
        buffer = memoryview(bytearray(16 * 1024))
        while True:
            end = _HEAD_END.search(received)
            if end:
                self.rest = received[end.end() :]
                return received[: end.start()]
            if not b"HTTP/1.".startswith(received[:7]):
                raise self._not_http(received)
            if len(received) > MAX_HEAD:
                raise TransportError(
                    f"{self._who} answered with more than {MAX_HEAD} bytes of headers",
                    hint=self._check,
                )
            received += buffer[: self._receive(buffer)]

    def _receive(self, buffer: memoryview) -> int:
        self._wire.set_read_timeout(self._deadline.remaining())
        try:
            count = self._wire.recv_into(buffer)
        except TransportError as error:
            if self._deadline.passed:
                raise TransportError(
                    f"{self._who} did not answer in time",
                    hint="the port may not be a web server's, or what is behind a proxy may hang",
                ) from error
            raise TransportError(
                f"{self._who} did not answer: {error.message}", hint=error.hint or self._no_answer
            ) from error
        if count == 0:
            raise TransportError(f"{self._who} closed the connection without an answer", hint=self._no_answer)
        return count

    def _parse(self, head: bytes) -> tuple[int, dict[str, str]]:
        first, *lines = header_text(head).split("\n")
        status = http_status(first.partition(" ")[2].lstrip()[:4].rstrip())
        if not status:
            raise self._not_http(head)
        fields = (line.partition(":") for line in lines)
        return status, mapping((name.strip().lower(), value.strip()) for name, _, value in fields)

    def _not_http(self, received: bytes) -> TransportError:
        if received[:1] in (b"\x15", b"\x16"):  # a TLS alert or handshake record, RFC 8446 §5.1
            return TransportError(f"{self._who} speaks TLS on this port", hint=self._use_tls)
        return TransportError(
            f"{self._who} is not a web server: it answered {words(header_text(received[:20]))!r}",
            hint=self._check,
        )
