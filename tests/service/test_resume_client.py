"""Promises of the client about a session whose connection was lost, or is to be replaced."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from base.deadline import Deadline
from base.threads import ThreadGroup
from handshake.exchange import SealedPipe
from handshake.hello import Answer, Close, CloseReason, Hello, Intent, Ready, RecordKind
from mux.frames import Reason
from mux.lane import Ending, Lane
from mux.stream_io import StreamIO
from service import dialling, lane_keeper
from service.client import Client
from service.lane_keeper import LaneKeeper
from service.messages import Listen, decode_control
from service.server import Server
from service.settings import ClientAccount, ClientSettings, Forward, Reconnect, RemoteServer, ServerSettings
from tests.applications import END, RESET, Target, connection, echo, ending_of, exchange
from tests.harness import Relay
from tests.mux.rig import read
from tests.service.raw_peers import PARAMETERS, SECONDS, Carried, RawServer, carry
from tests.service.test_client import wait_for_log
from tests.transports.background import Background, wait_until
from tests.transports.test_cancelling import black_hole
from transports.pipe import Pipe
from transports.websocket_pipe import WebSocketPipe

TOKEN = os.urandom(32)
QUICK = Reconnect(first=0.01, min=0.01, max=0.02)
LONG = 60
"""`resume_for` where it does not matter."""
LOCAL = Forward("local", ("127.0.0.1", 0), ("db.internal", 5432))
REMOTE = Forward("remote", ("127.0.0.1", 80), ("localhost", 1))


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qanat")


class Caller:
    """One connection of the client that has said HELLO, on the server's side; `answer` is up to the test."""

    def __init__(self, sealed: SealedPipe, hello: Hello) -> None:
        self.sealed = sealed
        self.hello = hello

    def say(self, kind: RecordKind, content: bytes) -> None:
        self.sealed.send_record(bytes((kind,)) + content)

    def is_gone(self) -> bool:
        """Whether the client leaves it; blocks until it does."""
        try:
            self.sealed.recv_record()
        except Exception:
            return True
        return False


class Desk:
    """What a RawServer does: it hands each caller to the test, and waits until that is over."""

    def __init__(self) -> None:
        self.callers: queue.SimpleQueue[Caller] = queue.SimpleQueue()
        self.closed = threading.Event()

    def __call__(self, sealed: SealedPipe) -> None:
        kind, content = sealed.recv_record()
        assert kind is RecordKind.HELLO
        self.callers.put(Caller(sealed, Hello.decode(content)))
        self.closed.wait(3 * SECONDS)

    def next(self, intent: Intent, timeout: float = SECONDS) -> Caller:
        caller = self.callers.get(timeout=timeout)
        assert caller.hello.intent is intent
        return caller


class RawSession:
    """A session on the server's side, from its first caller on."""

    def __init__(self, caller: Caller, *, resume_for: int = LONG, lanes: int = 1) -> None:
        self.id = os.urandom(16)
        self.secret = caller.sealed.result.resume
        self.parameters = replace(PARAMETERS, resume_for=resume_for, lanes=lanes)
        ready = Ready(Answer.NEW, "raw", self.parameters, session=self.id)
        caller.say(RecordKind.READY, ready.encode())
        self.caller = caller
        self.carried = carry(caller.sealed, client=False, resumable=resume_for > 0)

    def cut(self) -> None:
        self.carried.lane.cut("the network was cut")
        self.carried.end()

    def ready(self, caller: Caller, expected: int) -> Ready:
        ready = Ready(Answer.RESUMED, "raw", self.parameters, self.id, expected)
        return ready.proven(self.secret, caller.sealed.result.transcript)

    def resume(self, caller: Caller) -> Carried:
        """Do what a server does with a good HELLO."""
        hello = caller.hello
        assert hello.session == self.id
        assert hello.proof_holds(self.secret, caller.sealed.result.transcript)
        expected = self.carried.lane.take(hello.epoch, hello.expected, Deadline(SECONDS))
        caller.say(RecordKind.READY, self.ready(caller, expected).encode())
        self.caller = caller
        self.carried = carry(
            caller.sealed, client=False, before=self.carried, epoch=hello.epoch, peer_expects=hello.expected,
            receive_from=expected,
        )  # fmt: skip
        return self.carried

    def next_stream(self) -> StreamIO:
        return self.carried.opened.get(timeout=SECONDS)


