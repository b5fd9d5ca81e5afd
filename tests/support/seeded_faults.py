"""Faults that `doctor` has to name, each seeded by itself: real proxies with one wrong line, TLS, DNS, tokens, clocks.

A `Seeded` starts its path in front of a running server and says what a client would be given; `codes` are the causes of
which one has to be named, `product` the one whose setting has to be printed.  Used by tests/doctor.
"""

from __future__ import annotations

import datetime
import email.utils
import socket
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qanat.config.command_line import client_from_options
from qanat.doctor.examination import examine
from qanat.doctor.report import Report
from qanat.handshake.tokens import generate_token
from qanat.transports.dial.urls import TunnelUrl
from tests.support.harness import Program, Tunnel
from tests.support.machine import proxies
from tests.support.machine.certificates import Authority
from tests.support.machine.forward_proxies import CrookedProxy, MicroSocks, Squid
from tests.support.machine.ports import SilentListener, unused_port
from tests.support.machine.proxies import Place
from tests.support.machine.web import HOST
from tests.support.troubles import Relay, Rules, trouble

Changes = Sequence[tuple[str, str]]
SERVER: dict[str, Any] = {
    "trusted_proxies": ["127.0.0.1/32"],
    "limits": {"per_address_burst": 100_000, "handshakes": 1000},
}
"""Settings of the server: here everybody comes from one address, one after the other."""
SILENCES = [2, 3, 4, 6, 8]
"""Seconds, for faults of silence: those of a user are longer, and so are his proxy's."""


@dataclass(slots=True)
class Client:
    """What a client is given: a URL, and flags by their `dest`."""

    url: str
    given: dict[str, Any] = field(default_factory=dict)
    token: str = ""
    idle: bool = False


@dataclass(frozen=True, slots=True)
class Seeded:
    """One fault.  `start` returns the client for the path that it has set up on the stack."""

    name: str
    codes: frozenset[str]
    start: Callable[[ExitStack, Tunnel, Path], Client]
    product: str = ""

    @contextmanager
    def report(self, tunnel: Tunnel, directory: Path) -> Iterator[Report]:
        """Examine the path with the fault in it."""
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
        with ExitStack() as stack:
            yield report_on(self.start(stack, tunnel, directory), directory)


def report_on(client: Client, directory: Path) -> Report:
    """Run the doctor as its command does."""
    token = client.token or generate_token()
    settings = client_from_options(
        urls=[client.url], environ={"QANAT_TOKEN": token}, state_dir=directory / "state", name="a", **client.given
    )
    return examine(
        settings,
        settings.servers[0],
        TunnelUrl.parse(client.url),
        has_token=bool(client.token),
        idle=client.idle,
        silences=SILENCES,
    )


# --- real proxies with one wrong line ---------------------------------------------------------------

STARTS: dict[str, Callable[[Place], Program]] = {
    "nginx": proxies.start_nginx,
    "HAProxy": proxies.start_haproxy,
    "Apache": proxies.start_apache,
    "Caddy": proxies.start_caddy,
    "nghttpx": lambda place: proxies.start_nghttpx(place, "nghttpx-http2.conf"),
    "nghttpx for websocket": lambda place: proxies.start_nghttpx(place, "nghttpx-websocket.conf"),
}


RECIPES = {
    "nginx": ("websocket", "http2", "grpc"),
    "HAProxy": ("websocket", "http2", "grpc", "websocket-h2"),
    "Apache": ("websocket", "http2", "grpc", "websocket-h2"),
    "Caddy": ("websocket", "http2", "grpc"),
    "nghttpx": ("http2", "grpc", "websocket-h2"),
    "nghttpx for websocket": ("websocket",),
}
"""Which transports each of them is for."""


