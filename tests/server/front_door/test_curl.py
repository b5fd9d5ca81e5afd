"""The front door as curl sees it: a stranger's idea of correct HTTP."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qanat.server.front_door.front_door import FrontDoor
from tests.support.machine.programs import require_program
from tests.support.server.front_door_rig import Certificate, front_door


def curl(door: FrontDoor, path: str, *options: str, scheme: str = "http") -> subprocess.CompletedProcess[str]:
    host = "localhost" if scheme == "https" else "127.0.0.1"
    url = f"{scheme}://{host}:{door.addresses[0][1]}{path}"
    command = [str(require_program("curl")), "-sS", "--noproxy", "*", "--max-time", "20", *options, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def status(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout.split()[1]


def test_healthz() -> None:
    with front_door() as door:
        body = curl(door, "/healthz")
        head = curl(door, "/healthz", "-I")
        old = curl(door, "/healthz", "--http1.0")
        upgrading = curl(door, "/healthz", "--http2")  # asks for h2c, and must be content with 1.1
    assert (body.returncode, body.stdout) == (0, "ok\n")
    assert status(head) == "200"
    assert "Content-Length: 3" in head.stdout
    assert (old.stdout, upgrading.stdout) == ("ok\n", "ok\n")


def test_healthz_over_tls(tmp_path: Path) -> None:
    certificate = Certificate(tmp_path)
    trust = ("--cacert", str(certificate.tls.certificate))
    with front_door(tls=certificate.tls) as door:
        for version in ("--tlsv1.2", "--tlsv1.3", "--http1.1", "--http2"):
            body = curl(door, "/healthz", *trust, version, scheme="https")
            assert (body.returncode, body.stdout) == (0, "ok\n"), body.stderr
        plain = curl(door, "/healthz", "-i")
        large = curl(door, "/", *trust, "-i", "--data-binary", "x" * 100_000, scheme="https")
    assert status(plain) == "400"
    assert status(large) == "404"


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-I"],
        ["-X", "DELETE"],
        ["-d", "some=form"],
        ["--data-binary", "x" * 100_000],
        ["-H", "Transfer-Encoding: chunked", "-d", "body"],
        ["-H", "Expect: 100-continue", "-d", "body"],
        ["--http2"],
        ["-H", "Upgrade: h2c", "-H", "Connection: upgrade"],
    ],
)
def test_on_the_tunnels_path_there_is_nothing_to_be_seen(options: list[str]) -> None:
    with front_door() as door:
        here, elsewhere = (curl(door, path, "-i", *options) for path in ("/tunnel", "/elsewhere"))
    assert status(here) == status(elsewhere) == "404"
    lines = [[line for line in r.stdout.splitlines() if not line.startswith("Date:")] for r in (here, elsewhere)]
    assert lines[0] == lines[1]
    assert "upgrade" not in here.stdout.lower()


def test_http2_with_prior_knowledge_is_served_on_the_same_port() -> None:
    with front_door() as door:
        body = curl(door, "/healthz", "--http2-prior-knowledge")
        head = curl(door, "/healthz", "--http2-prior-knowledge", "-I")
        large = curl(door, "/tunnel", "--http2-prior-knowledge", "-i", "--data-binary", "x" * 100_000)
    assert (body.returncode, body.stdout) == (0, "ok\n")
    assert head.stdout.startswith("HTTP/2 200")
    assert status(large) == "404"
