"""HTTP/1 as a proxy speaks it: CONNECT, and requests with a whole URL (RFC 9110 §9.3.6, RFC 9112 §3.2.2).

    CONNECT host:port            -> the connection itself leads to the target, once `accepted` was sent
    GET http://host:port/path    -> the request goes to the target without what concerns this hop alone, and its answer
                                    comes back; the next request may be for another target
    Upgrade, answered with 101   -> from then on bytes go through unread

h11 has the grammar and the framing, a connection of its own for either side; here stands what a proxy does between
them.  One request is under way at a time: the next is looked at when the answer is complete.  No `Via` is added: a
tunnel does not tell that it is there, as that of CONNECT does not.  Pure.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

import h11

from qanat.base.addresses import check_target_host, format_host_port, parse_port, split_host_port
from qanat.base.errors import UsageError
from qanat.base.text import printable
from qanat.endpoints.dynamic.asked import Asked, Command
from qanat.endpoints.dynamic.passwords import Passwords
from qanat.mux.frames import Reason

MAX_HEAD = 64 * 1024
"""Bytes of a request's or an answer's head at most."""
MAX_HELD = 64 * 1024
"""Bytes of further requests that are taken while an answer is not complete."""

Headers = list[tuple[bytes, bytes]]

_THIS_HOP = frozenset(
    {
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-authenticate",
        b"te",
        b"upgrade",
    }
)
"""Headers that concern one connection alone (RFC 9110 §7.6.1), beside those that `Connection` names.  The framing's
are h11's, which makes them anew."""
_FRAMING = frozenset({b"transfer-encoding", b"content-length"})
"""What `Connection` cannot take away."""
_NOT_UPGRADED = b"h2c"
"""Whose `HTTP2-Settings` would have to go along; RFC 9113 has given it up."""

