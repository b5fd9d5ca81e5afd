"""Promises of a session that is for measuring: it reaches what measures it, within bounds, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qanat.base.deadline import Deadline
from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.errors import StreamReset
from qanat.config.server_settings import ClientAccount, ServerLimits, ServerSettings
from qanat.handshake.hello import Answer, Close, CloseReason, Hello, Ready, RecordKind
from qanat.handshake.identity import load_or_create_identity
from qanat.measure.far_end import MAX_STREAMS, REPORT
from qanat.mux.frames import Reason
from qanat.mux.stream import Stream
from qanat.server.server import Server
from qanat.session.messages import Connect, Listen, ListenFailed, Measure, Measurement, decode_control
from tests.support.background import wait_until
from tests.support.server.raw_peers import PARAMETERS, SECONDS, Carried, RawClient, Record, carry

TOKEN = os.urandom(32)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("server") / "server.key"
    load_or_create_identity(path)
    return path


@pytest.fixture
def server(identity: Path) -> Iterator[Server]:
    account = {"allow_connect": ("127.0.0.1:*",), "allow_listen": ("127.0.0.1:0",)}
    settings = ServerSettings(
        clients=(ClientAccount("a", (TOKEN,), **account),),
        listen=(("127.0.0.1", 0),),
        identity=identity,
        drain=0.2,
        limits=ServerLimits(sessions=2),
    )
    server = Server(settings)
    server.start()
    yield server
    server.stop()


def greet_to_measure(client: RawClient) -> Record:
    client.say(RecordKind.HELLO, Hello(client.instance, replace(PARAMETERS, lanes=4, measure=1)).encode())
    return client.hear()


@pytest.fixture
def measured(server: Server) -> Iterator[Carried]:
    with RawClient(server, "a", TOKEN, instance=os.urandom(16)) as client:
        kind, content = greet_to_measure(client)
        assert kind is RecordKind.READY
        ready = Ready.decode(content)
        assert (ready.answer, ready.parameters.measure) == (Answer.NEW, 1)
        assert (ready.parameters.lanes, ready.parameters.resume_for) == (1, 0)
        client.carried = carry(client.sealed, client=True)
        yield client.carried
        client.end(CloseReason.SHUTDOWN)
    wait_until(lambda: not server.registry.sessions, "the session is over with its pipe")


def read(stream: Stream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = stream.receive()
        assert part is not None
        data += part
        stream.consumed(len(part))
    return bytes(data)


def refusal(carried: Carried, request: bytes) -> StreamReset:
    stream = carried.lane.open_stream(request)
    with pytest.raises(StreamReset) as caught:
        stream.receive()
    stream.release()
    return caught.value


def test_an_echo_sends_back_what_comes_and_ends_with_it(measured: Carried) -> None:
    stream = measured.lane.open_stream(Measure(Measurement.ECHO).encode())
    for text in (b"one", b"two"):
        stream.write(text)
        assert read(stream, 3) == text
    stream.finish()
    assert stream.receive() is None
    stream.release()


def test_a_sink_says_how_much_has_come_and_how_long_it_took(measured: Carried) -> None:
    stream = measured.lane.open_stream(Measure(Measurement.SINK).encode())
    for _ in range(5):
        assert stream.wait_writable() >= 1000
        stream.write(bytes(1000))
    stream.finish()
    said = b""
    while (part := stream.receive()) is not None:
        said += part
    stream.release()
    reports = list(REPORT.iter_unpack(said))
    assert reports[-1][0] == 5000
    assert reports == sorted(reports)


def test_a_source_sends_until_it_is_told_the_end(measured: Carried) -> None:
    stream = measured.lane.open_stream(Measure(Measurement.SOURCE).encode())
    read(stream, 1_000_000)
    stream.finish()
    while (part := stream.receive()) is not None:
        stream.consumed(len(part))
    stream.release()


def test_it_reaches_nothing_else_and_listens_nowhere(measured: Carried) -> None:
    refused = refusal(measured, Connect(TcpAddress("127.0.0.1", 1)).encode())
    assert (refused.code, refused.message) == (Reason.NOT_ALLOWED, "this session is for measuring alone")
    measured.lane.send_control(Listen(1, TcpAddress("127.0.0.1", 0)).encode())
    answer = decode_control(measured.control.get(timeout=SECONDS))
    assert answer == ListenFailed(1, Reason.NOT_ALLOWED, "this session is for measuring alone")
    assert refusal(measured, b"\x03\x09").code == Reason.NOT_ALLOWED


def test_it_has_so_many_streams_at_once_and_others_when_these_are_over(measured: Carried) -> None:
    request = Measure(Measurement.ECHO).encode()
    streams = [measured.lane.open_stream(request) for _ in range(MAX_STREAMS)]
    for stream in streams:
        assert stream.wait_accepted(Deadline(SECONDS)) == "echo"
    assert refusal(measured, request).code == Reason.LIMIT
    for stream in streams:
        stream.reset(Reason.CANCELED, "")
        stream.release()

    def again() -> bool:
        stream = measured.lane.open_stream(request)
        try:
            return stream.wait_accepted(Deadline(SECONDS)) is not None
        except StreamReset:
            return False
        finally:
            stream.release()

    wait_until(again, "an echo's place is free")


def test_any_other_session_may_not_measure(server: Server) -> None:
    with RawClient(server, "a", TOKEN) as client:
        refused = refusal(client.join(), Measure(Measurement.SOURCE).encode())
        assert (refused.code, refused.message) == (
            Reason.NOT_ALLOWED,
            "only a session that is for measuring may measure",
        )
        client.end(CloseReason.SHUTDOWN)
    wait_until(lambda: not server.registry.sessions, "the session is over")


def test_a_second_measurement_at_once_is_told_of_the_first(server: Server, measured: Carried) -> None:
    with RawClient(server, "a", TOKEN, instance=b"2" * 16) as second:
        kind, content = greet_to_measure(second)
        close = Close.decode(content)
        assert (kind, close.reason) == (RecordKind.CLOSE, CloseReason.BUSY)
        assert close.text.startswith("a is being measured already, from 127.0.0.1")
    assert measured.lane.ping(SECONDS)


def test_a_server_may_refuse_to_be_measured(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "settings", replace(server.settings, bench=False))
    with RawClient(server, "a", TOKEN) as client:
        kind, content = greet_to_measure(client)
        close = Close.decode(content)
        assert (kind, close.reason) == (RecordKind.CLOSE, CloseReason.BUSY)
        assert "bench: false" in close.text
    assert not server.registry.sessions
