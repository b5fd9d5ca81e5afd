"""Promises of the server to those who come back, and to those who only say that they do."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qanat.base.deadline import Deadline
from qanat.base.endpoint_addresses import TcpAddress
from qanat.config.server_settings import ClientAccount, ServerLimits, ServerSettings
from qanat.endpoints.stream_quota import StreamQuota
from qanat.handshake.hello import Answer, Close, CloseReason, Hello, Intent, Ready, RecordKind
from qanat.mux import frames as wire
from qanat.mux.frames import Reason
from qanat.mux.lane import Lane
from qanat.mux.stream import Stream
from qanat.server.server import Server
from qanat.server.session import Listens, ServerSession
from qanat.session.messages import Connect, Listen, Listening, decode_control
from tests.support.applications import END, RESET, Target, discard, echo, ending_at
from tests.support.background import Background, wait_until
from tests.support.identities import place_identity
from tests.support.mux.rig import pattern, read, write_all
from tests.support.server.raw_peers import PARAMETERS, SECONDS, Carried, Kept, RawClient
from tests.support.sockets import can_bind, nothing_has_come

TOKEN = os.urandom(32)
SOON = 0.5
"""`resume_for` where its end is waited for."""


@contextmanager
def server_with(directory: Path, **changes: object) -> Iterator[Server]:
    rules = {"allow_connect": ("127.0.0.1:*",), "allow_listen": ("127.0.0.1:0", "127.0.0.1:1-65535")}
    values: dict[str, object] = {
        "clients": (ClientAccount("a", (TOKEN,), **rules), ClientAccount("b", (TOKEN,), **rules)),
        "listen": (("127.0.0.1", 0),),
        "identity": place_identity(directory / "server.key"),
        "node": "the-server",
        "drain": 0.2,
        "takeover_timeout": SECONDS,
        "limits": ServerLimits(lanes=2),
    }
    server = Server(ServerSettings(**(values | changes)))  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with server_with(tmp_path) as server:
        yield server


def again(server: Server, stack: ExitStack, name: str = "a", instance: bytes = b"i" * 16) -> RawClient:
    """Another connection of the same client, before HELLO."""
    return stack.enter_context(RawClient(server, name, TOKEN, instance))


def begin(server: Server, stack: ExitStack, *, lanes: int = 1) -> tuple[Kept, Carried]:
    """A session on its first pipe."""
    client = again(server, stack)
    carried = client.join(lanes=lanes)
    return client.kept, carried


def stream_to(carried: Carried, target: Target) -> Stream:
    """A stream that has reached its target and been answered by it, an echo."""
    stream = carried.lane.open_stream(Connect(TcpAddress("127.0.0.1", target.port)).encode())
    stream.write(b"before")
    assert read(stream, 6) == b"before"
    return stream


def listen(carried: Carried) -> int:
    """A port on the server, for a remote forward."""
    carried.lane.send_control(Listen(0, TcpAddress("127.0.0.1", 0)).encode())
    answer = decode_control(carried.control.get(timeout=SECONDS))
    assert isinstance(answer, Listening)
    return answer.port


def session_of(server: Server, kept: Kept) -> ServerSession:
    session = server.registry.find("a", kept.session)
    assert session is not None
    return session


def cut(carried: Carried) -> None:
    carried.lane.cut("the network was cut")
    carried.end()


def is_expired(server: Server, kept: Kept, *, lane: int = 0, epoch: int = 99) -> bool:
    with RawClient(server, "a", TOKEN) as client:
        kind, content = client.ask(kept, lane=lane, epoch=epoch)
        return kind is RecordKind.READY and Ready.decode(content).answer is Answer.EXPIRED


# --- coming back ------------------------------------------------------------------------------------


def test_streams_and_ports_go_on_over_the_next_pipe(server: Server) -> None:
    with ExitStack() as stack, Target(echo) as target:
        kept, carried = begin(server, stack)
        stream, port = stream_to(carried, target), listen(carried)
        for epoch in (1, 2, 5):
            cut(carried)
            stream.write(b"meanwhile")
            carried = again(server, stack).go_on(kept, carried, epoch=epoch)
            assert read(stream, 9) == b"meanwhile"
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS):
            accepted = carried.opened.get(timeout=SECONDS)
            accepted.reset(Reason.REFUSED, "")
            accepted.release()
        stream.finish()
        assert stream.receive() is None
        stream.release()
        assert target.endings == [END]


def test_bulk_is_whole_whether_the_old_pipe_was_cut_or_still_works(server: Server) -> None:
    with ExitStack() as stack, Target(echo) as target:
        kept, carried = begin(server, stack)
        stream = stream_to(carried, target)
        data = pattern(6_000_000)
        writing = Background(lambda: write_all(stream, data))
        came = b""
        for epoch in range(1, 7):
            came += read(stream, 700_000)
            if epoch % 2:
                cut(carried)
            carried = again(server, stack).go_on(kept, carried, epoch=epoch)
        came += read(stream, len(data) - len(came))
        assert came == data
        writing.result()
        stream.release()


def test_a_connection_that_takes_over_from_one_that_works_tells_it_so(server: Server) -> None:
    with ExitStack() as stack:
        kept, first = begin(server, stack)
        second = again(server, stack).go_on(kept, first)
        assert first.end().close == Close(CloseReason.LEAVING, "a newer connection takes over")
        assert second.lane.ping(SECONDS)


def test_what_a_target_sends_while_its_client_is_away_waits_for_it(server: Server) -> None:
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listening:
        kept, carried = begin(server, stack)
        stream = carried.lane.open_stream(Connect(TcpAddress(*listening.getsockname())).encode())
        target = stack.enter_context(listening.accept()[0])
        assert stream.wait_accepted(Deadline(SECONDS)) is not None
        cut(carried)
        target.sendall(b"while you were out")
        target.shutdown(socket.SHUT_WR)
        again(server, stack).go_on(kept, carried)
        assert read(stream, 18) == b"while you were out"
        assert stream.receive() is None
        stream.finish()
        stream.release()


def test_a_client_whose_ready_was_lost_comes_with_a_higher_epoch(server: Server) -> None:
    with ExitStack() as stack, Target(echo) as target:
        kept, carried = begin(server, stack)
        stream = stream_to(carried, target)
        cut(carried)
        with RawClient(server, "a", TOKEN) as lost:
            kind, _ = lost.ask(kept, epoch=1, expected=carried.lane.pause_writer())
            assert kind is RecordKind.READY
        stream.write(b"on")
        again(server, stack).go_on(kept, carried, epoch=2)
        assert read(stream, 2) == b"on"
        stream.release()


def test_what_was_to_happen_to_an_absence_that_ended_does_not_happen_to_the_next(tmp_path: Path) -> None:
    """Between two pipes a lane has none for a moment, which may be when an earlier timeout would have run out."""
    with ExitStack() as stack:
        server = stack.enter_context(server_with(tmp_path, resume_for=2.0))
        kept, carried = begin(server, stack)
        session = session_of(server, kept)
        lane = session.add_lane(0)
        time.sleep(2.0)
        cut(carried)
        wait_until(lambda: not lane.attached, "the server has noticed")
        session.lane_expired(0, lane)
        assert not session.ended.is_set()
        assert again(server, stack).go_on(kept, carried).lane.ping(SECONDS)


def test_control_messages_travel_on_the_first_lane_alone(server: Server) -> None:
    """They are answered one by one, and two lanes' readers would do so at once."""
    with ExitStack() as stack:
        kept, carried = begin(server, stack, lanes=2)
        other = again(server, stack).go_on(kept, None, Intent.JOIN, lane=1)
        other.lane.send_control(Listen(0, TcpAddress("127.0.0.1", 0)).encode())
        close = other.end().close
        assert close is not None
        assert close.reason is CloseReason.PROTOCOL
        carried.end()
        assert is_expired(server, kept)