@contextmanager
def client_of_raw(directory: Path, *forwards: Forward, **settings: object) -> Iterator[tuple[Client, Desk]]:
    """A started client of a raw server."""
    desk = Desk()
    with ExitStack() as stack:
        server = stack.enter_context(RawServer(directory, TOKEN, desk))
        stack.callback(desk.closed.set)
        client = stack.enter_context(client_to((server.url,), server.fingerprint, directory, *forwards, **settings))
        yield client, desk


@contextmanager
def client_to(
    urls: tuple[str, ...], fingerprint: str, directory: Path, *forwards: Forward, **settings: object
) -> Iterator[Client]:
    values: dict[str, object] = {"reconnect": QUICK, "drain": 0.2, "state_dir": directory, **settings}
    client = Client(
        ClientSettings("a", (RemoteServer(urls, TOKEN, fingerprint),), forwards, **values)  # type: ignore[arg-type]
    )
    client.start()
    try:
        yield client
    finally:
        client.stop()


@contextmanager
def real_server(directory: Path, **changes: object) -> Iterator[Server]:
    account = ClientAccount("a", (TOKEN,), allow_connect=("127.0.0.1:*",), allow_listen=("127.0.0.1:*",))
    values: dict[str, object] = {
        "clients": (account,), "listen": (("127.0.0.1", 0),), "identity": directory / "server.key", "drain": 0.2,
    }  # fmt: skip
    server = Server(ServerSettings(**(values | changes)))  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Line:
    """A real client and a real server with a relay in between, and an echo behind a local forward."""

    def __init__(self, directory: Path, stack: ExitStack, *, server: dict[str, object] | None = None,
                 **client: object) -> None:  # fmt: skip
        self.target = stack.enter_context(Target(echo))
        self.server = stack.enter_context(real_server(directory, **(server or {})))
        self.relay = stack.enter_context(Relay(self.server.addresses[0][1]))
        forward = Forward("local", ("127.0.0.1", 0), ("127.0.0.1", self.target.port))
        urls = (url_of(self.relay),)
        self.client = stack.enter_context(
            client_to(urls, self.server.identity.fingerprint, directory, forward, **client)
        )
        self.port = self.client.local_ports[0]


def url_of(relay: Relay) -> str:
    return f"ws://127.0.0.1:{relay.port}/tunnel"


# --- what is said to the server ---------------------------------------------------------------------


def test_a_lost_connection_is_resumed_with_rising_epochs_and_the_right_numbers(tmp_path: Path) -> None:
    with client_of_raw(tmp_path, LOCAL) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        with connection(client.local_ports[0]) as sock:
            sock.sendall(b"hello")
            stream = session.next_stream()
            assert read(stream, 5) == b"hello"
            for epoch in (1, 2, 3):
                stream.write(b"seen")
                assert sock.recv(4) == b"seen"
                sent = session.carried.lane.core.outbox.next_number
                session.cut()
                caller = desk.next(Intent.RESUME)
                assert (caller.hello.epoch, caller.hello.lane, caller.hello.expected) == (epoch, 0, sent)
                session.resume(caller)
            sock.sendall(b"and on")
            assert read(stream, 6) == b"and on"
            stream.finish()
            assert ending_of(sock) == END
        stream.release()


def test_forwards_are_asked_for_once_a_session_and_not_again_when_it_is_resumed(tmp_path: Path) -> None:
    with client_of_raw(tmp_path, REMOTE) as (_, desk):
        session = RawSession(desk.next(Intent.NEW))
        asked = session.carried.control.get(timeout=SECONDS)
        assert decode_control(asked) == Listen(0, "127.0.0.1", 80)
        session.cut()
        assert session.resume(desk.next(Intent.RESUME)).lane.ping(SECONDS)
        assert session.carried.control.empty()


