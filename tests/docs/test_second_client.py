"""docs/PROTOCOL.md is enough: a client written from it alone gets on with the real server, over every transport."""

from __future__ import annotations

import ast
import os
import select
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from qanat.handshake.tokens import generate_token
from tests.docs import second_client
from tests.docs.second_client import (
    DATAGRAM,
    EXPIRED,
    FRAMES,
    KEY_UPDATE,
    PIPES,
    RESUMED,
    Channel,
    Closed,
    Lane,
    Refused,
    Session,
    WebSocket,
    lp16,
)
from tests.support.applications import Target, connection, echo, receive_exactly, reply_after_end
from tests.support.harness import ROOT, Program, Tunnel
from tests.support.machine.ports import unused_port

RECORDS_PER_KEY = 12
"""After so many the server changes its key; 2^24 would take a while."""
SERVER = f"""
import sys
from qanat.handshake.sealed import Sealer
Sealer.__init__.__kwdefaults__["max_records"] = {RECORDS_PER_KEY}
from qanat.cli.main import main
sys.exit(main())
"""


class ServerAlone(Tunnel):
    """The server of a tunnel, which changes its keys often."""

    def _start(self, which: str) -> Program:
        program = Program(sys.executable, "-c", SERVER, which, "-c", self.directory / f"{which}.yaml", cwd=ROOT)
        self._programs.append(program)
        return program


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    with ServerAlone(tmp_path_factory.mktemp("server")) as tunnel:
        tunnel.start_server()
        yield tunnel


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with Target(echo) as target:
        yield target


@pytest.fixture(params=PIPES)
def session(request: pytest.FixtureRequest, server: Tunnel, key: rsa.RSAPrivateKey) -> Iterator[Session]:
    session = Session(request.param, server.port, key, "a", server.token, server.fingerprint)
    with ExitStack() as stack:
        stack.callback(session.close)
        yield session


def test_it_imports_nothing_of_qanat() -> None:
    tree = ast.parse(Path(second_client.__file__).read_text())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= {*sys.stdlib_module_names, "cryptography", "h2"}


def test_a_wrong_token_is_refused(session: Session) -> None:
    key, name, _, fingerprint = session.credentials
    session.credentials = (key, name, generate_token(), fingerprint)
    with pytest.raises(Refused):
        session.start()


def test_a_new_session_carries_a_stream_from_its_beginning_to_its_end(session: Session) -> None:
    lane = session.start()
    assert session.node == "the-server"
    with Target(reply_after_end) as target:
        stream = lane.open("127.0.0.1", target.port)
        lane.send(stream, b"all that there is to say")
        lane.finish(stream)
        lane.receive(stream, 32 + (1 << 20))
        assert stream.accepted == target.address
        while not stream.finished:
            lane.step()


def test_a_target_that_is_not_allowed_is_refused_with_its_reason(session: Session) -> None:
    lane = session.start()
    stream = lane.open("192.0.2.1", 80)
    while stream.reset is None:
        lane.step()
    assert stream.reset[0] == 4


@pytest.mark.parametrize("origin", ["o" * 256, "\ud800"], ids=["too long", "no UTF-8"])
def test_a_text_that_breaks_its_limit_costs_that_stream_alone(session: Session, target: Target, origin: str) -> None:
    lane = session.start()
    refused, accepted = (lane.open("127.0.0.1", target.port, text) for text in (origin, "o" * 255))
    while refused.reset is None or accepted.accepted is None:
        lane.step()
    assert refused.reset[0] == 4
    lane.send(accepted, b"and so on")
    assert lane.receive(accepted, 9) == b"and so on"


def test_a_forward_asked_for_wrongly_costs_that_forward_alone(session: Session) -> None:
    lane = session.start()
    addresses, failed = (b"x" * 256, b"no address"), 3
    for number, address in enumerate(addresses):
        lane.send_numbered(b"\x06" + lp16(struct.pack("!BIH", 1, number, 0) + lp16(address)))
    while len(lane.controls) < len(addresses):
        lane.step()
    answers = [struct.unpack_from("!BIH", answer) for answer in lane.controls]
    assert answers == [(failed, number, 4) for number in range(len(addresses))]


def test_a_second_lane_joins(session: Session, target: Target) -> None:
    session.start()
    assert session.attach(1) == RESUMED
    for lane in session.lanes.values():
        exchange(lane, target, b"which lane")


