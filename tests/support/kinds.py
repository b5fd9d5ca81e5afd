"""Every kind of forward over one transport: a tunnel that has all of them, and how each is used and refuses.

`Place` starts the tunnel, with TLS and a relay on its way, and has one `Kind` for each that there is.  What is promised
of a kind are functions of tests/support/kind_promises.py, which tests/integration/test_kinds.py calls with small
counts and `benchmarks.soak` with large ones.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qanat.base.proxy_protocol import HeaderReader, encode
from tests.support.applications import (
    END,
    RESET,
    Target,
    connection,
    echo,
    ending_at,
    ending_of,
    receive_all,
    receive_exactly,
    reply_after_end,
    unix_connection,
)
from tests.support.datagrams import Datagrams, UdpEcho, udp_client
from tests.support.harness import ROOT, SECONDS, Program, Tunnel
from tests.support.machine.certificates import Authority
from tests.support.machine.ports import unused_port
from tests.support.relay_process import RelayProcess
from tests.support.web_service import WebService

OWN = "localhost"
CAME = "203.0.113.7:4711"
"""Who comes to a forward, as its balancer says."""
VIP = "192.0.2.1:443"
"""Where they came to, as it says."""
ECHO, REPLY, CLOSED = "echo", "reply", "closed"
"""What is behind a kind; behind CLOSED is nobody."""
_BACK = {ECHO: echo, REPLY: reply_after_end}


Use = Callable[["Place", str], AbstractContextManager[socket.socket]]
Flow = Callable[["Place", str], AbstractContextManager[Datagrams]]
Refused = Callable[["Place"], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of forward that carries streams.  `use` connects to ECHO or REPLY, `check_refusal` to CLOSED."""

    use: Use
    check_refusal: Refused


@dataclass(frozen=True, slots=True)
class UdpKind:
    """A kind of forward that carries datagrams."""

    use: Flow
    check_refusal: Refused


