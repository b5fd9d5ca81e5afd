"""Promises of `bench`: it measures a live tunnel and disturbs nobody, and says clearly why it could not."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.errors import QanatError, RefusedError
from qanat.cli import bench
from qanat.cli.main import FAILED, INTERRUPTED, USAGE, main
from qanat.client import measuring
from qanat.client.client import Client
from qanat.client.measuring import measuring_session
from qanat.config.client_settings import ClientSettings, RemoteServer
from qanat.config.forward_settings import Forward
from qanat.config.server_settings import ClientAccount, ServerSettings
from qanat.handshake.hello import Parameters
from qanat.handshake.tokens import format_token
from qanat.measure import near_end
from qanat.measure.near_end import CutShort, MeasuredStep
from qanat.server.server import Server
from qanat.session.messages import Measurement
from tests.support.applications import Target, echo
from tests.support.background import wait_until
from tests.support.harness import Relay
from tests.support.machine.processes import ROOT, SECONDS, run_qanat

TOKEN = os.urandom(32)


@dataclass(frozen=True, slots=True)
class Live:
    """A server, a client that is connected to it, and a program's connection through both."""

    server: Server
    client: Client
    application: socket.socket
    directory: Path

    @property
    def settings(self) -> ClientSettings:
        """Those of a measurement: the client's without its forwards."""
        return replace(self.client.settings, forwards=())

    @property
    def url(self) -> str:
        return self.client.settings.servers[0].urls[0]

    @property
    def flags(self) -> list[object]:
        """What a command line needs beside the URL."""
        fingerprint = self.server.identity.fingerprint
        return ["--name", "a", "--token-file", self.directory / "a.token", "--fingerprint", fingerprint]

    def exchange(self, text: bytes) -> None:
        """Send `text` through the client's forward, and see it come back."""
        self.application.sendall(text)
        missing = text
        while missing:
            data = self.application.recv(len(missing))
            assert data
            assert missing.startswith(data)
            missing = missing[len(data) :]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    directory = tmp_path_factory.mktemp("bench")
    (directory / "a.token").touch(mode=0o600)
    (directory / "a.token").write_text(format_token(TOKEN))
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        server = Server(
            ServerSettings(
                clients=(ClientAccount("a", (TOKEN,), allow_connect=("127.0.0.1:*",)), ClientAccount("idle", (TOKEN,))),
                listen=(("127.0.0.1", 0),),
                identity=directory / "server.key",
                node="the-server",
                drain=0.2,
            )
        )
        server.start()
        stack.callback(server.stop)
        url = f"ws://127.0.0.1:{server.addresses[0][1]}/tunnel"
        remote = RemoteServer((url,), TOKEN, server.identity.fingerprint)
        forward = Forward("local", TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", target.port))
        client = Client(ClientSettings("a", (remote,), (forward,), state_dir=directory, drain=0.2, proxy=None))
        client.start()
        stack.callback(client.stop)
        application = stack.enter_context(socket.create_connection(("127.0.0.1", client.local_ports[0]), SECONDS))
        running = Live(server, client, application, directory)
        running.exchange(b"it is up")
        # Both watchers run before the first test, whose threads are counted.
        wait_until(lambda: sum(thread.name == "watcher" for thread in threading.enumerate()) == 2, "two watchers")
        yield running


@pytest.fixture
def undisturbed(live: Live) -> Iterator[int]:
    """While a test runs, the running client's connection is in use; none of it may be lost, nor its session."""
    session, over, exchanges = live.client.servers[0].session, threading.Event(), 0
    failures: list[BaseException] = []

    def exchange_loop() -> None:
        nonlocal exchanges
        try:
            while not over.wait(0.01):
                live.exchange(b"%d, and so on" % exchanges)
                exchanges += 1
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=exchange_loop)
    thread.start()
    yield 0
    over.set()
    thread.join(SECONDS)
    assert not failures
    assert exchanges > 0
    assert live.client.servers[0].session is session
    live.exchange(b"and still")
    wait_until(lambda: len(live.server.registry.sessions) == 1, "the measurement is over at the server")


def measure(settings: ClientSettings, load: Measurement | None, seconds: float = 0.3) -> MeasuredStep:
    with measuring_session(settings) as session, MeasuredStep(load, session.open) as measured:
        looks: list[float] = []
        measured.run(seconds, looks.append, lambda: None)
        assert looks == sorted(looks)
        assert looks[-1] == 1.0
    return measured


def test_json_is_one_object_with_figures_of_each_step(live: Live, undisturbed: int) -> None:
    done = run_qanat("bench", live.url, *live.flags, "--seconds", "0.3", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["version"], found["complete"], found["seconds"]) == (1, True, 0.3)
    assert (found["client"], found["url"], found["transport"]) == ("a", live.url, "websocket")
    assert found["server"]["node"] == "the-server"
    for name in ("download", "upload"):
        assert found[name]["throughput"]["bytes"] > 0
        assert found[name]["throughput"]["median_bit_s"] >= 0
    for latency in (found["idle"], found["download"]["latency"], found["upload"]["latency"]):
        assert latency["count"] > 0
        assert 0 < latency["min_ms"] <= latency["median_ms"] <= latency["p90_ms"] <= latency["p99_ms"]
        assert latency["p99_ms"] <= latency["max_ms"]
    assert done.stderr.splitlines() == [f"measuring {step} for 0.3 s" for step in ("idle", "download", "upload")]


@pytest.mark.parametrize("transport", ["http2", "grpc", "websocket-h2"])
@pytest.mark.parametrize("load", [Measurement.SOURCE, Measurement.SINK])
def test_it_measures_over_each_transport(live: Live, undisturbed: int, transport: str, load: Measurement) -> None:
    step = measure(replace(live.settings, transports=(transport,)), load).step
    assert step.latency is not None
    assert step.throughput is not None
    assert step.throughput.received > 0
    assert step.throughput.received == step.marks[-1].received


