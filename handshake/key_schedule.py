"""The key schedule: every formula of docs/PROTOCOL.md §1, Keys, and nothing else.

Pure functions of bytes.  Each HMAC of the handshake goes through `hmac_sha256` and each comparison
of secrets through `secrets_equal`, so that tests can count them: all refusals must cost the same.
Called by `machine`; `sealed` and `hello` use the primitives.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from qanat.base.errors import LocalError
from qanat.handshake.fields import lp

HASH_SIZE: Final = 32
SECRET_SIZE: Final = 32
"""Bytes in client_secret, server_secret, a token's secret and every derived key."""


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """Return HMAC-SHA256 (RFC 2104), 32 bytes."""
    return hmac.digest(key, data, "sha256")


def secrets_equal(left: bytes, right: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(left, right)


def extract(salt: bytes, material: bytes) -> bytes:
    """Return HKDF-Extract (RFC 5869 §2.2)."""
    return hmac_sha256(salt, material)


def expand(key: bytes, info: bytes, length: int = HASH_SIZE) -> bytes:
    """Return HKDF-Expand (RFC 5869 §2.3) of at most one block, 32 bytes, which is all that is needed here."""
    if not 0 < length <= HASH_SIZE:
        raise LocalError(f"no single block of HKDF gives {length} bytes")
    return hmac_sha256(key, info + b"\x01")[:length]


def token_key(name: str, token: bytes) -> bytes:
    """Return K_tok: a token's secret bound to the client name that it belongs to."""
    salt = hashlib.sha256(b"qanat/1 token" + lp(name.encode("ascii"))).digest()
    return extract(salt, token)


def client_proof(k_tok: bytes, m1: bytes, m3: bytes, auth_plaintext: bytes) -> bytes:
    """Return proof_c; `auth_plaintext` is M2's plaintext before the proof."""
    return hmac_sha256(expand(k_tok, b"qanat/1 client proof"), lp(m1) + lp(m3) + lp(auth_plaintext))


def transcript_hash(m1: bytes, m2: bytes, m3: bytes, m4_before_proof: bytes) -> bytes:
    """Return TH, over whole messages with their headers."""
    return hashlib.sha256(b"qanat/1" + lp(m1) + lp(m2) + lp(m3) + lp(m4_before_proof)).digest()


@dataclass(frozen=True)
class SessionSecrets:
    """What one handshake yields; 32 bytes each."""

    server_proof: bytes = field(repr=False)
    c2s: bytes = field(repr=False)
    s2c: bytes = field(repr=False)
    resume: bytes = field(repr=False)
    split: bytes = field(repr=False)


def session_secrets(k_tok: bytes, transcript: bytes, client_secret: bytes, server_secret: bytes) -> SessionSecrets:
    """Derive all that depends on PRK: token, both secrets and the whole transcript are needed for any of it."""
    k_mix = expand(k_tok, b"qanat/1 mix")
    prk = extract(transcript, k_mix + client_secret + server_secret)
    return SessionSecrets(
        server_proof=hmac_sha256(expand(prk, b"qanat/1 server proof"), transcript),
        c2s=expand(prk, b"qanat/1 c2s"),
        s2c=expand(prk, b"qanat/1 s2c"),
        resume=expand(prk, b"qanat/1 resume"),
        split=expand(prk, b"qanat/1 split"),
    )


def refusal_mac(m1: bytes, m2: bytes, m3: bytes, client_secret: bytes, code: int) -> bytes:
    """Return the proof that a refusal comes from whoever could read client_secret."""
    salt = hashlib.sha256(lp(m1) + lp(m2) + lp(m3)).digest()
    return hmac_sha256(expand(extract(salt, client_secret), b"qanat/1 refused"), bytes([code]))
