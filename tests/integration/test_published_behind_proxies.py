"""Web services by name behind each proxy that deploy/ has a file for, with a browser's protocols in front."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import websocket

from tests.support.background import wait_until
from tests.support.harness import SECONDS
from tests.support.machine.browser import all_well, browse
from tests.support.machine.programs import require_program
from tests.support.machine.published import PUBLISHING
from tests.support.machine.published_site import NAME, Site, behind_proxies
from tests.support.web_service import RESOURCES, resource

UPLOAD = 8_000_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("published")
    for place in (directory, *directory.parents[:2]):
        place.chmod(0o755)  # Apache's children are nobody in particular
    with ExitStack() as stack:
        yield behind_proxies(directory, stack)


each_proxy = pytest.mark.parametrize("proxy", PUBLISHING)


@each_proxy
def test_a_page_and_its_hundred_resources_come_over_http2(site: Site, proxy: str) -> None:
    output = site.directory / f"page of {proxy}"
    output.mkdir()
    urls = [f"https://{NAME}/resource-[0-{RESOURCES - 1}]", "-o", f"{output}/#1"]
    said = site.curl(proxy, "--http2", "--parallel", "--write-out", "%{http_version} %{http_code}\\n", *urls)
    assert said.decode().split("\n")[:-1] == ["2 200"] * RESOURCES
    assert [(output / str(n)).read_bytes() for n in range(RESOURCES)] == [resource(n) for n in range(RESOURCES)]


@each_proxy
@pytest.mark.parametrize("version", ["--http2", "--http1.1"])
def test_an_upload_arrives_whole(site: Site, proxy: str, version: str) -> None:
    data = os.urandom(UPLOAD)
    (site.directory / "upload").write_bytes(data)
    said = site.curl(proxy, version, "--data-binary", f"@{site.directory}/upload", f"https://{NAME}/upload")
    assert said.decode() == f"{UPLOAD} {hashlib.sha256(data).hexdigest()}"


@each_proxy
def test_a_websocket_talks_both_ways(site: Site, proxy: str) -> None:
    context = ssl.create_default_context(cafile=site.ca_file)
    with (
        socket.create_connection(("127.0.0.1", site.ports[proxy]), SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as sock,
        contextlib.closing(websocket.create_connection(f"wss://{NAME}/socket", socket=sock)) as chat,
    ):
        for word in ("hello", "x" * 100_000, "bye"):
            chat.send(word)
            assert chat.recv() == word


@each_proxy
def test_server_sent_events_leave_at_once(site: Site, proxy: str) -> None:
    """The first is there while the service still waits with the second."""
    with subprocess.Popen(
        [
            str(require_program("curl")),
            "--silent",
            "--no-buffer",
            "--cacert",
            str(site.ca_file),
            "--connect-to",
            f"::127.0.0.1:{site.ports[proxy]}",
            f"https://{NAME}/events",
        ],
        stdout=subprocess.PIPE,
    ) as curl:
        assert curl.stdout is not None
        assert curl.stdout.readline() == b"data: first\n"
        assert curl.poll() is None
        assert curl.stdout.read() == b"\ndata: second\n\n"


@each_proxy
@pytest.mark.parametrize("name", ["nobody.office.example.com", NAME.upper()])
def test_a_name_that_nobody_publishes_is_answered_with_502(site: Site, proxy: str, name: str) -> None:
    said = site.curl(proxy, "--write-out", " %{http_code}", f"https://{name}/resource-1")
    if name == NAME.upper() and proxy != "Caddy":  # where its file asks for lower case
        assert said == resource(1) + b" 200"
    else:
        assert b"Nobody publishes this name right now" in said
        assert b" 502" in said


@pytest.mark.parametrize("proxy", ["nginx", "Caddy", "Apache"])
def test_a_real_browser_does_all_of_that(site: Site, proxy: str) -> None:
    """And uploads 64 MB; docs/SOAK.md has 1 GB."""
    said = browse(site.directory / f"browser for {proxy}", NAME, site.ports[proxy], site.service)
    assert said == all_well()


def test_the_name_of_a_client_that_has_left_is_answered_with_502(site: Site) -> None:
    site.tunnel.client.stop()
    for proxy in PUBLISHING:
        wait_until(
            lambda proxy=proxy: b" 502" in site.curl(proxy, "--write-out", " %{http_code}", f"https://{NAME}/"),
            f"{proxy} answers 502",
        )
