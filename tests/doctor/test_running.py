"""What `doctor -c` shows of the running client's memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qanat.config.client_settings import ClientSettings
from qanat.config.command_line import client_from_options
from qanat.config.settings import LogSettings
from qanat.doctor.report import Report, Verdict
from qanat.doctor.running import with_memory
from qanat.handshake.tokens import generate_token
from qanat.transports.dial.urls import TunnelUrl
from tests.support.background import wait_until
from tests.support.machine.ports import unused_port
from tests.support.server.raw_sessions import client_to, real_server

URL = "wss://tunnel.example.com/tunnel"
REPORT = Report(URL, (), (), Verdict.SOUND, "websocket")


def remembered(directory: Path) -> dict[str, str]:
    settings = client_from_options(urls=[URL], environ={"QANAT_TOKEN": generate_token()}, state_dir=directory)
    settings = replace(settings, log=LogSettings(file=directory / "client.log"))
    return {step.name: step.result for step in with_memory(REPORT, settings).steps}


def test_ways_and_failures_are_shown(tmp_path: Path) -> None:
    (tmp_path / "ways").write_text(f"# ways\n10.0.0.1 {URL} grpc 1700000000\n10.0.0.1 wss://other/ http2 1700000000\n")
    (tmp_path / "client.log").write_text(
        f"2026 info listening\n2026 error cannot connect to {URL}: 403, {generate_token()}\n"
    )
    found = remembered(tmp_path)
    assert found["remembered"] == "grpc on the network 10.0.0.1, 2023-11-14 22:13 UTC"
    assert found["failures"] == f"2026 error cannot connect to {URL}: 403, qanat1-[hidden]"


def said(settings: ClientSettings, url: str) -> str:
    steps = with_memory(Report(str(TunnelUrl.parse(url)), (), (), Verdict.SOUND, "websocket"), settings).steps
    return " ".join(step.result for step in steps if step.name == "running")


def test_a_running_client_is_asked_for_its_connection_and_its_last_failure(tmp_path: Path) -> None:
    gone = f"ws://127.0.0.1:{unused_port()}/tunnel"
    with real_server(tmp_path) as server:
        here = f"ws://127.0.0.1:{server.addresses[0][1]}/tunnel"
        with client_to((here,), server.identity.fingerprint, tmp_path / "here") as client:
            wait_until(lambda: "connected over websocket since" in said(client.settings, here), "it says so")
        with client_to((gone,), server.identity.fingerprint, tmp_path / "gone") as client:
            wait_until(lambda: "; its last failure, " in said(client.settings, gone), "it says so")
    assert said(client.settings, gone) == "", "it has ended"


def test_what_is_not_there_or_damaged_is_passed_over(tmp_path: Path) -> None:
    assert remembered(tmp_path) == {}
    (tmp_path / "ways").write_bytes(b"\xff\xfe nonsense\n" + URL.encode() + b" x y z w v\n")
    assert remembered(tmp_path) == {}
