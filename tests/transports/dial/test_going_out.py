"""Every transport through every kind of proxy, by real ones; and the other turns that a route can take."""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.base.sockets import close_socket
from qanat.transports.dial.proxies import EnvironmentProxies, Proxy
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2 import grpc
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.http2.dialect import Dialect
from qanat.transports.http2.request import Http2Request, PlainAnswer
from qanat.transports.pipe import Pipe, Wire
from qanat.transports.websocket import upgrade as websocket
from qanat.transports.websocket.upgrade import UpgradeRequest
from qanat.transports.wire.tcp import TcpWire
from qanat.transports.wire.tls import TlsWire
from qanat.transports.wire.tls_contexts import ReloadingServerContext
from tests.support.background import DEADLINE
from tests.support.machine.certificates import Authority, Certificate
from tests.support.machine.forward_proxies import ENCODED, PASSWORD, USER, CrookedProxy, MicroSocks, Squid
from tests.support.transports.http2_loopback import TestServer
from tests.support.transports.loopback import read_request, send_bytes

CONNECT = {"websocket": websocket.connect, "http2": http2.connect, "grpc": grpc.connect}
PROXIES = ("squid", "squid login", "squid tls", "squid tls login", "socks", "socks login")


@dataclass(frozen=True, slots=True)
class Proxies:
    """Real proxies, and the URL of each."""

    squid: Squid
    urls: dict[str, str]


@pytest.fixture(scope="module")
def proxies(authority: Authority) -> Iterator[Proxies]:
    with ExitStack() as stack:
        squid = stack.enter_context(Squid(authority))
        socks = stack.enter_context(MicroSocks())
        socks_login = stack.enter_context(MicroSocks(login=True))
        urls = {
            "squid": f"http://127.0.0.1:{squid.open_port}",
            "squid login": f"http://{ENCODED}@127.0.0.1:{squid.login_port}",
            "squid tls": f"https://localhost:{squid.tls_port}",
            "squid tls login": f"https://{ENCODED}@localhost:{squid.tls_login_port}",
            "socks": f"socks5h://127.0.0.1:{socks.port}",
            "socks login": f"socks5h://{ENCODED}@127.0.0.1:{socks_login.port}",
        }
        yield Proxies(squid, urls)


@pytest.fixture(autouse=True)
def no_login_in_any_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("qanat"))
    for secret in (PASSWORD, ENCODED, USER, "b2ZmaWNlIHVzZXI6"):  # the last is Basic's form of the user
        assert secret not in ours


class WebSocketServer:
    """Accepts WebSocket pipes; remembers the requests."""

    def __init__(
        self, stack: ExitStack, *, address: str = "127.0.0.1", tls: ReloadingServerContext | None = None
    ) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = stack.enter_context(socket.create_server((address, 0), family=family))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[UpgradeRequest] = []
        self.pipes: queue.SimpleQueue[Pipe] = queue.SimpleQueue()
        self._tls = tls
        self._thread = threading.Thread(target=self._serve, name="test websocket server")
        self._thread.start()
        stack.callback(self._thread.join)
        stack.callback(close_socket, self._listener)

    def pipe(self) -> Pipe:
        return self.pipes.get(timeout=DEADLINE)

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            wire: Wire = TcpWire(sock)
            with suppress(TransportError):  # the client may have refused the certificate, or we its
                if self._tls is not None:
                    wire = TlsWire(wire, self._tls.context(), server_side=True, deadline=Deadline(DEADLINE))
                request, rest = read_request(wire)
                self.requests.append(request)
                self.pipes.put(websocket.accept(request, wire, rest))


class RecordingServer(TestServer):
    """A server of HTTP/2 and gRPC pipes that remembers the requests."""

    def __init__(self, stack: ExitStack, certificate: Certificate) -> None:
        self.requests: list[Http2Request] = []
        super().__init__(stack, certificate)

    def _route(self, request: Http2Request) -> PlainAnswer | Dialect:
        self.requests.append(request)
        return super()._route(request)


def recording_server(stack: ExitStack, transport: str, certificate: Certificate) -> WebSocketServer | RecordingServer:
    """A server of this transport, with TLS."""
    if transport == "websocket":
        return WebSocketServer(stack, tls=context(certificate))
    return RecordingServer(stack, certificate)


