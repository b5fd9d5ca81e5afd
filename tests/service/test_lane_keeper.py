"""Promises of the client about connections that are replaced in time, side by side, or given up at the end."""

from __future__ import annotations

import itertools
import queue
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from attrs import evolve

from handshake.hello import Intent
from mux.frames import Reason
from mux.lane import Lane
from service import lane_keeper
from service.client import Client
from service.server import Server
from service.settings import Reconnect
from tests.applications import END, RESET, connection, ending_of, exchange
from tests.mux.rig import read
from tests.service.raw_peers import SECONDS
from tests.service.raw_sessions import (
    LOCAL,
    QUICK,
    Line,
    RawSession,
    client_of_raw,
)
from tests.transports.background import Background, wait_until
from tests.transports.test_cancelling import black_hole

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