# --- what the server answers ------------------------------------------------------------------------


def over_by_expired(session: RawSession, caller: Caller) -> None:
    caller.say(RecordKind.READY, Ready(Answer.EXPIRED, "raw", PARAMETERS).encode())


def over_by_close(session: RawSession, caller: Caller) -> None:
    caller.say(RecordKind.CLOSE, Close(CloseReason.PROTOCOL, "no such frame").encode())


def over_by_numbers(session: RawSession, caller: Caller) -> None:
    """What it expects next was never sent, so that nobody can go on."""
    caller.say(RecordKind.READY, session.ready(caller, 10**6).encode())


@pytest.mark.parametrize("answer", [over_by_expired, over_by_close, over_by_numbers])
def test_a_session_that_the_server_does_not_have_is_reset_at_once_and_a_new_one_begun(
    tmp_path: Path, answer: Callable[[RawSession, Caller], None]
) -> None:
    with client_of_raw(tmp_path, LOCAL, REMOTE) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        session.carried.control.get(timeout=SECONDS)
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            session.cut()
            caller = desk.next(Intent.RESUME)
            began = time.monotonic()
            answer(session, caller)
            assert ending_of(sock) == RESET
            assert time.monotonic() - began < 1.0
            stream.release()
        anew = RawSession(desk.next(Intent.NEW))
        asked = decode_control(anew.carried.control.get(timeout=SECONDS))
        assert asked == Listen(1, "127.0.0.1", 80)
        with connection(client.local_ports[0]) as sock:
            sock.sendall(b"hello")
            stream = anew.next_stream()
            assert read(stream, 5) == b"hello"
            stream.release()


def test_a_server_that_was_away_for_long_and_forgot_is_asked_for_a_new_session_at_once(tmp_path: Path) -> None:
    """That it answers at all is news, whatever failed before."""
    slow = Reconnect(first=0.01, min=30, max=60)
    with client_of_raw(tmp_path, LOCAL, reconnect=slow) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            stream.write(b"seen")
            assert sock.recv(4) == b"seen"
            session.cut()
            caller = desk.next(Intent.RESUME)
            for _ in range(6):
                client._links[0]._backoff.failed()  # as while the server was down
            over_by_expired(session, caller)
            assert ending_of(sock) == RESET
            stream.release()
        assert RawSession(desk.next(Intent.NEW, timeout=2.0)).carried.lane.ping(SECONDS)


def test_a_server_that_forgets_each_session_as_soon_as_it_began_is_asked_less_and_less_often(tmp_path: Path) -> None:
    calm = Reconnect(first=0.01, min=1, max=60)
    with client_of_raw(tmp_path, LOCAL, reconnect=calm) as (_, desk):
        parameters = replace(PARAMETERS, resume_for=LONG)
        until, tries = time.monotonic() + 2.0, 0
        with contextlib.suppress(queue.Empty):
            while (remaining := until - time.monotonic()) > 0:
                caller = desk.callers.get(timeout=remaining)
                if caller.hello.intent is Intent.NEW:
                    caller.say(RecordKind.READY, Ready(Answer.NEW, "raw", parameters, session=b"s" * 16).encode())
                    caller.sealed.close("the network was cut")
                    tries += 1
                else:
                    caller.say(RecordKind.READY, Ready(Answer.EXPIRED, "raw", PARAMETERS).encode())
        assert 1 <= tries <= 10