_STATUS = {
    Reason.NOT_ALLOWED: 403,
    Reason.LIMIT: 503,
    Reason.SESSION_ENDED: 503,
    Reason.TIMED_OUT: 504,
}
"""What a user is told for the reason of a reset; 502 for any other."""
_PHRASES = {
    400: b"Bad Request",
    403: b"Forbidden",
    407: b"Proxy Authentication Required",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
}
_OVER = (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
"""The states of an end that has sent its request, or its answer, whole."""
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_CHALLENGE = (b"Proxy-Authenticate", b'Basic realm="proxy", charset="UTF-8"')


class HttpProxy:
    """One application's connection; see `qanat.endpoints.dynamic.asked.ProxyMachine`.

    After a CONNECT it has done its part once `accepted` or `refused` was called.  After a REQUEST it goes on: the
    caller gives it what comes from either side, and does what it then finds here.
    """

    def __init__(self, passwords: Passwords | None = None) -> None:
        """Ask for a password where there are `passwords`."""
        self.problem = ""
        self.over = False
        """Whether the connection ends once the output was sent."""
        self.broken = False
        """Whether it has to end abruptly, since what was sent is not whole."""
        self.opaque = False
        """Whether both ends have changed to another protocol, and bytes go through unread."""
        self.idle = True
        """Whether no request is under way."""
        self._passwords = passwords
        self._client = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._server: h11.Connection | None = None
        self._target = ("", 0)  # of the server
        self._used = False  # whether an answer has come from this server
        self._answered = False  # whether the head of this request's answer was sent
        self._held = 0
        self._output = bytearray()
        self._to_server = bytearray()
        self._asked: Asked | None = None
        self._dropped = False
        self._whole = True

    # --- what the caller does -------------------------------------------------------------------

    def receive(self, data: bytes) -> Asked | None:
        """Take what came from the application, b"" at its end; return the target when one is to be connected to."""
        if self.opaque:
            self._to_server += data
            return None
        self._held += len(data)
        self._client.receive_data(data)
        self._advance()
        asked, self._asked = self._asked, None
        return asked

    def receive_from_server(self, data: bytes) -> Asked | None:
        """Take what came from the target, b"" at its orderly end; otherwise as `receive`."""
        if self.opaque:
            self._output += data
            return None
        if self._server is None:
            return None
        self._server.receive_data(data)
        self._advance()
        asked, self._asked = self._asked, None
        return asked

    def lose_server(self) -> None:
        """Note that the target's connection was reset."""
        if self.opaque:
            self.broken = True
        elif self._server is not None:
            self._server_failed("the connection was reset")

    def take_output(self) -> bytes:
        """Return what has to be sent to the application now."""
        output, self._output = bytes(self._output), bytearray()
        return output

    def take_to_server(self) -> bytes:
        """Return what has to be sent to the target now."""
        data, self._to_server = bytes(self._to_server), bytearray()
        return data

    def take_dropped(self) -> bool:
        """Return whether to close the connection to the target; before another one is asked for."""
        dropped, self._dropped = self._dropped, False
        return dropped

    @property
    def whole(self) -> bool:
        """Whether all that was sent to the target, or the one that was dropped last, was whole and is answered."""
        return self._whole if self._server is None else _is_done(self._server)

    def take_rest(self) -> bytes:
        """Return what came behind CONNECT."""
        return self._client.trailing_data[0]

    @property
    def full(self) -> bool:
        """Whether to leave what the application sends where it is for now."""
        return self._held >= MAX_HELD and self._client.their_state is not h11.SEND_BODY

    @property
    def partial(self) -> bool:
        """Whether a request has begun to come whose head is not whole."""
        return self.idle and bool(self._client.trailing_data[0])

    def accepted(self, address: str) -> bytes:
        """Return the answer to CONNECT that the target was reached."""
        return _ESTABLISHED

    def refused(self, reason: Reason, text: str) -> bytes:
        """Return the answer that the target was not reached, and why."""
        host, port = self._target
        self._fail(_STATUS.get(reason, 502), f"cannot connect to {format_host_port(host, port)}: {text}")
        return self.take_output()

    def too_late(self) -> None:
        """Answer that the request did not come in time."""
        self._fail(408, "the request did not come in time")

    # --- requests -------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Take every event that either side has, in the order in which they can be acted on."""
        while not (self.over or self.broken or self.opaque):
            if self._asked is not None and self._asked.command is Command.CONNECT:
                return  # what follows is for the target
            if not (self._advance_request() or self._advance_answer()):
                return

    def _advance_request(self) -> bool:
        """Act on one event of the application's; False when there is none now."""
        try:
            event = self._client.next_event()
        except h11.RemoteProtocolError as error:
            error.__traceback__ = None  # h11 raises it in a method of its own, which is a cycle
            if self._server is not None and not self.idle:
                self.broken = True  # in the middle of a body, which the target must not take for whole
                self.problem = printable(str(error), 200)
            else:
                self._fail(error.error_status_hint, str(error))
            return False
        if event is h11.NEED_DATA or event is h11.PAUSED:
            return False
        if isinstance(event, h11.Request):
            self._held = 0
            self._begin(event)
        elif isinstance(event, h11.Data):
            self._held = 0
            self._send(h11.Data(data=bytes(event.data)))
        elif isinstance(event, h11.EndOfMessage):
            self._send(h11.EndOfMessage(headers=event.headers.raw_items()))
            self._settle()
        elif isinstance(event, h11.ConnectionClosed):
            self.over = self.over or self.idle
            return False
        return True

    def _begin(self, request: h11.Request) -> None:
        """Find out where a request should go, and send it there once that is connected."""
        self.idle, self._answered = False, False
        if not request.http_version.startswith(b"1."):
            self._fail(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        elif not self._may_pass(request):
            self._fail(407, "give a user and a password that this proxy knows", [_CHALLENGE])
        elif request.method == b"CONNECT":
            self._begin_connect(request)
        else:
            self._begin_request(request)

    def _may_pass(self, request: h11.Request) -> bool:
        if self._passwords is None:
            return True
        for name, value in request.headers:
            scheme, _, encoded = bytes(value).partition(b" ")
            if name == b"proxy-authorization" and scheme.lower() == b"basic":
                try:
                    user, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
                except binascii.Error:
                    return False
                return self._passwords.allows(user, password)
        return False

    def _begin_connect(self, request: h11.Request) -> None:
        try:
            host, port = split_host_port(request.target.decode("latin-1"))
            self._target = check_target_host(host), parse_port(port)
        except UsageError as error:
            self._fail(400, f"the target {error.message}; CONNECT needs HOST:PORT")
            return
        self._drop_server()
        self._asked = Asked(*self._target)

    def _begin_request(self, request: h11.Request) -> None:
        found = self._split_url(request.target)
        if found is None:
            return
        authority, (host, port), path = found
        upgrade = _upgrade_of(request)
        headers = [(b"Host", authority), *passed_on(request.headers.raw_items()), *upgrade]
        if self._server is None or self._target != (host, port):
            self._drop_server()
            self._server, self._used = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD), False
            self._target = host, port
            self._asked = Asked(host, port, Command.REQUEST)
        self._send(h11.Request(method=request.method, target=path, headers=headers))

    def _split_url(self, target: bytes) -> tuple[bytes, tuple[str, int], bytes] | None:
        """Return authority, host and port, and path of a URL; None when the answer was a refusal."""
        scheme, separator, after = target.partition(b"://")
        if not separator:
            self._fail(400, "this is a proxy, not a web server: name it as such in the browser's or program's settings")
            return None
        if scheme.lower() not in (b"http", b"ws"):
            self._fail(501, f"{printable(scheme.decode('latin-1'), 20)}:// is not fetched here; use CONNECT for it")
            return None
        end = min((at for at in (after.find(c) for c in (b"/", b"?", b"#")) if at >= 0), default=len(after))
        authority, path = after[:end].rpartition(b"@")[2], after[end:].partition(b"#")[0]
        if not path.startswith(b"/"):
            path = b"/" + path
        text = authority.decode("latin-1")
        try:
            has_port = ":" in text.rpartition("]")[2]
            host, port = split_host_port(text if has_port and not text.endswith(":") else f"{text.rstrip(':')}:80")
            where = check_target_host(host), parse_port(port)
        except UsageError as error:
            self._fail(400, f"the URL's authority {error.message}")
            return None
        return authority, where, path

    def _send(self, event: h11.Event) -> None:
        """Send to the target, unless it has ended already: what else comes for it is dropped."""
        server = self._server
        if server is None or server.our_state in (h11.MUST_CLOSE, h11.CLOSED, h11.ERROR):
            return
        try:
            self._to_server += server.send(event) or b""
        except h11.LocalProtocolError as error:
            error.__traceback__ = None
            self._fail(400, str(error))

    # --- answers --------------------------------------------------------------------------------

    def _advance_answer(self) -> bool:
        """Act on one event of the target's; False when there is none now."""
        server = self._server
        if server is None:
            return False
        try:
            event = server.next_event()
        except h11.RemoteProtocolError as error:
            error.__traceback__ = None
            self._server_failed(str(error))
            return False
        if event is h11.NEED_DATA or event is h11.PAUSED:
            return False
        if isinstance(event, h11.ConnectionClosed):
            self._server_failed("the connection ended without an answer")
            return False
        try:
            self._pass_answer(event)  # type: ignore[arg-type]  # the two that are no Event are seen to above
        except h11.LocalProtocolError as error:
            error.__traceback__ = None
            self._server_failed(str(error))
        return True

    def _pass_answer(self, event: h11.Event) -> None:
        client = self._client
        if isinstance(event, h11.InformationalResponse):
            if event.status_code == 101:
                self._switch(event)
            elif client.their_http_version != b"1.0":  # RFC 9110 §15.2
                self._output += client.send(_copy(event, passed_on(event.headers.raw_items()))) or b""
        elif isinstance(event, h11.Response):
            self._used = self._answered = True
            self._output += client.send(_copy(event, passed_on(event.headers.raw_items()))) or b""
        elif isinstance(event, h11.Data):
            self._output += client.send(h11.Data(data=bytes(event.data))) or b""
        elif isinstance(event, h11.EndOfMessage):
            self._output += client.send(h11.EndOfMessage(headers=event.headers.raw_items())) or b""
            self._settle()

    def _switch(self, event: h11.InformationalResponse) -> None:
        server = self._server
        assert server is not None
        names = [(b"Connection", b"Upgrade"), *((b"Upgrade", v) for name, v in event.headers if name == b"upgrade")]
        self._output += self._client.send(_copy(event, [*passed_on(event.headers.raw_items()), *names])) or b""
        self._output += server.trailing_data[0]
        self._to_server += self._client.trailing_data[0]
        self.opaque = True

    def _settle(self) -> None:
        """Once the answer is complete, make both connections ready for the next request, or end what cannot be."""
        client, server = self._client, self._server
        if client.our_state not in _OVER:
            return
        if server is not None:
            whole = client.their_state is not h11.SEND_BODY or client.they_are_waiting_for_100_continue
            if not whole and server.their_state is h11.DONE:
                return  # the target answers early, and may still read the rest
            if server.our_state is h11.DONE and server.their_state is h11.DONE:
                server.start_next_cycle()
            else:
                self._drop_server()
        self.idle = True
        if client.our_state is h11.DONE and client.their_state is h11.DONE:
            client.start_next_cycle()
        else:  # the request is not whole and never will be, or one of the two cannot go on
            self.over = True

    def _server_failed(self, why: str) -> None:
        """Tell the application that the target has failed, as far as that can still be told."""
        self._drop_server()
        if self.idle:
            return  # between two requests a target may go as it likes
        if self._client.our_state in _OVER:
            self.over = True  # the answer is whole; the rest of the request was for nobody
        elif self._answered:
            self.broken = True
            self.problem = f"the answer is not whole: {printable(why, 200)}"
        elif self._used:
            # The target has ended a kept connection while a request was on its way to it: the application sees what
            # it would have seen without us, and knows whether that request may be sent again (RFC 9110 §9.2.2).
            self.over = True
        else:
            self._fail(502, f"{format_host_port(*self._target)} did not answer: {why}")

    def _drop_server(self) -> None:
        if self._server is not None:
            self._whole = _is_done(self._server)
            self._server = None
            self._dropped = True
        self._to_server.clear()

    def _fail(self, status: int, text: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Answer with an error of our own, which ends the connection."""
        self.problem = printable(text, 300)
        self._drop_server()
        if self._client.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.broken = True
            return
        self.over = True
        body = f"{self.problem}\n".encode()
        fields = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", b"%d" % len(body)),
            (b"Cache-Control", b"no-store"),
            (b"Connection", b"close"),
            *headers,
        ]
        answer = h11.Response(status_code=status, headers=fields, reason=_PHRASES.get(status, b"Error"))
        for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
            self._output += self._client.send(event) or b""


def _is_done(server: h11.Connection) -> bool:
    return server.our_state is h11.IDLE or (server.our_state in _OVER and server.their_state in _OVER)


def passed_on(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers that are not for this hop alone, in their order.  `Host` is the caller's to set."""
    headers = list(headers)
    listed = {token for name, value in headers if name.lower() == b"connection" for token in _split_tokens(value)}
    dropped = (_THIS_HOP | listed | {b"host"}) - _FRAMING
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def _upgrade_of(request: h11.Request) -> Headers:
    """Return the headers that ask for another protocol, where one is asked for that can be passed on."""
    wanted = b", ".join(value for name, value in request.headers if name == b"upgrade")
    connection = b",".join(value for name, value in request.headers if name == b"connection")
    if not wanted or b"upgrade" not in _split_tokens(connection) or _NOT_UPGRADED in wanted.lower():
        return []
    return [(b"Connection", b"Upgrade"), (b"Upgrade", wanted)]


def _split_tokens(value: bytes) -> set[bytes]:
    return {token.strip().lower() for token in value.split(b",")}


def _copy(event: h11.InformationalResponse | h11.Response, headers: Headers) -> h11.Event:
    return type(event)(status_code=event.status_code, headers=headers, reason=event.reason)