def test_a_port_that_is_bound_while_the_session_ends_is_freed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bind, ports = ServerSession._bind, []

    def bind_late(session: ServerSession, message: Listen, quota: StreamQuota) -> Listens:
        listener = bind(session, message, quota)
        ports.append(listener.port)
        session.replace("its client connected anew")
        return listener

    monkeypatch.setattr(ServerSession, "_bind", bind_late)
    with ExitStack() as stack:
        _, carried = begin(server, stack)
        carried.lane.send_control(Listen(0, TcpAddress("127.0.0.1", 0)).encode())
        carried.end()
        wait_until(lambda: bool(ports) and can_bind(ports[0]), "the port is free")


def test_a_session_whose_time_is_up_just_after_ready_does_not_stay_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread may get its turn too late to notice that all was well."""
    admit = Server._admit

    def admit_late(*args: Any) -> Callable[[], None] | None:
        carry = admit(*args)
        time.sleep(1.6)
        return carry

    monkeypatch.setattr(Server, "_admit", admit_late)
    limits = ServerLimits(lanes=2, handshake_timeout=1.5)
    with server_with(tmp_path, resume_for=SOON, limits=limits) as server, ExitStack() as stack:
        client = again(server, stack)
        kind, _ = client.greet()
        assert kind is RecordKind.READY
        assert server.registry.sessions
        wait_until(lambda: not server.registry.sessions, "the session has expired")


def test_who_comes_to_a_remote_port_costs_no_more_than_the_servers_own_limit_whatever_its_client_allows(
    tmp_path: Path,
) -> None:
    limits = ServerLimits(streams=2)
    with server_with(tmp_path, limits=limits) as server, ExitStack() as stack:
        kept, carried = begin(server, stack)
        port = listen(carried)
        socks = [stack.enter_context(socket.create_connection(("127.0.0.1", port), SECONDS)) for _ in range(2)]
        wait_until(lambda: session_of(server, kept).open_streams == 2, "both have streams")
        assert [ending_at(port) for _ in range(3)] == [RESET] * 3
        assert all(nothing_has_come(sock) for sock in socks)
        assert session_of(server, kept).open_streams == 2


def test_one_who_resumes_is_named_as_the_holder_from_where_it_is_now(server: Server) -> None:
    with ExitStack() as stack:
        kept, carried = begin(server, stack)
        before = session_of(server, kept).origin
        cut(carried)
        again(server, stack).go_on(kept, carried)
        assert session_of(server, kept).origin != before
        kind, content = again(server, stack, instance=b"j" * 16).greet()
        assert (kind, Close.decode(content).reason) == (RecordKind.CLOSE, CloseReason.NAME_IN_USE)
        assert session_of(server, kept).origin in Close.decode(content).text


# --- one answer for all who may not -----------------------------------------------------------------


def test_all_who_ask_for_what_is_not_theirs_get_the_very_same_answer(server: Server) -> None:
    """Otherwise the answer would tell which sessions there are."""
    with ExitStack() as stack:
        kept, carried = begin(server, stack)
        theirs = again(server, stack, "b")
        theirs.join()

        def answer(claimed: Kept, **fields: int) -> Ready:
            kind, content = again(server, stack).ask(claimed, **fields)
            assert kind is RecordKind.READY
            return Ready.decode(content)

        def answer_to_proof(proof: bytes) -> Ready:
            client = again(server, stack)
            hello = Hello(b"i" * 16, PARAMETERS, Intent.RESUME, kept.session, 0, 1, 0, proof)
            client.say(RecordKind.HELLO, hello.encode())
            kind, content = client.hear()
            assert kind is RecordKind.READY
            return Ready.decode(content)

        other = again(server, stack)
        replayed = Hello(b"i" * 16, PARAMETERS, Intent.RESUME, kept.session, 0, 1, 0).proven(
            kept.secret, other.sealed.result.transcript
        )
        answers = {
            "a wrong secret": answer(replace(kept, secret=os.urandom(32))),
            "no proof": answer_to_proof(bytes(32)),
            "the proof of another handshake": answer_to_proof(replayed.proof),
            "an unknown session": answer(replace(kept, session=os.urandom(16))),
            "another client's session": answer(theirs.kept),
            "another client's id with the own secret": answer(Kept(theirs.kept.session, kept.secret)),
            "a lane that there is not": answer(kept, lane=1),
        }
        assert carried.lane.ping(SECONDS)
        assert theirs.carried is not None
        assert theirs.carried.lane.ping(SECONDS)
        carried.lane.close(CloseReason.SHUTDOWN, "")
        carried.end()
        wait_until(lambda: server.registry.find("a", kept.session) is None, "the session is over")
        answers["a session that is over"] = answer(kept)
        wanted = Ready(Answer.EXPIRED, "the-server", answers["an unknown session"].parameters)
        assert answers == dict.fromkeys(answers, wanted)


def test_a_session_that_was_replaced_is_over(server: Server) -> None:
    with ExitStack() as stack:
        kept, carried = begin(server, stack)
        anew = again(server, stack)
        assert anew.join().lane.ping(SECONDS)
        ending = carried.end()
        assert ending.close == Close(CloseReason.REPLACED, "its client connected anew")
        assert anew.kept != kept
        assert is_expired(server, kept)
        assert anew.carried is not None
        assert anew.carried.lane.ping(SECONDS)


def test_a_server_that_was_restarted_knows_no_session(tmp_path: Path) -> None:
    with ExitStack() as stack:
        with server_with(tmp_path) as before:
            kept, carried = begin(before, stack)
            cut(carried)
        with server_with(tmp_path) as after:
            assert is_expired(after, kept)


# --- epochs and numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_epoch_that_is_not_the_highest_is_stale_and_the_present_pipe_goes_on(server: Server, epoch: int) -> None:
    with ExitStack() as stack:
        kept, first = begin(server, stack)
        present = again(server, stack).go_on(kept, first, epoch=2)
        kind, content = again(server, stack).ask(kept, epoch=epoch, expected=present.lane.core.receiver.expected)
        assert (kind, Close.decode(content).reason) == (RecordKind.CLOSE, CloseReason.STALE)
        assert present.lane.ping(SECONDS)
        assert not present.endings


def test_a_hello_that_was_long_on_its_way_is_stale_though_it_comes_last(server: Server) -> None:
    with ExitStack() as stack:
        kept, carried = begin(server, stack)
        late, prompt = again(server, stack), again(server, stack)
        cut(carried)
        expected = carried.lane.pause_writer()
        present = prompt.go_on(kept, carried, epoch=2)
        kind, content = late.ask(kept, epoch=1, expected=expected)
        assert (kind, Close.decode(content).reason) == (RecordKind.CLOSE, CloseReason.STALE)
        assert present.lane.ping(SECONDS)


def test_a_hello_that_expects_what_was_acknowledged_since_is_stale(server: Server) -> None:
    with ExitStack() as stack, Target(echo) as target:
        kept, carried = begin(server, stack)
        stream = stream_to(carried, target)
        session = session_of(server, kept)
        wait_until(lambda: session.lanes[0].core.sender.acknowledged > 0, "the echo is acknowledged")
        kind, content = again(server, stack).ask(kept, epoch=7, expected=0)
        assert (kind, Close.decode(content).reason) == (RecordKind.CLOSE, CloseReason.STALE)
        assert carried.lane.ping(SECONDS)
        stream.write(b"still")
        assert read(stream, 5) == b"still"
        stream.release()


def test_expecting_what_was_never_sent_ends_the_session(server: Server) -> None:
    with ExitStack() as stack, Target(discard) as target:
        kept, carried = begin(server, stack)
        stream = carried.lane.open_stream(Connect(TcpAddress("127.0.0.1", target.port)).encode())
        target.wait_accepted(1)
        kind, content = again(server, stack).ask(kept, expected=1000)
        close = Close.decode(content)
        assert (kind, close.reason) == (RecordKind.CLOSE, CloseReason.PROTOCOL)
        assert "the peer expects frame 1000" in close.text
        ending = carried.end()
        assert ending.close is not None
        assert ending.close.reason is CloseReason.PROTOCOL
        assert target.wait_endings(1) == [RESET]
        assert is_expired(server, kept)
        stream.release()


def test_a_client_that_breaks_the_protocol_has_no_session_to_come_back_to(server: Server) -> None:
    with ExitStack() as stack:
        client = again(server, stack)
        kept = Kept(Ready.decode(client.greet()[1]).session, client.sealed.result.resume)
        session = session_of(server, kept)
        client.say(RecordKind.FRAMES, wire.Fin(99, 0).encode())
        assert session.ended.wait(SECONDS)
        assert "the peer broke the protocol" in session.why
        assert is_expired(server, kept)


# --- lanes ------------------------------------------------------------------------------------------


def test_a_lane_that_is_joined_carries_streams_of_its_own(server: Server) -> None:
    with ExitStack() as stack, Target(echo) as target:
        kept, first = begin(server, stack, lanes=2)
        second = again(server, stack).go_on(kept, None, Intent.JOIN, lane=1)
        streams = [stream_to(carried, target) for carried in (first, second)]
        cut(second)
        streams[0].write(b"untouched")
        assert read(streams[0], 9) == b"untouched"
        streams[1].write(b"and back")
        again(server, stack).go_on(kept, second, lane=1, epoch=2)
        assert read(streams[1], 8) == b"and back"
        for stream in streams:
            stream.release()


@pytest.mark.parametrize(("asked", "granted"), [(1, 1), (2, 2), (5, 2)])
def test_no_more_lanes_than_were_granted_can_be_joined(server: Server, asked: int, granted: int) -> None:
    """`limits.lanes` is 2."""
    with ExitStack() as stack:
        client = again(server, stack)
        kind, content = client.greet(lanes=asked)
        ready = Ready.decode(content)
        assert ready.parameters.lanes == granted
        assert ready.parameters.max_streams == -(-4096 // granted)
        kept = Kept(ready.session, client.sealed.result.resume)
        for lane in range(1, granted):
            again(server, stack).go_on(kept, None, Intent.JOIN, lane=lane)
        for lane in (granted, granted + 7, 65535):
            kind, content = again(server, stack).ask(kept, Intent.JOIN, lane=lane)
            assert (kind, Ready.decode(content).answer) == (RecordKind.READY, Answer.EXPIRED)


def test_no_more_lanes_can_be_joined_by_asking_for_all_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        kept, _ = begin(server, stack, lanes=2)
        session, add_lane = session_of(server, kept), ServerSession.add_lane

        def add_lane_slowly(session: ServerSession, number: int) -> Lane:
            time.sleep(0.05)
            return add_lane(session, number)

        monkeypatch.setattr(ServerSession, "add_lane", add_lane_slowly)
        hellos = [Hello(b"i" * 16, PARAMETERS, Intent.JOIN, kept.session, lane) for lane in range(1, 9)]
        joining = [Background(lambda hello=hello: session.lane_for(hello)) for hello in hellos]
        assert sum(each.result() is not None for each in joining) == 1
        assert len(session.lanes) == 2


def test_who_joins_a_lane_twice_moves_it(server: Server) -> None:
    """Its first READY may have been lost."""
    with ExitStack() as stack, Target(echo) as target:
        kept, _ = begin(server, stack, lanes=2)
        with RawClient(server, "a", TOKEN) as lost:
            assert lost.ask(kept, Intent.JOIN, lane=1, epoch=1)[0] is RecordKind.READY
        joined = again(server, stack).go_on(kept, None, Intent.JOIN, lane=1, epoch=2)
        stream = stream_to(joined, target)
        kind, content = again(server, stack).ask(kept, Intent.JOIN, lane=1, epoch=2)
        assert (kind, Close.decode(content).reason) == (RecordKind.CLOSE, CloseReason.STALE)
        stream.write(b"still")
        assert read(stream, 5) == b"still"
        stream.release()


# --- staying away -----------------------------------------------------------------------------------


def test_a_session_whose_client_stays_away_is_over_after_its_time_and_not_before(tmp_path: Path) -> None:
    with server_with(tmp_path, resume_for=SOON) as server, ExitStack() as stack, Target(echo) as target:
        kept, carried = begin(server, stack)
        stream, port = stream_to(carried, target), listen(carried)
        left = time.monotonic()
        cut(carried)
        assert not can_bind(port)
        assert target.wait_endings(1) == [RESET]
        assert SOON <= time.monotonic() - left < SOON + SECONDS
        wait_until(lambda: can_bind(port), "its port is free")
        assert is_expired(server, kept)
        stream.release()


def test_coming_back_in_time_begins_the_time_anew(tmp_path: Path) -> None:
    with server_with(tmp_path, resume_for=2.5) as server, ExitStack() as stack, Target(echo) as target:
        kept, carried = begin(server, stack)
        stream = stream_to(carried, target)
        session, left = session_of(server, kept), time.monotonic()
        for epoch in range(1, 5):
            cut(carried)
            assert not session.ended.wait(0.7)
            carried = again(server, stack).go_on(kept, carried, epoch=epoch)
        assert time.monotonic() - left > 2.5
        stream.write(b"still")
        assert read(stream, 5) == b"still"
        assert not session.ended.wait(2.7)  # also once it stays
        stream.release()


def test_a_client_that_says_hello_and_never_runs_stays_away_too(tmp_path: Path) -> None:
    with server_with(tmp_path, resume_for=SOON) as server, ExitStack() as stack, Target(echo) as target:
        kept, carried = begin(server, stack)
        stream = stream_to(carried, target)
        cut(carried)
        with RawClient(server, "a", TOKEN) as lost:
            lost.ask(kept, expected=carried.lane.pause_writer())
        assert target.wait_endings(1) == [RESET]
        assert is_expired(server, kept)
        stream.release()


def test_a_lane_that_stays_away_takes_its_own_streams_with_it_and_no_others(tmp_path: Path) -> None:
    with (
        server_with(tmp_path, resume_for=SOON) as server,
        ExitStack() as stack,
        Target(echo) as first_target,
        Target(echo) as second_target,
    ):
        kept, first = begin(server, stack, lanes=2)
        second = again(server, stack).go_on(kept, None, Intent.JOIN, lane=1)
        streams = [stream_to(first, first_target), stream_to(second, second_target)]
        cut(second)
        assert second_target.wait_endings(1) == [RESET]
        streams[0].write(b"untouched")
        assert read(streams[0], 9) == b"untouched"
        assert is_expired(server, kept, lane=1)
        assert first.lane.ping(SECONDS)
        # Its place may be taken by another one.
        third = again(server, stack).go_on(kept, None, Intent.JOIN, lane=3)
        streams.append(stream_to(third, second_target))
        for stream in streams:
            stream.release()


def test_the_first_lane_takes_the_session_with_it_when_it_stays_away(tmp_path: Path) -> None:
    with server_with(tmp_path, resume_for=SOON) as server, ExitStack() as stack, Target(echo) as target:
        kept, first = begin(server, stack, lanes=2)
        second = again(server, stack).go_on(kept, None, Intent.JOIN, lane=1)
        stream = stream_to(second, target)
        cut(first)
        assert target.wait_endings(1) == [RESET]
        assert second.end().close is None
        assert is_expired(server, kept, lane=1)
        stream.release()


def test_where_nothing_is_resumed_a_session_ends_with_its_connection(tmp_path: Path) -> None:
    with server_with(tmp_path, resume_for=0) as server, ExitStack() as stack, Target(echo) as target:
        client = again(server, stack)
        kind, content = client.greet()
        assert (kind, Ready.decode(content).parameters.resume_for) == (RecordKind.READY, 0)
        client.sealed.close("gone")
        kept, carried = begin(server, stack)
        stream, port = stream_to(carried, target), listen(carried)
        left = time.monotonic()
        cut(carried)
        assert target.wait_endings(1) == [RESET]
        wait_until(lambda: can_bind(port), "its port is free")
        assert time.monotonic() - left < SECONDS
        assert is_expired(server, kept)
        stream.release()


@pytest.mark.parametrize("resume_for", [0.2, 0.5, 300.0])
def test_what_the_server_keeps_a_session_for_is_said_in_whole_seconds(tmp_path: Path, resume_for: float) -> None:
    with server_with(tmp_path, resume_for=resume_for) as server, RawClient(server, "a", TOKEN) as client:
        _, content = client.greet()
        assert Ready.decode(content).parameters.resume_for == max(1, round(resume_for))


def test_a_server_that_stops_waits_for_nobody_who_is_away(server: Server) -> None:
    with ExitStack() as stack, Target(echo) as target:
        _, carried = begin(server, stack)
        stream = stream_to(carried, target)
        cut(carried)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < SECONDS  # `resume_for` would be minutes
        assert target.wait_endings(1) == [RESET]
        stream.release()


def test_a_late_hello_does_not_end_the_session_that_its_client_has_begun_since(server: Server) -> None:
    """The client has given that connection up, and does not wait for an answer."""
    with RawClient(server, "a", TOKEN) as early, RawClient(server, "a", TOKEN) as later:
        session = later.join()
        kind, content = early.greet()
        assert kind is RecordKind.CLOSE
        assert Close.decode(content).reason is CloseReason.STALE
        assert session.lane.ping(SECONDS)