@pytest.mark.parametrize("lie", ["no proof", "another handshake's proof", "another session", "a new session"])
def test_who_cannot_prove_to_have_the_session_is_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lie: str
) -> None:
    """Who has stolen the server's key alone could otherwise take a session over, and break all its streams."""
    with client_of_raw(tmp_path, LOCAL) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            session.cut()
            caller = desk.next(Intent.RESUME)
            true = session.ready(caller, session.carried.lane.core.received)
            lies = {
                "no proof": replace(true, proof=bytes(32)),
                "another handshake's proof": true.proven(session.secret, os.urandom(32)),
                "another session": replace(true, session=os.urandom(16)).proven(
                    session.secret, caller.sealed.result.transcript
                ),
                "a new session": Ready(Answer.NEW, "raw", PARAMETERS, session=os.urandom(16)),
            }
            caller.say(RecordKind.READY, lies[lie].encode())
            assert caller.is_gone()
            wait_for_log(caplog, "the server answers for another session than the one that was to be resumed")
            session.resume(desk.next(Intent.RESUME))
            sock.sendall(b"true")
            assert read(stream, 4) == b"true"
            stream.release()


@pytest.mark.parametrize("reason", [CloseReason.STALE, CloseReason.BUSY, CloseReason.LEAVING])
def test_a_server_that_turns_it_away_for_now_is_asked_again_with_a_higher_epoch(
    tmp_path: Path, reason: CloseReason
) -> None:
    with client_of_raw(tmp_path, LOCAL) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            session.cut()
            for epoch in (1, 2, 3):
                caller = desk.next(Intent.RESUME)
                assert caller.hello.epoch == epoch
                caller.say(RecordKind.CLOSE, Close(reason, "not now").encode())
            session.resume(desk.next(Intent.RESUME))
            sock.sendall(b"at last")
            assert read(stream, 7) == b"at last"
            stream.release()


def test_a_server_that_breaks_the_protocol_ends_the_session_and_not_only_the_pipe(tmp_path: Path) -> None:
    with client_of_raw(tmp_path, LOCAL) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            session.carried.lane.send_control(b"\xff")
            assert ending_of(sock) == RESET
            ending = session.carried.end()
            assert ending.close is not None
            assert ending.close.reason is CloseReason.PROTOCOL
            stream.release()
        assert RawSession(desk.next(Intent.NEW)).carried.lane.ping(SECONDS)


@pytest.mark.parametrize("reason", [CloseReason.SHUTDOWN, CloseReason.REPLACED, CloseReason.REVOKED])
def test_a_server_that_ends_the_session_is_not_asked_for_it_again(tmp_path: Path, reason: CloseReason) -> None:
    with client_of_raw(tmp_path, LOCAL) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            session.carried.lane.close(reason, "over")
            assert ending_of(sock) == RESET
            stream.release()
        assert RawSession(desk.next(Intent.NEW)).carried.lane.ping(SECONDS)


# --- with a real server -----------------------------------------------------------------------------


def test_streams_survive_one_cut_after_the_other(tmp_path: Path) -> None:
    with ExitStack() as stack:
        path = Line(tmp_path, stack)
        with connection(path.port) as sock:
            for cut in range(8):
                assert exchange(sock, b"cut %d" % cut) == b"cut %d" % cut
                path.relay.cut()
            data = os.urandom(300_000)
            assert exchange(sock, data) == data
            sock.shutdown(socket.SHUT_WR)
            assert ending_of(sock) == END
        assert path.target.wait_endings(1) == [END]


def test_a_connection_made_while_there_is_none_to_the_server_waits_for_the_next(tmp_path: Path) -> None:
    with client_of_raw(tmp_path, LOCAL) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        session.cut()
        caller = desk.next(Intent.RESUME)
        with connection(client.local_ports[0]) as sock:
            sock.sendall(b"early")
            session.resume(caller)
            stream = session.next_stream()
            assert read(stream, 5) == b"early"
            stream.release()


def test_who_waits_for_a_connection_is_told_when_its_thread_got_its_turn_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Lane.run

    def run_later(lane: Lane, *args: Any, **how: Any) -> Ending:
        if lane.name == "a":
            time.sleep(0.3)
        return run(lane, *args, **how)

    monkeypatch.setattr(Lane, "run", run_later)
    with client_of_raw(tmp_path, LOCAL) as (client, desk), connection(client.local_ports[0]) as sock:
        session = RawSession(desk.next(Intent.NEW))
        began = time.monotonic()
        stream = session.next_stream()
        assert time.monotonic() - began < 2.0
        wait_until(lambda: client._links[0].away_since is None, "the server counts as reached")
        stream.reset(Reason.CANCELLED, "")
        assert ending_of(sock) == RESET
        stream.release()


