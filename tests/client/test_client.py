"""Promises of the client, tested with servers that pass the handshake and then do as they like."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.errors import EndpointError, QanatError, RefusedError, StreamReset
from qanat.client.client import Client, run_client
from qanat.client.connect import Connector
from qanat.client.forward_shares import ServedForward
from qanat.client.status import is_connected, status_file
from qanat.config.client_settings import ClientSettings, Reconnect, RemoteServer
from qanat.config.forward_settings import Forward
from qanat.config.settings import ApplicationProbes
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Answer, Close, CloseReason, Ready, RecordKind
from qanat.mux.frames import Reason
from qanat.session.messages import Connect, Listen, ListenFailed, Listening, Through, Unlisten, decode_control
from tests.support.applications import RESET, connection, ending_at, ending_of
from tests.support.logs import wait_for_log
from tests.support.machine.ports import unused_port
from tests.support.server.raw_peers import PARAMETERS, SECONDS, Carried, RawServer, welcome

TOKEN = os.urandom(32)
QUICK = Reconnect(first=0.01, min=0.01, max=0.02)
NONSENSE = b"\xff"
"""A control message that ends the session."""
NOWHERE = RemoteServer(("ws://127.0.0.1:1/tunnel",), TOKEN)


class Sessions:
    """What a RawServer does: it welcomes every client, and hands its sessions to the test."""

    def __init__(self) -> None:
        self.began: queue.SimpleQueue[Carried] = queue.SimpleQueue()

    def __call__(self, sealed: SealedPipe) -> None:
        carried = welcome(sealed)
        self.began.put(carried)
        carried.thread.join()

    def next(self) -> Carried:
        return self.began.get(timeout=SECONDS)


def say(kind: RecordKind, content: bytes) -> Callable[[SealedPipe], None]:
    """Behavior: answer HELLO with this record, and wait for the client to go."""

    def behave(sealed: SealedPipe) -> None:
        sealed.recv_record()
        sealed.send_record(bytes((kind,)) + content)
        try:
            sealed.recv_record()
        except QanatError:
            return

    return behave


@contextmanager
def client_of(
    directory: Path, behave: Callable[[SealedPipe], None], *forwards: Forward, pinned: bool = True, **settings: object
) -> Iterator[tuple[Client, RawServer]]:
    """A started client whose server behaves like that."""
    with ExitStack() as stack:
        server = stack.enter_context(RawServer(directory, TOKEN, behave))
        values: dict[str, object] = {"reconnect": QUICK, "drain": 0.2, "state_dir": directory, **settings}
        remote = RemoteServer((server.url,), TOKEN, server.fingerprint if pinned else None)
        client = Client(ClientSettings("a", (remote,), forwards, **values))  # type: ignore[arg-type]
        stack.callback(client.stop)
        client.start()
        yield client, server


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)  # a file has no condition to wait on


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qanat")


# --- what a server may ask for ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        Connect(TcpAddress("127.0.0.1", 22)).encode(),
        Through(1).encode(),
        Through(7).encode(),
        b"\xff",
        b"\x02\0\0\0\0\x01\0" + b"o" * 256,
    ],
    ids=["an address", "a local forward", "no forward", "junk", "a long origin"],
)
def test_a_server_reaches_nothing_but_the_clients_own_remote_forwards(tmp_path: Path, request_bytes: bytes) -> None:
    sessions = Sessions()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        to = TcpAddress("127.0.0.1", listening.getsockname()[1])
        forwards = Forward("remote", TcpAddress("127.0.0.1", 80), to), Forward("local", TcpAddress("127.0.0.1", 0), to)
        with client_of(tmp_path, sessions, *forwards):
            lane = sessions.next().lane
            stream = lane.open_stream(request_bytes)
            with pytest.raises(StreamReset) as caught:
                stream.receive()
            assert caught.value.code == Reason.NOT_ALLOWED
            stream.release()
            assert lane.ping(SECONDS)


def test_local_forwards_have_as_many_streams_as_the_server_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qanat.client.client.CLIENT_STREAMS", 2)
    sessions, port = Sessions(), unused_port()
    forward = Forward("local", TcpAddress("127.0.0.1", port), TcpAddress("127.0.0.1", 80))
    with client_of(tmp_path, sessions, forward) as (client, _), ExitStack() as stack:
        carried = sessions.next()
        wait_until(lambda: client.servers[0].session is not None)
        for _ in range(5):
            stack.enter_context(connection(port))
            assert carried.opened.get(timeout=SECONDS)


def test_a_remote_forwards_stream_reaches_its_target(tmp_path: Path) -> None:
    sessions = Sessions()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        forward = Forward("remote", TcpAddress("127.0.0.1", 80), TcpAddress(*listening.getsockname()[:2]))
        with client_of(tmp_path, sessions, forward):
            stream = sessions.next().lane.open_stream(Through(0, "someone").encode())
            target, _ = listening.accept()
            with target:
                stream.write(b"hello")
                assert target.recv(5) == b"hello"
                stream.reset(Reason.CANCELED, "")
                with pytest.raises(ConnectionResetError):
                    target.recv(1)
            stream.release()


def test_every_remote_forward_is_asked_for_by_its_number(tmp_path: Path) -> None:
    sessions = Sessions()
    forwards = [Forward("remote", TcpAddress("127.0.0.1", port), TcpAddress("localhost", 1)) for port in (8001, 8002)]
    with client_of(tmp_path, sessions, *forwards):
        carried = sessions.next()
        asked = [decode_control(carried.control.get(timeout=SECONDS)) for _ in forwards]
        assert asked == [Listen(0, TcpAddress("127.0.0.1", 8001)), Listen(1, TcpAddress("127.0.0.1", 8002))]


def test_a_server_that_knows_literals_alone_is_asked_for_one(tmp_path: Path) -> None:
    sessions = Sessions()
    with client_of(tmp_path, sessions, Forward("remote", TcpAddress("localhost", 8001), TcpAddress("localhost", 1))):
        carried = sessions.next()
        for host in ("localhost", "127.0.0.1"):
            assert decode_control(carried.control.get(timeout=SECONDS)) == Listen(0, TcpAddress(host, 8001))
            carried.lane.send_control(ListenFailed(0, Reason.NOT_ALLOWED, "").encode())
        assert carried.lane.ping(SECONDS)
        assert carried.control.empty()


@pytest.mark.parametrize(
    "message",
    [
        b"\xff",
        Listen(0, TcpAddress("127.0.0.1", 1)).encode(),
        Unlisten(0).encode(),
        Listening(7, 80).encode(),
        ListenFailed(7, 1, "").encode(),
    ],
    ids=["junk", "LISTEN", "UNLISTEN", "LISTENING for no forward", "LISTEN_FAILED for no forward"],
)
def test_a_control_message_that_no_server_may_send_ends_the_session(tmp_path: Path, message: bytes) -> None:
    sessions = Sessions()
    with client_of(tmp_path, sessions, Forward("remote", TcpAddress("127.0.0.1", 80), TcpAddress("localhost", 1))):
        carried = sessions.next()
        carried.lane.send_control(message)
        carried.end()
        assert sessions.next().lane.ping(SECONDS)


@pytest.mark.parametrize("text", [b"x" * 513, b"caf\xe9"], ids=["too long", "not UTF-8"])
def test_a_reason_that_cannot_be_read_is_a_reason_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: bytes
) -> None:
    sessions = Sessions()
    with client_of(tmp_path, sessions, Forward("remote", TcpAddress("127.0.0.1", 80), TcpAddress("localhost", 1))):
        carried = sessions.next()
        carried.control.get(timeout=SECONDS)
        carried.lane.send_control(ListenFailed(0, Reason.LIMIT, "").encode()[:-2] + len(text).to_bytes(2, "big") + text)
        wait_for_log(caplog, f": {text[:3].decode()}")
        assert carried.lane.ping(SECONDS)


@pytest.mark.parametrize("answer", [Listening(0, 80), ListenFailed(0, Reason.LIMIT, "no")], ids=["yes", "no"])
def test_a_second_answer_to_one_question_ends_the_session(tmp_path: Path, answer: Listening | ListenFailed) -> None:
    """Otherwise a server could start a waiting thread with each."""
    sessions = Sessions()
    with client_of(tmp_path, sessions, Forward("remote", TcpAddress("127.0.0.1", 80), TcpAddress("localhost", 1))):
        carried = sessions.next()
        carried.control.get(timeout=SECONDS)
        carried.lane.send_control(answer.encode())
        assert carried.lane.ping(SECONDS)
        before = threading.active_count()
        for _ in range(100):
            carried.lane.send_control(answer.encode())
        carried.end()
        assert threading.active_count() < before + 20


# --- what a server may answer -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        (RecordKind.READY, b"junk", "cannot connect"),
        (RecordKind.READY, Ready(Answer.EXPIRED, "raw", PARAMETERS).encode(), "answered NEW with something else"),
        (RecordKind.CLOSE, Close(CloseReason.BUSY, "full\n up").encode(), "the server turned us away: full"),
        (RecordKind.CLOSE, Close(CloseReason.NAME_IN_USE, "by b").encode(), "refuses this client's name: by b"),
    ],
    ids=["junk", "an answer to another question", "no room", "the name is in use"],
)
def test_after_an_answer_that_is_no_welcome_it_tries_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: RecordKind, content: bytes, words: str
) -> None:
    with client_of(tmp_path, say(kind, content)) as (client, server):
        for _ in range(3):
            assert server.greeted.acquire(timeout=SECONDS)
        wait_for_log(caplog, words)
        assert client.failure is None
        assert not client.over.is_set()


def test_a_server_that_never_answers_hello_is_left_in_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def silent(sealed: SealedPipe) -> None:
        try:
            while True:
                sealed.recv_record()
        except QanatError:
            return

    with client_of(tmp_path, silent, handshake_timeout=0.3) as (_, server):
        for _ in range(2):
            assert server.greeted.acquire(timeout=SECONDS)
        wait_for_log(caplog, "the handshake went well, but the server has not answered in time")


def test_a_server_with_another_key_than_the_pinned_one_ends_it(tmp_path: Path) -> None:
    wrong = "SHA256:" + "A" * 43
    with RawServer(tmp_path, TOKEN, Sessions()) as server:
        settings = ClientSettings("a", (RemoteServer((server.url,), TOKEN, wrong),), state_dir=tmp_path)
        with pytest.raises(RefusedError, match="is pinned") as caught:
            run_client(settings, threading.Event(), lambda: None)
        assert "with --fingerprint or as server_fingerprint" in caught.value.hint
        assert not server.greeted.acquire(blocking=False)


def test_a_server_is_remembered_once_it_has_welcomed_us(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = tmp_path / "known_hosts"
    with client_of(tmp_path, say(RecordKind.CLOSE, Close(CloseReason.BUSY, "").encode()), pinned=False) as (_, server):
        for _ in range(2):
            assert server.greeted.acquire(timeout=SECONDS)
        assert not known.exists()
    sessions = Sessions()
    with client_of(tmp_path, sessions, pinned=False) as (_, server):
        wait_for_log(caplog, "connected to")
        assert server.fingerprint in known.read_text()


# --- the life of a client ---------------------------------------------------------------------------


def test_ready_is_told_once_and_before_any_connection(tmp_path: Path) -> None:
    told: list[float] = []
    both = threading.Event()
    sessions = Sessions()

    def behave(sealed: SealedPipe) -> None:
        both.wait(SECONDS)
        sessions(sealed)

    def ready() -> None:
        told.append(time.monotonic())
        both.set()

    with RawServer(tmp_path, TOKEN, behave) as server:
        remote = RemoteServer((server.url,), TOKEN, server.fingerprint)
        settings = ClientSettings("a", (remote,), state_dir=tmp_path, reconnect=QUICK)
        stop = threading.Event()
        running = threading.Thread(target=run_client, args=(settings, stop, ready))
        running.start()
        for _ in range(3):
            sessions.next().lane.cut("the test cuts it")
        sessions.next()
        stop.set()
        running.join(SECONDS)
        assert not running.is_alive()
    assert len(told) == 1


def test_who_waits_hears_of_a_connection_as_long_as_its_client_runs(tmp_path: Path) -> None:
    sessions, free = Sessions(), threading.Event()

    def once(sealed: SealedPipe) -> None:
        if not free.is_set():
            free.set()
            sessions(sealed)

    with client_of(tmp_path, once) as (client, _):
        file = status_file(client.settings)
        assert file is not None
        wait_until(lambda: is_connected(file))
        sessions.next().lane.cut("the test cuts it")
        wait_until(lambda: not is_connected(file))
    assert not file.exists()
    file.write_bytes(b"connected \n")
    assert not is_connected(file), "nobody holds it"


def test_several_urls_are_tried_in_turn(tmp_path: Path) -> None:
    sessions = Sessions()
    with RawServer(tmp_path, TOKEN, sessions) as server, socket.create_server(("127.0.0.1", 0)) as unused:
        nobody = f"ws://127.0.0.1:{unused.getsockname()[1]}/tunnel"
        unused.close()
        remote = RemoteServer((nobody, server.url), TOKEN, server.fingerprint)
        settings = ClientSettings("a", (remote,), state_dir=tmp_path, reconnect=QUICK)
        client = Client(settings)
        client.start()
        sessions.next()
        client.stop()


def free_and_taken(stack: ExitStack) -> tuple[int, list[socket.socket]]:
    taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1], taken


def local(port: int) -> Forward:
    return Forward("local", TcpAddress("127.0.0.1", port), TcpAddress("db.internal", 5432))


def test_exit_on_forward_failure_names_every_address_in_use_and_leaves_nothing_bound(tmp_path: Path) -> None:
    with ExitStack() as stack:
        free, taken = free_and_taken(stack)
        ports = [sock.getsockname()[1] for sock in taken]
        forwards = (local(free), *map(local, ports))
        settings = ClientSettings("a", (NOWHERE,), forwards, state_dir=tmp_path, exit_on_forward_failure=True)
        with pytest.raises(EndpointError, match="Address already in use") as caught:
            Client(settings).start()
        for port in ports:
            assert f"cannot listen on 127.0.0.1:{port}" in caught.value.message
        socket.create_server(("127.0.0.1", free)).close()


def remote(port: int) -> Forward:
    return Forward("remote", TcpAddress("127.0.0.1", port), TcpAddress("127.0.0.1", 1))


def test_exit_on_forward_failure_names_every_remote_forward_that_a_server_cannot_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = Sessions()
    with RawServer(tmp_path, TOKEN, sessions) as server:
        forwards = tuple(map(remote, (8001, 8002, 8003)))
        servers = (RemoteServer((server.url,), TOKEN, server.fingerprint),)
        settings = ClientSettings("a", servers, forwards, state_dir=tmp_path, exit_on_forward_failure=True)
        ended: queue.SimpleQueue[object] = queue.SimpleQueue()

        def run() -> None:
            with pytest.raises(EndpointError) as caught:
                run_client(settings, threading.Event(), lambda: None)
            ended.put(caught.value)

        thread = threading.Thread(target=run)
        thread.start()
        lane = sessions.next().lane
        for answer in (
            ListenFailed(0, Reason.LIMIT, "in use"),
            Listening(1, 8002),
            ListenFailed(2, Reason.NOT_ALLOWED, "no rule"),
        ):
            assert ended.empty()  # the other answers may name more
            lane.send_control(answer.encode())
        error = ended.get(timeout=SECONDS)
        thread.join()
    assert isinstance(error, EndpointError)
    assert "remote 127.0.0.1:8001" in error.message
    assert ": in use; the server cannot listen for remote 127.0.0.1:8003" in error.message
    assert "limit" not in error.message  # LIMIT is also what a taken port is
    assert "8002" not in error.message
    assert "stop what holds that port" in error.hint
    assert "asking again" not in caplog.text


def test_a_remote_forward_that_has_listened_once_may_fail_later_and_is_asked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = Sessions()
    with client_of(tmp_path, sessions, remote(8001), exit_on_forward_failure=True) as (client, _):
        first = sessions.next()
        first.lane.send_control(Listening(0, 8001).encode())
        assert first.lane.ping(SECONDS)
        first.lane.send_control(NONSENSE)
        first.end()
        sessions.next().lane.send_control(ListenFailed(0, Reason.LIMIT, "in use").encode())
        wait_for_log(caplog, "); asking again in 10 s")
        assert client.failure is None


def test_a_remote_forward_that_keeps_failing_is_not_told_with_every_try(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qanat.client.remote_forwards.RETRY_IN_USE", 0.01)
    sessions = Sessions()
    with client_of(tmp_path, sessions, remote(8001)):
        carried = sessions.next()
        for why in ("in use", "in use", "in use", "64 remote forwards"):
            carried.control.get(timeout=SECONDS)
            carried.lane.send_control(ListenFailed(0, Reason.LIMIT, why).encode())
        carried.control.get(timeout=SECONDS)
    assert caplog.text.count(": in use") == 1
    assert caplog.text.count(": 64 remote forwards") == 1


def test_what_a_lost_session_left_unanswered_is_required_of_the_next(tmp_path: Path) -> None:
    sessions = Sessions()
    with client_of(tmp_path, sessions, remote(8001), remote(8002), exit_on_forward_failure=True) as (client, _):
        first = sessions.next()
        first.lane.send_control(ListenFailed(0, Reason.LIMIT, "in use").encode())
        assert first.lane.ping(SECONDS)
        first.lane.send_control(NONSENSE)
        first.end()
        lane = sessions.next().lane
        lane.send_control(Listening(0, 8001).encode())
        lane.send_control(Listening(1, 8002).encode())
        assert lane.ping(SECONDS)
        assert client.failure is None


def test_a_local_address_in_use_is_asked_for_until_it_is_free_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qanat.client.local_port.RETRY_IN_USE", 0.05)
    sessions = Sessions()
    with ExitStack() as stack:
        free, (taken, still_taken) = free_and_taken(stack)
        port = taken.getsockname()[1]
        forwards = local(port), local(free), local(still_taken.getsockname()[1])
        client, _ = stack.enter_context(client_of(tmp_path, sessions, *forwards))
        assert client.local_ports == [free]
        session = sessions.next()
        with connection(free):
            session.opened.get(timeout=SECONDS).release()
        message = f"cannot listen on 127.0.0.1:{port}: Address already in use"
        assert message in caplog.text
        assert "asking again in" in caplog.text
        time.sleep(0.2)  # some tries, which say nothing new
        assert caplog.text.count(message) == 1
        taken.close()
        wait_for_log(caplog, f"listening on 127.0.0.1:{port} ")
        with connection(port):
            session.opened.get(timeout=SECONDS).release()
        assert client.local_ports == [port, free]


@pytest.mark.parametrize("host", ["localhost", "*"])
def test_a_local_forward_listens_over_both_families(tmp_path: Path, host: str) -> None:
    sessions = Sessions()
    with client_of(tmp_path, sessions, Forward("local", TcpAddress(host, 0), TcpAddress("db.internal", 5432))) as (
        client,
        _,
    ):
        session = sessions.next()
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, client.local_ports[0]), SECONDS):
                session.opened.get(timeout=SECONDS).release()


@pytest.mark.parametrize(("idle", "enabled"), [(0.0, 0), (7.0, 1)])
def test_application_keepalive_holds_for_what_a_forward_accepts(tmp_path: Path, idle: float, enabled: int) -> None:
    probes = ApplicationProbes(idle, 3.0, 2)
    settings = ClientSettings("a", (NOWHERE,), (local(0),), state_dir=tmp_path, application_keepalive=probes)
    seen: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    client = Client(settings)

    def accepted(served: ServedForward, sock: socket.socket, peer: str) -> None:
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        alive = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        seen.put([alive, *(sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)])
        sock.close()

    for port in client._local._all_locked():
        port._service = replace(port._service, accepted=accepted)
    client.start()
    try:
        ending_at(client.local_ports[0])
        values = seen.get(timeout=SECONDS)
        assert values[0] == enabled
        assert not enabled or values == [1, 7, 3, 2]
    finally:
        client.stop()


def test_a_client_that_waits_for_a_port_stops_at_once(tmp_path: Path, at_once: float) -> None:
    with ExitStack() as stack:
        _, taken = free_and_taken(stack)
        settings = ClientSettings("a", (NOWHERE,), (local(taken[0].getsockname()[1]),), state_dir=tmp_path, drain=0)
        client = Client(settings)
        client.start()
        began = time.monotonic()
        client.stop()
        assert time.monotonic() - began < at_once


def test_a_connection_made_before_the_session_waits_for_it(tmp_path: Path) -> None:
    held = threading.Event()
    sessions = Sessions()

    def slow(sealed: SealedPipe) -> None:
        held.wait(SECONDS)
        sessions(sealed)

    forward = Forward("local", TcpAddress("127.0.0.1", 0), TcpAddress("db.internal", 5432))
    with client_of(tmp_path, slow, forward) as (client, _), connection(client.local_ports[0]) as sock:
        sock.sendall(b"early")
        held.set()
        stream = sessions.next().opened.get(timeout=SECONDS)
        payload = stream.receive()
        assert payload is not None
        assert bytes(payload) == b"early"
        stream.reset(Reason.REFUSED, "")
        assert ending_of(sock) == RESET
        stream.release()


def test_a_connection_that_never_gets_a_session_is_reset(tmp_path: Path) -> None:
    forward = Forward("local", TcpAddress("127.0.0.1", 0), TcpAddress("db.internal", 5432))
    settings = ClientSettings("a", (NOWHERE,), (forward,), state_dir=tmp_path, connect_timeout=0.3)
    client = Client(settings)
    client.start()
    try:
        assert ending_at(client.local_ports[0]) == RESET
    finally:
        client.stop()


@pytest.mark.parametrize("state", ["connector", "waiting", "connected"])
def test_stopping_is_idempotent_and_quick_in_every_state(tmp_path: Path, state: str, at_once: float) -> None:
    sessions = Sessions()
    with client_of(tmp_path, sessions, reconnect=Reconnect(first=60, min=60, max=60)) as (client, _):
        if state != "connector":
            carried = sessions.next()
            if state == "waiting":
                carried.lane.cut("the test cuts it")
                carried.end()
        began = time.monotonic()
        client.stop()
        client.stop()
        assert time.monotonic() - began < at_once


def test_a_session_that_begins_as_the_client_stops_is_taken_leave_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: float
) -> None:
    exchange, welcomed, stopping = Connector.exchange_hello, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Ready:
        ready = exchange(*arguments)
        welcomed.set()
        assert stopping.wait(SECONDS)
        return ready

    monkeypatch.setattr(Connector, "exchange_hello", slow)
    sessions = Sessions()
    with client_of(tmp_path, sessions) as (client, _):
        connection, carried = client.servers[0], sessions.next()
        assert welcomed.wait(SECONDS)
        stop_connecting = connection.stop_connecting
        monkeypatch.setattr(connection, "stop_connecting", lambda: (stop_connecting(), stopping.set()))
        began = time.monotonic()
        client.stop()
        assert time.monotonic() - began < at_once
        ending = carried.end()
        assert ending.close is not None
        assert ending.close.reason is CloseReason.SHUTDOWN


def test_an_unexpected_error_while_connecting_is_a_failed_try_and_never_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is on the path may find such a thing; it must not cost the sessions with other servers."""
    connect, tries = Connector.connect, itertools.count()

    def broken(*arguments: Any, **options: Any) -> SealedPipe:
        if next(tries) < 2:
            raise ZeroDivisionError
        return connect(*arguments, **options)

    monkeypatch.setattr(Connector, "connect", broken)
    sessions = Sessions()
    with client_of(tmp_path, sessions) as (client, _):
        sessions.next()
        assert not client.over.is_set()
        assert client.failure is None
    assert caplog.text.count("please report it") == 1
    assert caplog.text.count("an unexpected error again") == 1
