"""Promises of the probe: both directions at once before HELLO, bounded, and none to a server that knows it not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import PipeEnded, ProtocolError, TransportError
from qanat.handshake.exchange import (
    MAX_PROBE_BYTES,
    MAX_PROBES,
    PROBE_SIZE,
    SealedPipe,
    await_probe,
    client_handshake,
    probe,
    send_probe,
    server_handshake,
)
from qanat.handshake.hello import RecordKind
from qanat.handshake.keys import ClientKey, ServerIdentity
from qanat.handshake.machine import TAKES_PROBES
from qanat.handshake.messages import ServerKey
from tests.support.background import DEADLINE, Background
from tests.support.handshake.pipes import socket_pipes
from tests.support.handshake.scenario import complete, make_client, make_server

PROBE, HELLO = bytes([RecordKind.PROBE]), bytes([RecordKind.HELLO])


@pytest.fixture
def ends(identity: ServerIdentity, client_key: ClientKey) -> Iterator[tuple[SealedPipe, SealedPipe]]:
    client_pipe, server_pipe = socket_pipes()
    serving = Background(lambda: server_handshake(server_pipe, make_server(identity), Deadline(DEADLINE)))
    client = client_handshake(client_pipe, make_client(client_key), Deadline(DEADLINE))
    yield client, serving.result()
    client_pipe.close("the test is over")
    server_pipe.close("the test is over")


def test_as_much_goes_each_way_and_hello_comes_after_it(ends: tuple[SealedPipe, SealedPipe]) -> None:
    client, server = ends
    assert client.result.takes_probes
    heard: list[int] = []
    receiving = Background(server.recv_record)
    probe(client, Deadline(DEADLINE), heard.append)
    client.send_record(HELLO + b"hello")
    kind, content = receiving.result()
    assert (kind, bytes(content)) == (RecordKind.HELLO, b"hello")
    assert heard[-1] == PROBE_SIZE + 1
    assert heard[0] < PROBE_SIZE  # it came in parts, while others were on their way


def test_both_directions_are_under_way_at_once(ends: tuple[SealedPipe, SealedPipe]) -> None:
    """The server answers the first part without waiting for the last."""
    client, server = ends
    receiving = Background(server.recv_record)
    client.send_record(PROBE + bytes(4096))
    kind, content = client.recv_record()
    assert (kind, len(content)) == (RecordKind.PROBE, 4096)
    client.close("done")
    with pytest.raises(PipeEnded):
        receiving.result()


@pytest.mark.parametrize("sizes", [[0] * (MAX_PROBES + 1), [MAX_PROBE_BYTES, 1]], ids=["records", "bytes"])
def test_a_client_that_probes_without_end_is_cut(ends: tuple[SealedPipe, SealedPipe], sizes: list[int]) -> None:
    client, server = ends
    receiving = Background(server.recv_record)
    for size in sizes[:-1]:
        client.send_record(PROBE + bytes(size))
        assert client.recv_record()[0] is RecordKind.PROBE
    client.send_record(PROBE + bytes(sizes[-1]))
    with pytest.raises(ProtocolError, match="more is probed"):
        receiving.result()
    with pytest.raises(PipeEnded):
        client.recv_record()


def test_a_path_that_brings_nothing_back_ends_it_in_time(ends: tuple[SealedPipe, SealedPipe]) -> None:
    client, _ = ends  # nobody reads at the other end
    with pytest.raises(TransportError, match="in time"):
        probe(client, Deadline(0.2), lambda came: None)
    assert client.cause is not None


def test_an_answer_that_is_none_ends_it(ends: tuple[SealedPipe, SealedPipe]) -> None:
    client, server = ends
    server.send_record(PROBE + bytes(5))
    with pytest.raises(ProtocolError, match="where a PROBE of 4096 was due"):
        probe(client, Deadline(DEADLINE), lambda came: None)
    assert client.cause is not None


def test_hello_need_not_wait_until_a_probe_has_come_back(ends: tuple[SealedPipe, SealedPipe]) -> None:
    client, server = ends
    serving = Background(lambda: (server.recv_record(), server.send_record(bytes((RecordKind.READY,)) + b"ready")))
    send_probe(client)
    client.send_record(bytes((RecordKind.HELLO,)) + b"hello")
    heard: list[int] = []
    await_probe(client, heard.append)
    assert heard[-1] == PROBE_SIZE + 1
    kind, content = client.recv_record()
    assert (kind, bytes(content)) == (RecordKind.READY, b"ready")
    (kind, content), _ = serving.result()
    assert (kind, bytes(content)) == (RecordKind.HELLO, b"hello")


def test_a_probe_after_hello_is_an_error(ends: tuple[SealedPipe, SealedPipe]) -> None:
    client, server = ends
    client.send_record(HELLO)
    assert server.recv_record()[0] is RecordKind.HELLO
    with pytest.raises(Exception, match="not allowed here"):
        client.send_record(PROBE)


def test_only_a_server_that_says_so_is_probed(identity: ServerIdentity, client_key: ClientKey) -> None:
    at_client, at_server = complete(make_client(client_key), make_server(identity))
    assert at_client.takes_probes
    assert at_server == at_client

    older = make_server(identity)
    m1 = ServerKey.decode(older.start())
    older._m1 = ServerKey((1,), m1.random, m1.spki).encode()
    client = make_client(client_key)
    to_server = client.receive(older._m1)
    (m4,) = [answer for message in to_server for answer in older.receive(message)]
    client.receive(m4)
    assert not client.result.takes_probes


def test_a_client_that_knows_nothing_of_it_finds_its_version_beside_it(
    identity: ServerIdentity, client_key: ClientKey
) -> None:
    offered = ServerKey.decode(make_server(identity).start()).versions
    assert offered == (1, TAKES_PROBES)
    assert complete(make_client(client_key), make_server(identity))[0].version == 1
