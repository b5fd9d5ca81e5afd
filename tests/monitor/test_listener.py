"""Promises of the monitoring listener: it answers those who may ask, and strangers cost it nothing."""

from __future__ import annotations

import base64
import contextlib
import os
import queue
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qanat.base.errors import BindError
from qanat.base.request_head import RequestHead
from qanat.base.watcher import Watcher
from qanat.config.settings import MonitorSettings
from qanat.monitor import listener as listener_module
from qanat.monitor.http import EventStream, Response
from qanat.monitor.listener import MonitorListener
from tests.support.machine.programs import require_program

SECONDS = 30.0
TOKEN = "a token of the metrics"
BIG = 64 << 20


class Rig:
    """A listener with a few paths, and whoever asks it."""

    def __init__(self, watcher: Watcher, settings: MonitorSettings) -> None:
        self.streams: queue.SimpleQueue[EventStream] = queue.SimpleQueue()
        self.asked = threading.Semaphore(0)
        self.go_on = threading.Event()
        routes = {
            "/": lambda head: Response(b"hello " + head.query.encode()),
            "/big": lambda _: Response(bytes(BIG)),
            "/broken": self._break,
            "/blocked": self._block,
            "/events": lambda _: Response(content_type="text/event-stream", stream=self.streams.put),
        }
        self.listener = MonitorListener(settings, routes, watcher)
        self.listener.start()

    def _break(self, _: RequestHead) -> Response:
        raise RuntimeError("a bug")

    def _block(self, _: RequestHead) -> Response:
        self.asked.release()
        self.go_on.wait(SECONDS)
        return Response(b"at last")

    def connect(self) -> socket.socket:
        where = self.listener.address
        if where.startswith("/"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(SECONDS)
            sock.connect(where)
            return sock
        return socket.create_connection(("127.0.0.1", int(where.rpartition(":")[2])), timeout=SECONDS)

    def ask(self, path: str = "/", *headers: str, method: str = "GET", host: str = "127.0.0.1:9480") -> tuple[int, str]:
        """Status and all of the answer."""
        lines = [f"{method} {path} HTTP/1.1", *([f"Host: {host}"] if host else []), *headers, "", ""]
        with self.connect() as sock:
            sock.sendall("\r\n".join(lines).encode("latin-1"))
            answer = read_all(sock).decode("latin-1")
        return int(answer.split(" ")[1]), answer


def read_all(sock: socket.socket) -> bytes:
    found = bytearray()
    while data := sock.recv(65536):
        found += data
    return bytes(found)


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.close()


@contextlib.contextmanager
def listening(watcher: Watcher, settings: MonitorSettings) -> Iterator[Rig]:
    rig = Rig(watcher, settings)
    try:
        yield rig
    finally:
        rig.go_on.set()
        assert rig.listener.close(SECONDS) == []


@pytest.fixture
def rig(watcher: Watcher) -> Iterator[Rig]:
    with listening(watcher, MonitorSettings("127.0.0.1:0")) as rig:
        yield rig


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


def test_a_path_is_answered_and_the_connection_ends(rig: Rig) -> None:
    status, answer = rig.ask("/?a=b")
    assert status == 200
    assert answer.endswith("\r\n\r\nhello a=b")
    assert "Connection: close" in answer
    assert "Access-Control" not in answer
    for guard in (
        "nosniff",
        "Cross-Origin-Resource-Policy: same-origin",
        "X-Frame-Options: DENY",
        "default-src 'none'",
    ):
        assert guard in answer


def test_curl_reads_it(rig: Rig) -> None:
    curl = require_program("curl")
    output = subprocess.check_output([curl, "-sSf", "--noproxy", "*", f"http://{rig.listener.address}/?x"], timeout=60)
    assert output == b"hello x"


def test_a_head_request_has_no_body_and_nothing_can_be_changed(rig: Rig) -> None:
    assert rig.ask(method="HEAD")[1].endswith("\r\n\r\n")
    assert rig.ask(method="POST")[0] == 405
    assert rig.ask("/", "Content-Length: 5")[0] == 413


def test_an_unknown_path_says_what_there_is(rig: Rig) -> None:
    status, answer = rig.ask("/nothing")
    assert status == 404
    assert "/events" in answer


def test_a_handler_that_fails_fails_alone(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    assert rig.ask("/broken")[0] == 500
    assert "could not be made" in caplog.text
    assert rig.ask()[0] == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "localhost.", "127.0.0.1", "127.8.8.8:80", "[::1]:9480"])
def test_loopback_is_asked_by_its_own_names(rig: Rig, host: str) -> None:
    assert rig.ask(host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9480", "192.0.2.1", "localhost.evil.example", "[::2]"])
def test_a_name_that_was_rebound_to_loopback_gets_nothing(rig: Rig, host: str) -> None:
    status, answer = rig.ask(host=host)
    assert status == 421
    assert "hello" not in answer


@pytest.mark.parametrize(
    "headers",
    [
        ("Origin: https://evil.example",),
        ("Origin: null",),
        ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors"),
        ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"),
        ("Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: cors"),
        ("Sec-Fetch-Site: same-origin", "Origin: http://127.0.0.1:9999"),
    ],
)
def test_another_sites_page_reads_nothing(rig: Rig, headers: tuple[str, ...]) -> None:
    assert rig.ask("/", *headers)[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"),
        ("Sec-Fetch-Site: same-origin", "Origin: http://127.0.0.1:9480"),
        ("Sec-Fetch-Site: none",),
    ],
)
def test_a_link_and_its_own_page_do(rig: Rig, headers: tuple[str, ...]) -> None:
    assert rig.ask("/", *headers)[0] == 200


