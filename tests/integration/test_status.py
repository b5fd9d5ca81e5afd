"""A running tunnel as `status` shows it, and what `kick` and `log-level` do to it, from the command line."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.applications import Target, echo
from tests.support.harness import ROOT, SECONDS, Tunnel
from tests.support.machine.ports import unused_port


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with Target(echo) as target:
        yield target


@pytest.fixture(scope="module")
def tunnel(tmp_path_factory: pytest.TempPathFactory, target: Target) -> Iterator[Tunnel]:
    forward = {"local": f"127.0.0.1:{unused_port()}", "to": target.address}
    with Tunnel(
        tmp_path_factory.mktemp("status"), [forward], client={"lanes": 2}, server={"limits": {"lanes": 2}}
    ) as tunnel:
        yield tunnel.start()


def run(tunnel: Tunnel, command: str, *arguments: str, on: str = "server") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "tunnel.py"), command, "-c", str(tunnel.directory / f"{on}.yaml"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=2 * SECONDS)


def status(tunnel: Tunnel, on: str = "server") -> dict[str, Any]:
    done = run(tunnel, "status", "--json", on=on)
    assert not done.stderr
    (process,) = json.loads(done.stdout)["processes"]
    found: dict[str, Any] = process
    return found


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def port_of(tunnel: Tunnel) -> int:
    return int(tunnel.client_settings["forwards"][0]["local"].rpartition(":")[2])


@pytest.fixture
def application(tunnel: Tunnel) -> Iterator[socket.socket]:
    """One that is connected through the tunnel, and has sent and got back 1,000 bytes."""
    with socket.create_connection(("127.0.0.1", port_of(tunnel)), SECONDS) as sock:
        sock.sendall(b"x" * 1000)
        left = 1000
        while left:
            left -= len(sock.recv(left))
        yield sock


def test_either_end_says_who_is_connected_how_and_what_moves(
    tunnel: Tunnel, target: Target, application: socket.socket
) -> None:
    ours = f"127.0.0.1:{application.getsockname()[1]}"
    for on in ("server", "client"):
        found = status(tunnel, on)
        assert found["config"] == str(tunnel.directory / f"{on}.yaml")
        (session,) = found["sessions"]
        assert (session["name"], session["state"], session["transport"]) == ("a", "connected", "websocket")
        assert [lane["connected"] for lane in session["lanes"]] == [True, True]
        (stream,) = session["streams"]
        assert (stream["kind"], stream["from"], stream["to"]) == ("tcp", ours, target.address)
        assert (stream["bytes_received"], stream["bytes_sent"], stream["queued_bytes"]) == (1000, 1000, 0)
        assert stream["age_s"] > 0
        assert session["bytes_received"] >= 1000
        assert session["round_trip_s"] > 0
    ends = [status(tunnel, on)["sessions"][0]["id"] for on in ("server", "client")]
    assert ends[0] == ends[1], "both ends call the session the same"


def test_tables_for_people_begin_with_the_verdict_of_a_check(tunnel: Tunnel, application: socket.socket) -> None:
    done = run(tunnel, "status")
    assert done.returncode == 0, done
    assert done.stdout.startswith("OK: server the-server: 1 client connected; 1 stream")
    assert "Sessions" in done.stdout
    assert "Streams" in done.stdout
    (there,) = tunnel.directory.rglob("a-*.sock")
    brief = run(tunnel, "status", "--brief", "--socket", str(there))
    assert brief.stdout.startswith("OK: client a: connected to ws://")
    assert len(brief.stdout.splitlines()) == 1
    missing = run(tunnel, "status", "--brief", "a", "somebody")
    assert missing.returncode == 1
    assert "WARNING: somebody is not connected" in missing.stdout


def test_a_stream_that_is_kicked_is_reset_and_another_one_is_not(tunnel: Tunnel, application: socket.socket) -> None:
    with socket.create_connection(("127.0.0.1", port_of(tunnel)), SECONDS) as other:
        other.sendall(b"y")
        assert other.recv(1) == b"y"
        ours = f"127.0.0.1:{application.getsockname()[1]}"
        streams = status(tunnel)["sessions"][0]["streams"]
        (wanted,) = (stream["id"] for stream in streams if stream["from"] == ours)
        name, lane, number = wanted.split("/")
        as_in_logs = f"{name} {number}" if lane == "0" else f"{name}/{lane} {number}"
        done = run(tunnel, "kick", as_in_logs)
        assert (done.returncode, done.stdout, done.stderr) == (0, "ended 1 stream\n", "")
        with pytest.raises(ConnectionResetError):
            application.recv(1)
        other.sendall(b"z")
        assert other.recv(1) == b"z"
    again = run(tunnel, "kick", wanted)
    assert again.returncode == 2
    assert "no stream" in again.stderr


def test_a_client_that_is_kicked_hears_why_and_comes_back(tunnel: Tunnel, application: socket.socket) -> None:
    before = status(tunnel)["sessions"][0]["id"]
    assert run(tunnel, "kick", "nobody").returncode == 2
    done = run(tunnel, "kick", "a")
    assert (done.returncode, done.stdout) == (0, "ended 1 session with 1 stream\n")
    with pytest.raises(ConnectionResetError):
        application.recv(1)
    tunnel.client.wait_for("ended by the operator of the-server")
    wait_until(lambda: [each["id"] for each in status(tunnel)["sessions"]] not in ([], [before]))
    found = status(tunnel, "client")
    assert found["totals"]["sessions"] == 2
    assert "ended by the operator" in found["servers"][0]["last_failure"]["text"]


def test_the_log_level_changes_while_it_runs(tunnel: Tunnel) -> None:
    done = run(tunnel, "log-level", "debug", "frames", on="client")
    assert "qanat.frames debug" in done.stdout, done
    tunnel.client.wait_for(r"PING|PONG|ACK")
    done = run(tunnel, "log-level", "default", "frames", on="client")
    assert "qanat.frames" not in done.stdout, done
    run(tunnel, "log-level", "debug", on="client")
    done = run(tunnel, "log-level", "default", on="client")
    assert done.stdout.split()[-2:] == ["qanat", "info"], done
    wrong = run(tunnel, "log-level", "loud", on="client")
    assert wrong.returncode == 2
    assert "error, warning, info, debug" in wrong.stderr


def test_a_client_without_its_server_says_what_failed_and_when_it_tries_again(tunnel: Tunnel) -> None:
    tunnel.server.kill()
    wait_until(lambda: status(tunnel, "client")["servers"][0]["state"] != "connected")
    wait_until(lambda: "refused" in str(status(tunnel, "client")["servers"][0]["last_failure"]))
    done = run(tunnel, "status", "--brief", on="client")
    assert done.returncode == 1
    assert done.stdout.startswith("WARNING: client a: ")
    gone = run(tunnel, "status")
    assert gone.returncode == 2
    assert gone.stdout.startswith("CRITICAL: nothing runs on")
    assert Path(tunnel.directory / "server.yaml").exists()
