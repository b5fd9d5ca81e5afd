"""The machines, step by step: only what the table allows, once, in its turn and in its form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from qanat.base.errors import HandshakeError, LocalError, RefusedError
from qanat.handshake import key_schedule, keys
from qanat.handshake.fields import lp
from qanat.handshake.keys import ClientKey, ServerIdentity
from qanat.handshake.machine import TRANSITIONS, ClientHandshake, Event, ServerHandshake, State
from qanat.handshake.messages import ServerKey
from qanat.handshake.tokens import token_fingerprint
from tests.support.handshake.attackers import ForgingClient, forge_session_key
from tests.support.handshake.scenario import NAME, OTHER_TOKEN, TOKEN, complete, make_client, make_server


class Talk:
    """One handshake whose two machines wait at the same step, and every message that has been said or will be."""

    def __init__(self, identity: ServerIdentity, key: ClientKey) -> None:
        self.server, self.client = make_server(identity), make_client(key)
        self.m1 = self.server.start()
        # A second handshake of the same ends gives sound messages that are not this one's.
        other_server, other_client = make_server(identity), make_client(key)
        other_m1 = other_server.start()
        m2, m3 = other_client.receive(other_m1)
        other_server.receive(m2)
        (m4,) = other_server.receive(m3)
        refusing = make_server(identity, tokens=(OTHER_TOKEN,))
        for message in make_client(key).receive(refusing.start()):
            answers = refusing.receive(message)
        self.sound = {"M1": other_m1, "M2": m2, "M3": m3, "M4": m4, "R": answers[0]}

    def wait_at(self, step: str) -> ClientHandshake | ServerHandshake:
        """Lead both machines to `step` and return the one that waits there."""
        if step == "client waits M1":
            return self.client
        self.m2, self.m3 = self.client.receive(self.m1)
        if step == "client waits M4":
            return self.client
        if step == "server waits M2":
            return self.server
        self.server.receive(self.m2)
        if step == "server waits M3":
            return self.server
        (m4,) = self.server.receive(self.m3)
        if step == "server done":
            return self.server
        self.client.receive(m4)
        return self.client


STEPS = {
    "client waits M1": {"M1"},
    "server waits M2": {"M2"},
    "server waits M3": {"M3", "M1"},  # both are MSG_PUBKEY; what is in it shows once the proof holds, which it cannot
    "client waits M4": {"M4", "R"},
    "server done": set[str](),
    "client done": set[str](),
}
"""Where a machine can be, and which messages have a type that may come there."""

FORMS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda message: b"",
    "its type alone": lambda message: message[:1],
    "its header alone": lambda message: message[:3],
    "one byte short": lambda message: message[:-1],
    "one byte long": lambda message: message + b"\x00",
    "without content": lambda message: message[:1] + b"\x00\x00",
    "content cut, header honest": lambda message: message[:1] + (len(message) - 4).to_bytes(2, "big") + message[3:-1],
    "content longer, header honest": lambda message: (
        message[:1] + (len(message) - 2).to_bytes(2, "big") + message[3:] + b"\x00"
    ),
    "length too small": lambda message: message[:1] + b"\x00\x01" + message[3:],
    "length too large": lambda message: message[:1] + b"\xff\xff" + message[3:],
    "unknown type 0": lambda message: b"\x00" + message[1:],
    "unknown type 5": lambda message: b"\x05" + message[1:],
    "unknown type 255": lambda message: b"\xff" + message[1:],
    "said twice in one": lambda message: message + message,
    "1 KiB and a byte": lambda message: message[:1] + (1022).to_bytes(2, "big") + bytes(1022),
    "the largest that a pipe carries": lambda message: bytes(262_208),
}
"""Ways to spoil the form of a message."""


@pytest.fixture
def talk(identity: ServerIdentity, client_key: ClientKey) -> Talk:
    return Talk(identity, client_key)


@pytest.mark.parametrize(
    ("step", "message"),
    [(step, message) for step in STEPS for message in ("M1", "M2", "M3", "M4", "R") if message not in STEPS[step]],
)
def test_a_sound_message_of_the_wrong_type_is_an_error_at_every_step(talk: Talk, step: str, message: str) -> None:
    machine = talk.wait_at(step)
    with pytest.raises(HandshakeError):
        machine.receive(talk.sound[message])
    assert machine.state is State.FAILED
    assert not machine.done


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("form", FORMS)
def test_a_message_of_the_wrong_form_is_never_accepted_at_any_step(talk: Talk, step: str, form: str) -> None:
    machine = talk.wait_at(step)
    right = talk.sound[min(STEPS[step] - {"M1"} or {"M1"})]
    spoiled = FORMS[form](right)
    try:
        machine.receive(spoiled)
    except HandshakeError:
        assert machine.state is State.FAILED
    else:
        # M3 is only parsed once the proof holds, so that a spoiled one looks like any other wrong proof.
        assert isinstance(machine, ServerHandshake)
        assert step == "server waits M3"
        assert machine.refused
    with pytest.raises(HandshakeError):
        machine.receive(right)


@pytest.mark.parametrize(
    "m3",
    [
        pytest.param(lambda key: b"\x01" + (len(key) + 5).to_bytes(2, "big") + lp(key) + b"x", id="a byte behind"),
        pytest.param(lambda key: b"\x01" + len(key).to_bytes(2, "big") + key, id="no length"),
        pytest.param(lambda key: b"\x01\x00\x00", id="empty"),
        pytest.param(lambda key: b"\x01\x00\x04" + b"\xff" * 4, id="a length beyond the end"),
    ],
)
def test_a_spoiled_m3_of_a_client_that_has_the_token_is_an_error(
    m3: Callable[[bytes], bytes], identity: ServerIdentity, client_key: ClientKey
) -> None:
    server = make_server(identity)
    m2, spoiled = ForgingClient(client_key.spki, m3=m3(client_key.spki)).answer(server.start())
    server.receive(m2)
    with pytest.raises(HandshakeError):
        server.receive(spoiled)
    assert server.state is State.FAILED


@pytest.mark.parametrize("step", ["server waits M2", "server waits M3", "client waits M4"])
def test_the_message_that_was_right_a_step_ago_is_an_error_the_second_time(talk: Talk, step: str) -> None:
    machine = talk.wait_at(step)
    again = {"server waits M2": talk.m3, "server waits M3": talk.m2, "client waits M4": talk.m1}[step]
    with pytest.raises(HandshakeError):
        machine.receive(again)


@pytest.mark.parametrize("step", ["client done", "server done"])
@pytest.mark.parametrize("message", ["M1", "M2", "M3", "M4", "R"])
def test_a_message_that_comes_too_late_changes_nothing_of_the_result(talk: Talk, step: str, message: str) -> None:
    machine = talk.wait_at(step)
    result = machine.result
    with pytest.raises(HandshakeError):
        machine.receive(talk.sound[message])
    assert machine.result is result


@pytest.mark.parametrize("state", [State.DONE, State.REFUSED, State.FAILED])
def test_an_end_is_an_end(state: State) -> None:
    assert not [event for (before, event) in TRANSITIONS if before is state]


def test_the_table_leads_each_role_from_its_start_to_an_end_and_nowhere_else() -> None:
    reached = {State.SERVER_NEW, State.CLIENT_WAITS_KEY}
    for _ in State:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached == set(State) - {State.FAILED}
    assert all(after not in (State.SERVER_NEW, State.CLIENT_WAITS_KEY) for after in TRANSITIONS.values())
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_a_server_says_nothing_but_m1_before_it_was_started(identity: ServerIdentity) -> None:
    server = make_server(identity)
    with pytest.raises(HandshakeError):
        server.receive(b"\x02\x01\x80" + bytes(384))
    fresh = make_server(identity)
    fresh.start()
    with pytest.raises(LocalError):
        fresh.start()


def test_there_is_no_result_before_the_end(talk: Talk) -> None:
    for machine in (talk.client, talk.server):
        with pytest.raises(LocalError):
            _ = machine.result


def test_the_steps_are_the_five_that_were_promised_in_their_order(
    identity: ServerIdentity, client_key: ClientKey
) -> None:
    said: list[str] = []
    server = make_server(identity)
    client = make_client(client_key, check=lambda spki: said.append("fingerprint compared"))
    m1 = server.start()
    answers = client.receive(m1)
    assert said == ["fingerprint compared"]
    assert [message[0] for message in answers] == [2, 1]
    assert server.receive(answers[0]) == []
    (m4,) = server.receive(answers[1])
    assert m4[0] == 3
    assert server.done
    assert not client.done
    assert client.receive(m4) == []
    assert client.done


def test_a_client_whose_check_says_no_sends_nothing_and_is_over(
    identity: ServerIdentity, client_key: ClientKey
) -> None:
    def refuse(spki: bytes) -> None:
        raise RefusedError("not the pinned one")

    client = make_client(client_key, check=refuse)
    m1 = make_server(identity).start()
    with pytest.raises(RefusedError):
        client.receive(m1)
    with pytest.raises(HandshakeError):
        client.receive(m1)


def test_views_are_taken_like_bytes_and_not_kept(identity: ServerIdentity, client_key: ClientKey) -> None:
    """A pipe's view is only valid until the next message."""
    server, client = make_server(identity), make_client(client_key)
    buffer = bytearray(server.start())
    m2, m3 = client.receive(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    server.receive(m2)
    client.receive(server.receive(m3)[0])
    assert client.result == server.result


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "é", "a/b", "a\n", "a\x00"])
def test_a_client_cannot_be_made_with_a_name_that_no_client_can_have(name: str, client_key: ClientKey) -> None:
    with pytest.raises(LocalError):
        make_client(client_key, name=name)


