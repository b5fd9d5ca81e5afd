"""Promises of the commands that stay, `server` and `client`: how they start, stop, fail, log and are left alone."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qanat.cli.init_files import write_files
from qanat.handshake.tokens import generate_token
from qanat.process.daemon import REPEATED
from tests.support.machine.ports import unused_port
from tests.support.machine.processes import ROOT, SECONDS, TUNNEL, NotifySocket, Pair, Qanat, run_qanat


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


@pytest.fixture
def server(pair: Pair) -> Iterator[Qanat]:
    with pair.server() as running:
        yield running.wait_until_ready()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Where a server runs for all tests that need no more than some server."""
    pair = Pair(tmp_path_factory.mktemp("host"))
    with pair.server() as running:
        running.wait_until_ready()
        yield pair


@pytest.fixture
def guest(host: Pair, tmp_path: Path) -> Pair:
    """Files for a client of that server; no two clients run at the same time."""
    return host.copied_to(tmp_path)


def test_what_init_wrote_simply_connects(pair: Pair) -> None:
    with pair.server(cwd=Path("/")) as server, pair.client(cwd=Path("/")) as client:
        server.wait_until_ready()
        client.wait_until_ready()
        assert b"ok" in pair.fetch()
        assert client.stop() == 0, client.output
        assert server.stop() == 0, server.output
        assert "Traceback" not in server.output + client.output


def test_a_client_that_starts_first_waits_for_its_server(pair: Pair) -> None:
    with pair.client() as client, pair.server() as server:
        server.wait_until_ready()
        client.wait_until_ready()
        assert b"ok" in pair.fetch()


def test_wait_ends_when_the_running_client_is_connected(pair: Pair) -> None:
    with pair.client() as client:
        client.wait_for_output("cannot connect")
        command = [sys.executable, TUNNEL, "wait", "-c", pair.client_yaml, "--timeout", "60"]
        with subprocess.Popen(command) as waiting, pair.server():
            assert waiting.wait(SECONDS) == 0
        client.process.kill()
        client.process.wait()
    done = run_qanat("wait", "-c", pair.client_yaml, "--timeout", "0")
    assert done.returncode == 1, "what a killed client has left counts"
    assert "was not connected within 0 s" in done.stderr


@pytest.mark.parametrize(
    "start", [[TUNNEL], ["-m", "qanat"], ["-c", "import sys; from qanat.cli.main import main; sys.exit(main())"]]
)
def test_ctrl_c_while_modules_are_loaded_ends_it_without_a_traceback(start: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", *start, "demo"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stderr is not None
        assert any("qanat.base.errors" in line for line in process.stderr)  # by the first module that main needs
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert "Traceback" not in rest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_good_end(number: signal.Signals, pair: Pair, server: Qanat) -> None:
    with pair.client() as client:
        client.wait_until_ready()
        assert client.stop(number) == 0
    assert server.stop(number) == 0


def test_a_client_that_never_connected_stops_too(pair: Pair) -> None:
    with pair.client() as client:
        client.wait_for_output("cannot connect")
        assert client.notifications.wait(client.process.pid) == "READY=1"
        assert client.notifications.wait_for_status(client.process.pid, "trying again in ")
        assert client.notifications.silent
        assert run_qanat("wait", "-c", pair.client_yaml, "--timeout", "0.1").returncode == 1
        assert client.stop() == 0


def test_a_second_signal_does_not_wait_for_open_streams(guest: Pair) -> None:
    guest.client_yaml.write_text(guest.client_yaml.read_text() + "  drain: 300\n")
    with guest.client("-v") as client:
        client.wait_until_ready()
        with socket.create_connection(("127.0.0.1", guest.forward_port), timeout=20) as stream:
            stream.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
            client.wait_for_output("ACCEPT")
            client.process.terminate()
            client.wait_until_stopping()
            threading.Event().wait(2 * REPEATED)
            assert client.stop() == 128 + signal.SIGTERM


def test_the_same_signal_twice_at_once_is_one(guest: Pair) -> None:
    """timeout(1) sends its own to the child, and then to the group that both are in."""
    with guest.client() as client:
        client.wait_until_ready()
        client.process.terminate()
        client.wait_until_stopping()
        assert client.stop() == 0
        assert "stopped" in client.output


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_it_serves_though_the_caller_has_closed_its_standard_streams(pair: Pair, closed: str) -> None:
    notifications = NotifySocket(pair.directory / "notify-closed")
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, TUNNEL, "server", "-c", pair.server_yaml],
        env={**os.environ, "NOTIFY_SOCKET": str(notifications.path)},
    )
    try:
        assert notifications.wait(process.pid) == "READY=1"
        streams = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
        assert streams[2] == "/dev/null"
        assert not any("socket" in stream for stream in streams)
        process.terminate()
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        notifications.close()