def test_when_one_url_fails_the_session_is_resumed_by_the_next(tmp_path: Path) -> None:
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        server = stack.enter_context(real_server(tmp_path))
        port = server.addresses[0][1]
        first, second = Relay(port), stack.enter_context(Relay(port))
        forward = Forward("local", ("127.0.0.1", 0), ("127.0.0.1", target.port))
        with first:
            urls = url_of(first), url_of(second)
            client = stack.enter_context(client_to(urls, server.identity.fingerprint, tmp_path, forward))
            sock = stack.enter_context(connection(client.local_ports[0]))
            assert exchange(sock, b"before") == b"before"
            assert second.accepted == []
        assert exchange(sock, b"after") == b"after"
        assert len(second.accepted) == 1


def test_a_server_that_cannot_be_reached_for_too_long_costs_the_streams(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        server = stack.enter_context(real_server(tmp_path, resume_for=1))
        forward = Forward("local", ("127.0.0.1", 0), ("127.0.0.1", target.port))
        with Relay(server.addresses[0][1]) as relay:
            client = stack.enter_context(client_to((url_of(relay),), server.identity.fingerprint, tmp_path, forward))
            sock = stack.enter_context(connection(client.local_ports[0]))
            assert exchange(sock, b"before") == b"before"
        lost = time.monotonic()
        assert ending_of(sock) == RESET
        assert 0.9 < time.monotonic() - lost < 2.5
        assert target.wait_endings(1) == [RESET]


def test_a_session_that_was_away_too_long_is_followed_by_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The client is still trying when the server has given the session up."""
    with client_of_raw(tmp_path, LOCAL) as (_, desk):
        session = RawSession(desk.next(Intent.NEW), resume_for=1)
        session.cut()
        began = time.monotonic()
        while (caller := desk.callers.get(timeout=SECONDS)).hello.intent is Intent.RESUME:
            caller.say(RecordKind.CLOSE, Close(CloseReason.BUSY, "").encode())
            assert time.monotonic() - began < SECONDS
        assert time.monotonic() - began > 0.9
        assert RawSession(caller).carried.lane.ping(SECONDS)


# --- replacing what still works ---------------------------------------------------------------------


def test_an_old_connection_is_left_only_when_the_next_one_is_up(tmp_path: Path) -> None:
    with client_of_raw(tmp_path, LOCAL, max_pipe_age=0.5) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            for _ in range(3):
                caller = desk.next(Intent.RESUME)
                old = session.carried
                assert not old.endings
                stream.write(b"still by the old one")
                assert sock.recv(100) == b"still by the old one"
                session.resume(caller)
                ending = old.end()
                assert ending.by_us  # we, the server, have said LEAVING on it
                sock.sendall(b"by the new one")
                assert read(stream, 14) == b"by the new one"
            stream.release()


def test_connections_are_replaced_before_they_are_old_and_bulk_does_not_notice(tmp_path: Path) -> None:
    with ExitStack() as stack:
        path = Line(tmp_path, stack, max_pipe_age=0.4)
        with connection(path.port) as sock:
            stop = threading.Event()
            sent, received = bytearray(), bytearray()

            def send() -> None:
                for number in itertools.count():
                    if stop.is_set():
                        break
                    part = number.to_bytes(4, "big") * 16_000
                    sock.sendall(part)
                    sent.extend(part)
                sock.shutdown(socket.SHUT_WR)

            def receive() -> None:
                while part := sock.recv(1 << 18):
                    received.extend(part)

            sending, receiving = Background(send), Background(receive)
            path.relay.wait_accepted(6)
            stop.set()
            sending.result()
            receiving.result()
            assert received == sent
        assert path.target.wait_endings(1) == [END]
        gaps = [after - before for before, after in itertools.pairwise(path.relay.accepted)]
        assert min(gaps) > 0.25  # `max_pipe_age` less a fifth, and nothing was cut in between


def test_another_server_behind_the_same_url_costs_the_old_connection_nothing(tmp_path: Path) -> None:
    """A load balancer may bring it to one that has never heard of the session."""
    with client_of_raw(tmp_path, LOCAL, max_pipe_age=0.3) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            for _ in range(3):
                over_by_expired(session, desk.next(Intent.RESUME))
                sock.sendall(b"by the old one")
                assert Background(lambda: read(stream, 14)).result(SECONDS) == b"by the old one"
                assert not session.carried.endings
            session.resume(desk.next(Intent.RESUME))
            sock.sendall(b"by the new one")
            assert read(stream, 14) == b"by the new one"
            stream.release()


def test_a_session_is_over_when_the_server_has_forgotten_it_and_the_old_connection_is_silent(tmp_path: Path) -> None:
    with client_of_raw(tmp_path, LOCAL, max_pipe_age=0.3) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            caller = desk.next(Intent.RESUME)
            session.carried.lane.hold()
            over_by_expired(session, caller)
            began = time.monotonic()
            assert ending_of(sock) == RESET
            assert time.monotonic() - began < 3.0
            stream.release()
        assert RawSession(desk.next(Intent.NEW)).carried.lane.ping(SECONDS)


def test_connections_that_all_say_at_once_that_they_will_leave_are_replaced_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a proxy that takes one request a connection, and lets that one go on."""
    monkeypatch.setattr(WebSocketPipe, "set_on_leaving", lambda pipe, leaving: leaving())
    with client_of_raw(tmp_path, LOCAL, reconnect=Reconnect(first=0.01, min=0.1, max=60)) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            until, moved = time.monotonic() + 3.0, 0
            with contextlib.suppress(queue.Empty):
                while (remaining := until - time.monotonic()) > 0:
                    session.resume(desk.callers.get(timeout=remaining))
                    sock.sendall(b"progress")
                    assert read(stream, 8) == b"progress"
                    moved += 1
            assert 1 <= moved <= 15
            stream.release()


def test_no_thread_for_a_new_connection_costs_a_session_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, ended = ThreadGroup.start, LaneKeeper._ended
    readers = itertools.count()

    def start_seldom(group: ThreadGroup, name: str, target: Callable[[], object]) -> threading.Thread:
        if name == "a-reader" and next(readers) == 1:
            raise RuntimeError("can't start new thread")
        return start(group, name, target)

    def ended_late(*args: Any) -> None:
        time.sleep(0.05)
        ended(*args)

    monkeypatch.setattr(ThreadGroup, "start", start_seldom)
    monkeypatch.setattr(LaneKeeper, "_ended", ended_late)
    with client_of_raw(tmp_path, LOCAL, max_pipe_age=1.5) as (client, desk):
        session = RawSession(desk.next(Intent.NEW), resume_for=1)
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            session.resume(desk.next(Intent.RESUME))
            session.resume(desk.next(Intent.RESUME))
            sock.sendall(b"still here")
            assert read(stream, 10) == b"still here"
            stream.release()


def test_no_thread_for_a_new_session_is_a_failed_try_and_leaves_no_connection_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_at = dialling.closed_at
    greetings = itertools.count()

    def closed_at_seldom(deadline: Deadline, pipe: Pipe) -> AbstractContextManager[threading.Event]:
        if next(greetings) == 0:
            raise RuntimeError("can't start new thread")
        return closed_at(deadline, pipe)

    monkeypatch.setattr(dialling, "closed_at", closed_at_seldom)
    with client_of_raw(tmp_path) as (client, desk):
        assert RawSession(desk.next(Intent.NEW)).carried.lane.ping(SECONDS)
        assert client.failure is None


def test_a_new_path_that_stalls_after_the_handshake_does_not_cost_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_keeper, "GREETING", 0.3)
    with client_of_raw(tmp_path, LOCAL, max_pipe_age=0.3) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            for _ in range(3):
                stalled = desk.next(Intent.RESUME)
                assert stalled.is_gone()
                sock.sendall(b"by the old one")
                assert read(stream, 14) == b"by the old one"
                assert not session.carried.endings
            session.resume(desk.next(Intent.RESUME))
            sock.sendall(b"by the new one")
            assert read(stream, 14) == b"by the new one"
            stream.release()


