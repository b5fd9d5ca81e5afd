"""Who lacks one of the secrets, or says again what he overheard, is neither server nor client."""

from __future__ import annotations

import pytest

from qanat.base.errors import HandshakeError, RefusedError
from qanat.handshake.keys import ClientKey, ServerIdentity
from qanat.handshake.machine import State
from tests.support.handshake.attackers import ForgingClient, KeyHolderWithoutTheToken, TokenHolderWithoutTheKey
from tests.support.handshake.scenario import NAME, OTHER_TOKEN, TOKEN, complete, make_client, make_server, pinned


def test_both_ends_have_the_same_keys_when_nobody_interferes(identity: ServerIdentity, client_key: ClientKey) -> None:
    at_client, at_server = complete(make_client(client_key, check=pinned(identity)), make_server(identity))
    assert at_client == at_server
    assert at_client.name == NAME
    assert at_client.server_spki == identity.spki
    secrets = {at_client.c2s, at_client.s2c, at_client.resume, at_client.split}
    assert len(secrets) == 4
    assert all(secret.hex() not in repr(at_client) and repr(secret) not in repr(at_client) for secret in secrets)


def test_two_handshakes_of_the_same_two_ends_share_no_key(identity: ServerIdentity, client_key: ClientKey) -> None:
    first, _ = complete(make_client(client_key), make_server(identity))
    second, _ = complete(make_client(client_key), make_server(identity))
    assert first.transcript != second.transcript
    assert {first.c2s, first.s2c, first.resume, first.split}.isdisjoint(
        {second.c2s, second.s2c, second.resume, second.split}
    )


@pytest.mark.parametrize(
    "guess",
    [b"", bytes(32), TOKEN, b"\xff" * 32],
    ids=["nothing", "zeros", "the token", "ones"],
)
def test_who_knows_the_token_but_not_the_private_key_cannot_pass_for_the_pinned_server(
    guess: bytes, identity: ServerIdentity, client_key: ClientKey
) -> None:
    genuine_m1 = make_server(identity).start()  # he asked the real server for it
    impostor = TokenHolderWithoutTheKey(genuine_m1, TOKEN, guess)
    client = make_client(client_key, check=pinned(identity))
    m2, m3 = client.receive(impostor.greet())
    with pytest.raises(HandshakeError, match="could not prove"):
        client.receive(impostor.answer(m2, m3))
    assert client.state is State.FAILED


def test_the_same_forgery_succeeds_for_one_who_knows_client_secret_too(
    identity: ServerIdentity, client_key: ClientKey
) -> None:
    """So that the test before this one fails for its reason, and not because the forger is clumsy."""
    server = make_server(identity)
    m1 = server.start()
    client = make_client(client_key, check=pinned(identity))
    m2, m3 = client.receive(m1)
    secret = client._client_secret
    assert client.receive(TokenHolderWithoutTheKey(m1, TOKEN, secret).answer(m2, m3)) == []
    assert client.done


def test_who_stole_the_private_key_but_knows_no_token_cannot_pass_for_the_server(
    identity: ServerIdentity, client_key: ClientKey
) -> None:
    thief = KeyHolderWithoutTheToken(identity)
    client = make_client(client_key, check=pinned(identity))
    m2, m3 = client.receive(thief.greet())
    with pytest.raises(HandshakeError, match="could not prove"):
        client.receive(thief.answer(m2, m3))


@pytest.mark.parametrize("token", [None, OTHER_TOKEN, bytes(32)])
def test_who_has_no_token_cannot_pass_for_the_client(
    token: bytes | None, identity: ServerIdentity, other_client_key: ClientKey
) -> None:
    server = make_server(identity)
    m2, m3 = ForgingClient(other_client_key.spki, token=token).answer(server.start())
    server.receive(m2)
    server.receive(m3)
    assert server.refused
    assert not server.done


def test_a_client_s_words_said_again_to_the_same_server_are_refused(
    identity: ServerIdentity, client_key: ClientKey
) -> None:
    first, second = make_server(identity), make_server(identity)
    overheard = make_client(client_key).receive(first.start())
    second.start()
    for message in overheard:
        second.receive(message)
    assert second.refused


def test_a_client_key_spliced_in_from_another_handshake_of_the_same_client_is_refused(
    identity: ServerIdentity, client_key: ClientKey, other_client_key: ClientKey
) -> None:
    server = make_server(identity)
    m1 = server.start()
    m2, _ = make_client(client_key).receive(m1)
    _, other_m3 = make_client(other_client_key).receive(m1)
    server.receive(m2)
    server.receive(other_m3)
    assert server.refused


def test_a_server_s_answer_said_again_to_the_same_client_proves_nothing(
    identity: ServerIdentity, client_key: ClientKey
) -> None:
    server = make_server(identity)
    m1 = server.start()
    m2, m3 = make_client(client_key).receive(m1)
    server.receive(m2)
    (m4,) = server.receive(m3)
    again = make_client(client_key)
    again.receive(m1)
    with pytest.raises(HandshakeError, match="could not prove"):
        again.receive(m4)


def test_messages_reflected_to_their_sender_are_refused(identity: ServerIdentity, client_key: ClientKey) -> None:
    server = make_server(identity)
    m1 = server.start()
    for reflected in ([m1], make_client(client_key).receive(m1)):
        client = make_client(client_key)
        client.receive(m1)
        with pytest.raises(HandshakeError):
            client.receive(reflected[0])
    with pytest.raises(HandshakeError):
        server.receive(m1)


@pytest.mark.parametrize("place", ["versions", "random", "key", "M2", "M3", "M4 secret", "M4 proof"])
def test_one_bit_changed_anywhere_on_the_way_is_noticed(
    place: str, identity: ServerIdentity, client_key: ClientKey
) -> None:
    def flip(message: bytes, at: int) -> bytes:
        return message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]

    server, client = make_server(identity, versions=(1, 3)), make_client(client_key)
    m1 = server.start()
    m1 = flip(m1, {"versions": 7, "random": 20, "key": 200}.get(place, 20)) if "M" not in place else m1
    m2, m3 = client.receive(m1)
    server.receive(flip(m2, 100) if place == "M2" else m2)
    (answer,) = server.receive(flip(m3, 100) if place == "M3" else m3)
    if place.startswith("M4"):
        answer = flip(answer, 50 if place == "M4 secret" else len(answer) - 1)
    else:
        assert server.refused
    with pytest.raises((HandshakeError, RefusedError)) as caught:
        client.receive(answer)
    assert not (isinstance(caught.value, RefusedError) and caught.value.final)


def test_either_of_two_tokens_is_accepted_while_one_replaces_the_other(
    identity: ServerIdentity, client_key: ClientKey
) -> None:
    for token in (TOKEN, OTHER_TOKEN):
        client = make_client(client_key, token=token)
        at_client, at_server = complete(client, make_server(identity, tokens=(TOKEN, OTHER_TOKEN)))
        assert at_client == at_server


def test_a_token_taken_away_is_refused(identity: ServerIdentity, client_key: ClientKey) -> None:
    server = make_server(identity, tokens=(OTHER_TOKEN,))
    for message in make_client(client_key).receive(server.start()):
        server.receive(message)
    assert server.refused


def test_a_token_belongs_to_one_name(identity: ServerIdentity, client_key: ClientKey) -> None:
    server = make_server(identity)
    for message in make_client(client_key, name="other").receive(server.start()):
        server.receive(message)
    assert server.refused
