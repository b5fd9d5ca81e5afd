"""Whatever comes, both machines and all codecs accept it or raise the one error of their boundary."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from qanat.base.errors import HandshakeError, ProtocolError, RefusedError
from qanat.handshake.fields import FieldReader, lp, lp8, lp16
from qanat.handshake.keys import ClientKey, ServerIdentity
from qanat.handshake.machine import ClientHandshake, ServerHandshake, State
from qanat.handshake.messages import (
    Auth,
    AuthPlaintext,
    ClientKeyMessage,
    MessageType,
    Refusal,
    ServerKey,
    SessionKey,
)
from tests.support.handshake.attackers import ForgingClient
from tests.support.handshake.scenario import make_client, make_server

CODECS = (ServerKey, Auth, AuthPlaintext, ClientKeyMessage, SessionKey, Refusal)


def with_header(kind: int, content: bytes) -> bytes:
    return bytes([kind]) + (len(content) % 65536).to_bytes(2, "big") + content


anything = st.binary(max_size=1100)
sized = st.sampled_from([0, 1, 35, 33, 36, 64, 131, 296, 298, 384, 512, 1021]).flatmap(
    lambda size: st.binary(min_size=size, max_size=size)
)
well_formed = st.builds(with_header, st.integers(min_value=0, max_value=6), st.one_of(anything, sized))
with_lengths = st.builds(
    lambda kind, data, rest: with_header(kind, lp(data) + rest),
    st.sampled_from(MessageType),
    st.binary(max_size=500),
    st.binary(max_size=64),
)
messages = st.one_of(anything, well_formed, with_lengths)


@settings(max_examples=300)
@given(messages)
def test_every_codec_reads_what_it_writes_or_raises_a_handshake_error(data: bytes) -> None:
    for codec in CODECS:
        try:
            read = codec.decode(data)
        except HandshakeError:
            continue
        assert read.encode() == data


def drive(machine: ClientHandshake | ServerHandshake, said: list[bytes]) -> None:
    for message in said:
        try:
            machine.receive(message)
        except (ProtocolError, RefusedError):
            break
    assert not machine.done
    assert machine.state in State


@given(st.lists(messages, min_size=1, max_size=3))
def test_a_client_that_hears_anything_raises_its_own_errors_and_believes_nothing(
    identity: ServerIdentity, client_key: ClientKey, said: list[bytes]
) -> None:
    drive(make_client(client_key), said)
    waiting = make_client(client_key)
    waiting.receive(make_server(identity).start())
    drive(waiting, said)


@given(st.lists(messages, min_size=1, max_size=3))
def test_a_server_that_hears_anything_raises_its_own_errors_and_believes_nothing(
    identity: ServerIdentity, client_key: ClientKey, said: list[bytes]
) -> None:
    fresh = make_server(identity)
    m1 = fresh.start()
    drive(fresh, said)
    waiting = make_server(identity)
    m2, _ = make_client(client_key).receive(waiting.start())
    waiting.receive(m2)
    drive(waiting, said)
    assert m1


@given(inside=st.binary(max_size=318), content=st.binary(max_size=400))
def test_a_server_bears_anything_inside_m2_and_anything_as_m3(
    identity: ServerIdentity, client_key: ClientKey, inside: bytes, content: bytes
) -> None:
    refused = make_server(identity)
    drive(refused, ForgingClient(client_key.spki, inside=inside).answer(refused.start()))
    assert refused.refused
    proven = make_server(identity)
    drive(proven, ForgingClient(b"", m3=with_header(1, content)).answer(proven.start()))
    assert proven.state is State.FAILED


@given(position=st.integers(min_value=0), value=st.integers(min_value=1, max_value=255), which=st.integers(0, 3))
def test_one_changed_byte_anywhere_in_a_genuine_handshake_leaves_no_two_ends_content(
    identity: ServerIdentity, client_key: ClientKey, position: int, value: int, which: int
) -> None:
    def change(message: bytes, number: int) -> bytes:
        if number != which:
            return message
        at = position % len(message)
        return message[:at] + bytes([message[at] ^ value]) + message[at + 1 :]

    server, client = make_server(identity), make_client(client_key)
    try:
        m2, m3 = client.receive(change(server.start(), 0))
        server.receive(change(m2, 1))
        (answer,) = server.receive(change(m3, 2))
        client.receive(change(answer, 3))
    except (ProtocolError, RefusedError):
        pass
    assert not client.done
    assert not server.done or which == 3


@given(st.binary(max_size=80), st.lists(st.sampled_from(["u8", "u16", "u32", "u64", "lp8", "lp16", "lp"]), max_size=8))
def test_a_reader_never_reads_beyond_the_end(data: bytes, fields: list[str]) -> None:
    reader = FieldReader(data, "a message")
    try:
        for name in fields:
            getattr(reader, name)()
        reader.end()
    except ProtocolError:
        assert reader.offset <= len(data)
    else:
        assert reader.offset == len(data)


@given(st.binary(max_size=255), st.binary(max_size=1000), st.binary(max_size=1000))
def test_a_length_in_front_gives_the_same_bytes_back(short: bytes, middle: bytes, long: bytes) -> None:
    reader = FieldReader(lp8(short) + lp16(middle) + lp(long), "a message")
    assert (reader.lp8(), reader.lp16(), reader.lp()) == (short, middle, long)
    reader.end()