class Place:
    """A server with TLS, and a client whose one session over `transport`, through `relay`, has every kind."""

    def __init__(self, directory: Path, transport: str, stack: ExitStack) -> None:
        self.transport = transport
        # pytest's own directories have long names, and a socket's path has 107 bytes.
        self.short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qanat-")))
        self.targets = {name: stack.enter_context(Target(handler)) for name, handler in _BACK.items()}
        self.told = {name: stack.enter_context(Target(_told(handler))) for name, handler in _BACK.items()}
        self.udp_target = stack.enter_context(UdpEcho())
        self.web = stack.enter_context(WebService())
        self.closed = unused_port()
        self._ports: dict[tuple[str, str], int] = {}
        authority = Authority(directory)
        issued = authority.issue(OWN)
        issued.key.chmod(0o600)
        self.names = self.short / "published"
        rules = [f"127.0.0.1:{port}" for port in ("*", "*/udp")] + [f"unix:{self.short}/*", "unix:@qanat-kinds-*"]
        listen = ["127.0.0.1:1-65535", "127.0.0.1:1-65535/udp", *rules[2:]]
        self.tunnel = stack.enter_context(
            Tunnel(
                directory / "tunnel",
                list(self._forwards()),
                server={
                    "tls": {"certificate": str(issued.certificate), "key": str(issued.key)},
                    "publish_dir": str(self.names),
                    "trusted_proxies": ["127.0.0.1/32"],
                },
                client={"transport": transport, "allow_connect": rules[:2], "tls": {"ca_file": str(authority.ca_file)}},
                account={"allow_connect": rules, "allow_listen": listen, "allow_publish": ["*.example.com"]},
            )
        )
        self.relay = stack.enter_context(RelayProcess(self.tunnel.port))
        self.tunnel.client_settings["url"] = f"https://{OWN}:{self.relay.port}/tunnel"
        self.tunnel.start()
        for name in (*_BACK, CLOSED):
            self.tunnel.client.wait_for(f"the server publishes {name}.example.com for")

    def port(self, kind: str, which: str) -> int:
        """The port where a kind's forward to ECHO, REPLY or CLOSED listens."""
        return self._ports.setdefault((kind, which), unused_port())

    def path(self, kind: str, which: str) -> str:
        """The Unix socket where it listens."""
        return f"{self.short}/{kind.replace(' ', '-')}-{which}"

    def to(self, which: str) -> str:
        """The address of what is behind."""
        return f"127.0.0.1:{self.closed}" if which == CLOSED else self.targets[which].address

    def _forwards(self) -> Iterator[dict[str, Any]]:
        for which in (*_BACK, CLOSED):
            to = self.to(which)
            told = to if which == CLOSED else self.told[which].address
            for side in ("local", "remote"):
                yield {side: f"127.0.0.1:{self.port(side, which)}", "to": to}
                yield {side: self.path(f"{side} unix", which), "to": to}
                for version in ("v1", "v2"):
                    out = f"127.0.0.1:{self.port(f'{side} proxy {version}', which)}"
                    yield {side: out, "to": told, "proxy_protocol": version}
            balanced = f"127.0.0.1:{self.port('balanced', which)}"
            yield {"remote": balanced, "to": told, "proxy_protocol": "v2", "accept_proxy_protocol": True}
            yield {"publish": f"{which}.example.com", "to": to}
        for side in ("local", "remote"):
            yield {side: f"127.0.0.1:{self.port(f'{side} udp', ECHO)}", "to": self.udp_target.address, "udp": True}
            yield {side: f"127.0.0.1:{self.port(f'{side} udp', CLOSED)}", "to": self.to(CLOSED), "udp": True}
        yield {"dynamic": f"127.0.0.1:{self.port('dynamic', '')}"}
        yield {"remote": f"127.0.0.1:{self.port('reverse dynamic', '')}", "to": "dynamic"}

    def connects(self, side: str) -> Program:
        """The end that connects to the target of a local or a remote forward."""
        return self.tunnel.server if side == "local" else self.tunnel.client

    def wait_refused(self, side: str, what: str) -> None:
        """Block until the end that listens has logged why nobody was there for who came to `what`."""
        listens = self.tunnel.client if side == "local" else self.tunnel.server
        listens.wait_for(rf"{re.escape(what)}\b.*refused: .*Connection refused")


# --- TCP, Unix sockets ------------------------------------------------------------------------------


def _tcp(side: str) -> Kind:
    def refused(place: Place) -> None:
        port = place.port(side, CLOSED)
        assert ending_at(port) == RESET
        place.wait_refused(side, f":{port}")

    return Kind(lambda place, which: connection(place.port(side, which)), refused)


def _unix(side: str) -> Kind:
    name = f"{side} unix"

    def refused(place: Place) -> None:
        with unix_connection(place.path(name, CLOSED)) as sock:
            assert ending_of(sock) == END, "a Unix socket has no reset"
        place.wait_refused(side, place.path(name, CLOSED))

    return Kind(lambda place, which: unix_connection(place.path(name, which)), refused)


# --- the PROXY protocol -----------------------------------------------------------------------------


def _told(handler: Callable[[socket.socket, Target], str]) -> Callable[[socket.socket, Target], str]:
    """A target that says who came, as it was told, and goes on as `handler`."""

    def run(sock: socket.socket, target: Target) -> str:
        reader = HeaderReader()
        while reader.endpoints is None:
            data = sock.recv(1)
            if not data:
                return END
            reader.feed(data)
        sock.sendall(f"{reader.endpoints.source} to {reader.endpoints.destination}\n".encode())
        return handler(sock, target)

    return run


@contextmanager
def _who_came(port: int, *, header: bytes = b"", right: str = "") -> Iterator[socket.socket]:
    """A connection to `port` whose target has been told of it what it should."""
    with connection(port) as sock:
        sock.sendall(header)
        right = right or f"127.0.0.1:{sock.getsockname()[1]} to 127.0.0.1:{port}"
        line = f"{right}\n".encode()
        assert receive_exactly(sock, len(line)) == line
        yield sock


