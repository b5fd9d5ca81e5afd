"""The ordinary case, from which every test here deviates in one point."""

from __future__ import annotations

from collections.abc import Callable

from qanat.base.errors import RefusedError
from qanat.handshake.hello import RecordKind
from qanat.handshake.keys import ClientKey, ServerIdentity
from qanat.handshake.machine import VERSIONS, ClientHandshake, HandshakeResult, ServerHandshake
from qanat.handshake.sealed import Opener, Sealer

NAME = "office"
TOKEN = bytes(range(32))
OTHER_TOKEN = bytes(range(32, 64))


def accept_any(spki: bytes) -> None:
    """The check of a client that pins nothing."""


def pinned(identity: ServerIdentity) -> Callable[[bytes], None]:
    """The check of a client that pins `identity`."""

    def check(spki: bytes) -> None:
        if spki != identity.spki:
            raise RefusedError("the server's key is not the pinned one")

    return check


def make_client(
    key: ClientKey,
    *,
    name: str = NAME,
    token: bytes = TOKEN,
    check: Callable[[bytes], None] = accept_any,
    versions: tuple[int, ...] = VERSIONS,
) -> ClientHandshake:
    return ClientHandshake(name, token, key, check, versions=versions)


def make_server(
    identity: ServerIdentity,
    *,
    tokens: tuple[bytes, ...] = (TOKEN,),
    versions: tuple[int, ...] = VERSIONS,
) -> ServerHandshake:
    return ServerHandshake(identity, {NAME: tokens}.get, versions=versions)


def complete(client: ClientHandshake, server: ServerHandshake) -> tuple[HandshakeResult, HandshakeResult]:
    """Run both machines against each other to the end."""
    to_server = client.receive(server.start())
    to_client = [answer for message in to_server for answer in server.receive(message)]
    for message in to_client:
        assert client.receive(message) == []
    return client.result, server.result


class FakeClock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def seal(sealer: Sealer, plaintext: bytes) -> bytes:
    out = bytearray(len(plaintext) + 16)
    size = sealer.seal_into(plaintext, memoryview(out))
    return bytes(out[:size])


def client_to_server(result: HandshakeResult) -> tuple[Sealer, Opener]:
    """The direction from client to server: the client's Sealer and the server's Opener."""
    sealer = Sealer(result.c2s, FakeClock(), opening=RecordKind.HELLO)
    return sealer, Opener(result.c2s, opening=RecordKind.HELLO)