def test_the_private_key_is_used_inside_the_gate_and_once(client_key: ClientKey) -> None:
    events: list[str] = []

    @contextmanager
    def gate() -> Iterator[None]:
        events.append("in")
        yield
        events.append("out")

    class Watched(ServerIdentity):
        def decrypt(self, ciphertext: bytes, label: bytes) -> bytes | None:
            events.append("decrypt")
            return super().decrypt(ciphertext, label)

    watched = Watched(keys.generate_private_key(3072))
    complete(make_client(client_key), ServerHandshake(watched, {NAME: (TOKEN,)}.get, gate()))
    assert events == ["in", "decrypt", "out"]


def test_a_proven_token_that_does_not_count_any_more_is_refused_like_a_wrong_one(
    identity: ServerIdentity, client_key: ClientKey
) -> None:
    asked: list[tuple[str, bytes]] = []

    def reject(name: str, token: bytes) -> str:
        asked.append((name, token))
        return "it has ended"

    server, client = ServerHandshake(identity, {NAME: (TOKEN,)}.get, reject=reject), make_client(client_key)
    m2, m3 = client.receive(server.start())
    server.receive(m2)
    (answer,) = server.receive(m3)
    with pytest.raises(RefusedError, match="does not accept the client"):
        client.receive(answer)
    assert server.refused
    assert server.refusal_detail == "it has ended"
    assert asked == [(NAME, TOKEN)]


