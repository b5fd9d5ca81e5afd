"""A web service whose certificate is at the client alone: Caddy there, a browser in front, nothing to read between.

The server has its port itself and tells names apart by what a ClientHello asks for.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.harness import ROOT, SECONDS, Program, Tunnel
from tests.support.machine.browser import all_well, browse
from tests.support.machine.certificates import Authority
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program
from tests.support.machine.web import wait_until_listening
from tests.support.web_service import SECRET

NAME = "app.office.example.com"
OWN = "localhost"


@dataclass(frozen=True, slots=True)
class Site:
    """A server with TLS, and beside its client the service and Caddy, which has a certificate of its own authority."""

    tunnel: Tunnel
    service: Program
    directory: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("sni")
    with ExitStack() as stack:
        own = (authority := Authority(directory)).issue(OWN)
        own.key.chmod(0o600)
        service = stack.enter_context(Program(sys.executable, "-m", "tests.support.web_service", cwd=ROOT))
        port, front = service.wait_for(r"serves on (\d+)")[1], unused_port()
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
        tunnel.client_settings["url"] = f"wss://{OWN}:{tunnel.port}/tunnel"
        tunnel.client_settings["tls"] = {"ca_file": str(authority.ca_file)}
        tunnel.start_client().wait_for(f"the server publishes {NAME} for")
        yield Site(tunnel, service, directory)


def test_a_real_browser_does_all_that_it_does_and_the_servers_wire_has_no_plain_text(site: Site) -> None:
    """All that crosses the server's port is captured: of visitors, and of the tunnel."""
    captured = site.directory / "captured"
    with Program(
        require_program("tcpdump"),
        *("-i", "lo", "-n", "-s", "0", "-B", "65536", "-U", "-w", captured, "--immediate-mode"),
        *("tcp", "port", site.tunnel.port),
    ) as tcpdump:
        tcpdump.wait_for("listening on lo")
        said = browse(site.directory / "browser", NAME, site.tunnel.port, site.service)
        curl = Program(
            require_program("curl"),
            *("-sk", "--connect-to", f"::127.0.0.1:{site.tunnel.port}", f"https://{NAME}/"),
        )
        with curl:
            assert curl.end() == 0
            assert SECRET.decode() in curl.output
        tcpdump.stop(signal.SIGINT, seconds=SECONDS)
    assert said == all_well()
    data = captured.read_bytes()
    assert len(data) > 100_000_000, "64 MB, to the server and on to the client"
    assert NAME.encode() in data, "the name alone, in ClientHellos"
    for plain in (SECRET, b"GET /", b"POST /", b"HTTP/1.1 200", b"q" * 64, b"data: first", b"content-type"):
        assert plain not in data, plain
    os.unlink(captured)
