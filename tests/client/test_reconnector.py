"""Promises of the client about connections that are replaced in time, side by side, or given up at the end."""

from __future__ import annotations

import contextlib
import itertools
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import NoThread
from qanat.base.threads import ThreadGroup
from qanat.client import connect as connector
from qanat.client import reconnector
from qanat.client.client import Client
from qanat.client.connect import route_of
from qanat.client.reconnector import Reconnector
from qanat.config.client_settings import Reconnect
from qanat.handshake.exchange import SealedPipe
from qanat.handshake.hello import Answer, Close, CloseReason, Intent, Ready, RecordKind
from qanat.mux.frames import Reason
from qanat.mux.lane import Lane
from qanat.server.server import Server
from qanat.transports.pipe import Pipe
from qanat.transports.websocket.pipe import WebSocketPipe
from tests.support.applications import END, RESET, connection, ending_of, exchange
from tests.support.background import Background, wait_until
from tests.support.machine.ports import silent_address
from tests.support.mux.rig import read
from tests.support.server.raw_peers import PARAMETERS, SECONDS, RawClient
from tests.support.server.raw_sessions import (
    LOCAL,
    QUICK,
    TOKEN,
    Caller,
    Line,
    RawSession,
    arrives,
    client_of_raw,
    one_stream,
)


def expire(caller: Caller) -> None:
    """Say that there is no such session."""
    caller.say(RecordKind.READY, Ready(Answer.EXPIRED, "raw", PARAMETERS).encode())


# --- replacing what still works ---------------------------------------------------------------------


def test_an_old_connection_is_left_only_when_the_next_one_is_up(tmp_path: Path) -> None:
    with one_stream(tmp_path, max_pipe_age=0.5) as (desk, session, sock, stream):
        for _ in range(3):
            caller = desk.next(Intent.RESUME)
            old = session.carried
            assert not old.endings
            stream.write(b"still by the old one")
            assert sock.recv(100) == b"still by the old one"
            session.resume(caller)
            ending = old.end()
            assert ending.close is None  # we, the server, have said LEAVING on it
            assert not ending.fault
            assert arrives(b"by the new one", sock, stream)


def test_connections_are_replaced_before_they_are_old_and_bulk_does_not_notice(tmp_path: Path) -> None:
    began = time.monotonic()
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
        assert path.relay.accepted[5] - began > 5 * 0.32  # `max_pipe_age` less a fifth, and nothing was cut in between


def test_another_server_behind_the_same_url_costs_the_old_connection_nothing(tmp_path: Path) -> None:
    """A load balancer may bring it to one that has never heard of the session."""
    with one_stream(tmp_path, max_pipe_age=0.3) as (desk, session, sock, stream):
        for _ in range(3):
            expire(desk.next(Intent.RESUME))
            sock.sendall(b"by the old one")
            assert Background(lambda: read(stream, 14)).result(SECONDS) == b"by the old one"
            assert not session.carried.endings
        session.resume(desk.next(Intent.RESUME))
        assert arrives(b"by the new one", sock, stream)


def test_a_session_is_over_when_the_server_has_forgotten_it_and_the_old_connection_is_silent(tmp_path: Path) -> None:
    with client_of_raw(tmp_path, LOCAL, max_pipe_age=0.3) as (client, desk):
        session = RawSession(desk.next(Intent.NEW))
        with connection(client.local_ports[0]) as sock:
            stream = session.next_stream()
            caller = desk.next(Intent.RESUME)
            session.carried.lane.pause_writer()
            expire(caller)
            began = time.monotonic()
            assert ending_of(sock) == RESET
            assert time.monotonic() - began < 15, "keepalive alone would take 45 s"
            stream.release()
        assert RawSession(desk.next(Intent.NEW)).carried.lane.ping(SECONDS)


