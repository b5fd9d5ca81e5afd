"""Promises of the client about a session whose connection was lost, or is being replaced."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qanat.base.endpoint_addresses import TcpAddress
from qanat.config.client_settings import Reconnect
from qanat.config.forward_settings import Forward
from qanat.handshake.hello import Answer, Close, CloseReason, Intent, Ready, RecordKind
from qanat.mux.frames import Reason
from qanat.mux.lane import Lane
from qanat.session.messages import Listen, decode_control
from tests.support.applications import END, RESET, Target, connection, echo, ending_of, exchange
from tests.support.background import wait_until
from tests.support.harness import Relay
from tests.support.logs import wait_for_log
from tests.support.mux.rig import read
from tests.support.server.raw_peers import PARAMETERS, SECONDS
from tests.support.server.raw_sessions import (
    LOCAL,
    LONG,
    REMOTE,
    Caller,
    Line,
    RawSession,
    arrives,
    client_of_raw,
    client_to,
    one_stream,
    real_server,
    url_of,
)


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qanat")


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
                sent = session.carried.lane.core.sender.retransmit_buffer.next_number
                session.cut()
                caller = desk.next(Intent.RESUME)
                assert (caller.hello.epoch, caller.hello.lane, caller.hello.expected) == (epoch, 0, sent)
                session.resume(caller)
            assert arrives(b"and on", sock, stream)
            stream.finish()
            assert ending_of(sock) == END
        stream.release()


def test_forwards_are_asked_for_once_a_session_and_not_again_when_it_is_resumed(tmp_path: Path) -> None:
    with client_of_raw(tmp_path, REMOTE) as (_, desk):
        session = RawSession(desk.next(Intent.NEW))
        asked = session.carried.control.get(timeout=SECONDS)
        assert decode_control(asked) == Listen(0, TcpAddress("127.0.0.1", 80))
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
            assert time.monotonic() - began < SECONDS, "its time would be a minute"
            stream.release()
        anew = RawSession(desk.next(Intent.NEW))
        asked = decode_control(anew.carried.control.get(timeout=SECONDS))
        assert asked == Listen(1, TcpAddress("127.0.0.1", 80))
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
                client.servers[0]._backoff.failed()  # as while the server was down
            over_by_expired(session, caller)
            assert ending_of(sock) == RESET
            stream.release()
        assert RawSession(desk.next(Intent.NEW)).carried.lane.ping(SECONDS)


def test_a_server_that_forgets_each_session_as_soon_as_it_began_is_asked_less_and_less_often(tmp_path: Path) -> None:
    calm = Reconnect(first=0.01, min=1, max=60)
    with client_of_raw(tmp_path, LOCAL, reconnect=calm) as (_, desk):
        parameters = replace(PARAMETERS, resume_for=LONG)
        caller, tries = desk.next(Intent.NEW), 0
        until = time.monotonic() + 2.0
        with contextlib.suppress(queue.Empty):
            while True:
                if caller.hello.intent is Intent.NEW:
                    caller.say(RecordKind.READY, Ready(Answer.NEW, "raw", parameters, session=b"s" * 16).encode())
                    caller.sealed.close("the network was cut")
                    tries += 1
                else:
                    caller.say(RecordKind.READY, Ready(Answer.EXPIRED, "raw", PARAMETERS).encode())
                caller = desk.callers.get(timeout=max(0.001, until - time.monotonic()))
        assert tries <= 10


@pytest.mark.parametrize("lie", ["no proof", "another handshake's proof", "another session", "a new session"])
def test_who_cannot_prove_to_have_the_session_is_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lie: str
) -> None:
    """Who has stolen the server's key alone could otherwise take a session over, and break all its streams."""
    with one_stream(tmp_path) as (desk, session, sock, stream):
        session.cut()
        caller = desk.next(Intent.RESUME)
        true = session.ready(caller, session.carried.lane.core.receiver.expected)
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
        assert arrives(b"true", sock, stream)


@pytest.mark.parametrize("reason", [CloseReason.STALE, CloseReason.BUSY, CloseReason.LEAVING])
def test_a_server_that_turns_it_away_for_now_is_asked_again_with_a_higher_epoch(
    tmp_path: Path, reason: CloseReason
) -> None:
    with one_stream(tmp_path) as (desk, session, sock, stream):
        session.cut()
        for epoch in (1, 2, 3):
            caller = desk.next(Intent.RESUME)
            assert caller.hello.epoch == epoch
            caller.say(RecordKind.CLOSE, Close(reason, "not now").encode())
        session.resume(desk.next(Intent.RESUME))
        assert arrives(b"at last", sock, stream)


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
    start, late = Lane.start, threading.Event()

    def start_later(lane: Lane, *args: Any, **how: Any) -> None:
        if lane.name == "a":
            time.sleep(0.3)
            late.set()
        start(lane, *args, **how)

    monkeypatch.setattr(Lane, "start", start_later)
    with client_of_raw(tmp_path, LOCAL) as (client, desk), connection(client.local_ports[0]) as sock:
        session = RawSession(desk.next(Intent.NEW))
        stream = session.next_stream()
        wait_until(lambda: client.servers[0].disconnected_since is None, "the server counts as reached")
        stream.reset(Reason.CANCELED, "")
        assert ending_of(sock) == RESET
        stream.release()
    assert late.is_set()


def test_when_one_url_fails_the_session_is_resumed_by_the_next(tmp_path: Path) -> None:
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        server = stack.enter_context(real_server(tmp_path))
        port = server.addresses[0][1]
        first, second = Relay(port), stack.enter_context(Relay(port))
        forward = Forward("local", TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", target.port))
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
        forward = Forward("local", TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", target.port))
        with Relay(server.addresses[0][1]) as relay:
            client = stack.enter_context(client_to((url_of(relay),), server.identity.fingerprint, tmp_path, forward))
            sock = stack.enter_context(connection(client.local_ports[0]))
            assert exchange(sock, b"before") == b"before"
            lost = time.monotonic()
        assert ending_of(sock) == RESET
        assert 0.9 < time.monotonic() - lost < SECONDS
        assert target.wait_endings(1) == [RESET]


def test_a_session_that_was_away_too_long_is_followed_by_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The client is still trying when the server has given the session up."""
    with client_of_raw(tmp_path, LOCAL) as (_, desk):
        session = RawSession(desk.next(Intent.NEW), resume_for=1)
        began = time.monotonic()
        session.cut()
        while (caller := desk.callers.get(timeout=SECONDS)).hello.intent is Intent.RESUME:
            caller.say(RecordKind.CLOSE, Close(CloseReason.BUSY, "").encode())
            assert time.monotonic() - began < SECONDS
        assert time.monotonic() - began > 0.9
        assert RawSession(caller).carried.lane.ping(SECONDS)