def test_with_a_token_nobody_else_gets_in(watcher: Watcher, token_file: Path) -> None:
    def basic(text: str) -> str:
        return f"Authorization: Basic {base64.b64encode(text.encode()).decode()}"

    with listening(watcher, MonitorSettings("127.0.0.1:0", token_file)) as rig:
        assert rig.ask("/", f"Authorization: Bearer {TOKEN}", host="metrics.example.com")[0] == 200
        assert rig.ask("/", basic(f"anybody:{TOKEN}"))[0] == 200
        for wrong in (
            "Accept: */*",
            "Authorization: Bearer",
            f"Authorization: Bearer {TOKEN[:-1]}",
            f"Authorization: Bearer {TOKEN}é",
            f"Authorization: Digest {TOKEN}",
            "Authorization: Basic !!!!",
            basic(TOKEN),
            basic("user:"),
        ):
            status, answer = rig.ask("/", wrong)
            assert status == 401, wrong
            assert 'WWW-Authenticate: Basic realm="qanat"' in answer
        assert rig.ask("/", *[f"Authorization: Bearer {TOKEN}"] * 2)[0] == 401


def test_a_new_token_counts_at_once(watcher: Watcher, token_file: Path) -> None:
    with listening(watcher, MonitorSettings("127.0.0.1:0", token_file)) as rig:
        token_file.write_text("another token, which is new")
        assert rig.ask("/", f"Authorization: Bearer {TOKEN}")[0] == 401
        assert rig.ask("/", "Authorization: Bearer another token, which is new")[0] == 200
        token_file.unlink()
        assert rig.ask("/", "Authorization: Bearer another token, which is new")[0] == 503


def test_a_unix_socket_is_for_those_whom_its_mode_lets_in(watcher: Watcher) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = f"{directory}/m"
        with listening(watcher, MonitorSettings(path, mode="0660")) as rig:
            assert os.stat(path).st_mode & 0o777 == 0o660
            assert rig.ask(host="metrics.example.com")[0] == 200
        assert not os.path.exists(path)


def test_an_address_that_is_taken_is_told(rig: Rig, watcher: Watcher) -> None:
    with pytest.raises(BindError, match="another process has it"):
        MonitorListener(MonitorSettings(rig.listener.address), {}, watcher)


# --- strangers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000, b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600) + b"\r\n\r\n", b"400"),
        (b"\x00" * 100 + b"\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"505"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
    ],
    ids=["huge", "tls", "zeros", "two hosts", "version", "no host"],
)
def test_garbage_is_refused(rig: Rig, sent: bytes, status: bytes) -> None:
    with rig.connect() as sock:
        with contextlib.suppress(OSError):  # reset while there was more to send
            sock.sendall(sent)
        found = b""
        with contextlib.suppress(OSError):
            found = sock.recv(64)
    assert not found or found.split(b" ")[1] == status
    assert rig.ask()[0] == 200


def test_those_who_never_finish_their_request_keep_nobody_out_and_cost_no_thread(rig: Rig) -> None:
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(rig.connect()) for _ in range(2 * listener_module.CONNECTIONS)]
        for sock in slow:
            with contextlib.suppress(OSError):  # the first of them have given way already
                sock.sendall(b"GET / HTT")
        assert rig.ask()[0] == 200
        assert threading.active_count() <= before + 1
        assert read_all(slow[0]) == b""  # the oldest


def test_a_request_that_takes_too_long_is_cut(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "HEAD_SECONDS", 0.2)
    with listening(watcher, MonitorSettings("127.0.0.1:0")) as rig, rig.connect() as one, rig.connect() as other:
        one.sendall(b"GET / HTTP/1.1\r\n")
        assert read_all(one) == b""
        assert read_all(other) == b""


def test_readers_that_do_not_read_keep_nobody_out(rig: Rig) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(2 * listener_module.THREADS):
            sock = stack.enter_context(rig.connect())
            sock.sendall(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert rig.ask()[0] == 200


def test_a_half_closed_request_is_answered_no_more(rig: Rig) -> None:
    with rig.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""


def test_what_asks_at_once_is_answered_by_a_few_threads(rig: Rig) -> None:
    many = 5 * listener_module.THREADS
    results: list[int] = []
    askers = [threading.Thread(target=lambda: results.append(rig.ask("/blocked")[0])) for _ in range(many)]
    for asker in askers:
        asker.start()
    for _ in range(listener_module.THREADS):
        assert rig.asked.acquire(timeout=SECONDS)
    assert not rig.asked.acquire(timeout=0.2)
    rig.go_on.set()
    for asker in askers:
        asker.join(SECONDS)
    assert results == [200] * many


def test_a_stream_goes_on_until_its_reader_goes(rig: Rig) -> None:
    closed = threading.Event()
    with rig.connect() as sock:
        sock.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = sock.recv(4096)
        assert b"text/event-stream" in head
        assert b"Content-Length" not in head
        stream = rig.streams.get(timeout=SECONDS)
        stream.on_close(closed.set)
        assert stream.send(b"data: 1\n\n")
        assert sock.recv(64) == b"data: 1\n\n"
        assert not closed.is_set()
    assert closed.wait(SECONDS)
    assert not stream.send(b"data: 2\n\n")


def test_a_reader_that_does_not_keep_up_is_cut_off(rig: Rig) -> None:
    with rig.connect() as sock:
        sock.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        sock.recv(4096)
        stream, sent = rig.streams.get(timeout=SECONDS), 0
        while stream.send(bytes(1 << 20)):
            sent += 1
            assert sent < 200


def test_streams_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "STREAMS", 1)
    with rig.connect() as first:
        first.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in first.recv(4096)
        assert rig.ask("/events")[0] == 503
