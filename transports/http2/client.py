"""Opening a pipe over HTTP/2: one connection, one request, and what every other answer most likely means.

Over TLS `h2` alone is offered in ALPN; in clear the connection begins as HTTP/2 at once (prior knowledge, RFC 9113
§3.3), since proxies do not upgrade a POST.  Used by the `connect` of `octet_stream`, `grpc` and `extended_connect`.
"""

from __future__ import annotations

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import PipeEnded, TransportError
from qanat.base.untrusted import header_text, words
from qanat.transports.dial.answer_fields import cookies
from qanat.transports.dial.dialer import dial, opening
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2.dialect import Dialect
from qanat.transports.http2.engine import Http2Engine
from qanat.transports.http2.limits import WINDOW
from qanat.transports.http2.pipes import client_pipe
from qanat.transports.http2.stream import Http2Stream
from qanat.transports.pipe import Pipe, Wire
from qanat.transports.wire.tls import TlsWire

ALPN = ("h2",)

_SWITCH_ON = "switch HTTP/2 on there, or use `transport: websocket`"


def open_pipe(url: TunnelUrl, dialect: Dialect, *, route: Route, deadline: Deadline, cancel: Cancel | None) -> Pipe:
    """Dial `url` by `route` and return the pipe, once the answer's head has come.

    Blocks until `deadline`, or until `cancel` is canceled.  Raises TransportError whose hint says what to do, and
    UsageError for files that `route` names and that cannot be used.
    """
    cancel = cancel or Cancel()
    wire = dial(url, alpn=ALPN, deadline=deadline, route=route, cancel=cancel)
    with opening(wire, deadline, cancel, route):
        if isinstance(wire, TlsWire) and wire.alpn not in ALPN:
            raise TransportError(
                f"{url.address} does not speak HTTP/2: it chose {wire.alpn or 'no protocol'} in TLS", hint=_SWITCH_ON
            )
        with cancel.waking(wire.close):
            return _request(url, route, dialect, wire, deadline)


def _request(url: TunnelUrl, route: Route, dialect: Dialect, wire: Wire, deadline: Deadline) -> Pipe:
    engine = Http2Engine(wire, window=WINDOW)
    headers = [
        *dialect.method,
        (":scheme", "https" if url.tls else "http"),
        (":path", url.path),
        (":authority", route.authority(url)),
        *((name.lower(), value) for name, value in route.with_headers(dialect.request_headers())),
    ]
    problem = None
    try:
        if dialect.extended_connect:
            _await_offer(url, engine, deadline)
        with engine.lock:
            stream = engine.core.request(headers, dialect)
        status, answer = await_answer(url, engine, stream, deadline)
        problem = dialect.check_response(status, answer, url)
        if problem is not None:
            raise problem
    except PipeEnded as error:  # sending failed; what reading would say is better
        raise _no_answer(url, engine, error.message) from error
    except BaseException:
        engine.end("the answer opens no pipe")
        raise
    finally:
        del problem  # its traceback has this frame
    stream.answered = True
    pipe = client_pipe(engine, stream)
    pipe.cookies = cookies(answer)
    return pipe


def _await_offer(url: TunnelUrl, engine: Http2Engine, deadline: Deadline) -> None:
    """Block until the other end's SETTINGS offer extended CONNECT, which is needed before it may be sent (RFC 8441 §3).

    Raises TransportError when they do not.
    """
    core = engine.core
    while True:
        engine.flush()
        with engine.lock:
            if core.has_settings or engine.over:
                break
            engine.read_locked(deadline.remaining())
        if deadline.passed:
            raise TransportError(
                f"{url} did not begin to speak HTTP/2 in time", hint="check the port, or use `transport: websocket`"
            )
    if not core.has_settings:
        raise _no_answer(url, engine, engine.cause.text or "the connection has ended")
    if not core.offers_extended_connect:
        raise TransportError(
            f"{url.address} does not offer WebSocket over HTTP/2 (RFC 8441): its SETTINGS are without "
            "ENABLE_CONNECT_PROTOCOL",
            hint="HAProxy, nghttpx, and Apache from 2.4.58 on with `H2WebSockets on`, offer it; nginx, Caddy and most "
            "CDNs do not: use `transport: websocket` there, or http2",
        )


def await_answer(
    url: TunnelUrl, engine: Http2Engine, stream: Http2Stream, deadline: Deadline
) -> tuple[int, dict[str, str]]:
    """Return the head of the answer; blocks until `deadline`.  Raises TransportError.

    This thread reads and writes: so little was sent that neither is full.
    """

    def something_to_do() -> bool:
        return stream.response is not None or stream.over or bool(engine.core.pending_control)

    while True:
        engine.flush()
        with engine.lock:
            in_time = engine.wait_locked(stream, stream.readable, something_to_do, deadline.remaining())
            answer, cause = stream.response, stream.cause.text
        if answer is not None:
            engine.flush()  # SETTINGS were answered too, most likely
            return answer
        if cause is not None:
            raise _no_answer(url, engine, cause)
        if not in_time:
            engine.end("no answer in time")
            raise TransportError(
                f"{url} did not answer in time",
                hint="a proxy on the path may hold requests back until they end: use `transport: websocket` there, or "
                "switch its request buffering off",
            )


def _no_answer(url: TunnelUrl, engine: Http2Engine, cause: str) -> TransportError:
    opening = engine.core.opening
    if opening.startswith(b"HTTP/1"):
        # nginx and others say 400 in HTTP/1.1 to whatever is not TLS.
        tls = "if the port speaks TLS, write wss:// instead of ws://; otherwise " if opening[9:12] == b"400" else ""
        return TransportError(
            f"{url.address} speaks HTTP/1.1 on this port, not HTTP/2", hint=("" if url.tls else tls) + _SWITCH_ON
        )
    if opening[:1] in (b"\x15", b"\x16"):  # a TLS alert or handshake record, RFC 8446 §5.1
        return TransportError(f"{url.address} speaks TLS on this port", hint="write wss:// instead of ws:// in the URL")
    if opening and len(opening) >= 9 and opening[3] != 4:  # a server's first frame is SETTINGS, RFC 9113 §3.4
        return TransportError(
            f"{url.address} is not an HTTP/2 server: it answered {words(header_text(opening))!r}",
            hint="check host and port in the URL",
        )
    if not opening and cause.startswith("TLS failed"):  # in TLS 1.3 its verdict on our certificate comes only now
        hint = "it may demand a client certificate, or not accept ours: see tls.certificate and tls.key"
        return TransportError(f"{url} did not answer: {cause}", hint=hint)
    if not opening:
        hint = "HTTP/2 may be switched off there: try `transport: websocket`; otherwise check the port"
        if not url.tls:
            hint += "; if the server speaks TLS, write wss:// instead of ws://"
        return TransportError(f"{url} closed the connection without an answer", hint=hint)
    return TransportError(
        f"{url} did not answer: {cause}", hint="look at the log of the server, or of the proxy in front of it"
    )
