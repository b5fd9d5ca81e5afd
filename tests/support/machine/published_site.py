"""A web service that one client publishes under a name: behind proxies with their files in deploy/, or by SNI alone.

Used by tests/integration and `benchmarks.kinds`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support.harness import ROOT, SECONDS, Program, Tunnel
from tests.support.machine.certificates import Authority
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program
from tests.support.machine.published import PUBLISHING, start_published
from tests.support.machine.web import wait_until_listening

NAME = "app.office.example.com"
_OWN = "localhost"


@dataclass(frozen=True, slots=True)
class Site:
    """The proxies, by their names and ports, in front of one server that one client publishes a service at."""

    tunnel: Tunnel
    ports: dict[str, int]
    directory: Path
    ca_file: Path
    service: Program

    def curl(self, proxy: str, *arguments: object) -> bytes:
        """What curl prints; `--next` and further URLs may follow."""
        port = self.ports[proxy]
        command = [
            require_program("curl"), "--silent", "--show-error", "--fail-with-body", "--max-time", 60,
            "--cacert", self.ca_file, "--connect-to", f"::127.0.0.1:{port}", *arguments,
        ]  # fmt: skip
        done = subprocess.run([str(part) for part in command], capture_output=True, timeout=SECONDS, check=False)
        return done.stdout


@dataclass(frozen=True, slots=True)
class SniSite:
    """A server with TLS, and beside its client the service and Caddy, which has a certificate of its own authority."""

    tunnel: Tunnel
    service: Program
    directory: Path


def _service(stack: ExitStack) -> tuple[Program, str]:
    """Start the service; it and its port."""
    service = stack.enter_context(Program(sys.executable, "-m", "tests.support.web_service", cwd=ROOT))
    return service, service.wait_for(r"serves on (\d+)")[1]


def behind_proxies(directory: Path, stack: ExitStack, proxies: Iterable[str] = PUBLISHING) -> Site:
    """Start all that a Site has.  Whoever a proxy runs as has to be able to enter `directory`."""
    names = directory / "names"
    authority = Authority(directory)
    certificate = authority.issue("*.office.example.com")
    service, port = _service(stack)
    tunnel = stack.enter_context(
        Tunnel(
            directory / "tunnel",
            [{"publish": "app", "to": f"127.0.0.1:{port}"}],
            account={"allow_publish": ["*.office.example.com"]},
            server={"publish_dir": str(names), "publish_mode": "0666"},
        )
    )
    tunnel.start_server()
    tunnel.start_client().wait_for(f"the server publishes {NAME} for")
    ports = {}
    for proxy in proxies:
        ports[proxy] = unused_port()
        (directory / proxy).mkdir()
        stack.enter_context(start_published(proxy, directory / proxy, ports[proxy], certificate, names))
    return Site(tunnel, ports, directory, authority.ca_file, service)


def by_sni(directory: Path, stack: ExitStack) -> SniSite:
    """Start all that an SniSite has."""
    own = (authority := Authority(directory)).issue(_OWN)
    own.key.chmod(0o600)
    service, port = _service(stack)
    front = unused_port()
    (directory / "Caddyfile").write_text(
        "{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n}\n"
        f"https://{NAME}:{front} {{\n\ttls internal\n\treverse_proxy 127.0.0.1:{port}\n}}\n"
    )
    command = ("run", "--adapter", "caddyfile", "--config", directory / "Caddyfile")
    home = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), directory)
    caddy = stack.enter_context(Program(require_program("caddy"), *command, **home))
    wait_until_listening(front, caddy)
    tunnel = stack.enter_context(
        Tunnel(
            directory / "tunnel",
            [{"publish": NAME, "to": f"127.0.0.1:{front}"}],
            account={"allow_publish": [NAME]},
            server={"tls": {"certificate": str(own.certificate), "key": str(own.key)}},
        )
    )
    tunnel.start_server()
    tunnel.client_settings["url"] = f"wss://{_OWN}:{tunnel.port}/tunnel"
    tunnel.client_settings["tls"] = {"ca_file": str(authority.ca_file)}
    tunnel.start_client().wait_for(f"the server publishes {NAME} for")
    return SniSite(tunnel, service, directory)
