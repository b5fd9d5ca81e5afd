"""The handshake as a sans-IO machine, for either role: messages in, messages out, a result at the end.

No socket, thread or clock is known here.  The legal transitions are the table below; what is not in
it is an error, and after an error nothing is legal any more.  `exchange` drives a machine over a
pipe; the layouts are in `messages`, the formulas in `key_schedule` (docs/PROTOCOL.md §1).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from qanat.base.errors import HandshakeError, LocalError, RefusedError, TokenRefused
from qanat.base.text import NAME
from qanat.handshake import key_schedule, keys
from qanat.handshake.keys import ClientKey, ServerIdentity
from qanat.handshake.messages import (
    AUTH_LABEL,
    LARGEST_MESSAGE,
    M3_LIMIT,
    MAX_VERSIONS,
    PROOF_SIZE,
    RANDOM_SIZE,
    SECRET_SIZE,
    SESSION_LABEL,
    Auth,
    AuthPlaintext,
    ClientKeyMessage,
    MessageType,
    Refusal,
    RefusalCode,
    ServerKey,
    SessionKey,
    type_of,
)
from qanat.handshake.tokens import token_fingerprint

VERSIONS: Final = (1,)
"""What this program speaks."""
TAKES_PROBES: Final = 0xF001
"""In the list of versions, where no version can be: this server takes PROBE records before HELLO."""
MAX_TOKENS: Final = 2
"""Tokens a client may have at a server, for rotation; each refusal costs as much as this many."""

_NO_NAME: Final = ""
"""The name that a server looks up when M2 could not be read; no client can have it."""
_NO_TOKEN: Final = os.urandom(SECRET_SIZE)
"""Stands in, for as long as this process lives, for every token that does not exist."""


class State(Enum):
    """Where a handshake is.  DONE, REFUSED and FAILED are ends."""

    SERVER_NEW = auto()
    SERVER_WAITS_AUTH = auto()
    SERVER_WAITS_KEY = auto()
    SERVER_DECIDES = auto()
    CLIENT_WAITS_KEY = auto()
    CLIENT_WAITS_ANSWER = auto()
    CLIENT_DECIDES = auto()
    DONE = auto()
    REFUSED = auto()
    FAILED = auto()


class Event(Enum):
    """What moves a handshake on: a message that came, or what our own check of it said."""

    START = auto()
    PUBKEY = auto()
    AUTH = auto()
    SESSION_KEY = auto()
    REFUSAL = auto()
    PROVEN = auto()
    NOT_PROVEN = auto()


TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = {
    (State.SERVER_NEW, Event.START): State.SERVER_WAITS_AUTH,
    (State.SERVER_WAITS_AUTH, Event.AUTH): State.SERVER_WAITS_KEY,
    (State.SERVER_WAITS_KEY, Event.PUBKEY): State.SERVER_DECIDES,
    (State.SERVER_DECIDES, Event.PROVEN): State.DONE,
    (State.SERVER_DECIDES, Event.NOT_PROVEN): State.REFUSED,
    (State.CLIENT_WAITS_KEY, Event.PUBKEY): State.CLIENT_WAITS_ANSWER,
    (State.CLIENT_WAITS_ANSWER, Event.SESSION_KEY): State.CLIENT_DECIDES,
    (State.CLIENT_DECIDES, Event.PROVEN): State.DONE,
    (State.CLIENT_WAITS_ANSWER, Event.REFUSAL): State.REFUSED,
}
"""All that may happen; anything else is an error."""

_EVENTS: Final[Mapping[MessageType, Event]] = {
    MessageType.MSG_PUBKEY: Event.PUBKEY,
    MessageType.MSG_AUTH: Event.AUTH,
    MessageType.MSG_SESSION_KEY: Event.SESSION_KEY,
    MessageType.MSG_REFUSED: Event.REFUSAL,
}


@dataclass(frozen=True)
class HandshakeResult:
    """What both ends know, and nobody else, once the machine is done.  Secrets are 32 bytes each."""

    name: str
    version: int
    c2s: bytes = field(repr=False)
    s2c: bytes = field(repr=False)
    resume: bytes = field(repr=False)
    split: bytes = field(repr=False)
    transcript: bytes = field(repr=False)
    server_spki: bytes = field(repr=False)
    takes_probes: bool = False
    """Whether the server takes PROBE records before HELLO."""
    token: str = field(default="", compare=False)
    """The fingerprint of the token by which the client has proven itself."""


class _Machine(ABC):
    """What both roles share: the state, and that any error is the end."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._result: HandshakeResult | None = None

    @property
    def done(self) -> bool:
        """Whether both ends have proven themselves, so that `result` is there."""
        return self.state is State.DONE

    @property
    def result(self) -> HandshakeResult:
        """Return the keys; LocalError before the handshake is `done`."""
        if self._result is None:
            raise LocalError("the handshake has no result yet")
        return self._result

    def receive(self, message: bytes | memoryview) -> list[bytes]:
        """Take the peer's next message and return what to send now, in order.

        Raises HandshakeError for anything that docs/PROTOCOL.md §1 does not allow at this point, and on the
        client RefusedError; the machine is then of no further use.
        """
        try:
            if len(message) > LARGEST_MESSAGE:
                raise HandshakeError(f"a handshake message has {len(message)} bytes, more than {LARGEST_MESSAGE}")
            whole = bytes(message)
            state = self.state
            self._advance(_EVENTS[type_of(whole)])
            return self._react(state, whole)
        except Exception as error:
            if not (self.state is State.REFUSED and isinstance(error, RefusedError)):
                self.state = State.FAILED
            raise

    def _advance(self, event: Event) -> None:
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise HandshakeError(f"{event.name} came while the state was {self.state.name}, where it is not allowed")
        self.state = following

    @abstractmethod
    def _react(self, state: State, message: bytes) -> list[bytes]:
        """Handle a message that was legal in `state`; return what to send."""

    def _finish(
        self,
        name: str,
        version: int,
        secrets: key_schedule.SessionSecrets,
        transcript: bytes,
        spki: bytes,
        *,
        takes_probes: bool,
        token: str = "",
    ) -> None:
        self._result = HandshakeResult(
            name=name,
            version=version,
            c2s=secrets.c2s,
            s2c=secrets.s2c,
            resume=secrets.resume,
            split=secrets.split,
            transcript=transcript,
            server_spki=spki,
            takes_probes=takes_probes,
            token=token,
        )


