"""A small server for trying paths: it answers by the path of the request, and keeps what it has been asked."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType
from typing import Self

from tests.support.troubles.forwarding import reply
from tests.support.troubles.front import Front
from tests.support.troubles.rules import Rules
from tests.support.troubles.wire import Answer, Asked

PLAIN = (("content-type", "text/plain"),)


class Origin:
    """`/echo` sends back what comes, as it comes, and so does a WebSocket; `/two` answers in two halves.

    The second half of `/two` comes when `go_on` is set.  All else is answered with the request's own body, when that
    has ended.
    """

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked: list[str] = []
        """Method and path of each request."""
        self.bodies: list[bytes] = []
        """What came with those that are answered at their end."""
        self._front = Front(self._handle, Rules())
        self.port = self._front.port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.go_on.set()
        self._front.close()

    def _handle(self, asked: Asked, last: bool) -> None:
        request = asked.request
        self.asked.append(f"{request.method} {request.path}")
        with contextlib.suppress(OSError):
            if request.websocket:
                fields = (("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-accept", "any"))
                asked.answer(Answer(101, fields))
                while data := asked.receive():
                    asked.send(data)
                asked.finish()
            elif request.path == "/echo":
                asked.answer(Answer(200, PLAIN))
                while data := asked.receive():
                    asked.send(data)
                asked.finish()
            elif request.path == "/two":
                asked.answer(Answer(200, PLAIN))
                asked.send(b"one")
                self.go_on.wait()
                asked.send(b"two")
                asked.finish()
            else:
                body = b""
                while data := asked.receive():
                    body += data
                self.bodies.append(body)
                reply(asked, 200, body, PLAIN)
