"""What `doctor` says of paths with one trouble each: the cause, and which transports get through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qanat.config.command_line import client_from_options
from qanat.doctor.examination import examine
from qanat.doctor.report import Report, Verdict
from qanat.transports.dial.urls import TunnelUrl
from tests.support.harness import Tunnel
from tests.support.troubles import Trouble, TroubledPath, trouble


@pytest.fixture(scope="module")
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    with Tunnel(tmp_path_factory.mktemp("tunnel")) as tunnel:
        tunnel.start_server()
        yield tunnel


def examined(path: TroubledPath, tunnel: Tunnel, directory: Path, *, token: bool = False) -> Report:
    given = {} if path.ca_file is None else {"ca_file": path.ca_file}
    settings = client_from_options(
        urls=[path.url], environ={"QANAT_TOKEN": tunnel.token}, state_dir=directory, name="a", **given
    )
    return examine(settings, settings.servers[0], TunnelUrl.parse(path.url), has_token=token)


@contextmanager
def report_on(one: Trouble, tunnel: Tunnel, directory: Path) -> Iterator[Report]:
    with one.start(tunnel.port, directory) as path:
        yield examined(path, tunnel, directory)


@pytest.mark.parametrize(
    ("name", "codes", "verdict"),
    [
        ("nothing", set(), Verdict.SOUND),
        ("no-upgrade", {"upgrade-dropped"}, Verdict.SOUND),
        ("h1-only", {"http2-off"}, Verdict.SOUND),
        ("h2-only-without-8441", {"http1-off"}, Verdict.SOUND),
        ("both-held-but-websocket", {"request-held", "answer-held"}, Verdict.SOUND),
        ("body-limit", {"body-limit", "upgrade-dropped"}, Verdict.FLAWED),
        ("portal-page", {"portal"}, Verdict.BLOCKED),
        ("tls-intercepted", {"tls-intercepted"}, Verdict.BLOCKED),
        ("dead-first-address", {"address-dead"}, Verdict.FLAWED),
    ],
)
def test_the_cause_is_named(name: str, codes: set[str], verdict: Verdict, tunnel: Tunnel, tmp_path: Path) -> None:
    one = trouble(name)
    with report_on(one, tunnel, tmp_path) as report:
        assert {finding.code for finding in report.findings} == codes
        assert report.verdict is verdict
        assert report.found is (None if "tls-intercepted" in codes else verdict is not Verdict.BLOCKED)
        assert not report.refuted & codes
        through = {transport for transport, works in report.transports.items() if works}
        passes = {name.removesuffix("-streamed").removesuffix("-packets") for name in one.passes}
        assert through == passes & report.transports.keys()
        assert (not report.transport) is (verdict is Verdict.BLOCKED)


def test_with_a_token_it_shakes_hands_and_names_the_key(tunnel: Tunnel, tmp_path: Path) -> None:
    with trouble("nothing").start(tunnel.port, tmp_path) as path:
        report = examined(path, tunnel, tmp_path, token=True)
    (step,) = (step for step in report.steps if step.name == "handshake")
    assert tunnel.fingerprint in step.result
    assert tunnel.token[7:] not in report.to_json()
