"""One request on its way through a relay, and what happens to it there."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.support.troubles.http1 import Http1Asking
from tests.support.troubles.http2 import Http2Asking
from tests.support.troubles.rules import Portal
from tests.support.troubles.wire import Answer, Asked, Asking, Fields, Request

if TYPE_CHECKING:
    from tests.support.troubles.relay import Relay

PAGE = b"<!DOCTYPE html><html><head><title>Welcome</title></head><body>Log in to use this network.</body></html>\n"
GRACE = 1.0
"""Seconds that the client has to end its side, once the server has ended its own."""
OPEN = (101, 200)
"""What opens a WebSocket, over HTTP/1.1 and over HTTP/2."""
HELD = 1 << 26
"""Bytes that are kept of what is held back; beyond that the exchange is cut."""


class Forwarding:
    """`run` does all of it in the calling thread, and one more for the request's body."""

    def __init__(self, relay: Relay, asked: Asked, *, last: bool) -> None:
        self._relay, self._rules, self._asked, self._last = relay, relay.rules, asked, last
        self.unanswered = True
        """Whether no head of an answer has been sent."""
        self._asking: Asking | None = None
        self._lock = threading.Lock()
        now = time.monotonic()
        self._last_up = self._last_down = now
        self._uploading = True
        self._ends = now + self._rules.life if self._rules.life else 0.0
        self._connection_ends = 0.0
        if self._rules.random_life is not None:
            self._connection_ends = now + relay.random.uniform(*self._rules.random_life)
        self._cut = False

    def run(self) -> None:
        """Pass the request on and its answer back.  Raises OSError when one of the ends is broken."""
        request, rules, asked = self._asked.request, self._rules, self._asked
        if rules.portal is not None:
            self.unanswered = False
            if rules.portal is Portal.PAGE:
                reply(asked, 200, PAGE, (("content-type", "text/html"),))
            else:
                reply(asked, 302, PAGE, (("content-type", "text/html"), ("location", "http://login.example/")))
            return
        if rules.upgrade_required and request.version == 2:
            self.unanswered = False
            reply(asked, 426, b"", (("upgrade", "websocket"),))
            return
        if request.is_grpc and not rules.grpc:
            self.unanswered = False
            reply(asked, 403, b"", (("content-type", "text/plain"),))
            return
        if request.version == 2 and request.method == "CONNECT" and not rules.extended_connect:
            self.unanswered = False
            reply(asked, 405)
            return
        if request.websocket and request.version == 1 and not rules.upgrade:
            request = request.without_upgrade()
        if not request.websocket and rules.body_limit and (request.length or 0) > rules.body_limit:
            self._too_large()
            return
        self._exchange(request)

    def due(self, now: float) -> bool:
        """Whether the clock ends it now."""
        if self._cut:
            return False
        if idle := self._rules.idle:
            # A direction that has ended, or never began, is not silent.
            silent = [self._last_down]
            if self._uploading:
                silent.append(self._last_up)
            if now - min(silent) > idle:
                return True
        return 0 < self._ends < now or 0 < self._connection_ends < now

    def cut(self) -> None:
        """End it, as it is."""
        with self._lock:
            self._cut = True
            asking = self._asking
        if asking is not None:
            asking.cut()
        if self._connection_ends:
            self._asked.cut_connection()
        else:
            self._asked.cut()

    # --- the way there --------------------------------------------------------------------------

    def _exchange(self, request: Request) -> None:
        rules, relay = self._rules, self._relay
        is_post = request.method == "POST" and not request.websocket
        body: bytes | None = None
        ends = request.length is not None or request.method in ("GET", "HEAD")
        if not request.websocket and (self._holds(request) or (is_post and ends)):
            body = self._whole_body()
            if body is None:
                self._too_large()
                return
        if not request.websocket and request.method in ("GET", "HEAD") and body is None:
            body = b""
        self._uploading = body is None
        lost = is_post and body is not None and relay.strikes(rules.lose_posts)
        if lost and relay.count("lost") % 2:
            self._asked.cut()
            return
        if is_post and body is not None and relay.strikes(rules.repeat_posts):
            relay.count("repeated")
            self._repeat(request, body)
        self._carry(request, body, lost=lost)

    def _carry(self, request: Request, body: bytes | None, *, lost: bool) -> None:
        asking = self._open(request, body)
        thread = threading.Thread(target=self._up_loop, args=(asking, request), name="relay up", daemon=True)
        try:
            if body is None and not request.websocket:
                thread.start()
            head = asking.head()
            if request.websocket and head.status in OPEN:
                self._begin(replace(head, fields=(*head.fields, *self._rules.headers)))
                thread.start()
                self._down_raw(asking)
            elif lost:
                self._asked.cut()
            else:
                self._down(asking, head)
            if thread.ident is not None:
                thread.join(GRACE)
        finally:
            asking.cut()
            if thread.ident is not None:
                if thread.is_alive():
                    self._asked.cut()
                thread.join()
            asking.close()

    def _open(self, request: Request, body: bytes | None) -> Asking:
        """Ask the server; a WebSocket always over HTTP/1.1."""
        kind = Http2Asking if request.version == 2 and not request.websocket else Http1Asking
        asking = kind(self._relay.address, request, body)
        with self._lock:
            self._asking = asking
            if self._cut:
                asking.cut()
        return asking

    def _holds(self, request: Request) -> bool:
        return self._rules.hold_request and (self._rules.hold_request_grpc or not request.is_grpc)

    def _whole_body(self) -> bytes | None:
        """Everything that comes until the request has ended; None when it is too large."""
        parts, size = [], 0
        while data := self._asked.receive():
            self._last_up = self._last_down = time.monotonic()
            size += len(data)
            parts.append(data)
            if self._rules.body_limit and size > self._rules.body_limit:
                return None
            if size > HELD:
                raise ConnectionError("too much is held back")
        return b"".join(parts)

    def _up_loop(self, asking: Asking, request: Request) -> None:
        size = 0
        try:
            while data := self._asked.receive():
                self._last_up = time.monotonic()
                size += len(data)
                if self._rules.black_hole and request.websocket:
                    continue
                if self._rules.body_limit and size > self._rules.body_limit and not request.websocket:
                    self._relay.count("413")
                    self._asked.cut()
                    break
                asking.send(data)
            else:
                self._uploading = False
                asking.finish(self._asked.trailers)
        except OSError:
            asking.cut()
        finally:
            self._uploading = False

    def _repeat(self, request: Request, body: bytes) -> None:
        """Have the server meet the request once before; what it answers then is not seen."""
        asking = self._open(request, body)
        try:
            asking.head()
        finally:
            asking.cut()
            asking.close()

    def _too_large(self) -> None:
        self._relay.count("413")
        self.unanswered = False
        reply(self._asked, 413, b"", ())

    # --- the way back ---------------------------------------------------------------------------

    def _down_raw(self, asking: Asking) -> None:
        self._last_down = time.monotonic()
        while data := asking.receive():
            if not self._rules.black_hole:
                self._last_down = time.monotonic()
                self._asked.send(data)
        self._asked.finish()

    def _down(self, asking: Asking, head: Answer) -> None:
        rules = self._rules
        self._last_down = time.monotonic()
        head = replace(head, fields=(*head.fields, *rules.headers))
        exempt = rules.heed_accel and head.value("x-accel-buffering").lower() == "no"
        if exempt or not (rules.hold_answer_end or rules.hold_answer_bytes or rules.hold_answer_seconds):
            self._begin(head)
            while data := asking.receive():
                self._last_down = time.monotonic()
                self._asked.send(data)
            self._asked.finish(asking.trailers)
        else:
            self._hold(asking, head)

    def _begin(self, head: Answer) -> None:
        self.unanswered = False
        self._asked.answer(head, last=self._last)

    def _hold(self, asking: Asking, head: Answer) -> None:
        """Collect what comes in a thread of its own; here it goes on when the rules let it."""
        rules = self._rules
        held: deque[bytes] = deque()
        changed = threading.Condition()
        state = {"size": 0, "over": False, "failed": False}

        def collect_loop() -> None:
            try:
                while data := asking.receive():
                    self._last_down = time.monotonic()
                    with changed:
                        held.append(data)
                        state["size"] += len(data)
                        changed.notify()
            except OSError:
                state["failed"] = True
            with changed:
                state["over"] = True
                changed.notify()

        def ripe() -> bool:
            if state["over"]:
                return True
            if rules.hold_answer_end:
                return False
            if rules.hold_answer_bytes:
                return state["size"] >= rules.hold_answer_bytes
            return bool(held) or self.unanswered

        thread = threading.Thread(target=collect_loop, name="relay holds", daemon=True)
        thread.start()
        try:
            while True:
                with changed:
                    changed.wait_for(ripe)
                    if rules.hold_answer_seconds and not state["over"]:
                        changed.wait_for(lambda: state["over"], rules.hold_answer_seconds)
                    data = b"".join(held)
                    held.clear()
                    state["size"] = 0
                    over = state["over"]
                if state["failed"]:
                    raise ConnectionError("the server broke off")
                if self.unanswered:
                    self._begin(head)
                if data:
                    self._asked.send(data)
                if over:
                    self._asked.finish(asking.trailers)
                    return
        finally:
            asking.cut()
            thread.join()


def reply(asked: Asked, status: int, body: bytes = b"", fields: Fields = ()) -> None:
    """Answer in the server's place."""
    with contextlib.suppress(OSError):
        asked.answer(Answer(status, (*fields, ("content-length", str(len(body))))))
        if body:
            asked.send(body)
        asked.finish()