def context(certificate: Certificate, client_ca: Path | None = None) -> ReloadingServerContext:
    return ReloadingServerContext(certificate.certificate, certificate.key, ("http/1.1",), client_ca=client_ca)


def exchange(stack: ExitStack, client: Pipe, server: Pipe) -> None:
    """The server speaks first; then the client.  Several TLS records, and less than HTTP/2's first window."""
    stack.callback(client.close, "the test is over")
    stack.callback(server.close, "the test is over")
    for one, other in ((server, client), (client, server)):
        message = bytes(range(256)) * 160
        send_bytes(one, message)
        assert other.recv() == message


def failure(url: str, route: Route, seconds: float = 5) -> TransportError:
    with pytest.raises(TransportError) as caught:
        websocket.connect(TunnelUrl.parse(url), route=route, deadline=Deadline(seconds))
    assert caught.value.hint, "each message says what to do"
    assert PASSWORD not in str(caught.value)
    return caught.value


# --- through proxies


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("transport", CONNECT)
def test_every_transport_goes_through_every_proxy(
    stack: ExitStack,
    proxies: Proxies,
    authority: Authority,
    good_certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    transport: str,
    proxy: str,
) -> None:
    looked_up: list[object] = []
    really = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: (looked_up.append(a[:2]), really(*a, **k))[1])
    server: WebSocketServer | TestServer
    if transport == "websocket":
        server = WebSocketServer(stack, tls=context(good_certificate))
    else:
        server = TestServer(stack, good_certificate)
    route = Route(ca_file=authority.ca_file, proxy=Proxy.parse(proxies.urls[proxy]))
    url = TunnelUrl.parse(f"wss://localhost:{server.port}/tunnel")
    client = CONNECT[transport](url, route=route, deadline=Deadline(DEADLINE))
    exchange(stack, client, server.pipe())
    assert ("localhost", server.port) not in looked_up, "the name is the proxy's to look up"
    assert client.peer == f"localhost:{server.port}"


@pytest.mark.parametrize("proxy", ["squid", "socks"])
def test_ipv6_to_the_proxy_and_behind_it(stack: ExitStack, proxies: Proxies, proxy: str) -> None:
    server = WebSocketServer(stack, address="::1")
    if proxy == "squid":
        text = f"http://[::1]:{proxies.squid.open_port}"
    else:
        text = f"socks5h://[::1]:{stack.enter_context(MicroSocks('::1')).port}"
    url = TunnelUrl.parse(f"ws://[::1]:{server.port}/tunnel")
    client = websocket.connect(url, route=Route(proxy=Proxy.parse(text)), deadline=Deadline(DEADLINE))
    exchange(stack, client, server.pipe())


def test_the_environment_leads_to_the_proxy_or_past_it(stack: ExitStack, proxies: Proxies) -> None:
    server = WebSocketServer(stack)
    asked = f"CONNECT localhost:{server.port} "
    for exempt, through in (("localhost", False), ("example.com", True)):
        environ = {"http_proxy": proxies.urls["squid"], "no_proxy": exempt}
        route = Route(proxy=EnvironmentProxies.read(environ))
        client = websocket.connect(
            TunnelUrl.parse(f"ws://localhost:{server.port}/tunnel"), route=route, deadline=Deadline(DEADLINE)
        )
        exchange(stack, client, server.pipe())
        client.close("that was all")
        if through:  # Squid writes its log when the connection ends
            wait_for_log(proxies.squid, asked)
        else:
            assert asked not in proxies.squid.log.read_text()


def wait_for_log(squid: Squid, text: str) -> None:
    deadline = Deadline(DEADLINE)
    pause = threading.Event()
    while text not in squid.log.read_text():
        assert not deadline.passed, f"{text!r} is not in Squid's log:\n{squid.log.read_text()}"
        pause.wait(0.02)


# --- what proxies say no to


def test_a_proxy_that_wants_a_login_says_so(proxies: Proxies) -> None:
    login = proxies.squid.login_port
    error = failure("wss://localhost:1/", Route(proxy=Proxy.parse(f"http://127.0.0.1:{login}")))
    assert f"407: the proxy http://127.0.0.1:{login} wants a user name and password (Basic realm=" in error.message
    assert "http://USER:PASSWORD@HOST:PORT" in error.hint