def _proxy_out(side: str, version: str) -> Kind:
    name = f"{side} proxy {version}"

    def refused(place: Place) -> None:
        assert ending_at(place.port(name, CLOSED)) == RESET
        place.wait_refused(side, f":{place.port(name, CLOSED)}")

    return Kind(lambda place, which: _who_came(place.port(name, which)), refused)


def _proxy_in() -> Kind:
    header = encode("v2", CAME, VIP)

    def refused(place: Place) -> None:
        port = place.port("balanced", CLOSED)
        with connection(port) as sock:
            sock.sendall(header)
            assert ending_of(sock) == RESET
        place.wait_refused("remote", f":{port} from {CAME}")

    def use(place: Place, which: str) -> AbstractContextManager[socket.socket]:
        return _who_came(place.port("balanced", which), header=header, right=f"{CAME} to {VIP}")

    return Kind(use, refused)


# --- dynamic ports ----------------------------------------------------------------------------------


def _socks5(sock: socket.socket, place: Place, which: str) -> int:
    """Ask for a name; the reply's code."""
    port = int(place.to(which).rpartition(":")[2])
    sock.sendall(b"\x05\x01\x00\x05\x01\x00\x03\x09127.0.0.1" + struct.pack("!H", port))
    assert receive_exactly(sock, 2) == b"\x05\x00"
    reply = receive_exactly(sock, 4)
    receive_exactly(sock, 6 if reply[3] == 1 else 18)
    return reply[1]


def _socks4a(sock: socket.socket, place: Place, which: str) -> int:
    port = int(place.to(which).rpartition(":")[2])
    sock.sendall(b"\x04\x01" + struct.pack("!H", port) + b"\0\0\0\1\0" + b"127.0.0.1\0")
    return receive_exactly(sock, 8)[1] - 90


