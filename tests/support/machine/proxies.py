"""Proxies in front of a tunnel's server, each running its file in deploy/ as a user would.

Nothing in these files is changed but names, ports and paths.  What stands around them here is what Debian's own
configuration of each program has there, its timeouts above all.  Everything lives in a directory of the
caller's and on ports above 1024.  Used by tests/integration and `benchmarks.soak`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.harness import ROOT, Program
from tests.support.machine.certificates import Authority, Certificate
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program
from tests.support.machine.web import HOST, Master, Nginx, wait_until_listening

_CHAIN = "/etc/letsencrypt/live/tunnel.example.com/fullchain.pem"
_KEY = "/etc/letsencrypt/live/tunnel.example.com/privkey.pem"
_SERVER = "127.0.0.1:8443"

_LOADED = "Loading success"

_APACHE_MODULES = (
    "mpm_event",
    "authz_core",
    "reqtimeout",
    "socache_shmcb",  # what Debian has switched on
    "ssl",
    "http2",
    "proxy",
    "proxy_http",
    "proxy_http2",
    "proxy_wstunnel",
    "rewrite",  # what a2enmod does
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one proxy runs: a directory for its files, the port it listens on, and the server behind it."""

    directory: Path
    port: int
    server_port: int
    issued: Certificate

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self.server_port}"


def deployed(name: str, replacements: Mapping[str, str]) -> str:
    """deploy/`name` with every key replaced by its value; fails when one is not there to be replaced."""
    text = (ROOT / "deploy" / name).read_text()
    for old, new in replacements.items():
        assert old in text, f"deploy/{name} has no {old!r} to replace"
        text = text.replace(old, new)
    return text


def start_nginx(place: Place, *, settings: str = "") -> Nginx:
    """`settings` are lines of the main configuration."""
    return Nginx(place.directory, [deployed("nginx.conf", _nginx_front(place))], place.port, settings)


def start_nginx_reusing(place: Place) -> Nginx:
    """nginx that keeps its connections to the server and uses them again, one request at a time."""
    pool = f"upstream tunnel {{ server {place.server}; keepalive 16; }}"
    block = deployed(
        "nginx.conf", {"grpc_pass grpc://127.0.0.1:8443": "grpc_pass grpc://tunnel", **_nginx_front(place)}
    )
    return Nginx(place.directory, [pool, block], place.port)


def _nginx_front(place: Place) -> dict[str, str]:
    return {
        "listen 443 ssl": f"listen 127.0.0.1:{place.port} ssl",
        "server_name tunnel.example.com": f"server_name {HOST}",
        _CHAIN: str(place.issued.certificate),
        _KEY: str(place.issued.key),
        _SERVER: place.server,
    }


class Haproxy(Master):
    """In master-worker mode, as Debian's unit starts it."""

    def __init__(self, *files: Path) -> None:
        super().__init__(require_program("haproxy"), "-W", "-db", *(part for file in files for part in ("-f", file)))

    def reload(self) -> None:
        """What `systemctl reload haproxy` does; returns when a new worker has taken over."""
        before = self.count(_LOADED)
        self.process.send_signal(signal.SIGUSR2)
        self.wait_for(_LOADED, count=before + 1)


def start_haproxy(place: Place, *, settings: str = "") -> Haproxy:
    """`settings` are lines of the global section."""
    return _haproxy(place, deployed("haproxy.cfg", {**_haproxy_front(place), _SERVER: place.server}), settings)


def start_haproxy_reusing(place: Place) -> Haproxy:
    """HAProxy that puts streams of several clients on one connection to the server, which is not its default."""
    server = "    server qanat 127.0.0.1:8443"
    text = deployed(
        "haproxy.cfg",
        {**_haproxy_front(place), server: f"    http-reuse always\n{server}", _SERVER: place.server},
    )
    return _haproxy(place, text)


def start_haproxy_two_servers(
    place: Place, *, second_port: int, without: str | None = None, instead: str = ""
) -> Haproxy:
    """Before `place.server` and another server; `without` is a line that is left out, or has another one `instead`."""
    text = deployed(
        "haproxy-two-servers.cfg",
        {
            **_haproxy_front(place),
            "10.0.0.11:8443": place.server,
            "10.0.0.12:8443": f"127.0.0.1:{second_port}",
            **({} if without is None else {f"    {without}\n": f"    {instead}\n"}),
        },
    )
    return _haproxy(place, text)


def _haproxy_front(place: Place) -> dict[str, str]:
    both = place.directory / "both.pem"
    both.write_bytes(place.issued.certificate.read_bytes() + place.issued.key.read_bytes())
    both.chmod(0o600)
    return {"bind :443": f"bind 127.0.0.1:{place.port}", "/etc/haproxy/tunnel.example.com.pem": str(both)}


def _haproxy(place: Place, text: str, settings: str = "") -> Haproxy:
    (place.directory / "debian.cfg").write_text(
        f"global\n  maxconn 2000\n{settings}\n"
        "defaults\n  mode http\n  option dontlognull\n"
        "  timeout connect 5000\n  timeout client 50000\n  timeout server 50000\n"
    )
    (place.directory / "qanat.cfg").write_text(text)
    program = Haproxy(place.directory / "debian.cfg", place.directory / "qanat.cfg")
    wait_until_listening(place.port, program)
    return program