class ClientHandshake(_Machine):
    """The end that dials: it waits for M1, answers M2 and M3, and waits for M4 or a refusal.

    `check_server` gets the server's SPKI before anything has been sent, and raises RefusedError when it is not
    the pinned one.  `versions` is what we speak.
    """

    def __init__(
        self,
        name: str,
        token: bytes,
        key: ClientKey,
        check_server: Callable[[bytes], None],
        *,
        versions: tuple[int, ...] = VERSIONS,
    ) -> None:
        super().__init__(State.CLIENT_WAITS_KEY)
        if not NAME.fullmatch(name):
            raise LocalError("a client's name is 1 to 64 letters, digits, dots, dashes and underscores")
        self._name = name
        self._token = token
        self._key = key
        self._check_server = check_server
        self._versions = versions
        self._version = 0
        self._takes_probes = False
        self._server_spki = b""
        self._k_tok = b""
        self._client_secret = b""
        self._m1 = self._m2 = self._m3 = b""

    def _react(self, state: State, message: bytes) -> list[bytes]:
        if state is State.CLIENT_WAITS_KEY:
            return self._on_server_key(message)
        if type_of(message) is MessageType.MSG_REFUSED:
            return self._on_refusal(message)
        return self._on_session_key(message)

    def _on_server_key(self, message: bytes) -> list[bytes]:
        offer = ServerKey.decode(message)
        server_key = keys.load_public_key(offer.spki, keys.SERVER_BITS)
        self._check_server(offer.spki)
        common = set(offer.versions) & set(self._versions)
        if not common:
            raise HandshakeError(
                "the server speaks no version of the protocol that this program knows",
                hint="update the older of the two ends",
            )
        self._version = max(common)
        self._takes_probes = TAKES_PROBES in offer.versions
        self._server_spki = offer.spki
        self._client_secret = os.urandom(SECRET_SIZE)
        self._m1 = message
        self._m3 = ClientKeyMessage(self._key.spki).encode()
        self._k_tok = key_schedule.token_key(self._name, self._token)
        auth = AuthPlaintext(self._version, self._name, self._client_secret, bytes(PROOF_SIZE))
        proof = key_schedule.client_proof(self._k_tok, self._m1, self._m3, auth.before_proof())
        ciphertext = keys.encrypt(server_key, auth.before_proof() + proof, AUTH_LABEL)
        self._m2 = Auth(ciphertext).encode()
        return [self._m2, self._m3]

    def _on_session_key(self, message: bytes) -> list[bytes]:
        answer = SessionKey.decode(message)
        server_secret = self._key.decrypt(answer.ciphertext, SESSION_LABEL)
        if server_secret is None or len(server_secret) != SECRET_SIZE:
            # On to the one error below: what went wrong in there must not show.
            server_secret = os.urandom(SECRET_SIZE)
        transcript = key_schedule.transcript_hash(self._m1, self._m2, self._m3, answer.encode_before_proof())
        secrets = key_schedule.session_secrets(self._k_tok, transcript, self._client_secret, server_secret)
        if not key_schedule.secrets_equal(secrets.server_proof, answer.proof):
            raise HandshakeError(
                "the server could not prove that it has its private key and this client's token",
                hint="something on the path may be posing as the server",
            )
        self._advance(Event.PROVEN)
        self._finish(
            self._name,
            self._version,
            secrets,
            transcript,
            self._server_spki,
            takes_probes=self._takes_probes,
            token=token_fingerprint(self._token),
        )
        return []

    def _on_refusal(self, message: bytes) -> list[bytes]:
        refusal = Refusal.decode(message)
        expected = key_schedule.refusal_mac(self._m1, self._m2, self._m3, self._client_secret, refusal.code)
        if not key_schedule.secrets_equal(expected, refusal.mac):
            raise RefusedError(
                "something refused this client, and cannot prove that it is the server",
                hint="anything on the path can forge this, so it is tried again later",
                final=False,
            )
        raise TokenRefused(
            f"the server does not accept the client {self._name!r} with this token",
            hint="compare the name and the token with the server's configuration",
            token=token_fingerprint(self._token),
            server=self._server_spki,
        )