def test_a_stalled_greeting_after_which_the_old_connection_is_lost_too_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_keeper, "GREETING", 0.5)
    with client_of_raw(tmp_path, LOCAL, max_pipe_age=0.3) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            desk.next(Intent.RESUME)
            session.cut()
            sock.sendall(b"in between")
            session.resume(desk.next(Intent.RESUME))
            assert read(stream, 10) == b"in between"
            stream.release()


def test_an_old_connection_that_cannot_be_replaced_is_kept_and_the_server_asked_less_and_less_often(
    tmp_path: Path,
) -> None:
    calm = Reconnect(first=0.01, min=1, max=60)
    with client_of_raw(tmp_path, LOCAL, max_pipe_age=0.1, reconnect=calm) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            until, tries = time.monotonic() + 1.5, 0
            with contextlib.suppress(queue.Empty):
                while (remaining := until - time.monotonic()) > 0:
                    caller = desk.callers.get(timeout=remaining)
                    caller.say(RecordKind.CLOSE, Close(CloseReason.BUSY, "not now").encode())
                    tries += 1
            assert 1 <= tries <= 15  # at once, then at random within 1 s, within 2 s, within 4 s
            sock.sendall(b"by the old one")
            assert read(stream, 14) == b"by the old one"
            stream.release()