def http_head(sock: socket.socket) -> str:
    """Read an answer's head, byte by byte."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += receive_exactly(sock, 1)
    return head.decode()


def _connect(sock: socket.socket, place: Place, which: str) -> int:
    sock.sendall(f"CONNECT {place.to(which)} HTTP/1.1\r\nHost: {place.to(which)}\r\n\r\n".encode())
    status = int(http_head(sock).split()[1])
    return 0 if status == 200 else status


def _dynamic(side: str, ask: Callable[[socket.socket, Place, str], int], code: int) -> Kind:
    """`ask` says what it was answered; 0 is yes, and `code` that the target refused."""

    @contextmanager
    def use(place: Place, which: str) -> Iterator[socket.socket]:
        with connection(place.port(side, "")) as sock:
            assert ask(sock, place, which) == 0
            yield sock

    def refused(place: Place) -> None:
        with connection(place.port(side, "")) as sock:
            assert ask(sock, place, CLOSED) == code
            receive_all(sock)  # orderly, not a reset that would take the reply with it

    return Kind(use, refused)


class _Association:
    """A SOCKS5 association as if it were a socket that is connected to one address."""

    def __init__(self, relay: socket.socket, header: bytes) -> None:
        self._relay, self._header = relay, header

    def send(self, data: bytes) -> int:
        return self._relay.send(self._header + data) - len(self._header)

    def settimeout(self, value: float | None) -> None:
        self._relay.settimeout(value)

    def recv(self, size: int) -> bytes:
        data = self._relay.recv(size)
        assert data[:4] == b"\0\0\0\1"
        return data[10:]


def _association(side: str) -> UdpKind:
    @contextmanager
    def use(place: Place, which: str) -> Iterator[Datagrams]:
        address = place.udp_target.address if which == ECHO else place.to(which)
        with connection(place.port(side, "")) as control:
            control.sendall(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
            answer = receive_exactly(control, 12)
            assert answer[:6] == b"\x05\x00\x05\x00\x00\x01"
            with udp_client(struct.unpack("!H", answer[10:])[0]) as relay:
                number = int(address.rpartition(":")[2])
                yield _Association(relay, b"\0\0\0\1\x7f\0\0\1" + struct.pack("!H", number))

    def refused(place: Place) -> None:
        with use(place, CLOSED) as flow:
            flow.send(b"anybody?")
            connects = place.connects("local" if side == "dynamic" else "remote")
            connects.wait_for(rf"127\.0\.0\.1:{place.closed}.*refused")

    return UdpKind(use, refused)


# --- stdio ------------------------------------------------------------------------------------------


def command(place: Place, to: str) -> list[str]:
    """Return what carries standard input and output to `to` over the session that there is."""
    file = str(place.tunnel.directory / "client.yaml")
    return [sys.executable, str(ROOT / "tunnel.py"), "client", "-c", file, "-W", to]


@contextmanager
def _use_stdio(place: Place, which: str) -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(3 * SECONDS)  # the program has to start, beside others
        with theirs, subprocess.Popen(command(place, place.to(which)), stdin=theirs, stdout=theirs) as process:
            theirs.close()
            try:
                yield ours
            finally:
                ours.close()
                try:
                    process.wait(SECONDS)
                finally:
                    process.kill()


def _stdio_refused(place: Place) -> None:
    done = subprocess.run(command(place, place.to(CLOSED)), input=b"", capture_output=True, timeout=SECONDS)
    assert done.returncode == 1
    assert f"cannot connect to 127.0.0.1:{place.closed}: refused" in done.stderr.decode()


# --- names ------------------------------------------------------------------------------------------


def client_hello(name: str) -> bytes:
    """Return the first bytes of a TLS connection that asks for `name`."""
    outgoing = ssl.MemoryBIO()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def _published() -> Kind:
    def use(place: Place, which: str) -> AbstractContextManager[socket.socket]:
        return unix_connection(str(place.names / f"{which}.example.com"))

    def refused(place: Place) -> None:
        with use(place, CLOSED) as sock:
            assert ending_of(sock) == END, "a Unix socket has no reset"
        place.wait_refused("remote", f" {CLOSED}.example.com from the proxy")

    return Kind(use, refused)


def _sni() -> Kind:
    """TLS is between a visitor and the service; what must come through whole here is a ClientHello and any bytes."""

    @contextmanager
    def use(place: Place, which: str) -> Iterator[socket.socket]:
        with connection(place.tunnel.port) as sock:
            hello = client_hello(f"{which}.example.com")
            sock.sendall(hello)
            if which == ECHO:
                assert receive_exactly(sock, len(hello)) == hello
            yield sock

    def refused(place: Place) -> None:
        with use(place, CLOSED) as sock:
            assert ending_of(sock) == RESET
        place.wait_refused("remote", f" {CLOSED}.example.com from 127.0.0.1")

    return Kind(use, refused)


# --- UDP --------------------------------------------------------------------------------------------


def _udp(side: str) -> UdpKind:
    def refused(place: Place) -> None:
        with udp_client(place.port(f"{side} udp", CLOSED)) as sock:
            sock.send(b"anybody?")
            place.wait_refused(side, f":{place.port(f'{side} udp', CLOSED)}")

    return UdpKind(lambda place, which: udp_client(place.port(f"{side} udp", which)), refused)


KINDS: dict[str, Kind] = {
    **{side: _tcp(side) for side in ("local", "remote")},
    **{f"{side} unix": _unix(side) for side in ("local", "remote")},
    **{
        f"{side} {name}": _dynamic(side, ask, code)
        for side in ("dynamic", "reverse dynamic")
        for name, ask, code in (("socks5", _socks5, 5), ("socks4a", _socks4a, 1), ("http", _connect, 502))
    },
    "stdio": Kind(_use_stdio, _stdio_refused),
    "publish": _published(),
    "publish by SNI": _sni(),
    **{
        f"{side} proxy {version}": _proxy_out(side, version)
        for side, version in itertools.product(("local", "remote"), ("v1", "v2"))
    },
    "balanced": _proxy_in(),
}
UDP_KINDS: dict[str, UdpKind] = {
    **{f"{side} udp": _udp(side) for side in ("local", "remote")},
    **{f"{side} udp": _association(side) for side in ("dynamic", "reverse dynamic")},
}
