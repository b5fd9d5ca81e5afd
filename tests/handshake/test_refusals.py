"""Refusals: all alike for whoever tries, and worth nothing when anyone but the server makes them."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import HandshakeError, LocalError, PipeEnded, RefusedError
from qanat.handshake import key_schedule, keys
from qanat.handshake.exchange import REFUSAL_DELAY, client_handshake, server_handshake
from qanat.handshake.keys import ClientKey, ServerIdentity
from qanat.handshake.machine import ServerHandshake, State
from qanat.handshake.messages import ClientKeyMessage
from tests.support.handshake.attackers import ForgingClient, RefusalForger
from tests.support.handshake.pipes import send, socket_pipes
from tests.support.handshake.scenario import NAME, OTHER_TOKEN, TOKEN, make_client, make_server

LIMIT = 20.0


def with_two_tokens(identity: ServerIdentity) -> ServerHandshake:
    return make_server(identity, tokens=(TOKEN, OTHER_TOKEN))


ATTEMPTS: dict[str, Callable[[bytes], ForgingClient]] = {
    "wrong token": lambda spki: ForgingClient(spki, token=bytes(32)),
    "a proof by chance": lambda spki: ForgingClient(spki, token=None),
    "unknown name, right token": lambda spki: ForgingClient(spki, name=b"stranger"),
    "unknown name of one letter": lambda spki: ForgingClient(spki, name=b"x"),
    "unknown name of 64 letters": lambda spki: ForgingClient(spki, name=b"x" * 64),
    "not encrypted to this key": lambda spki: ForgingClient(spki, ciphertext=b"\x01" * 384),
    "ciphertext above the modulus": lambda spki: ForgingClient(spki, ciphertext=b"\xff" * 384),
    "ciphertext of zeros": lambda spki: ForgingClient(spki, ciphertext=bytes(384)),
    "nothing inside": lambda spki: ForgingClient(spki, inside=b""),
    "too little inside": lambda spki: ForgingClient(spki, inside=bytes(20)),
    "too much inside": lambda spki: ForgingClient(spki, inside=bytes(300)),
    "a byte behind the proof": lambda spki: ForgingClient(spki, after=b"x"),
    "an empty name": lambda spki: ForgingClient(spki, name=b""),
    "a name of 65 letters": lambda spki: ForgingClient(spki, name=b"x" * 65),
    "a name with a line break": lambda spki: ForgingClient(spki, name=b"office\n"),
    "a name that is not ASCII": lambda spki: ForgingClient(spki, name=b"\xc3\xa9"),
    "a version not offered": lambda spki: ForgingClient(spki, version=2),
    "version zero": lambda spki: ForgingClient(spki, version=0),
}
"""Everyone who gets a refusal, by what is wrong with him."""


class Count:
    """Counts the calls of the real things: OAEP decryptions, HMACs and comparisons in constant time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for module, name in ((keys, "decrypt"), (key_schedule, "hmac_sha256"), (hmac, "compare_digest")):
            monkeypatch.setattr(module, name, self._counting(name, getattr(module, name)))

    def _counting(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object) -> object:
            self.calls.append(name)
            return real(*arguments)

        return counted