def test_nothing_is_lost_or_doubled_over_a_cut_with_data_in_flight_both_ways(session: Session, target: Target) -> None:
    lane = session.start()
    content = os.urandom(400_000)
    stream = lane.open("127.0.0.1", target.port)
    lane.send(stream, content[:200_000])
    pipe = pipe_of(lane)
    select.select([pipe.sock], [], [], second_client.SECONDS)
    assert pipe.cut() > 0  # so some of the echo is lost
    lane.channel = None
    lane.send(stream, content[200_000:210_000])  # as if it had been on its way
    assert session.attach(0) == RESUMED
    lane.send(stream, content[210_000:])
    assert lane.receive(stream, len(content)) == content


def test_a_pipe_that_still_works_yields_to_a_new_one(session: Session, target: Target) -> None:
    lane = session.start()
    stream = lane.open("127.0.0.1", target.port)
    lane.send(stream, b"before")
    lane.receive(stream, 6)
    old = lane.channel
    assert old is not None
    assert session.attach(0) == RESUMED
    assert last_word(old).args == (1, "a newer connection takes over")
    lane.send(stream, b" and after")
    assert lane.receive(stream, 16) == b"before and after"


def test_the_server_listens_for_the_client(session: Session) -> None:
    lane = session.start()
    port = unused_port()
    lane.send_numbered(b"\x06" + lp16(struct.pack("!BIH", 1, 7, port) + lp16(b"127.0.0.1")))
    while not lane.controls:
        lane.step()
    assert lane.controls == [struct.pack("!BIH", 2, 7, port)]
    with connection(port) as sock:
        sock.sendall(b"hello")
        while 2 not in lane.streams:
            lane.step()
        stream = lane.streams[2]
        assert lane.receive(stream, 5) == b"hello"
        lane.send(stream, b"and back")
        assert receive_exactly(sock, 8) == b"and back"


def test_a_datagram_is_dropped_and_nothing_else(session: Session, target: Target) -> None:
    lane = session.start()
    exchange(lane, target, b"before")
    assert lane.channel is not None
    for number in (1, 99):  # a stream that there is, and one that there never was
        lane.channel.send(FRAMES, struct.pack("!BI", DATAGRAM, number) + lp16(bytes(1200)))
    exchange(lane, target, b"after")


def test_both_ends_change_their_keys(session: Session, target: Target) -> None:
    lane = session.start()
    assert lane.channel is not None
    for turn in range(2 * RECORDS_PER_KEY):
        exchange(lane, target, f"turn {turn}".encode())
        lane.channel.send(KEY_UPDATE)
    assert lane.channel.receiving.updates >= 2


def test_a_session_that_there_is_not_has_expired(session: Session) -> None:
    session.start()
    session.id = os.urandom(16)
    assert session.attach(0) == EXPIRED


def last_word(channel: Channel) -> Closed:
    while True:
        try:
            channel.recv()
        except Closed as closed:
            return closed


def pipe_of(lane: Lane) -> WebSocket:
    assert lane.channel is not None
    return lane.channel.pipe


def test_a_busy_server_says_when_to_come_back(tmp_path: Path) -> None:
    with Tunnel(tmp_path, server={"limits": {"handshakes": 1, "handshake_rate": 0.1}}) as busy:
        busy.start_server()
        first = WebSocket(busy.port, {})
        assert first.status == 101
        asked = {name: pipe(busy.port, {}) for name, pipe in PIPES.items()}
        for pipe in (first, *asked.values()):
            pipe.sock.close()
        for name in ("websocket", "http2", "websocket-h2"):
            assert asked[name].status == 503
            assert 1 <= int(asked[name].headers["retry-after"]) <= 60
        answer = asked["grpc"].headers
        assert (answer[":status"], answer["grpc-status"]) == ("200", "14")
        assert 1000 <= int(answer["grpc-retry-pushback-ms"]) <= 60_000


def exchange(lane: Lane, target: Target, content: bytes) -> None:
    stream = lane.open("127.0.0.1", target.port)
    lane.send(stream, content)
    assert lane.receive(stream, len(content)) == content
    lane.finish(stream)
    # A connection that ends at once may take FIN with it: then the stream would wait to be resumed.
    while not stream.finished:
        lane.step()
