"""A live man in the middle, over sockets and in memory, who swaps keys and relays the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import HandshakeError, QanatError, RefusedError, TransportError
from qanat.handshake.exchange import client_handshake, server_handshake
from qanat.handshake.keys import ClientKey, ServerIdentity
from qanat.transports.pipe import Pipe
from tests.support.handshake.attackers import Answer, KeySwappingMan
from tests.support.handshake.pipes import socket_pipes
from tests.support.handshake.scenario import NAME, TOKEN, accept_any, make_client, make_server, pinned
from tests.support.transports.memory import memory_pair

Pair = Callable[[], tuple[Pipe, Pipe]]
LIMIT = 20.0


def run_with_a_man_between(
    pair: Pair,
    man: KeySwappingMan,
    client_check: Callable[[bytes], None],
    identity: ServerIdentity,
    client_key: ClientKey,
) -> tuple[QanatError | None, QanatError | None]:
    """What client and server ended with: an error, or None when they believed that all was well."""
    client_pipe, man_left = pair()
    man_right, server_pipe = pair()
    errors: dict[str, QanatError] = {}

    def run(who: str, work: Callable[[], object]) -> Callable[[], None]:
        def guarded() -> None:
            try:
                work()
            except QanatError as error:
                errors[who] = error

        return guarded

    client, server = make_client(client_key, check=client_check), make_server(identity)
    threads = [
        threading.Thread(target=run("server", lambda: server_handshake(server_pipe, server, Deadline(LIMIT)))),
        threading.Thread(target=run("man", lambda: man.sit_between(man_left, man_right))),
    ]
    for thread in threads:
        thread.start()
    run("client", lambda: client_handshake(client_pipe, client, Deadline(LIMIT)))()
    client_pipe.close("the test is over")
    for thread in threads:
        thread.join(LIMIT)
    server_pipe.close("the test is over")
    return errors.get("client"), errors.get("server")


@pytest.mark.parametrize("pair", [memory_pair, socket_pipes], ids=["memory", "socket"])
class TestAManInTheMiddle:
    @pytest.mark.parametrize("answer", list(Answer))
    @pytest.mark.parametrize("swap_client_key", [True, False])
    def test_who_swaps_the_server_key_fails_at_both_ends_of_an_unpinned_client(
        self,
        pair: Pair,
        answer: Answer,
        swap_client_key: bool,
        identity: ServerIdentity,
        other_identity: ServerIdentity,
        client_key: ClientKey,
        other_client_key: ClientKey,
    ) -> None:
        man = KeySwappingMan(other_identity, other_client_key, answer, swap_client_key=swap_client_key)
        at_client, at_server = run_with_a_man_between(pair, man, accept_any, identity, client_key)
        assert isinstance(at_client, HandshakeError | RefusedError)
        assert isinstance(at_server, RefusedError)
        assert "wrong token" in at_server.message
        # He was really there, and read what a client says to a server that it does not know.
        assert man.learned[0].name == NAME
        assert TOKEN not in man.learned[0].encode()

    def test_who_swaps_the_server_key_gets_not_one_byte_from_a_pinned_client(
        self,
        pair: Pair,
        identity: ServerIdentity,
        other_identity: ServerIdentity,
        client_key: ClientKey,
        other_client_key: ClientKey,
    ) -> None:
        man = KeySwappingMan(other_identity, other_client_key)
        at_client, at_server = run_with_a_man_between(pair, man, pinned(identity), identity, client_key)
        assert isinstance(at_client, RefusedError)
        assert isinstance(at_server, TransportError)
        assert man.learned == []

    @pytest.mark.parametrize("answer", list(Answer))
    def test_who_swaps_only_the_client_key_fails_at_both_ends(
        self,
        pair: Pair,
        answer: Answer,
        identity: ServerIdentity,
        other_identity: ServerIdentity,
        client_key: ClientKey,
        other_client_key: ClientKey,
    ) -> None:
        man = KeySwappingMan(other_identity, other_client_key, answer, swap_server_key=False)
        at_client, at_server = run_with_a_man_between(pair, man, pinned(identity), identity, client_key)
        assert isinstance(at_client, HandshakeError | RefusedError)
        assert not (isinstance(at_client, RefusedError) and at_client.final)
        assert isinstance(at_server, RefusedError)

    def test_the_same_run_succeeds_when_he_swaps_nothing(
        self,
        pair: Pair,
        identity: ServerIdentity,
        other_identity: ServerIdentity,
        client_key: ClientKey,
        other_client_key: ClientKey,
    ) -> None:
        man = KeySwappingMan(other_identity, other_client_key, swap_server_key=False, swap_client_key=False)
        assert run_with_a_man_between(pair, man, pinned(identity), identity, client_key) == (None, None)