@pytest.mark.parametrize("make", [make_server, with_two_tokens], ids=["one token", "two tokens"])
def test_every_refusal_has_the_same_form_and_costs_the_same_calls_in_the_same_order(
    make: Callable[[ServerIdentity], ServerHandshake],
    identity: ServerIdentity,
    client_key: ClientKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = Count(monkeypatch)
    seen: dict[str, tuple[bytes, int, tuple[str, ...]]] = {}
    for who, attempt in ATTEMPTS.items():
        server = make(identity)
        m2, m3 = attempt(client_key.spki).answer(server.start())
        count.calls.clear()
        assert server.receive(m2) == []
        (answer,) = server.receive(m3)
        assert server.refused
        seen[who] = (answer[:4], len(answer), tuple(count.calls))
    assert set(seen.values()) == {seen["wrong token"]}
    header, length, calls = seen["wrong token"]
    assert (header, length) == (b"\x04\x00\x21\x01", 36)
    assert calls.count("decrypt") == 1
    assert calls.count("compare_digest") == 2
    assert calls.count("hmac_sha256") == 9


def test_a_key_that_was_swapped_is_refused_like_a_wrong_token_and_never_parsed(
    identity: ServerIdentity, client_key: ClientKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    real = keys.load_public_key

    def load(spki: bytes, bits: int) -> object:
        parsed.append(spki)
        return real(spki, bits)

    server = make_server(identity)
    m2, _ = make_client(client_key).receive(server.start())
    monkeypatch.setattr(keys, "load_public_key", load)
    server.receive(m2)
    (answer,) = server.receive(ClientKeyMessage(b"anything at all").encode())
    assert server.refused
    assert len(answer) == 36
    assert parsed == []


def test_our_own_log_learns_what_the_peer_does_not(identity: ServerIdentity, client_key: ClientKey) -> None:
    details = {}
    for who, attempt in ATTEMPTS.items():
        server = make_server(identity)
        for message in attempt(client_key.spki).answer(server.start()):
            server.receive(message)
        details[who] = server.refusal_detail
    assert details["wrong token"] == "wrong token for the client 'office'"
    assert details["unknown name, right token"] == "unknown client name 'stranger'"
    assert "decrypted" in details["ciphertext of zeros"]
    assert all("\n" not in detail for detail in details.values())


def test_the_stand_in_for_missing_tokens_lets_nobody_in(identity: ServerIdentity, client_key: ClientKey) -> None:
    """Even one who could read this process's memory gains nothing from it."""
    from qanat.handshake.machine import _NO_TOKEN

    for name in (NAME, "stranger"):
        server = make_server(identity)
        for message in make_client(client_key, name=name, token=_NO_TOKEN).receive(server.start()):
            server.receive(message)
        assert server.refused


def test_a_client_with_more_tokens_than_rotation_needs_is_our_own_fault(
    identity: ServerIdentity, client_key: ClientKey
) -> None:
    server = make_server(identity, tokens=(TOKEN, OTHER_TOKEN, bytes(32)))
    m2, m3 = make_client(client_key).receive(server.start())
    server.receive(m2)
    with pytest.raises(LocalError):
        server.receive(m3)


def test_a_session_key_that_does_not_decrypt_costs_the_client_the_same_as_a_wrong_proof(
    identity: ServerIdentity, client_key: ClientKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Count(monkeypatch)
    seen = []
    for at in (10, -1):  # inside the ciphertext, inside the proof
        server, client = make_server(identity), make_client(client_key)
        m2, m3 = client.receive(server.start())
        server.receive(m2)
        m4 = bytearray(server.receive(m3)[0])
        m4[at] ^= 1
        count.calls.clear()
        with pytest.raises(HandshakeError) as caught:
            client.receive(bytes(m4))
        seen.append((str(caught.value), tuple(count.calls)))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("who", ["wrong token", "unknown name, right token", "not encrypted to this key"])
def test_a_refusal_is_sent_only_after_its_delay_and_then_the_pipe_is_closed(
    who: str, identity: ServerIdentity, client_key: ClientKey
) -> None:
    peer, server_pipe = socket_pipes()
    errors: list[RefusedError] = []

    def serve() -> None:
        try:
            server_handshake(server_pipe, make_server(identity), Deadline(LIMIT))
        except RefusedError as error:
            errors.append(error)

    serving = threading.Thread(target=serve)
    serving.start()
    m2, m3 = ATTEMPTS[who](client_key.spki).answer(bytes(peer.recv()))
    send(peer, m2)
    before = time.monotonic()
    send(peer, m3)
    assert len(peer.recv()) == 36
    assert time.monotonic() - before >= REFUSAL_DELAY
    with pytest.raises(PipeEnded):
        peer.recv()
    serving.join(LIMIT)
    assert len(errors) == 1
    assert server_pipe.cause == "the handshake failed"


class TestAForgedRefusal:
    @pytest.mark.parametrize("token", [None, TOKEN])
    def test_makes_a_client_back_off_and_never_give_up(
        self, token: bytes | None, identity: ServerIdentity, client_key: ClientKey
    ) -> None:
        m1 = make_server(identity).start()
        probe = make_client(client_key)
        count = len(RefusalForger(token).refusals(m1, *probe.receive(m1)))
        for number in range(count):
            client = make_client(client_key)
            refusal = RefusalForger(token).refusals(m1, *client.receive(m1))[number]
            with pytest.raises(RefusedError) as caught:
                client.receive(refusal)
            assert not caught.value.final

    def test_that_was_genuine_in_another_handshake_is_worth_nothing(
        self, identity: ServerIdentity, client_key: ClientKey
    ) -> None:
        def refused() -> tuple[bytes, bytes]:
            server = make_server(identity, tokens=(OTHER_TOKEN,))
            m1 = server.start()
            m2, m3 = make_client(client_key).receive(m1)
            server.receive(m2)
            return m1, server.receive(m3)[0]

        m1, overheard = refused()
        client = make_client(client_key)
        client.receive(m1)
        with pytest.raises(RefusedError) as caught:
            client.receive(overheard)
        assert not caught.value.final

    def test_on_a_live_connection_ends_the_attempt_and_the_pipe(
        self, identity: ServerIdentity, client_key: ClientKey
    ) -> None:
        client_pipe, forger_pipe = socket_pipes()

        def forge() -> None:
            m1 = make_server(identity).start()
            send(forger_pipe, m1)
            m2, m3 = bytes(forger_pipe.recv()), bytes(forger_pipe.recv())
            send(forger_pipe, RefusalForger().refusals(m1, m2, m3)[0])

        forger = threading.Thread(target=forge)
        forger.start()
        with pytest.raises(RefusedError) as caught:
            client_handshake(client_pipe, make_client(client_key), Deadline(LIMIT))
        forger.join(LIMIT)
        assert not caught.value.final
        with pytest.raises(PipeEnded):
            forger_pipe.recv()
        forger_pipe.close("the test is over")

    def test_is_told_from_a_real_one_which_is_final(self, identity: ServerIdentity, client_key: ClientKey) -> None:
        server, client = make_server(identity, tokens=(OTHER_TOKEN,)), make_client(client_key)
        m2, m3 = client.receive(server.start())
        server.receive(m2)
        with pytest.raises(RefusedError) as caught:
            client.receive(server.receive(m3)[0])
        assert caught.value.final
        assert client.state is State.REFUSED