def proxied(name: str, changes: Changes = (), *, idle: bool = False, dead: bool = False, transport: str = "") -> Any:
    """A path through this proxy with its file in deploy/, changed; `dead` is a server that does not run."""

    def start(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
        authority = Authority(directory)
        issued = authority.issue(HOST)
        issued.key.chmod(0o600)
        place = Place(directory / "proxy", unused_port(), unused_port() if dead else tunnel.port, issued)
        place.directory.mkdir(mode=0o755)
        real = proxies.deployed

        def deployed(name: str, replacements: Any) -> str:
            text = real(name, replacements)
            for old, new in changes:
                assert old in text, f"{name} has no {old!r}"
                text = text.replace(old, new)
            return text

        with unittest.mock.patch.object(proxies, "deployed", deployed):
            stack.enter_context(STARTS[name](place))
        given: dict[str, Any] = {"ca_file": authority.ca_file}
        if transport:
            given["transport"] = [transport]
        return Client(f"wss://{HOST}:{place.port}/tunnel", given, idle=idle)

    return start


def _proxy(name: str, what: str, codes: str | set[str], *changes: tuple[str, str], **more: Any) -> Seeded:
    return Seeded(
        f"{name}: {what}",
        frozenset({codes} if isinstance(codes, str) else codes),
        proxied(name, changes, **more),
        name.partition(" for ")[0],
    )


PROXIES = (
    _proxy("nginx", "no Upgrade header", "upgrade-dropped", ("proxy_set_header Upgrade $http_upgrade;", "")),
    _proxy("nginx", "HTTP/1.0 to the server", "upgrade-dropped", ("proxy_http_version 1.1;", "")),
    _proxy("nginx", "Connection: close", "upgrade-dropped", ('Connection "upgrade"', "Connection close")),
    _proxy("nginx", "no http2", "http2-off", (" ssl http2;", " ssl;")),
    _proxy("nginx", "the default limit of bodies", "body-limit", ("client_max_body_size 0;", "")),
    _proxy("nginx", "a limit of 8 MB", "body-limit", ("client_max_body_size 0;", "client_max_body_size 8m;")),
    _proxy("nginx", "another path", "wrong-path", ("location = /tunnel", "location = /other")),
    _proxy("nginx", "no server behind", "backend-down", dead=True),
    _proxy("nginx", "no grpc_pass", {"http2-not-to-server", "request-held"}, ('"HTTP/2.0"', '"HTTP/9"')),
    _proxy("nginx", "deny all", "forbidden", ("        # websocket\n", "        deny all;\n")),
    _proxy(
        "nginx",
        "a login",
        "login-wanted",
        ("        # websocket\n", '        auth_basic "x"; auth_basic_user_file /dev/null;\n'),
    ),
    _proxy("nginx", "a redirect", "redirect", ("        # websocket\n", "        return 301 /elsewhere;\n")),
    _proxy(
        "nginx",
        "gRPC refused",
        "grpc-refused",
        ("        # websocket\n", "        if ($content_type ~ grpc) { return 415; }\n"),
    ),
    _proxy(
        "nginx",
        "WebSocket refused",
        "forbidden",
        ("        # websocket\n", "        if ($http_upgrade) { return 403; }\n"),
    ),
    _proxy("nginx", "too many requests", "limited", ("        # websocket\n", "        return 429;\n")),
    _proxy("nginx", "short silence", "idle-cut", ("proxy_read_timeout 60s;", "proxy_read_timeout 5s;"), idle=True),
    _proxy("HAProxy", "no alpn", "http2-off", (" alpn h2,http/1.1", "")),
    _proxy("HAProxy", "HTTP/1 to the server", {"http2-not-to-server", "request-held"}, (" proto h2 ws h1", "")),
    _proxy(
        "HAProxy",
        "WebSocket over HTTP/2",
        "upgrade-dropped",
        ("backend qanat\n", "backend qanat\n    http-request del-header Upgrade\n"),
    ),
    _proxy(
        "HAProxy",
        "requests buffered",
        "request-held",
        ("backend qanat\n", "backend qanat\n    option http-buffer-request\n    timeout http-request 4s\n"),
    ),
    _proxy("HAProxy", "another path", {"wrong-path", "backend-down"}, ("path /tunnel", "path /other")),
    _proxy("HAProxy", "no server behind", "backend-down", dead=True),
    _proxy(
        "HAProxy",
        "a deny rule",
        "forbidden",
        ("    use_backend", "    http-request deny if { path /tunnel }\n    use_backend"),
    ),
    _proxy(
        "HAProxy",
        "gRPC denied",
        "grpc-refused",
        (
            "    use_backend",
            "    http-request deny if { req.hdr(content-type) -m beg application/grpc }\n    use_backend",
        ),
    ),
    _proxy(
        "HAProxy",
        "large bodies denied",
        "body-limit",
        (
            "    use_backend",
            "    http-request deny deny_status 413 if { req.hdr(content-length) -m int gt 1000000 }\n    use_backend",
        ),
    ),
    _proxy(
        "HAProxy", "short silence", "idle-cut", ("backend qanat\n", "backend qanat\n    timeout tunnel 5s\n"), idle=True
    ),
    _proxy(
        "Apache",
        "http:// to the server",
        {"request-held", "http2-not-to-server"},
        ("/tunnel h2c://", "/tunnel http://"),
    ),
    _proxy("Apache", "no rule for WebSocket", "upgrade-dropped", ("RewriteEngine on", "RewriteEngine off")),
    _proxy("Apache", "no h2", "http2-off", ("Protocols h2 http/1.1", "Protocols http/1.1")),
    _proxy("Apache", "no server behind", "backend-down", dead=True),
    _proxy(
        "Apache",
        "denied",
        "forbidden",
        ("    SSLEngine on", "    SSLEngine on\n    <Location /tunnel>\n    Require all denied\n    </Location>"),
    ),
    _proxy(
        "Apache", "another path", "wrong-path", ("ProxyPass /tunnel", "ProxyPass /other"), ("^/tunnel$", "^/other$")
    ),
    _proxy(
        "Apache",
        "a redirect",
        "redirect",
        ("RewriteEngine on", "RewriteEngine on\n    RewriteRule ^/tunnel$ /elsewhere [R=302,L]"),
    ),
    _proxy("Caddy", "no h2c", {"http2-not-to-server", "request-held"}, ("reverse_proxy h2c://", "reverse_proxy ")),
    _proxy("Caddy", "h2c alone", "upgrade-dropped", ("\t\treverse_proxy @websocket", "\t\t#")),
    _proxy(
        "Caddy",
        "a limit of bodies",
        "body-limit",
        ("\troute /tunnel {", "\trequest_body {\n\t\tmax_size 1MB\n\t}\n\troute /tunnel {"),
    ),
    _proxy("Caddy", "another path", "wrong-path", ("route /tunnel", "route /other")),
    _proxy("Caddy", "no server behind", "backend-down", dead=True),
    _proxy("Caddy", "403", "forbidden", ("\troute /tunnel {", "\troute /tunnel {\n\t\trespond 403")),
    _proxy("nghttpx", "no server behind", "backend-down", dead=True),
    _proxy("nghttpx", "no h2", "http2-off", ("add-x-forwarded-for=yes", "npn-list=http/1.1")),
    _proxy(
        "nghttpx for websocket",
        "short silence",
        "idle-cut",
        ("add-x-forwarded-for=yes", "backend-read-timeout=5s\nbackend-write-timeout=5s"),
        idle=True,
    ),
)


# --- TLS --------------------------------------------------------------------------------------------


def tls_front(*, trusted: bool = True, **issued: Any) -> Any:
    """An honest relay with such a certificate (see `Authority.issue`)."""

    def start(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
        authority = Authority(directory)
        certificate = authority.issue(issued.pop("name", HOST), **issued) if issued else authority.issue(HOST)
        relay = stack.enter_context(Relay(("127.0.0.1", tunnel.port), Rules(), certificate))
        given = {"ca_file": authority.ca_file} if trusted else {}
        return Client(f"wss://{HOST}:{relay.port}/tunnel", given)

    return start


def _plain(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    return Client(f"wss://{HOST}:{tunnel.port}/tunnel")


def _with_tls(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    client = tls_front()(stack, tunnel, directory)
    return Client(client.url.replace("wss:", "ws:"))


def _wants_certificate(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    authority = Authority(directory)
    issued = authority.issue(HOST)
    issued.key.chmod(0o600)
    tls = {"certificate": str(issued.certificate), "key": str(issued.key), "client_ca": str(authority.ca_file)}
    other = stack.enter_context(Tunnel(directory / "server", server={"tls": tls}))
    other.start_server()
    return Client(f"wss://{HOST}:{other.port}/tunnel", {"ca_file": authority.ca_file})


def _old_tls(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    authority = Authority(directory)
    relay = stack.enter_context(Relay(("127.0.0.1", tunnel.port), Rules(), authority.issue("other.example")))
    return Client(f"wss://{HOST}:{relay.port}/tunnel", {"ca_file": authority.ca_file})


TLS = (
    Seeded("the certificate has expired", frozenset({"certificate-expired"}), tls_front(since=-30, until=-1)),
    Seeded("the certificate is not valid yet", frozenset({"certificate-not-yet-valid"}), tls_front(since=1)),
    Seeded("the certificate is for another name", frozenset({"certificate-name"}), _old_tls),
    Seeded(
        "a self-signed certificate", frozenset({"certificate-self-signed"}), tls_front(self_signed=True, trusted=False)
    ),
    Seeded("an authority of one's own", frozenset({"certificate-unknown-authority"}), tls_front(trusted=False)),
    Seeded("the certificate expires in 3 days", frozenset({"certificate-expires-soon"}), tls_front(until=3)),
    Seeded("wss:// to a port without TLS", frozenset({"port-without-tls"}), _plain),
    Seeded("ws:// to a port with TLS", frozenset({"port-with-tls"}), _with_tls),
    Seeded("a certificate of the client's is wanted", frozenset({"client-certificate"}), _wants_certificate),
)


# --- names, addresses, the proxy on the way out -----------------------------------------------------


@contextmanager
def _no_answer_from_dns() -> Iterator[None]:
    error = socket.gaierror(socket.EAI_AGAIN, "try again")
    with unittest.mock.patch("socket.getaddrinfo", side_effect=error):
        yield


def _dns_silent(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    stack.enter_context(_no_answer_from_dns())
    return Client(f"ws://{HOST}:{tunnel.port}/tunnel")


def _silent(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    host, port = SilentListener(stack).address
    return Client(f"ws://{host}:{port}/tunnel")


def _talker(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    server = stack.enter_context(CrookedProxy(lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")))
    return Client(f"ws://127.0.0.1:{server.port}/tunnel")


def _squid(which: str, login: str = "", *, port: int | None = None) -> Any:
    def start(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
        squid = stack.enter_context(Squid(Authority(directory)))
        proxy = f"http://{login}127.0.0.1:{getattr(squid, which)}"
        url = f"wss://127.0.0.1:{tunnel.port if port is None else port or unused_port()}/tunnel"
        return Client(url, {"proxy": proxy})

    return start


def _through_squid(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    squid = stack.enter_context(Squid(Authority(directory)))
    return Client(f"ws://127.0.0.1:{tunnel.port}/tunnel", {"proxy": f"http://127.0.0.1:{squid.open_port}"})


def _squid_wrong_login(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    squid = stack.enter_context(Squid(Authority(directory)))
    (directory / "password").touch(mode=0o600)
    (directory / "password").write_text("wrong\n")
    given = {"proxy": f"http://office@127.0.0.1:{squid.login_port}", "proxy_password_file": directory / "password"}
    return Client(f"wss://127.0.0.1:{tunnel.port}/tunnel", given)


def _ntlm(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    def talk(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(
            b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n"
        )

    proxy = stack.enter_context(CrookedProxy(talk))
    return Client(f"wss://127.0.0.1:{tunnel.port}/tunnel", {"proxy": f"http://127.0.0.1:{proxy.port}"})


def _no_proxy(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    return Client(f"wss://127.0.0.1:{tunnel.port}/tunnel", {"proxy": f"http://127.0.0.1:{unused_port()}"})


def _web_server_as_proxy(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    return Client(f"wss://127.0.0.1:{tunnel.port}/tunnel", {"proxy": f"http://127.0.0.1:{tunnel.port}"})


def _socks_cannot_reach(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    socks = stack.enter_context(MicroSocks())
    return Client(f"ws://127.0.0.1:{unused_port()}/tunnel", {"proxy": f"socks5h://127.0.0.1:{socks.port}"})


REACH = (
    Seeded(
        "a name that nobody has", frozenset({"name-unknown"}), lambda *_: Client("ws://no-such-host.invalid/tunnel")
    ),
    Seeded("a name server that does not answer", frozenset({"name-server-silent"}), _dns_silent),
    Seeded("nothing listens", frozenset({"refused"}), lambda *_: Client(f"ws://127.0.0.1:{unused_port()}/tunnel")),
    Seeded("nothing answers", frozenset({"no-answer"}), _silent),
    Seeded("no web server", frozenset({"not-http"}), _talker),
    Seeded("Squid: a login is wanted", frozenset({"proxy-login"}), _squid("login_port")),
    Seeded("Squid: a wrong login", frozenset({"proxy-login-refused"}), _squid_wrong_login),
    Seeded("Squid: the port is forbidden", frozenset({"proxy-forbids"}), _squid("open_port", port=9), "Squid"),
    Seeded("Squid: nothing there", frozenset({"proxy-cannot-reach"}), _squid("open_port", port=0)),
    Seeded("a proxy with NTLM", frozenset({"proxy-login-unspoken"}), _ntlm),
    Seeded("no proxy there", frozenset({"proxy-unreachable"}), _no_proxy),
    Seeded("a web server as the proxy", frozenset({"proxy-is-none"}), _web_server_as_proxy),
    Seeded("SOCKS5: nothing there", frozenset({"proxy-cannot-reach"}), _socks_cannot_reach),
)


# --- the server, the clock, and paths that are troubled ----------------------------------------------


def _wrong_token(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    given = {"fingerprint": tunnel.fingerprint}
    return Client(f"ws://127.0.0.1:{tunnel.port}/tunnel", given, token=generate_token())


def _wrong_fingerprint(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    given = {"fingerprint": "SHA256:" + "A" * 43}
    return Client(f"ws://127.0.0.1:{tunnel.port}/tunnel", given, token=tunnel.token)


def _clock(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=3)
    headers = (("date", email.utils.format_datetime(later, usegmt=True)),)
    relay = stack.enter_context(Relay(("127.0.0.1", tunnel.port), Rules(headers=headers)))
    return Client(f"ws://127.0.0.1:{relay.port}/tunnel")


def _wrong_path(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    return Client(f"ws://127.0.0.1:{tunnel.port}/tunel")


def _old_server(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    other = stack.enter_context(Tunnel(directory / "server", server={"doctor": False}))
    other.start_server()
    return Client(f"ws://127.0.0.1:{other.port}/tunnel")


def troubled(name: str) -> Any:
    """A path of the library."""

    def start(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
        path = stack.enter_context(trouble(name).start(tunnel.port, directory))
        return Client(path.url, {} if path.ca_file is None else {"ca_file": path.ca_file})

    return start


def idle(seconds: float) -> Any:
    """A relay that cuts what is silent for so long."""

    def start(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
        relay = stack.enter_context(Relay(("127.0.0.1", tunnel.port), Rules(idle=seconds)))
        return Client(f"ws://127.0.0.1:{relay.port}/tunnel", idle=True)

    return start


_TROUBLED = {
    "no-upgrade": "upgrade-dropped",
    "426-over-h2": "http2-426",
    "request-held": "request-held",
    "answer-held-2s": "answer-held",
    "answer-held-64k": "answer-held",
    "answer-held": "answer-held",
    "both-held": "answer-held",
    "h2-only": "http1-off",
    "h1-only": "http2-off",
    "grpc-refused": "grpc-refused",
    "body-limit": "body-limit",
    "one-at-a-time": "one-at-a-time",
    "tls-intercepted": "tls-intercepted",
    "portal-page": "portal",
    "portal-redirect": "portal",
    "black-hole": "black-hole",
    "dead-first-address": "address-dead",
    "nginx": "upgrade-dropped",
    "apache": "request-held",
    "squid": "upgrade-dropped",
}
_PRODUCTS = {"nginx": "nginx", "apache": "Apache", "squid": "Squid"}

OTHERS = (
    Seeded("a wrong token", frozenset({"token-refused"}), _wrong_token),
    Seeded("another fingerprint", frozenset({"fingerprint-changed"}), _wrong_fingerprint),
    Seeded("a clock that is off", frozenset({"clock-off"}), _clock),
    Seeded("a wrong path in the URL", frozenset({"wrong-path"}), _wrong_path),
    Seeded("a server without probes", frozenset({"no-probes"}), _old_server),
    Seeded("silence of 5 s", frozenset({"idle-cut"}), idle(5.0)),
    *(
        Seeded(f"path: {name}", frozenset({code}), troubled(name), _PRODUCTS.get(name, ""))
        for name, code in _TROUBLED.items()
    ),
)

FAULTS = (*PROXIES, *TLS, *REACH, *OTHERS)


# --- what is sound ----------------------------------------------------------------------------------


def _direct(stack: ExitStack, tunnel: Tunnel, directory: Path) -> Client:
    return Client(f"ws://127.0.0.1:{tunnel.port}/tunnel", token=tunnel.token)


SOUND = (
    Seeded("direct", frozenset(), _direct),
    Seeded("TLS", frozenset(), tls_front()),
    Seeded("an honest relay", frozenset(), troubled("nothing")),
    *(Seeded(name, frozenset(), proxied(name)) for name in STARTS),
    *(
        Seeded(f"{name}, transport: {transport}", frozenset(), proxied(name, transport=transport))
        for name, transports in RECIPES.items()
        for transport in transports
    ),
    Seeded("through Squid", frozenset(), _through_squid),
)


def named(report: Report, fault: Seeded) -> str:
    """Why this report does not name the fault and its cure; "" when it does."""
    found = [finding for finding in report.findings if finding.code in fault.codes]
    if not found:
        return f"{fault.name}: not {sorted(fault.codes)}, but {[finding.code for finding in report.findings]}"
    if not found[0].cure:
        return f"{fault.name}: no cure"
    if fault.product and fault.product not in [setting.product for setting in found[0].settings]:
        return f"{fault.name}: no setting for {fault.product}"
    if report.verdict.value == "blocked" and report.findings[0].code not in fault.codes and fault not in OTHERS:
        return f"{fault.name}: first {report.findings[0].code}"
    return ""