@pytest.mark.parametrize("login", [f"{ENCODED}x", "somebody:else", "me"])
def test_a_login_that_is_wrong_is_said_and_not_shown(proxies: Proxies, login: str) -> None:
    error = failure(
        "wss://localhost:1/", Route(proxy=Proxy.parse(f"http://{login}@127.0.0.1:{proxies.squid.login_port}"))
    )
    assert "does not accept the user name and password" in error.message
    assert "check them in `proxy`" in error.hint


@pytest.mark.parametrize(
    ("url", "words", "advice"),
    [
        ("wss://localhost:9/", "answered 403 when asked for localhost:9", "port 443"),
        ("wss://localhost:1/", "answered 503 when asked for localhost:1", "that the server runs"),
        ("wss://[::1]:1/", "answered 503 when asked for [::1]:1", "that the server runs"),
    ],
)
def test_what_squid_cannot_or_will_not_reach_is_explained(proxies: Proxies, url: str, words: str, advice: str) -> None:
    error = failure(url, Route(proxy=Proxy.parse(proxies.urls["squid"])))
    assert words in error.message
    assert advice in error.hint


def test_what_socks_cannot_reach_is_explained(proxies: Proxies) -> None:
    route = Route(proxy=Proxy.parse(proxies.urls["socks"]))
    error = failure("wss://localhost:1/", route)
    assert "cannot connect to localhost:1: connection refused by destination host" in error.message
    assert "check that the server runs" in error.hint
    assert "cannot connect to no-such-host.invalid:443" in failure("wss://no-such-host.invalid/", route).message
    too_long = failure(f"wss://{'a' * 70}.example/", route)
    assert "it is no host name" in too_long.message


def test_a_socks_proxy_without_the_right_login_is_explained(proxies: Proxies) -> None:
    address = proxies.urls["socks login"].rpartition("@")[2]
    missing = failure("wss://localhost:1/", Route(proxy=Proxy.parse(f"socks5h://{address}")))
    assert "wants a user name and password" in missing.message
    assert "socks5h://USER:PASSWORD@HOST:PORT" in missing.hint
    wrong = failure("wss://localhost:1/", Route(proxy=Proxy.parse(f"socks5h://a:b@{address}")))
    assert "the user name and password" in wrong.message


