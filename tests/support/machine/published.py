"""Proxies in front of published names, each running its file in deploy/ as a user would."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.support.harness import Program
from tests.support.machine.certificates import Certificate
from tests.support.machine.programs import require_program
from tests.support.machine.proxies import deployed
from tests.support.machine.web import Master, Nginx, wait_until_listening

_CHAIN = "/etc/letsencrypt/live/office.example.com/fullchain.pem"
_KEY = "/etc/letsencrypt/live/office.example.com/privkey.pem"
_NAMES = "/run/qanat/published"
_APACHE_MODULES = (
    "mpm_event",
    "authz_core",
    "reqtimeout",
    "socache_shmcb",
    "ssl",
    "http2",
    "headers",
    "proxy",
    "proxy_http",
    "proxy_wstunnel",
    "rewrite",
)


def start_published(proxy: str, directory: Path, port: int, issued: Certificate, names: Path) -> Program:
    """Start one of PUBLISHING on `port`; `names` is the server's publish_dir."""
    return PUBLISHING[proxy](directory, port, issued, str(names))


def _nginx(directory: Path, port: int, issued: Certificate, names: str) -> Program:
    block = deployed(
        "published-nginx.conf",
        {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            _CHAIN: str(issued.certificate),
            _KEY: str(issued.key),
            _NAMES: names,
        },
    )
    return Nginx(directory, [block], port)


def _caddy(directory: Path, port: int, issued: Certificate, names: str) -> Program:
    (directory / "Caddyfile").write_text(
        "{\n\tadmin off\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n}\n"
        + deployed(
            "published-Caddyfile",
            {
                "\n*.office.example.com {": f"\nhttps://*.office.example.com:{port} {{",
                f"# tls {_CHAIN} {_KEY}": f"tls {issued.certificate} {issued.key}",
                _NAMES: names,
            },
        )
    )
    command = ("run", "--adapter", "caddyfile", "--config", directory / "Caddyfile")
    program = Program(
        require_program("caddy"), *command, HOME=directory, XDG_DATA_HOME=directory, XDG_CONFIG_HOME=directory
    )
    wait_until_listening(port, program)
    return program


def _apache(directory: Path, port: int, issued: Certificate, names: str) -> Program:
    modules = "".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n" for name in _APACHE_MODULES)
    user = "User www-data\nGroup www-data\n" if os.geteuid() == 0 else ""
    file = directory / "apache.conf"
    file.write_text(
        f"ServerRoot {directory}\nDefaultRuntimeDir {directory}\nPidFile {directory}/pid\n"
        f"ServerName localhost\nErrorLog /dev/stderr\n{user}{modules}"
        "Timeout 300\nKeepAlive On\nMaxKeepAliveRequests 100\nKeepAliveTimeout 5\n"
        "RequestReadTimeout header=20-40,minrate=500\nRequestReadTimeout body=10,minrate=500\n"
        f"Listen 127.0.0.1:{port}\n"
        + deployed(
            "published-apache.conf",
            {
                "<VirtualHost *:443>": f"<VirtualHost *:{port}>",
                _CHAIN: str(issued.certificate),
                _KEY: str(issued.key),
                _NAMES: names,
            },
        )
    )
    program = Master(require_program("apache2"), "-DFOREGROUND", "-f", file)
    wait_until_listening(port, program)
    return program


def _haproxy(directory: Path, port: int, issued: Certificate, names: str) -> Program:
    both = directory / "both.pem"
    both.write_bytes(issued.certificate.read_bytes() + issued.key.read_bytes())
    both.chmod(0o600)
    (directory / "debian.cfg").write_text(
        "global\n  maxconn 2000\n"
        "defaults\n  mode http\n  option dontlognull\n"
        "  timeout connect 5000\n  timeout client 50000\n  timeout server 50000\n"
    )
    (directory / "published.cfg").write_text(
        deployed(
            "published-haproxy.cfg",
            {"bind :443": f"bind 127.0.0.1:{port}", "/etc/haproxy/office.example.com.pem": str(both), _NAMES: names},
        )
    )
    files = ("-f", directory / "debian.cfg", "-f", directory / "published.cfg")
    program = Master(require_program("haproxy"), "-W", "-db", *files)
    wait_until_listening(port, program)
    return program


PUBLISHING: dict[str, Callable[[Path, int, Certificate, str], Program]] = {
    "nginx": _nginx,
    "Caddy": _caddy,
    "Apache": _apache,
    "HAProxy": _haproxy,
}