def test_where_nothing_is_resumed_a_connection_is_not_replaced(tmp_path: Path) -> None:
    """It would cost all its streams, which a cut at that age may never do."""
    with client_of_raw(tmp_path, LOCAL, max_pipe_age=0.2) as (client, desk):
        session = RawSession(desk.next(Intent.NEW), resume_for=0)
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            with pytest.raises(queue.Empty):
                desk.callers.get(timeout=0.8)
            sock.sendall(b"still here")
            assert read(stream, 10) == b"still here"
            stream.release()


# --- lanes ------------------------------------------------------------------------------------------


def test_streams_are_spread_over_lanes_and_each_is_resumed_by_itself(tmp_path: Path) -> None:
    with ExitStack() as stack:
        path = Line(tmp_path, stack, lanes=3)
        wait_until(lambda: len(lanes_of(path.server)) == 3, "all lanes are there")
        wait_until(lambda: all(lane.attached for lane in lanes_of(path.server)), "all lanes are up")
        socks = [stack.enter_context(connection(path.port)) for _ in range(6)]
        for sock in socks:
            assert exchange(sock, b"before") == b"before"
        assert [lane.open_streams for lane in lanes_of(path.server)] == [2, 2, 2]
        for lane in lanes_of(path.server):
            lane.cut("the network was cut")
            for sock in socks:
                assert exchange(sock, b"after") == b"after"
        path.relay.cut()
        for sock in socks:
            assert exchange(sock, b"in the end") == b"in the end"
        assert len(path.server.registry.close()) == 1


def test_where_nothing_is_resumed_there_are_lanes_all_the_same(tmp_path: Path) -> None:
    with ExitStack() as stack:
        path = Line(tmp_path, stack, server={"resume_for": 0}, lanes=2)
        wait_until(lambda: sum(lane.attached for lane in lanes_of(path.server)) == 2, "both lanes are up")
        socks = [stack.enter_context(connection(path.port)) for _ in range(4)]
        for sock in socks:
            assert exchange(sock, b"before") == b"before"
        first, second = lanes_of(path.server)
        assert (first.open_streams, second.open_streams) == (2, 2)
        second.cut("the network was cut")
        assert sorted(ending_or_echo(sock) for sock in socks) == ["echo", "echo", RESET, RESET]
        wait_until(lambda: sum(lane.attached for lane in lanes_of(path.server)) == 2, "there is another second one")


