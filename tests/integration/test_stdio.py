"""Standard input and output through the tunnel, by a client that runs or one of its own, as ssh's ProxyCommand."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.applications import Target, echo, reply_after_end, reset_at_once
from tests.support.cuts import Cuts
from tests.support.harness import ROOT, SECONDS, Relay, Tunnel
from tests.support.machine.programs import require_program
from tests.support.machine.web import Sshd

HANDLERS = {"echo": echo, "reply": reply_after_end, "reset": reset_at_once}


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, Target]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(Target(handler)) for name, handler in HANDLERS.items()}


@pytest.fixture(scope="module", params=["running", "alone"])
def tunnel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """A server, and the configuration of a client, which runs or does not."""
    with Tunnel(tmp_path_factory.mktemp("tunnel")) as tunnel:
        tunnel.start_server()
        if request.param == "running":
            tunnel.start_client()
        else:
            tunnel.write_client()
        yield tunnel


def command(tunnel: Tunnel, to: str) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "tunnel.py"),
        "client",
        "-c",
        str(tunnel.directory / "client.yaml"),
        "-W",
        to,
    ]


def run(tunnel: Tunnel, to: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(tunnel, to), input=data, capture_output=True, timeout=2 * SECONDS)


def sessions(tunnel: Tunnel) -> int:
    return tunnel.server.count("connected from")


def test_every_byte_goes_both_ways_as_it_is(tunnel: Tunnel, targets: dict[str, Target]) -> None:
    data = bytes(range(256)) * 20_000
    done = run(tunnel, targets["echo"].address, data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data


def test_the_end_of_input_reaches_the_target_whose_answer_comes_back(
    tunnel: Tunnel, targets: dict[str, Target]
) -> None:
    data = os.urandom(300_000)
    done = run(tunnel, targets["reply"].address, data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(hashlib.sha256(data).digest())


@pytest.mark.parametrize(
    ("to", "code", "said"),
    [
        ("127.0.0.1:1", 1, "cannot connect to 127.0.0.1:1: refused"),
        ("192.0.2.1:80", 1, "not allowed: no rule allows 192.0.2.1:80"),
        ("no-such-host.invalid:1", 1, "unreachable"),
        ("127.0.0.1", 2, "-W 127.0.0.1 has no port"),
    ],
)
def test_what_cannot_be_reached_is_an_exit_code_and_a_line(tunnel: Tunnel, to: str, code: int, said: str) -> None:
    done = run(tunnel, to)
    assert done.returncode == code
    assert said in done.stderr.decode()
    assert done.stdout == b""


def test_a_connection_that_the_target_resets_is_no_orderly_end(tunnel: Tunnel, targets: dict[str, Target]) -> None:
    with subprocess.Popen(
        command(tunnel, targets["reset"].address), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.wait(SECONDS) == 1
        assert b"was reset" in process.stderr.read()


def test_a_running_clients_session_is_used(tmp_path: Path, targets: dict[str, Target]) -> None:
    with Tunnel(tmp_path) as tunnel:
        tunnel.start()
        (control,) = (tmp_path / "state").glob("*.sock")
        assert stat.S_IMODE(control.stat().st_mode) == 0o600
        processes = [
            subprocess.Popen(command(tunnel, targets["echo"].address), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(5)
        ]
        for number, process in enumerate(processes):
            data = str(number).encode() * 100_000
            assert process.communicate(data, SECONDS)[0] == data
            assert process.returncode == 0
        assert sessions(tunnel) == 1
        with socket.socket(socket.AF_UNIX) as asking:  # another version, or garbage, is told so and hurts nobody
            asking.connect(str(control))
            asking.sendall(b'{"version": 99, "command": "connect"}\n')
            answer = json.loads(asking.makefile().readline())
            assert (answer["version"], answer["ok"]) == (1, False)
        assert tunnel.client.stop() == 0
        assert not control.exists()


def test_the_first_without_a_client_serves_the_others_and_stays_for_them(
    tmp_path: Path, targets: dict[str, Target]
) -> None:
    with Tunnel(tmp_path) as tunnel:
        tunnel.start_server()
        tunnel.write_client()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

        def start() -> subprocess.Popen[bytes]:
            process = subprocess.Popen(command(tunnel, targets["echo"].address), **pipes)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"hello")
            process.stdin.flush()
            assert process.stdout.read(5) == b"hello"
            return process

        first, second = start(), start()
        assert sessions(tunnel) == 1
        first.send_signal(signal.SIGHUP)  # as ssh does when it has ended
        assert second.communicate(b"more", SECONDS)[0] == b"more"
        assert first.wait(SECONDS) == 0
        assert first.communicate()[1] == b""
        assert second.returncode == 0


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    sshd = Sshd(tmp_path_factory.mktemp("sshd"))
    with sshd.start():
        yield sshd


def ssh(sshd: Sshd, tunnel: Tunnel, *more: str) -> Sequence[str]:
    proxy = " ".join(command(tunnel, "%h:%p"))
    options = (*map(str, sshd.options(sshd.port)), "-o", f"ProxyCommand={proxy}")
    return [str(require_program("ssh")), *options, *more, f"{getpass.getuser()}@127.0.0.1"]


def test_ssh_goes_through_it_by_itself(tunnel: Tunnel, sshd: Sshd) -> None:
    data = os.urandom(1_000_000)
    done = subprocess.run([*ssh(sshd, tunnel), "cat; exit 7"], input=data, capture_output=True, timeout=2 * SECONDS)
    assert (done.returncode, done.stderr) == (7, b"")
    assert done.stdout == data


def test_git_clones_over_ssh_through_it(tunnel: Tunnel, sshd: Sshd, tmp_path: Path) -> None:
    git, work, clone = str(require_program("git")), tmp_path / "work", tmp_path / "clone"
    *ssh_command, who = ssh(sshd, tunnel)
    quoted = " ".join(f"'{part}'" for part in ssh_command)
    environ = {**os.environ, "GIT_SSH_COMMAND": quoted, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    (tmp_path / "work").mkdir()
    (work / "file").write_bytes(os.urandom(2_000_000))
    for arguments in (
        ("init", "-q", "-b", "main", work),
        ("-C", work, "add", "file"),
        ("-C", work, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "one"),
        ("clone", "-q", f"ssh://{who}{work}", clone),
    ):
        subprocess.run([git, *map(str, arguments)], check=True, timeout=2 * SECONDS, env=environ)
    assert (clone / "file").read_bytes() == (work / "file").read_bytes()


def test_an_ssh_session_outlives_the_connections_under_it(sshd: Sshd, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = stack.enter_context(Tunnel(tmp_path))
        relay = stack.enter_context(Relay(tunnel.port))
        tunnel.client_settings["url"] = f"ws://127.0.0.1:{relay.port}/tunnel"
        tunnel.start()
        process = stack.enter_context(
            subprocess.Popen([*ssh(sshd, tunnel), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        stack.callback(process.kill)
        assert process.stdin is not None
        assert process.stdout is not None
        asked = 0
        with Cuts(tunnel, relay, lambda: asked) as cuts:
            while not cuts.over:
                line = os.urandom(500).hex().encode() + b"\n"
                process.stdin.write(line)
                process.stdin.flush()
                assert process.stdout.readline() == line
                asked += 1
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait(SECONDS) == 0