class ServerHandshake(_Machine):
    """The end that was dialed: `start` gives M1, then M2 and M3 come, and M4 or a refusal goes back.

    `find_tokens` gives the secrets of a client's tokens, at most two, or None for a name that is not known.
    `rsa_gate` is entered round each private-key operation, so that a server can bound how many run at once.
    `reject` says of a token that was proven why it does not count any more, as for one that has expired; "" where it
    does.  The client gets the answer that a wrong token gets.
    """

    def __init__(
        self,
        identity: ServerIdentity,
        find_tokens: Callable[[str], tuple[bytes, ...] | None],
        rsa_gate: AbstractContextManager[object] | None = None,
        *,
        versions: tuple[int, ...] = VERSIONS,
        reject: Callable[[str, bytes], str] = lambda name, token: "",
    ) -> None:
        super().__init__(State.SERVER_NEW)
        if not 1 <= len(versions) < MAX_VERSIONS:
            raise LocalError(f"a server offers 1 to {MAX_VERSIONS - 1} versions")
        self._identity = identity
        self._find_tokens = find_tokens
        self._rsa_gate = rsa_gate if rsa_gate is not None else nullcontext()
        self._versions = versions
        self._reject = reject
        self._m1 = self._m2 = b""
        self.refusal_detail = ""
        """Why the client was refused, for our own log; the client never learns it."""
        self.refused_name = ""
        """What it called itself then; empty when that could not be read.  Nothing has proven it."""

    @property
    def refused(self) -> bool:
        """Whether the client's proof did not hold, so that R is the last message."""
        return self.state is State.REFUSED

    def start(self) -> bytes:
        """Return M1, to be sent first.  Raises LocalError when called twice."""
        if self.state is not State.SERVER_NEW:
            raise LocalError("this handshake has been started before")
        self._advance(Event.START)
        offer = (*self._versions, TAKES_PROBES)
        self._m1 = ServerKey(offer, os.urandom(RANDOM_SIZE), self._identity.spki).encode()
        return self._m1

    def _react(self, state: State, message: bytes) -> list[bytes]:
        if state is State.SERVER_WAITS_AUTH:
            Auth.decode(message)
            self._m2 = message
            return []
        if len(message) > M3_LIMIT:
            raise HandshakeError(f"the client's MSG_PUBKEY has {len(message)} bytes, more than {M3_LIMIT}")
        return [self._decide(message)]

    def _decide(self, m3: bytes) -> bytes:
        """Return M4, or R when the proof does not hold.

        The steps are the same, and equally many, whether M2 could not be read, the name is unknown or the token
        is wrong: whoever tries must not learn which (docs/PROTOCOL.md, Equal refusals).
        """
        with self._rsa_gate:
            plaintext = self._identity.decrypt(Auth.decode(self._m2).ciphertext, AUTH_LABEL)
        auth = self._read_auth(plaintext)
        readable = auth is not None
        if auth is None:
            auth = AuthPlaintext(self._versions[0], _NO_NAME, os.urandom(SECRET_SIZE), os.urandom(PROOF_SIZE))
        tokens = self._find_tokens(auth.name) or ()
        if len(tokens) > MAX_TOKENS:
            raise LocalError(f"the client {auth.name!r} has more than {MAX_TOKENS} tokens")
        k_tok = token = b""
        for position in range(MAX_TOKENS):
            exists = readable and position < len(tokens)
            candidate = key_schedule.token_key(auth.name, tokens[position] if exists else _NO_TOKEN)
            proof = key_schedule.client_proof(candidate, self._m1, m3, auth.before_proof())
            if key_schedule.secrets_equal(proof, auth.proof) and exists:
                k_tok, token = candidate, tokens[position]
        rejected = self._reject(auth.name, token) if k_tok else ""
        if not k_tok or rejected:
            self._advance(Event.NOT_PROVEN)
            self.refused_name = auth.name if readable else ""
            self.refusal_detail = rejected or self._explain(readable, auth.name, bool(tokens))
            mac = key_schedule.refusal_mac(self._m1, self._m2, m3, auth.client_secret, RefusalCode.REFUSED)
            return Refusal(RefusalCode.REFUSED, mac).encode()
        return self._accept(auth, k_tok, m3, token_fingerprint(token))

    def _read_auth(self, plaintext: bytes | None) -> AuthPlaintext | None:
        """Return the inside of M2, or None when there is none or it is not sound, which is treated alike."""
        if plaintext is None:
            return None
        try:
            auth = AuthPlaintext.decode(plaintext)
        except HandshakeError:
            return None
        return auth if auth.version in self._versions else None

    def _accept(self, auth: AuthPlaintext, k_tok: bytes, m3: bytes, token: str) -> bytes:
        # Only now: nobody without a token can make the server parse a key.
        client_key = keys.load_public_key(ClientKeyMessage.decode(m3).spki, keys.CLIENT_BITS)
        server_secret = os.urandom(SECRET_SIZE)
        ciphertext = keys.encrypt(client_key, server_secret, SESSION_LABEL)
        unproven = SessionKey(ciphertext, bytes(PROOF_SIZE))
        transcript = key_schedule.transcript_hash(self._m1, self._m2, m3, unproven.encode_before_proof())
        secrets = key_schedule.session_secrets(k_tok, transcript, auth.client_secret, server_secret)
        self._advance(Event.PROVEN)
        spki = self._identity.spki
        self._finish(auth.name, auth.version, secrets, transcript, spki, takes_probes=True, token=token)
        return SessionKey(ciphertext, secrets.server_proof).encode()

    @staticmethod
    def _explain(readable: bool, name: str, known: bool) -> str:
        if not readable:
            return "its first message could not be decrypted or makes no sense"
        return f"wrong token for the client {name!r}" if known else f"unknown client name {name!r}"