def start_apache(place: Place) -> Master:
    modules = "".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n" for name in _APACHE_MODULES)
    # It will not run as root, and its children can do with less.
    user = "User www-data\nGroup www-data\n" if os.geteuid() == 0 else ""
    file = place.directory / "apache.conf"
    file.write_text(
        f"ServerRoot {place.directory}\nDefaultRuntimeDir {place.directory}\nPidFile {place.directory}/pid\n"
        f"ServerName {HOST}\nErrorLog /dev/stderr\n{user}{modules}"
        "Timeout 300\nKeepAlive On\nMaxKeepAliveRequests 100\nKeepAliveTimeout 5\n"
        "RequestReadTimeout header=20-40,minrate=500\nRequestReadTimeout body=10,minrate=500\n"
        "StartServers 2\nMinSpareThreads 25\nMaxSpareThreads 75\nThreadLimit 64\nThreadsPerChild 25\n"
        "MaxRequestWorkers 150\n"
        f"Listen 127.0.0.1:{place.port}\n"
        + deployed(
            "apache.conf",
            {
                "<VirtualHost *:443>": f"<VirtualHost *:{place.port}>",
                "ServerName tunnel.example.com": f"ServerName {HOST}",
                _CHAIN: str(place.issued.certificate),
                _KEY: str(place.issued.key),
                _SERVER: place.server,
            },
        )
    )
    program = Master(require_program("apache2"), "-DFOREGROUND", "-f", file)
    wait_until_listening(place.port, program)
    return program


def start_caddy(place: Place) -> Program:
    (place.directory / "Caddyfile").write_text(
        # No second port for redirects and none for its administration.
        "{\n\tadmin off\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n}\n"
        + deployed(
            "Caddyfile",
            {
                "\ntunnel.example.com {": f"\nhttps://{HOST}:{place.port} {{",
                f"# tls {_CHAIN} {_KEY}": f"tls {place.issued.certificate} {place.issued.key}",
                _SERVER: place.server,
            },
        )
    )
    program = Program(
        require_program("caddy"),
        "run",
        "--adapter",
        "caddyfile",
        "--config",
        place.directory / "Caddyfile",
        HOME=place.directory,
        XDG_DATA_HOME=place.directory,
        XDG_CONFIG_HOME=place.directory,
    )
    wait_until_listening(place.port, program)
    return program


def start_nghttpx(place: Place, name: str) -> Master:
    file = place.directory / name
    file.write_text(
        deployed(
            name,
            {
                "frontend=*,443": f"frontend=127.0.0.1,{place.port}",
                _CHAIN: str(place.issued.certificate),
                _KEY: str(place.issued.key),
                "backend=127.0.0.1,8443;": f"backend=127.0.0.1,{place.server_port};",
            },
        )
    )
    program = Master(require_program("nghttpx"), f"--conf={file}")
    wait_until_listening(place.port, program)
    return program


@dataclass(frozen=True, slots=True)
class Deployment:
    """One program with one file of deploy/, and the transports that it is for."""

    proxy: str
    transports: tuple[str, ...]
    start: Callable[[Place], Program]


ALL = ("websocket", "http2", "grpc", "websocket-h2")
WITHOUT_EXTENDED_CONNECT = ALL[:3]
"""What passes proxies that do not offer RFC 8441."""

SPLIT = "split"
"""What passes all of them, and is no pipe of one connection."""

DEPLOYMENTS = (
    Deployment("nginx", (*WITHOUT_EXTENDED_CONNECT, SPLIT), start_nginx),
    Deployment("HAProxy", (*ALL, SPLIT), start_haproxy),
    Deployment("Apache", (*ALL, SPLIT), start_apache),
    Deployment("Caddy", (*WITHOUT_EXTENDED_CONNECT, SPLIT), start_caddy),
    Deployment("nghttpx", ("websocket",), lambda place: start_nghttpx(place, "nghttpx-websocket.conf")),
    Deployment("nghttpx", (*ALL[1:], SPLIT), lambda place: start_nghttpx(place, "nghttpx-http2.conf")),
)


SHARING: dict[str, Callable[[Place], Program]] = {
    "nghttpx": lambda place: start_nghttpx(place, "nghttpx-http2.conf"),
    "Caddy": start_caddy,
    "HAProxy, http-reuse always": start_haproxy_reusing,
    "nginx, keepalive": start_nginx_reusing,
}
"""Those that carry several clients over one HTTP/2 connection to the server, at once or one after the other."""


class TunnelProxy:
    """A proxy with TLS in front of a server on `server_port`, and a certificate for it.

    `url` is what a client dials, `ca_file` what it has to trust, `place` what a proxy is started with.
    """

    def __init__(self, directory: Path, server_port: int, start: Callable[[Place], Program] = start_nginx) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        authority = Authority(directory)
        self.ca_file = authority.ca_file
        self._start = start
        self.place = Place(directory, unused_port(), server_port, authority.issue(HOST))
        self.url = f"wss://{HOST}:{self.place.port}/tunnel"

    def start(self) -> Program:
        return self._start(self.place)