def test_a_server_knows_by_which_token_a_client_has_proven_itself(
    identity: ServerIdentity, client_key: ClientKey
) -> None:
    server = ServerHandshake(identity, {NAME: (b"x" * 32, TOKEN)}.get)
    complete(make_client(client_key), server)
    assert server.result.token == token_fingerprint(TOKEN)
    assert len(server.result.token) == 16


class TestDowngrade:
    """Neither the version nor the parameters can be lowered by one on the path."""

    def test_the_highest_common_version_is_chosen(self, identity: ServerIdentity, client_key: ClientKey) -> None:
        for theirs, ours, chosen in [((1, 2, 9), (1, 2), 2), ((2, 1), (1,), 1), ((3, 2, 1), (3, 1), 3)]:
            server, client = make_server(identity, versions=theirs), make_client(client_key, versions=ours)
            at_client, at_server = complete(client, server)
            assert at_client.version == at_server.version == chosen

    def test_striking_a_version_from_the_list_is_refused_by_the_server(
        self, identity: ServerIdentity, client_key: ClientKey
    ) -> None:
        server, client = make_server(identity, versions=(1, 2)), make_client(client_key, versions=(1, 2))
        genuine = ServerKey.decode(server.start())
        lowered = ServerKey((1,), genuine.random, genuine.spki).encode()
        m2, m3 = client.receive(lowered)
        server.receive(m2)
        (answer,) = server.receive(m3)
        assert server.refused
        with pytest.raises(RefusedError) as caught:
            client.receive(answer)
        assert not caught.value.final

    @pytest.mark.parametrize("versions", [(2,), (0,), (2, 3, 65535)])
    def test_no_common_version_is_an_error_before_anything_is_sent(
        self, versions: tuple[int, ...], identity: ServerIdentity, client_key: ClientKey
    ) -> None:
        with pytest.raises(HandshakeError, match="no version") as caught:
            make_client(client_key).receive(make_server(identity, versions=versions).start())
        assert caught.value.hint

    @pytest.mark.parametrize("count", [0, 9, 255])
    def test_a_list_of_versions_that_is_empty_or_too_long_is_an_error(
        self, count: int, identity: ServerIdentity, client_key: ClientKey
    ) -> None:
        content = bytes([count]) + b"\x00\x01" * count + bytes(32) + lp(identity.spki)
        with pytest.raises(HandshakeError):
            make_client(client_key).receive(b"\x01" + len(content).to_bytes(2, "big") + content)

    @pytest.mark.parametrize("versions", [(), (1,) * 9])
    def test_a_server_cannot_offer_such_a_list(self, versions: tuple[int, ...], identity: ServerIdentity) -> None:
        with pytest.raises(LocalError):
            make_server(identity, versions=versions)


@pytest.mark.parametrize("size", [0, 31, 33, 190])
def test_a_server_secret_of_the_wrong_length_is_refused_though_its_proof_holds(
    size: int, identity: ServerIdentity, client_key: ClientKey
) -> None:
    client = make_client(client_key)
    m1 = make_server(identity).start()
    m2, m3 = client.receive(m1)
    k_tok = key_schedule.token_key(NAME, TOKEN)
    m4 = forge_session_key(m1, m2, m3, client._client_secret, k_tok, server_secret=bytes(size))
    with pytest.raises(HandshakeError, match="could not prove"):
        client.receive(m4)
