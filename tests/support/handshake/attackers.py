"""The attackers: each knows what its docstring says, and nothing else.

They speak through the same codecs as the program, since whoever writes a real attack has them too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum, auto

from qanat.handshake import key_schedule, keys
from qanat.handshake.fields import lp8
from qanat.handshake.keys import ClientKey, ServerIdentity
from qanat.handshake.messages import (
    AUTH_LABEL,
    SESSION_LABEL,
    Auth,
    AuthPlaintext,
    ClientKeyMessage,
    Refusal,
    ServerKey,
    SessionKey,
)
from qanat.transports.pipe import Pipe
from tests.support.handshake.pipes import send
from tests.support.handshake.scenario import NAME, TOKEN


@dataclass
class ForgingClient:
    """A client that says what it likes: each field can be set, the proof is made for what is said.

    `token` None makes a proof by chance.  `inside` replaces the whole plaintext of M2, and `ciphertext` M2's content.
    """

    spki: bytes
    token: bytes | None = TOKEN
    name: bytes = NAME.encode()
    version: int = 1
    client_secret: bytes = field(default_factory=lambda: os.urandom(32))
    inside: bytes | None = None
    after: bytes = b""  # behind the proof
    ciphertext: bytes | None = None
    m3: bytes | None = None

    def answer(self, m1: bytes) -> list[bytes]:
        """M2 and M3 for the server's `m1`."""
        m3 = self.m3 if self.m3 is not None else ClientKeyMessage(self.spki).encode()
        before = self.version.to_bytes(2, "big") + lp8(self.name) + self.client_secret
        if self.token is None:
            proof = os.urandom(32)
        else:
            key = key_schedule.token_key(self.name.decode("latin-1").encode("ascii", "ignore").decode(), self.token)
            proof = key_schedule.client_proof(key, m1, m3, before)
        plaintext = self.inside if self.inside is not None else before + proof + self.after
        server_key = keys.load_public_key(ServerKey.decode(m1).spki, 3072)
        ciphertext = keys.encrypt(server_key, plaintext, AUTH_LABEL)
        return [Auth(self.ciphertext or ciphertext).encode(), m3]


class Answer(Enum):
    """What a man in the middle gives the client in the end."""

    RELAYED = auto()
    FORGED_SESSION_KEY = auto()
    FORGED_REFUSAL = auto()


@dataclass
class KeySwappingMan:
    """Sits on a live connection with a key of his own for each side.  Knows no token.

    Towards the client he is a server with his own key and can read M2; towards the server he is a client with
    his own key, and sends what he read encrypted anew.
    """

    identity: ServerIdentity
    client_key: ClientKey
    answer: Answer = Answer.RELAYED
    swap_server_key: bool = True
    swap_client_key: bool = True
    learned: list[AuthPlaintext] = field(default_factory=list)

    def sit_between(self, client: Pipe, server: Pipe) -> None:
        """Work until one side gives up; `client` and `server` are his ends of the two pipes."""
        try:
            genuine = ServerKey.decode(bytes(server.recv()))
            shown = ServerKey(genuine.versions, genuine.random, self.identity.spki) if self.swap_server_key else genuine
            m1 = shown.encode()
            send(client, m1)
            m2, m3 = bytes(client.recv()), bytes(client.recv())
            client_secret = os.urandom(32)
            passed_on = m2
            if self.swap_server_key:
                inside = self.identity.decrypt(Auth.decode(m2).ciphertext, AUTH_LABEL)
                assert inside is not None
                self.learned.append(AuthPlaintext.decode(inside))
                client_secret = self.learned[0].client_secret
                real_key = keys.load_public_key(genuine.spki, 3072)
                passed_on = Auth(keys.encrypt(real_key, inside, AUTH_LABEL)).encode()
            send(server, passed_on)
            send(server, ClientKeyMessage(self.client_key.spki).encode() if self.swap_client_key else m3)
            send(client, self._answer(bytes(server.recv()), m1, m2, m3, client_secret))
            while True:  # whatever else they say goes through unchanged
                send(server, bytes(client.recv()))
        finally:
            client.close("the man in the middle is done")
            server.close("the man in the middle is done")

    def _answer(self, genuine: bytes, m1: bytes, m2: bytes, m3: bytes, client_secret: bytes) -> bytes:
        if self.answer is Answer.FORGED_SESSION_KEY:
            return forge_session_key(m1, m2, m3, client_secret, key_schedule.token_key(NAME, os.urandom(32)))
        if self.answer is Answer.FORGED_REFUSAL:
            return Refusal(1, key_schedule.refusal_mac(m1, m2, m3, client_secret, 1)).encode()
        return genuine


@dataclass
class TokenHolderWithoutTheKey:
    """Knows the client's token and the genuine M1, which anyone can fetch; lacks the server's private key."""

    genuine_m1: bytes
    token: bytes
    guess: bytes
    """What he takes for client_secret."""

    def greet(self) -> bytes:
        return self.genuine_m1

    def answer(self, m2: bytes, m3: bytes) -> bytes:
        return forge_session_key(self.genuine_m1, m2, m3, self.guess, key_schedule.token_key(NAME, self.token))


@dataclass
class KeyHolderWithoutTheToken:
    """Stole the server's private key and reads client_secret, but knows no token."""

    identity: ServerIdentity
    m1: bytes = b""

    def greet(self) -> bytes:
        self.m1 = ServerKey((1,), os.urandom(32), self.identity.spki).encode()
        return self.m1

    def answer(self, m2: bytes, m3: bytes) -> bytes:
        inside = self.identity.decrypt(Auth.decode(m2).ciphertext, AUTH_LABEL)
        assert inside is not None
        secret = AuthPlaintext.decode(inside).client_secret
        return forge_session_key(self.m1, m2, m3, secret, key_schedule.token_key(NAME, bytes(32)))


class RefusalForger:
    """Sits on the path of a pinned client and wants it to give up for good.  Knows the token at most."""

    def __init__(self, token: bytes | None = None) -> None:
        self._token = token

    def refusals(self, m1: bytes, m2: bytes, m3: bytes) -> list[bytes]:
        """Everything that could be tried in place of the server's answer."""
        secrets = [bytes(32), Auth.decode(m2).ciphertext[:32], os.urandom(32)]
        if self._token is not None:
            secrets.append(self._token)
        guessed = [Refusal(1, key_schedule.refusal_mac(m1, m2, m3, secret, 1)) for secret in secrets]
        codes = [Refusal(code, bytes(32)) for code in (0, 1, 2, 255)]
        return [refusal.encode() for refusal in [*guessed, *codes, Refusal(1, os.urandom(32))]]


def forge_session_key(
    m1: bytes, m2: bytes, m3: bytes, client_secret: bytes, k_tok: bytes, server_secret: bytes | None = None
) -> bytes:
    """M4 exactly as a server would make it that believed in `client_secret` and `k_tok`."""
    client_key = keys.load_public_key(ClientKeyMessage.decode(m3).spki, 2048)
    server_secret = os.urandom(32) if server_secret is None else server_secret
    unproven = SessionKey(keys.encrypt(client_key, server_secret, SESSION_LABEL), bytes(32))
    transcript = key_schedule.transcript_hash(m1, m2, m3, unproven.encode_before_proof())
    secrets = key_schedule.session_secrets(k_tok, transcript, client_secret, server_secret)
    return SessionKey(unproven.ciphertext, secrets.server_proof).encode()