def test_connections_that_all_say_at_once_that_they_will_leave_are_replaced_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a proxy that takes one request a connection, and lets that one go on."""
    monkeypatch.setattr(WebSocketPipe, "set_on_leaving", lambda pipe, leaving: leaving())
    with one_stream(tmp_path, reconnect=Reconnect(first=0.01, min=0.1, max=60)) as (desk, session, sock, stream):
        caller, moved = desk.next(Intent.RESUME), 0
        until = time.monotonic() + 3.0
        with contextlib.suppress(queue.Empty):
            while True:
                session.resume(caller)
                assert arrives(b"progress", sock, stream)
                moved += 1
                caller = desk.callers.get(timeout=max(0.001, until - time.monotonic()))
        assert moved <= 15


def test_no_thread_for_a_new_connection_costs_a_session_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, ended = ThreadGroup.start, Reconnector._pipe_ended
    readers = itertools.count()

    def start_seldom(group: ThreadGroup, name: str, target: Callable[[], object]) -> threading.Thread:
        if name == "a-reader" and next(readers) == 1:
            raise NoThread
        return start(group, name, target)

    def ended_late(*args: Any) -> None:
        time.sleep(0.05)
        ended(*args)

    monkeypatch.setattr(ThreadGroup, "start", start_seldom)
    monkeypatch.setattr(Reconnector, "_pipe_ended", ended_late)
    with one_stream(tmp_path, resume_for=1, max_pipe_age=1.5) as (desk, session, sock, stream):
        session.resume(desk.next(Intent.RESUME))
        session.resume(desk.next(Intent.RESUME))
        assert arrives(b"still here", sock, stream)


def test_no_thread_for_a_new_session_is_a_failed_try_and_leaves_no_connection_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_at = connector.closed_at
    greetings = itertools.count()

    def closed_at_seldom(deadline: Deadline, pipe: Pipe) -> AbstractContextManager[threading.Event]:
        if next(greetings) == 0:
            raise NoThread
        return closed_at(deadline, pipe)

    monkeypatch.setattr(connector, "closed_at", closed_at_seldom)
    with client_of_raw(tmp_path) as (client, desk):
        assert RawSession(desk.next(Intent.NEW)).carried.lane.ping(SECONDS)
        assert client.failure is None


def test_a_new_path_that_stalls_after_the_handshake_does_not_cost_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnector, "HELLO_TIMEOUT", 0.3)
    with one_stream(tmp_path, max_pipe_age=0.3) as (desk, session, sock, stream):
        for number in range(3):
            stalled = desk.next(Intent.RESUME)
            if number == 2:
                monkeypatch.setattr(reconnector, "HELLO_TIMEOUT", SECONDS)  # for the next, which is answered
            assert stalled.is_gone()
            assert arrives(b"by the old one", sock, stream)
            assert not session.carried.endings
        session.resume(desk.next(Intent.RESUME))
        assert arrives(b"by the new one", sock, stream)


def test_a_stalled_greeting_after_which_the_old_connection_is_lost_too_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnector, "HELLO_TIMEOUT", 0.5)
    with one_stream(tmp_path, max_pipe_age=0.3) as (desk, session, sock, stream):
        desk.next(Intent.RESUME)
        monkeypatch.setattr(reconnector, "HELLO_TIMEOUT", SECONDS)  # for the next, which is answered
        session.cut()
        sock.sendall(b"in between")
        session.resume(desk.next(Intent.RESUME))
        assert read(stream, 10) == b"in between"


def test_an_old_connection_that_cannot_be_replaced_is_kept_and_the_server_asked_less_and_less_often(
    tmp_path: Path,
) -> None:
    calm = Reconnect(first=0.01, min=1, max=60)
    with one_stream(tmp_path, max_pipe_age=0.1, reconnect=calm) as (desk, _, sock, stream):
        caller, tries = desk.next(Intent.RESUME), 0
        until = time.monotonic() + 1.5
        with contextlib.suppress(queue.Empty):
            while True:
                caller.say(RecordKind.CLOSE, Close(CloseReason.BUSY, "not now").encode())
                tries += 1
                caller = desk.callers.get(timeout=max(0.001, until - time.monotonic()))
        assert tries <= 15  # at once, then at random within 1 s, within 2 s, within 4 s
        assert arrives(b"by the old one", sock, stream)


def test_where_nothing_is_resumed_a_connection_is_not_replaced(tmp_path: Path) -> None:
    """It would cost all its streams, which a cut at that age may never do."""
    with one_stream(tmp_path, resume_for=0, max_pipe_age=0.2) as (desk, _, sock, stream):
        with pytest.raises(queue.Empty):
            desk.callers.get(timeout=0.8)
        assert arrives(b"still here", sock, stream)


# --- lanes ------------------------------------------------------------------------------------------


def test_streams_are_spread_over_lanes_and_each_is_resumed_by_itself(tmp_path: Path) -> None:
    with ExitStack() as stack:
        path = Line(tmp_path, stack, lanes=3)
        wait_until(lambda: lanes_up(path) == (3, 3), "all lanes are up")
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
        wait_until(lambda: lanes_up(path) == (2, 2), "both lanes are up")
        socks = [stack.enter_context(connection(path.port)) for _ in range(4)]
        for sock in socks:
            assert exchange(sock, b"before") == b"before"
        first, second = lanes_of(path.server)
        assert (first.open_streams, second.open_streams) == (2, 2)
        second.cut("the network was cut")
        assert sorted(ending_or_echo(sock) for sock in socks) == ["echo", "echo", RESET, RESET]
        wait_until(lambda: lanes_up(path) == (2, 2), "there is another second one")


def test_a_lane_that_is_over_is_forgotten(tmp_path: Path) -> None:
    """A session may last for years, and each of its lanes only as long as a connection."""
    with ExitStack() as stack:
        path = Line(tmp_path, stack, server={"resume_for": 0}, lanes=2)
        wait_until(lambda: lanes_up(path) == (2, 2), "both lanes are up")
        session = path.client.servers[0].session
        assert session is not None
        known = len(session._on_end)
        for _ in range(4):
            last = lanes_of(path.server)[-1]
            last.cut("the network was cut")
            wait_until(lambda: last not in lanes_of(path.server), "it is over")  # noqa: B023 - waited for here
            wait_until(lambda: lanes_up(path) == (2, 2), "there is another")
        assert session is path.client.servers[0].session
        assert len(session._on_end) == known


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_client_of_whose_connections_one_is_stuck_keeps_its_name(tmp_path: Path, stuck: int) -> None:
    with ExitStack() as stack:
        path = Line(tmp_path, stack, server={"takeover_timeout": SECONDS}, lanes=2)
        wait_until(lambda: lanes_up(path) == (2, 2), "both lanes are up")
        path.relay.fall_silent(only=stuck)
        with RawClient(path.server, "a", TOKEN, instance=b"o" * 16) as other:
            kind, content = other.greet()
            assert kind is RecordKind.CLOSE
            assert Close.decode(content).reason is CloseReason.NAME_IN_USE


def ending_or_echo(sock: socket.socket) -> str:
    try:
        return "echo" if exchange(sock, b"after") == b"after" else "a wrong answer"
    except (ConnectionResetError, BrokenPipeError):
        return RESET


def lanes_of(server: Server) -> list[Lane]:
    """The lanes of its only session."""
    sessions = server.registry.sessions
    return [lane for session in sessions for _, lane in sorted(session.lanes.items())]


def lanes_up(path: Line) -> tuple[int, int]:
    """How many lanes are on a pipe at the server's end, and at the client's."""
    session = path.client.servers[0].session
    ours = [] if session is None else list(session.lanes.values())
    return sum(lane.attached for lane in lanes_of(path.server)), sum(lane.attached for lane in ours)


def test_when_all_numbers_of_lanes_have_been_used_there_are_no_further_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with client_of_raw(tmp_path, LOCAL, lanes=40_000) as (_, desk):
        caller = desk.next(Intent.NEW)
        session = RawSession(caller, lanes=2)
        for number in (1, 40_001):
            caller = desk.next(Intent.JOIN)
            assert caller.hello.lane == number
            expire(caller)
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


def test_a_client_with_lanes_stops_as_quickly_and_says_so(tmp_path: Path, at_once: float) -> None:
    with ExitStack() as stack:
        path = Line(tmp_path, stack, lanes=3)
        wait_until(lambda: lanes_up(path) == (3, 3), "all lanes are up")
        socks = [stack.enter_context(connection(path.port)) for _ in range(3)]
        for sock in socks:
            assert exchange(sock, b"before") == b"before"
            sock.shutdown(socket.SHUT_WR)
            assert ending_of(sock) == END
        [session] = path.server.registry.sessions
        began = time.monotonic()
        path.client.stop()
        assert time.monotonic() - began < at_once
        assert session.ended.wait(SECONDS)
        assert session.why == "the client is stopping"


# --- stopping ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["waiting to try again", "connector", "greeting", "replacing"])
def test_stopping_is_quick_also_while_there_is_no_connection(tmp_path: Path, state: str, at_once: float) -> None:
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
        if state == "connector":
            dials = lead_nowhere(client, stack)
        if state != "replacing":
            session.cut()
        if state in ("greeting", "replacing"):
            desk.next(Intent.RESUME)
        elif state == "connector":
            assert dials.wait(SECONDS)
        began = time.monotonic()
        client.stop()
        assert time.monotonic() - began < at_once
        assert ending_of(sock) == RESET
        stream.reset(Reason.CANCELED, "")
        stream.release()


def lead_nowhere(client: Client, stack: ExitStack) -> threading.Event:
    """From now on the client's URL leads to where nobody answers; the event is set when it goes there."""
    ours, dials = client.servers[0].connector, threading.Event()
    ours._route = replace(route_of(client.settings), connect_to=silent_address(stack))
    connect = ours.connect

    def tell_and_connect(*arguments: Any, **options: Any) -> SealedPipe:
        dials.set()
        return connect(*arguments, **options)

    ours.connect = tell_and_connect  # type: ignore[method-assign]
    return dials
