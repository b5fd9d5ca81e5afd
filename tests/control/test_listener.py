"""The control socket: lines of JSON, one command a connection, whoever asks and however badly."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qanat.base.errors import QanatError, UsageError
from qanat.base.watcher import Watcher
from qanat.control.asking import ControlFault, ControlUsage, NotRunning, ask
from qanat.control.commands import Answer, Commands, Request
from qanat.control.listener import MAX_CONNECTIONS, ControlSocket
from qanat.control.paths import connect_to
from qanat.control.running import find_running
from tests.support.background import DEADLINE, Background

LARGE = 3_000_000


@pytest.fixture
def path() -> Iterator[Path]:
    """The path of a control socket that answers."""
    directory = Path(tempfile.mkdtemp(prefix="q-"))
    watcher, commands = Watcher(), Commands()

    def fail(request: Request) -> Answer:
        raise QanatError("it cannot be done", hint="try something else")

    def refuse(request: Request) -> Answer:
        return {"said": request.text("word")}

    def break_down(request: Request) -> Answer:
        raise RuntimeError("a fault")

    commands.register("fail", fail)
    commands.register("echo", refuse)
    commands.register("break", break_down)
    commands.register("large", lambda request: {"text": "x" * LARGE})
    control = ControlSocket(directory / "a-00000000.sock", watcher, commands)
    assert control.start()
    yield directory / "a-00000000.sock"
    control.close()
    watcher.close()
    assert not list(directory.iterdir())
    shutil.rmtree(directory)


def test_only_its_owner_can_open_it(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_command_is_answered(path: Path) -> None:
    assert ask(path, "echo", word="hello") == {"version": 1, "ok": True, "said": "hello"}
    assert "echo" in ask(path, "commands")["commands"]


def test_an_answer_may_be_large(path: Path) -> None:
    assert len(ask(path, "large")["text"]) == LARGE


def test_what_a_command_refuses_comes_back_with_what_to_do(path: Path) -> None:
    with pytest.raises(ControlFault, match="cannot be done") as failed:
        ask(path, "fail")
    assert failed.value.hint == "try something else"
    with pytest.raises(ControlUsage, match="`word` must be a text"):
        ask(path, "echo", word=7)
    with pytest.raises(UsageError, match="not known") as unknown:
        ask(path, "dance")
    assert "echo" in unknown.value.hint


def test_a_fault_of_a_command_is_its_answer_and_nobody_elses(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ControlFault, match="a fault of this program"):
        ask(path, "break")
    assert "RuntimeError" in caplog.text
    assert ask(path, "echo", word="still here")["ok"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"status\n", "no JSON object"),
        (b"[1]\n", "no JSON object"),
        (b"[" * 4000 + b"\n", "no JSON object"),
        (b'{"version": 2, "command": "echo"}\n', "only version 1"),
        (b"x" * 5000, "one line"),
        (b'{"version": 1, "command": "echo", "word": 7}\n', "must be a text"),
    ],
    ids=["a word", "a list", "deep", "another version", "a long line", "another type"],
)
def test_what_is_not_understood_is_refused(path: Path, line: bytes, said: str) -> None:
    sock = connect_to(path)
    assert sock is not None
    with sock, sock.makefile("rb") as lines:
        sock.settimeout(DEADLINE)
        sock.sendall(line)
        answer = json.loads(lines.readline())
    assert answer["ok"] is False
    assert said in answer["error"]
    assert answer["hint"]


def test_the_end_of_what_is_asked_is_the_end_of_its_line(path: Path) -> None:
    sock = connect_to(path)
    assert sock is not None
    with sock, sock.makefile("rb") as lines:
        sock.settimeout(DEADLINE)
        sock.sendall(b'{"version": 1, "command": "echo", "word": "hello"}')
        sock.shutdown(socket.SHUT_WR)
        assert json.loads(lines.readline())["said"] == "hello"


def test_whoever_does_not_read_his_answer_keeps_nobody_waiting(path: Path) -> None:
    sock = connect_to(path)
    assert sock is not None
    with sock:
        sock.sendall(b'{"version": 1, "command": "large"}\n')
        assert ask(path, "echo", word="meanwhile")["ok"]


def test_many_ask_at_once(path: Path) -> None:
    asking = [Background(lambda n=n: ask(path, "echo", word=str(n))["said"]) for n in range(20)]  # type: ignore[misc]
    assert [each.result() for each in asking] == [str(n) for n in range(20)]


def test_whoever_asks_nothing_gives_way(path: Path) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            sock = connect_to(path)
            assert sock is not None
            stack.enter_context(sock).sendall(b"{")
        assert ask(path, "echo", word="still")["said"] == "still"


def test_a_socket_that_nobody_listens_on_says_so(path: Path) -> None:
    left = path.with_name("b-00000000.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left))
    with pytest.raises(NotRunning):
        ask(left, "status")
    left.unlink()


def test_one_that_stops_leaves_its_path_and_still_says_how_it_is(path: Path) -> None:
    successor, former = path.with_name("b-00000000.sock"), path.with_name("b-00000000.stopping-1.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(former))
    watcher, commands = Watcher(), Commands()
    commands.register("change", lambda request: {})
    stopping, next_one = (ControlSocket(successor, watcher, commands) for _ in range(2))
    try:
        assert stopping.start()
        assert not former.exists()
        assert not next_one.start()
        commands.stopping = True
        stopping.give_way()
        assert next_one.start()
        beside = path.with_name(f"b-00000000.stopping-{os.getpid()}.sock")
        found = [one.path for one in find_running({"STATE_DIRECTORY": str(path.parent)})]
        assert found.index(successor) < found.index(beside)
        assert ask(beside, "commands")["ok"]
        with pytest.raises(ControlFault, match="is stopping"):
            ask(beside, "change")
    finally:
        stopping.close()
        next_one.close()
        watcher.close()


def test_a_process_is_found_by_the_directory_of_its_state(path: Path) -> None:
    found = find_running({"STATE_DIRECTORY": str(path.parent), "XDG_STATE_HOME": "/nonexistent"})
    assert path in [one.path for one in found]
    assert os.geteuid() == path.stat().st_uid