def test_a_refusal_is_not_announced_as_another_try(guest: Pair) -> None:
    guest.written.token_file.write_text(generate_token() + "\n")
    done = run_qanat("client", "-c", guest.client_yaml)
    assert done.returncode == 3
    assert "trying again" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])  # Python writes at its end what it could not write before
def test_a_refusal_that_cannot_be_written_is_the_same_exit_code(guest: Pair, unbuffered: str) -> None:
    guest.written.token_file.write_text(generate_token() + "\n")
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        for arguments, code in (["client", "-c", guest.client_yaml], 3), (["no-such-command"], 2):
            command = [sys.executable, TUNNEL, *arguments]
            assert subprocess.run(command, stderr=full, env=environment, timeout=SECONDS).returncode == code


def test_a_log_that_cannot_be_written_changes_no_exit_code(pair: Pair) -> None:
    notifications = NotifySocket(pair.directory / "notify-full")
    environment = {**os.environ, "NOTIFY_SOCKET": str(notifications.path), "PYTHONUNBUFFERED": ""}
    command = [sys.executable, TUNNEL, "server", "-c", pair.server_yaml]
    with open("/dev/full", "w") as full, subprocess.Popen(command, stderr=full, env=environment) as process:
        try:
            assert notifications.wait(process.pid) == "READY=1"
            process.terminate()
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
            notifications.close()


def test_what_was_started_in_a_terminal_ends_with_it(pair: Pair) -> None:
    master, terminal = os.openpty()

    def own_the_terminal() -> None:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    notifications = NotifySocket(pair.directory / "notify-terminal")
    process = subprocess.Popen(
        [sys.executable, TUNNEL, "server", "-c", pair.server_yaml],
        env={**os.environ, "NOTIFY_SOCKET": str(notifications.path)},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=own_the_terminal,
    )
    os.close(terminal)
    try:
        assert notifications.wait(process.pid) == "READY=1"
        os.close(master)  # the window is closed
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        notifications.close()


# --- failing --------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_clear_message_and_exit_code_1(guest: Pair) -> None:
    done = run_qanat("server", "-c", guest.server_yaml)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"qanat: error: cannot listen on 127.0.0.1:{guest.port}" in done.stderr
    assert "hint: " in done.stderr


def test_a_local_forward_on_a_port_in_use_likewise_with_exit_on_forward_failure(pair: Pair) -> None:
    pair.client_yaml.write_text(pair.client_yaml.read_text() + "  exit_on_forward_failure: true\n")
    with socket.create_server(("127.0.0.1", pair.forward_port)):
        done = run_qanat("client", "-c", pair.client_yaml)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"127.0.0.1:{pair.forward_port}" in done.stderr


def test_a_wrong_token_is_exit_code_3(guest: Pair) -> None:
    wrong = generate_token()
    guest.written.token_file.write_text(wrong + "\n")
    done = run_qanat("client", "-c", guest.client_yaml)
    assert done.returncode == 3
    assert "qanat: error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert wrong not in done.stderr


def test_another_server_than_the_pinned_one_is_exit_code_3(guest: Pair, tmp_path: Path) -> None:
    other = write_files(tmp_path / "other", name="client", url=None, listen="127.0.0.1:8443")
    guest.client_yaml.write_text(guest.client_yaml.read_text().replace(guest.written.fingerprint, other.fingerprint))
    done = run_qanat("client", "-c", guest.client_yaml)
    assert done.returncode == 3
    assert guest.written.fingerprint in done.stderr


# --- one at a time --------------------------------------------------------------------------------


def test_a_locked_client_leaves_at_once_and_in_silence(guest: Pair) -> None:
    lock = guest.directory / "lock"
    with guest.client("--lock", lock) as client:
        client.wait_until_ready()
        done = run_qanat("client", "-c", "not even there.yaml", "--lock", lock)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        client.process.kill()
        client.end()
    with guest.client("--lock", lock) as client:
        client.wait_until_ready()


