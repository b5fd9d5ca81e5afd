"""`doctor` names seeded faults, and blames no sound path.  All of them are in `python -m benchmarks.doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qanat.doctor.report import Verdict
from tests.support.harness import Tunnel
from tests.support.seeded_faults import FAULTS, SERVER, SOUND, Seeded, named

CHOSEN = (
    "nginx: no Upgrade header",
    "nginx: another path",
    "HAProxy: gRPC denied",
    "Apache: http:// to the server",
    "Caddy: h2c alone",
    "nghttpx: no server behind",
    "the certificate has expired",
    "the certificate is for another name",
    "an authority of one's own",
    "ws:// to a port with TLS",
    "wss:// to a port without TLS",
    "a name that nobody has",
    "a name server that does not answer",
    "nothing listens",
    "no web server",
    "Squid: a login is wanted",
    "Squid: the port is forbidden",
    "a proxy with NTLM",
    "a wrong token",
    "another fingerprint",
    "a clock that is off",
    "a server without probes",
)
"""Those that are quick or differ most; each waits more than it works."""


@pytest.fixture(scope="module")
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    with Tunnel(tmp_path_factory.mktemp("tunnel"), server=SERVER) as tunnel:
        tunnel.start_server()
        yield tunnel


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)  # Apache's children are nobody in particular
    return tmp_path / "fault"


@pytest.mark.parametrize("fault", [one for one in FAULTS if one.name in CHOSEN], ids=lambda one: one.name)
def test_a_seeded_fault_is_named_with_its_cure(fault: Seeded, tunnel: Tunnel, place: Path) -> None:
    with fault.report(tunnel, place) as report:
        assert named(report, fault) == ""


@pytest.mark.parametrize(
    "sound", [one for one in SOUND if one.name in ("direct", "nginx", "HAProxy")], ids=lambda one: one.name
)
def test_a_sound_path_is_not_blamed(sound: Seeded, tunnel: Tunnel, place: Path) -> None:
    with sound.report(tunnel, place) as report:
        assert (report.verdict, report.findings) == (Verdict.SOUND, ())


def test_every_fault_that_is_chosen_is_there_and_there_are_enough() -> None:
    names = [one.name for one in FAULTS]
    assert set(CHOSEN) <= set(names)
    assert len(set(names)) == len(names) >= 60
    assert len({one.name for one in SOUND}) == len(SOUND) >= 20
