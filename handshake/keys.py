"""RSA keys as this protocol uses them: the server's, the client's, the peer's public one, and OAEP.

Pure, and the one place that touches the library's RSA, so that its errors are mapped once.  `machine` is the user;
the server's key comes out of its file in `identity`, the clients' are made ahead by `key_pool`.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)

from qanat.base.errors import HandshakeError

SERVER_BITS: Final = 3072
CLIENT_BITS: Final = 2048
EXPONENT: Final = 65537
MAX_SPKI: Final = 512
"""Bytes; a canonical RSA-3072 SPKI has 422.  Anything longer is refused before it is parsed."""


class ServerIdentity:
    """The server's long-lived RSA-3072 key, which leaves this object only by `to_pem`.  Safe in any thread."""

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        """Take over `key`, which must be an RSA-3072 one."""
        self._key = key
        self.spki = spki_of(key.public_key())
        self.fingerprint = fingerprint_of(self.spki)

    @classmethod
    def generate(cls) -> ServerIdentity:
        """Make a new key; takes 140 to 350 ms."""
        return cls(generate_private_key(SERVER_BITS))

    def decrypt(self, ciphertext: bytes, label: bytes) -> bytes | None:
        """Return what was encrypted to this key, or None.  About 1 ms of CPU."""
        return decrypt(self._key, ciphertext, label)

    def to_pem(self) -> bytes:
        """Return the key as unencrypted PKCS #8 (RFC 5958) in PEM, for its own file only."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class ClientKey:
    """A client's ephemeral RSA-2048 key, which never leaves this object.  Safe in any thread."""

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        """Take over `key`, which must be an RSA-2048 one."""
        self._key = key
        self.spki = spki_of(key.public_key())

    @classmethod
    def generate(cls) -> ClientKey:
        """Make a new key; takes about 35 ms, at times 150."""
        return cls(generate_private_key(CLIENT_BITS))

    def decrypt(self, ciphertext: bytes, label: bytes) -> bytes | None:
        """Return what was encrypted to this key, or None."""
        return decrypt(self._key, ciphertext, label)


def fingerprint_of(spki: bytes) -> str:
    """Return `SHA256:…` over the DER SubjectPublicKeyInfo, written as OpenSSH writes its own."""
    digest = base64.b64encode(hashlib.sha256(spki).digest()).decode("ascii")
    return "SHA256:" + digest.rstrip("=")


def generate_private_key(bits: int) -> rsa.RSAPrivateKey:
    """Make a new key; takes about 35 ms for 2048 bits and 140 ms, at times 350, for 3072."""
    return rsa.generate_private_key(public_exponent=EXPONENT, key_size=bits)


def spki_of(key: rsa.RSAPublicKey) -> bytes:
    """Return the canonical DER SubjectPublicKeyInfo (RFC 5280 §4.1.2.7)."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def load_public_key(spki: bytes, bits: int) -> rsa.RSAPublicKey:
    """Parse the peer's key, and check it before anything is done with it.  Raises HandshakeError.

    Accepts only RSA with e = 65537, an odd modulus of exactly `bits` bits, and the one canonical
    encoding: two encodings of one key would have two fingerprints.
    """
    if len(spki) > MAX_SPKI:
        raise HandshakeError(f"the peer's public key has {len(spki)} bytes, more than {MAX_SPKI}")
    try:
        key = load_der_public_key(spki)
        # Reading the numbers and encoding again are inside, because both refuse some broken keys too.
        if not isinstance(key, rsa.RSAPublicKey):
            raise HandshakeError("the peer's public key is not an RSA key")
        numbers = key.public_numbers()
        encoded_again = spki_of(key)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise HandshakeError("the peer's public key is not a SubjectPublicKeyInfo in DER") from None
    if numbers.n.bit_length() != bits or numbers.n % 2 == 0:
        raise HandshakeError(f"the peer's public key is not an RSA key of {bits} bits")
    if numbers.e != EXPONENT:
        raise HandshakeError(f"the peer's public key has an exponent other than {EXPONENT}")
    if encoded_again != spki:
        raise HandshakeError("the peer's public key is not in canonical DER")
    return key


def encrypt(key: rsa.RSAPublicKey, plaintext: bytes, label: bytes) -> bytes:
    """Encrypt with RSA-OAEP (RFC 8017 §7.1) and SHA-256; raises HandshakeError when the key cannot be used."""
    try:
        return key.encrypt(plaintext, _oaep(label))
    except ValueError:
        raise HandshakeError("nothing can be encrypted to the peer's public key") from None


def decrypt(key: rsa.RSAPrivateKey, ciphertext: bytes, label: bytes) -> bytes | None:
    """Return the plaintext, or None when the padding does not hold, for whatever reason.

    A failure is a value because callers must go on as if nothing had happened (docs/PROTOCOL.md,
    Equal refusals): an error that travels by itself is an oracle waiting to be written.
    """
    try:
        return key.decrypt(ciphertext, _oaep(label))
    except ValueError:
        return None


def _oaep(label: bytes) -> padding.OAEP:
    return padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=label)