def test_a_live_pid_file_is_refused_and_a_dead_one_replaced(guest: Pair) -> None:
    pid_file = guest.directory / "client.pid"
    with guest.client("--pid-file", pid_file) as client:
        client.wait_until_ready()
        assert pid_file.read_text() == f"{client.process.pid}\n"
        done = run_qanat("client", "-c", guest.client_yaml, "--pid-file", pid_file)
        assert done.returncode == 2
        assert f"already running as process {client.process.pid}" in done.stderr
        client.process.kill()
        client.end()
    with guest.client("--pid-file", pid_file) as client:
        client.wait_until_ready()
        assert pid_file.read_text() == f"{client.process.pid}\n"
        assert client.stop() == 0
        assert not pid_file.exists()


# --- logs -----------------------------------------------------------------------------------------


def test_json_logs_are_json_to_the_last_line_of_a_failure(guest: Pair) -> None:
    guest.written.token_file.write_text(generate_token() + "\n")
    done = run_qanat("client", "-c", guest.client_yaml, "--log-format", "json")
    assert done.returncode == 3
    last = [json.loads(line) for line in done.stderr.splitlines()][-1]
    assert (last["event"], last["exit_code"], last["level"]) == ("failed", 3, "error")


def test_a_moved_log_file_is_followed_on_sighup(pair: Pair) -> None:
    log = pair.directory / "server.log"
    with pair.server("--log-file", log) as server:
        server.wait_until_ready()
        log.rename(pair.directory / "server.log.1")
        server.process.send_signal(signal.SIGHUP)
        with pair.client() as client:
            client.wait_until_ready()
            assert client.stop() == 0
        assert server.stop() == 0
        assert "client connected" in log.read_text()
        assert "fingerprint" in (pair.directory / "server.log.1").read_text()


def test_a_failure_is_in_the_log_file_and_on_stderr(guest: Pair) -> None:
    log = guest.directory / "second.log"
    done = run_qanat("server", "-c", guest.server_yaml, "--log-file", log)
    assert done.returncode == 1
    assert "cannot listen" in log.read_text()
    assert "qanat: error: cannot listen" in done.stderr


def test_nobody_logs_the_token_not_even_when_told_to_log_everything(pair: Pair) -> None:
    secret = pair.written.token_file.read_text().strip()
    with pair.server("-v") as server, pair.client("-v") as client:
        server.wait_until_ready()
        client.wait_until_ready()
        pair.fetch()
        assert (client.stop(), server.stop()) == (0, 0)
        logs = server.output + client.output
        assert "debug" in logs
        assert secret not in logs
        assert "PRIVATE KEY" not in logs


# --- from a URL -----------------------------------------------------------------------------------


@pytest.mark.parametrize("state_directory", [True, False])
def test_a_url_and_ssh_options_are_enough(state_directory: bool, guest: Pair) -> None:
    home = guest.directory / "home"
    state = guest.directory / "state" if state_directory else home / ".local" / "state" / "qanat"
    home.mkdir()
    port = unused_port()
    with Qanat(
        "client",
        f"ws://client@127.0.0.1:{guest.port}/tunnel",
        "-L",
        f"{port}:127.0.0.1:{guest.port}",
        directory=guest.directory,
        QANAT_TOKEN=guest.written.token_file.read_text().strip(),
        HOME=home,
        STATE_DIRECTORY=state if state_directory else None,
    ) as client:
        client.wait_until_ready()
        assert b"ok" in guest.fetch(port)
        assert client.stop() == 0
    assert guest.written.fingerprint in (state / "known_hosts").read_text()


def test_the_token_file_gives_token_and_name(guest: Pair) -> None:
    port = unused_port()
    with Qanat(
        "client",
        f"ws://127.0.0.1:{guest.port}/tunnel",
        "--token-file",
        guest.written.token_file,
        "--fingerprint",
        guest.written.fingerprint,
        "-L",
        f"127.0.0.1:{port}:127.0.0.1:{guest.port}",
        directory=guest.directory,
        HOME=guest.directory,
    ) as client:
        client.wait_until_ready()
        assert b"ok" in guest.fetch(port)


def test_a_key_that_could_not_be_kept_ends_the_client_before_it_dials(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file, so that nothing can be made below it")
    done = run_qanat(
        "client", "ws://127.0.0.1:1/tunnel", cwd=tmp_path, HOME=tmp_path / "home", QANAT_TOKEN=generate_token()
    )
    assert done.returncode == 2
    assert "cannot connect" not in done.stderr
    assert "or pin server_fingerprint (--fingerprint)" in done.stderr