def test_a_proxy_that_is_not_there_is_named_with_what_named_it(stack: ExitStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    route = Route(proxy=EnvironmentProxies.read({"https_proxy": f"http://{ENCODED}@127.0.0.1:{port}"}))
    error = failure("wss://localhost:1/", route)
    assert f"cannot connect to the proxy 127.0.0.1:{port}" in error.message
    assert "check that the proxy runs, and the port in the environment variable https_proxy" in error.hint


def test_a_scheme_that_is_not_the_proxys_is_explained(proxies: Proxies) -> None:
    squid = proxies.squid
    assert (
        "write http:// for a proxy without TLS"
        in failure("wss://localhost:1/", Route(proxy=Proxy.parse(f"https://localhost:{squid.open_port}"))).hint
    )
    in_clear = failure("wss://localhost:1/", Route(proxy=Proxy.parse(f"http://localhost:{squid.tls_port}")))
    assert f"the proxy http://localhost:{squid.tls_port}" in in_clear.message
    untrusted = failure("wss://localhost:1/", Route(proxy=Proxy.parse(proxies.urls["squid tls"])))
    assert "an authority that this machine does not know" in untrusted.message
    assert "tls.ca_file may name its authority" in untrusted.hint
    route = Route(proxy=Proxy.parse(f"socks5h://localhost:{squid.open_port}"))
    as_socks = failure("wss://localhost:1/", route, 2.0)  # Squid waits for the end of a line
    assert "check that it is a SOCKS5 proxy" in as_socks.hint


def answering(answer: bytes) -> Callable[[socket.socket], object]:
    def talk(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)

    return talk


@pytest.mark.parametrize(
    ("scheme", "answer", "words", "advice"),
    [
        ("http", b"", "closed the connection without an answer", "check host, port and scheme"),
        ("http", b"HTTP/1.1 2", "closed the connection without an answer", "check host, port and scheme"),
        ("http", b"SSH-2.0-OpenSSH\r\n", "is not a web server", "it may be no HTTP proxy"),
        ("http", b"\x15\x03\x03\x00\x02\x02\x46", "speaks TLS on this port", "write https:// instead of http://"),
        ("http", b"HTTP/1.1 405 No\r\n\r\n", "answered 405", "a web server and no proxy"),
        ("http", b"HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n", "answered 302", "whoever runs the proxy"),
        ("http", b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\n\r\n", "is not spoken here (NTLM)", "cntlm"),
        ("http", b"HTTP/1.1 407 No\r\n\r\n", "does not say how", "USER:PASSWORD"),
        (
            "http",
            b'HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm="a"\r\nProxy-Authenticate: NTLM\r\n\r\n',
            'wants a user name and password (Basic realm="a", NTLM)',
            "USER:PASSWORD",
        ),
        ("http", b'HTTP/1.1 407 No\r\nProxy-Authenticate: Digest realm="basic"\r\n\r\n', "not spoken here", "cntlm"),
        ("http", b"HTTP/1.1 200 OK\r\n\r\n<html>", "sent bytes of its own", "a web server and no proxy"),
        ("http", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 80_000, "bytes of headers", "check `proxy`"),
        ("socks5h", b"", "does not answer as SOCKS5 demands", "check that it is a SOCKS5 proxy"),
        ("socks5h", b"\x05", "does not answer as SOCKS5 demands", "check that it is a SOCKS5 proxy"),
        ("socks5h", b"\x04\x00", "does not answer as SOCKS5 demands", "check that it is a SOCKS5 proxy"),
        ("socks5h", b"\x05\x07", "does not answer as SOCKS5 demands", "check that it is a SOCKS5 proxy"),
        ("socks5h", b"\x05\x00\x05\x02\x00", "not allowed by ruleset", "its rules do not allow"),
        ("socks5h", b"\x05\x00\x05\x63\x00", "does not answer as SOCKS5 demands", "check that it is a SOCKS5 proxy"),
    ],
)
def test_what_is_no_proxy_is_recognized(scheme: str, answer: bytes, words: str, advice: str) -> None:
    with CrookedProxy(answering(answer)) as crooked:
        error = failure("wss://localhost:1/", Route(proxy=Proxy.parse(f"{scheme}://127.0.0.1:{crooked.port}")))
    assert words in error.message
    assert advice in error.hint


@pytest.mark.parametrize("scheme", ["http", "https", "socks5h"])
def test_a_proxy_that_says_nothing_is_given_up_at_the_deadline(scheme: str) -> None:
    with CrookedProxy(lambda sock: sock.recv(1) and sock.makefile("rb").read()) as crooked:
        route = Route(proxy=Proxy.parse(f"{scheme}://127.0.0.1:{crooked.port}"))
        error = failure("wss://localhost:1/", route, 0.2)
    assert "in time" in error.message or "too long" in error.message
    assert "proxy" in error.message


# --- other turns


@pytest.mark.parametrize("transport", CONNECT)
def test_another_address_name_host_and_headers(
    stack: ExitStack, authority: Authority, transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = recording_server(stack, transport, authority.issue("inner.example"))
    route = Route(
        ca_file=authority.ca_file,
        connect_to=("127.0.0.1", server.port),
        server_name="inner.example",
        host="virtual.example",
        headers=(("X-Team", "tunnels"), ("User-Agent", "Mozilla/5.0")),
    )
    url = TunnelUrl.parse("wss://no-such-host.invalid/tunnel")
    client = CONNECT[transport](url, route=route, deadline=Deadline(DEADLINE))
    exchange(stack, client, server.pipe())
    request = server.requests[0]
    if transport == "websocket":
        assert request.value("host") == "virtual.example"
    assert request.value("x-team") == "tunnels"
    assert request.value("user-agent") == "Mozilla/5.0"
    assert client.peer == "no-such-host.invalid:443"


@pytest.mark.parametrize("transport", CONNECT)
@pytest.mark.parametrize(
    ("headers", "cookies", "node", "expected"),
    [
        ((), (), "b-2.example_x", ("qanat-node=b-2.example_x",)),
        ((("Cookie", "a=b"),), (("SRV", "one"), ("L", "x=")), "two", ("a=b; SRV=one; L=x=; qanat-node=two",)),
        ((), (("SRV", "one"),), None, ("SRV=one",)),
        ((("cookie", "a=b;"), ("X-Team", "t"), ("Cookie", "c=d")), (), "x" * 64, ("a=b; c=d; qanat-node=" + "x" * 64,)),
        ((("Cookie", "a=b"),), (), None, ("a=b",)),
        ((("Cookie", "a=b"),), (), "x; c=d", ("a=b",)),
        ((), (), "x\r\nX-Evil: 1", ()),
        ((), (), "x" * 65, ()),
        ((), (), "", ()),
    ],
)
def test_the_node_is_named_in_a_cookie_beside_the_users_own(
    stack: ExitStack,
    authority: Authority,
    good_certificate: Certificate,
    transport: str,
    headers: tuple[tuple[str, str], ...],
    cookies: tuple[tuple[str, str], ...],
    node: str | None,
    expected: tuple[str, ...],
) -> None:
    server = recording_server(stack, transport, good_certificate)
    route = Route(ca_file=authority.ca_file, headers=headers, cookies=cookies, node=node)
    url = TunnelUrl.parse(f"wss://localhost:{server.port}/tunnel")
    exchange(stack, CONNECT[transport](url, route=route, deadline=Deadline(DEADLINE)), server.pipe())
    request = server.requests[0]
    assert tuple(value for name, value in request.headers if name == "cookie") == expected


@pytest.mark.parametrize("transport", CONNECT)
def test_a_name_with_a_final_dot_is_looked_up_with_it_and_verified_without(
    stack: ExitStack, authority: Authority, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = recording_server(stack, transport, authority.issue("inner.example"))
    asked: list[str] = []

    def look_up(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for route in (
        Route(ca_file=authority.ca_file),
        Route(ca_file=authority.ca_file, server_name="inner.example.", host=f"inner.example.:{server.port}"),
    ):
        url = TunnelUrl.parse(f"wss://inner.example.:{server.port}/tunnel")
        client = CONNECT[transport](url, route=route, deadline=Deadline(DEADLINE))
        exchange(stack, client, server.pipe())
        request = server.requests[-1]
        name = "host" if isinstance(request, UpgradeRequest) else ":authority"
        assert request.value(name) == f"inner.example:{server.port}"
        assert client.peer == f"inner.example:{server.port}"
    assert asked == ["inner.example."] * 2


def test_a_wrong_name_is_still_refused(stack: ExitStack, authority: Authority, good_certificate: Certificate) -> None:
    server = WebSocketServer(stack, tls=context(good_certificate))
    route = Route(ca_file=authority.ca_file, connect_to=("127.0.0.1", server.port), server_name="other.example")
    assert "not for other.example" in failure("wss://localhost/tunnel", route).message


def test_a_client_certificate_opens_a_server_that_demands_one(
    stack: ExitStack, authority: Authority, good_certificate: Certificate
) -> None:
    server = WebSocketServer(stack, tls=context(good_certificate, client_ca=authority.ca_file))
    ours = authority.issue("client.example")
    route = Route(ca_file=authority.ca_file, certificate=ours.certificate, key=ours.key)
    url = f"wss://localhost:{server.port}/tunnel"
    exchange(stack, websocket.connect(TunnelUrl.parse(url), route=route, deadline=Deadline(DEADLINE)), server.pipe())

    without = failure(url, Route(ca_file=authority.ca_file))
    assert "set tls.certificate and tls.key" in without.hint

    self_signed = authority.issue("client.example", self_signed=True)
    stranger = Route(ca_file=authority.ca_file, certificate=self_signed.certificate, key=self_signed.key)
    assert "tls.certificate" in failure(url, stranger).hint

    expired = authority.issue("client.example", since=-9, until=-2)
    late = Route(ca_file=authority.ca_file, certificate=expired.certificate, key=expired.key)
    assert "expired: renew it" in failure(url, late).hint
