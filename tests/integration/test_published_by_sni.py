"""A web service whose certificate is at the client alone: Caddy there, a browser in front, nothing to read between.

The server has its port itself and tells names apart by what a ClientHello asks for.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.harness import SECONDS, Program
from tests.support.machine.browser import all_well, browse
from tests.support.machine.programs import require_program
from tests.support.machine.published_site import NAME, SniSite, by_sni
from tests.support.web_service import SECRET


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SniSite]:
    with ExitStack() as stack:
        yield by_sni(tmp_path_factory.mktemp("sni"), stack)


def test_a_real_browser_does_all_that_it_does_and_the_servers_wire_has_no_plain_text(site: SniSite) -> None:
    """All that crosses the server's port is captured: of visitors, and of the tunnel."""
    captured = site.directory / "captured"
    with Program(
        require_program("tcpdump"),
        *("-i", "lo", "-n", "-s", "0", "-B", "262144", "-U", "-w", captured, "--immediate-mode"),
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