def ending_or_echo(sock: socket.socket) -> str:
    try:
        return "echo" if exchange(sock, b"after") == b"after" else "a wrong answer"
    except (ConnectionResetError, BrokenPipeError):
        return RESET


def lanes_of(server: Server) -> list[Lane]:
    """The lanes of its only session."""
    sessions = list(server.registry._sessions.values())
    return [lane for session in sessions for _, lane in sorted(session.lanes.items())]


def test_when_all_numbers_of_lanes_have_been_used_there_are_no_further_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with client_of_raw(tmp_path, LOCAL, lanes=40_000) as (_, desk):
        caller = desk.next(Intent.NEW)
        session = RawSession(caller, lanes=2)
        for number in (1, 40_001):
            caller = desk.next(Intent.JOIN)
            assert caller.hello.lane == number
            over_by_expired(session, caller)
        with pytest.raises(queue.Empty):
            desk.callers.get(timeout=0.3)
        assert session.carried.lane.ping(SECONDS)
    assert "please report" not in caplog.text


def test_a_client_that_may_have_fewer_lanes_than_it_wants_asks_for_no_more(tmp_path: Path) -> None:
    with client_of_raw(tmp_path, lanes=3) as (_, desk):
        caller = desk.next(Intent.NEW)
        assert caller.hello.parameters.lanes == 3
        RawSession(caller)  # whose READY grants one
        with pytest.raises(queue.Empty):
            desk.callers.get(timeout=0.3)


def test_a_client_with_lanes_stops_as_quickly_and_says_goodbye(tmp_path: Path) -> None:
    with ExitStack() as stack:
        path = Line(tmp_path, stack, lanes=3)
        wait_until(lambda: sum(lane.attached for lane in lanes_of(path.server)) == 3, "all lanes are up")
        socks = [stack.enter_context(connection(path.port)) for _ in range(3)]
        for sock in socks:
            assert exchange(sock, b"before") == b"before"
            sock.shutdown(socket.SHUT_WR)
            assert ending_of(sock) == END
        [session] = path.server.registry._sessions.values()
        began = time.monotonic()
        path.client.stop()
        assert time.monotonic() - began < 1.5
        assert session.ended.wait(SECONDS)
        assert session.why == "the client is stopping"


# --- stopping ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["waiting to try again", "dialling", "greeting", "replacing"])
def test_stopping_is_quick_also_while_there_is_no_connection(tmp_path: Path, state: str) -> None:
    with ExitStack() as stack:
        slow = Reconnect(first=60, min=60, max=60)
        age = 0.2 if state == "replacing" else None
        client, desk = stack.enter_context(
            client_of_raw(
                tmp_path, LOCAL, reconnect=slow if state == "waiting to try again" else QUICK, max_pipe_age=age
            )
        )
        session = RawSession(desk.next(Intent.NEW))
        sock = stack.enter_context(connection(client.local_ports[0]))
        stream = session.next_stream()
        if state == "dialling":
            lead_nowhere(client, stack)
        if state != "replacing":
            session.cut()
        if state in ("greeting", "replacing"):
            desk.next(Intent.RESUME)
        elif state == "dialling":
            wait_until(lambda: bool(client._links[0]._all._wakeups[1:]), "it dials")
        began = time.monotonic()
        client.stop()
        assert time.monotonic() - began < 1.5  # of which 0.2 s are `drain`
        assert ending_of(sock) == RESET
        stream.reset(Reason.CANCELLED, "")
        stream.release()


def lead_nowhere(client: Client, stack: ExitStack) -> None:
    """From now on the client's URL leads to where nobody answers."""
    route = evolve(client.settings.route, connect_to=("127.0.0.1", black_hole(stack)))
    client._links[0]._around.dialling._route = route