def test_a_second_measurement_at_once_is_refused_and_the_first_goes_on(live: Live, undisturbed: int) -> None:
    with measuring_session(live.settings) as session, MeasuredStep(None, session.open) as measured:
        with pytest.raises(QanatError, match="a is being measured already"), measuring_session(live.settings):
            pass
        measured.run(0.1, lambda done: None, lambda: None)
        assert measured.step.latency is not None


def test_a_server_with_bench_false_says_so(live: Live, undisturbed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live.server, "settings", replace(live.server.settings, bench=False))
    with (
        pytest.raises(QanatError, match=r"the-server lets nobody measure \(bench: false"),
        measuring_session(live.settings),
    ):
        pass


@pytest.mark.parametrize("name", ["a", "idle"])
def test_a_server_that_does_not_know_it_is_called_too_old(
    live: Live, undisturbed: int, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also where it takes the measurement for a session like any other, since no client of that name runs."""
    read = Parameters.read
    monkeypatch.setattr(Parameters, "read", lambda reader: replace(read(reader), measure=0))
    with (
        pytest.raises(RefusedError, match="too old to be measured") as caught,
        measuring_session(replace(live.settings, name=name)),
    ):
        pass
    assert "upgrade the server" in caught.value.hint


def run_here(
    monkeypatch: pytest.MonkeyPatch, arguments: list[object], at_download: Callable[[], None], seconds: float
) -> int:
    """Run `bench` in this process; call `at_download` when that step has begun.  Returns the exit code."""
    show = bench._Progress.show

    def look(progress: bench._Progress, step: str, done: float) -> None:
        show(progress, step, done)
        if step == "download":
            at_download()

    monkeypatch.setattr(bench._Progress, "show", look)
    monkeypatch.setattr(bench, "setup_logging", lambda settings: None)
    return main(["bench", *map(str, arguments), "--seconds", str(seconds)])


def test_a_connection_that_is_lost_in_the_middle_is_a_clear_error(
    live: Live, undisturbed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Relay(live.server.addresses[0][1]) as relay:
        url = f"ws://127.0.0.1:{relay.port}/tunnel"
        assert run_here(monkeypatch, [url, *live.flags, "--json"], relay.cut, 0.3) == FAILED
    said = capsys.readouterr()
    assert "qanat: error: the download step was cut short: the connection was lost: " in said.err
    assert "hint: " in said.err
    found = json.loads(said.out)
    assert (found["complete"], found["upload"]) == (False, None)
    assert found["idle"]["count"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_print_what_there_is(
    live: Live,
    undisturbed: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    code = run_here(monkeypatch, [live.url, *live.flags], lambda: signal.raise_signal(number), 0.3)
    assert code == INTERRUPTED
    assert signal.getsignal(signal.SIGTERM) == before
    said = capsys.readouterr()
    assert "error" not in said.err
    assert said.out.startswith(f"a to {live.url} over websocket\n")
    assert "\nidle " in said.out
    assert "cut short" in said.out
    assert "upload" not in said.out


@pytest.mark.parametrize(
    ("environment", "carried"),
    [
        ({"LC_ALL": "C"}, "False"),
        ({}, "False"),
        ({"LC_ALL": "C.UTF-8"}, "True"),
        ({"LC_CTYPE": "C.UTF-8"}, "True"),
        ({"LC_ALL": "C", "PYTHONUTF8": "1"}, "True"),
    ],
)
def test_plots_are_ascii_where_the_locale_is(environment: dict[str, str], carried: str) -> None:
    """Though Python itself would write UTF-8 there."""
    code = "import sys; from qanat.cli.bench import carries_unicode; print(carries_unicode(sys.stdout))"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == carried


def test_a_stream_that_ends_too_early_is_cut_short() -> None:
    def open_stream(what: Measurement) -> socket.socket:
        ours, far = socket.socketpair()
        far.close()
        return ours

    with pytest.raises(CutShort), MeasuredStep(None, open_stream) as measured:
        measured.run(60, lambda done: None, lambda: None)


def test_a_path_that_is_too_slow_is_not_called_a_lost_connection(
    live: Live, undisturbed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The relay stops in the download's time, so what is under way does not come; nothing is cut."""
    monkeypatch.setattr(near_end, "WAITS", 0.1)
    monkeypatch.setattr(near_end, "END", 0.5)
    monkeypatch.setattr(measuring, "JOIN_TIMEOUT", 0.1)
    with Relay(live.server.addresses[0][1]) as relay:
        url = f"ws://127.0.0.1:{relay.port}/tunnel"
        assert run_here(monkeypatch, [url, *live.flags], relay.fall_silent, 0.2) == FAILED
    said = capsys.readouterr()
    assert "waiting for what is under way of download" in said.err
    assert "the path is too slow" in said.err
    assert "connection was lost" not in said.err
    assert "the server's log" not in said.err
    assert "\nidle " in said.out


@pytest.mark.parametrize("forward", ["-L", "-R", "-D", "--udp", "--publish"])
def test_no_forward_is_taken_and_ignored(forward: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "wss://x.example/tunnel", forward, "1"])
    assert ended.value.code == USAGE
    assert forward in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either -c FILE or a URL"),
        (["wss://x.example/tunnel", "--seconds", "0"], "--seconds must be 0.1 to 120"),
        (["wss://x.example/tunnel", "--seconds", "nan"], "--seconds must be 0.1 to 120"),
        (["-c", "client.yaml", "--name", "b"], "--name goes with a URL"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == USAGE
    assert said in capsys.readouterr().err
