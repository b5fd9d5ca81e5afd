"""Public keys made to hurt: each is refused before anything is encrypted to it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.errors import HandshakeError
from qanat.handshake import keys
from qanat.handshake.keys import ClientKey, ServerIdentity
from qanat.handshake.machine import ClientHandshake, ServerHandshake
from qanat.handshake.messages import ServerKey
from tests.support.handshake.attackers import ForgingClient
from tests.support.handshake.scenario import make_client, make_server

_ALGORITHM = bytes.fromhex("300d06092a864886f70d0101010500")
_ALGORITHM_WITHOUT_NULL = bytes.fromhex("300b06092a864886f70d010101")
_ALGORITHM_PSS = bytes.fromhex("300d06092a864886f70d01010a0500")


def der(tag: int, content: bytes, *, long_length: bool = False) -> bytes:
    """One DER element; with `long_length` its length has a zero in front, which BER allows and DER does not."""
    size = len(content)
    if size < 128 and not long_length:
        return bytes([tag, size]) + content
    digits = size.to_bytes((size.bit_length() + 7) // 8 or 1, "big")
    if long_length:
        digits = b"\x00" + digits
    return bytes([tag, 0x80 | len(digits)]) + digits + content


def integer(value: int, *, padding: bytes = b"") -> bytes:
    return der(2, padding + value.to_bytes(value.bit_length() // 8 + 1, "big"))


def spki(
    n: bytes, e: bytes, *, algorithm: bytes = _ALGORITHM, unused_bits: bytes = b"\x00", long_length: bool = False
) -> bytes:
    key = der(0x30, n + e)
    return der(0x30, algorithm + der(3, unused_bits + key), long_length=long_length)


def modulus(bits: int) -> int:
    """An odd number of exactly `bits` bits; that it is no product of two primes cannot be seen from outside."""
    return int.from_bytes(os.urandom(bits // 8), "big") | 1 | 1 << (bits - 1) | 1 << (bits - 2)


def hostile_keys(sound: bytes, bits: int) -> Iterator[tuple[str, bytes]]:
    numbers = keys.load_public_key(sound, bits).public_numbers()
    n, e = numbers.n, numbers.e
    yield "half the size", spki(integer(modulus(bits // 2)), integer(e))
    yield "one bit short", spki(integer(modulus(bits) >> 1 | 1), integer(e))
    yield "eight bits long", spki(integer(modulus(bits + 8)), integer(e))
    yield "the other role's size", spki(integer(modulus(5120 - bits)), integer(e))
    yield "512 bits", spki(integer(modulus(512)), integer(e))
    yield "e = 1", spki(integer(n), integer(1))
    yield "e = 3", spki(integer(n), integer(3))
    yield "e = 0", spki(integer(n), integer(0))
    yield "e even", spki(integer(n), integer(65536))
    yield "e huge", spki(integer(n), integer(1 << 512 | 1))
    yield "e = n", spki(integer(n), integer(n))
    yield "even modulus", spki(integer(n - 1), integer(e))
    yield "modulus zero", spki(integer(0), integer(e))
    yield "modulus one", spki(integer(1), integer(e))
    yield "negative modulus", spki(der(2, n.to_bytes(bits // 8, "big")), integer(e))
    yield "padded modulus", spki(integer(n, padding=b"\x00"), integer(e))
    yield "padded exponent", spki(integer(n), integer(e, padding=b"\x00"))
    yield "length with a zero in front", spki(integer(n), integer(e), long_length=True)
    yield "algorithm without parameters", spki(integer(n), integer(e), algorithm=_ALGORITHM_WITHOUT_NULL)
    yield "algorithm RSASSA-PSS", spki(integer(n), integer(e), algorithm=_ALGORITHM_PSS)
    yield "unused bits", spki(integer(n), integer(e), unused_bits=b"\x01")
    yield "a byte behind", sound + b"\x00"
    yield "a third number", spki(integer(n), integer(e) + integer(1))
    yield "one byte short", sound[:-1]
    yield "PKCS #1", keys.load_public_key(sound, bits).public_bytes(Encoding.DER, PublicFormat.PKCS1)
    yield "PEM", keys.load_public_key(sound, bits).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for curve in (ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()):
        yield type(curve).__name__, curve.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    yield "nothing", b""
    yield "one byte", b"0"
    yield "garbage", os.urandom(len(sound))
    yield "zeros", bytes(len(sound))
    yield "deep nesting", b"\x30\x80" * 200
    yield "a length beyond the end", b"\x30\x84\xff\xff\xff\xff" + sound


def test_the_sound_key_is_built_like_the_hostile_ones_and_accepted(client_key: ClientKey) -> None:
    numbers = keys.load_public_key(client_key.spki, 2048).public_numbers()
    assert spki(integer(numbers.n), integer(numbers.e)) == client_key.spki


def refuses(machine: ClientHandshake | ServerHandshake, message: bytes) -> bool:
    try:
        machine.receive(message)
    except HandshakeError:
        return True
    return False


def test_a_client_refuses_every_hostile_server_key_and_sends_nothing(
    identity: ServerIdentity, client_key: ClientKey
) -> None:
    for what, key in hostile_keys(identity.spki, 3072):
        checked: list[bytes] = []
        client = make_client(client_key, check=checked.append)
        m1 = ServerKey((1,), bytes(32), key).encode()
        assert refuses(client, m1), what
        # Not even a person is asked about it, so it can never become a known host.
        assert checked == [], what


def test_a_server_refuses_every_hostile_key_of_a_client_that_has_the_token(
    identity: ServerIdentity, client_key: ClientKey
) -> None:
    for what, key in hostile_keys(client_key.spki, 2048):
        server = make_server(identity)
        m2, m3 = ForgingClient(key).answer(server.start())
        server.receive(m2)
        assert refuses(server, m3), what
        assert not server.done


def test_a_huge_key_is_refused_before_it_is_parsed() -> None:
    for size in (513, 65_536, 10_000_000):
        with pytest.raises(HandshakeError, match="more than"):
            keys.load_public_key(b"\x30" * size, 2048)


def test_one_key_has_one_encoding_so_that_it_has_one_fingerprint(identity: ServerIdentity) -> None:
    assert keys.spki_of(keys.load_public_key(identity.spki, 3072)) == identity.spki
    assert len(identity.spki) == 422


@given(st.binary(max_size=600))
def test_any_bytes_at_all_are_a_sound_key_or_a_handshake_error(data: bytes) -> None:
    with pytest.raises(HandshakeError):
        keys.load_public_key(data, 2048)


@given(position=st.integers(min_value=0, max_value=293), value=st.integers(min_value=0, max_value=255))
def test_a_sound_key_with_one_byte_changed_is_sound_or_a_handshake_error(
    client_key: ClientKey, position: int, value: int
) -> None:
    changed = bytearray(client_key.spki)
    changed[position] = value
    try:
        key = keys.load_public_key(bytes(changed), 2048)
    except HandshakeError:
        return
    assert isinstance(key, rsa.RSAPublicKey)
    assert keys.spki_of(key) == bytes(changed)
    assert len(keys.encrypt(key, bytes(32), b"label")) == 256


def test_what_does_not_decrypt_is_a_value_and_not_an_error(client_key: ClientKey) -> None:
    for ciphertext in (
        b"",
        b"\x00",
        bytes(256),
        b"\xff" * 256,
        bytes(255),
        bytes(257),
        os.urandom(256),
        bytes(100_000),
    ):
        assert client_key.decrypt(ciphertext, b"label") is None


def test_a_label_belongs_to_the_ciphertext(client_key: ClientKey) -> None:
    public = keys.load_public_key(client_key.spki, 2048)
    ciphertext = keys.encrypt(public, b"secret", b"qanat/1 session")
    assert client_key.decrypt(ciphertext, b"qanat/1 session") == b"secret"
    assert client_key.decrypt(ciphertext, b"qanat/1 auth") is None
