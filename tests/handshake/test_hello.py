"""HELLO, READY and CLOSE: strict both ways, and resuming bound to the secret and to this very handshake."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.errors import LocalError, ProtocolError
from qanat.handshake.fields import lp8
from qanat.handshake.hello import (
    MAX_INITIAL_WINDOW,
    Answer,
    Close,
    CloseReason,
    Hello,
    Intent,
    Parameters,
    Ready,
)

INSTANCE, SESSION = b"i" * 16, b"s" * 16
RESUME, TRANSCRIPT = b"r" * 32, b"t" * 32
NEW = Hello(INSTANCE, Parameters("qanat/0.1.0"))
RESUMING = replace(NEW, intent=Intent.RESUME, session=SESSION, lane=2, epoch=7, expected=1234)
STARTED = Ready(Answer.NEW, "node-1", Parameters("qanat/0.1.0"), session=SESSION)
RESUMED = replace(STARTED, answer=Answer.RESUMED, expected=99)
EXPIRED = replace(STARTED, answer=Answer.EXPIRED, session=bytes(16))

labels = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=255)
u32 = st.integers(min_value=0, max_value=2**32 - 1)
u64 = st.integers(min_value=0, max_value=2**64 - 1)
windows = st.integers(min_value=0, max_value=MAX_INITIAL_WINDOW)
parameters = st.builds(
    Parameters, labels, windows, max_streams=u32, keepalive=u32, lanes=u32, resume_for=u32, measure=u32
)


@given(
    st.builds(
        Hello,
        st.binary(min_size=16, max_size=16),
        parameters,
        st.sampled_from([Intent.JOIN, Intent.RESUME]),
        st.binary(min_size=16, max_size=16),
        st.integers(min_value=0, max_value=65535),
        u32,
        u64,
        st.binary(min_size=32, max_size=32),
    )
)
def test_every_hello_is_read_as_it_was_written(hello: Hello) -> None:
    assert Hello.decode(memoryview(hello.encode())) == hello


@given(parameters, labels)
def test_every_ready_is_read_as_it_was_written(values: Parameters, node: str) -> None:
    for ready in (STARTED, RESUMED.proven(RESUME, TRANSCRIPT), EXPIRED):
        written = replace(ready, parameters=values, node=node)
        assert Ready.decode(written.encode()) == written


def test_a_hello_for_a_new_session_speaks_of_no_old_one() -> None:
    assert Hello.decode(NEW.encode()) == NEW
    for wrong in (
        replace(NEW, session=SESSION),
        replace(NEW, lane=1),
        replace(NEW, epoch=1),
        replace(NEW, expected=1),
        replace(NEW, proof=b"\x01" * 32),
    ):
        with pytest.raises(ProtocolError):
            Hello.decode(wrong.encode())


def test_a_ready_says_where_to_go_on_only_when_it_resumes() -> None:
    for wrong in (
        replace(STARTED, expected=1),
        replace(STARTED, proof=b"\x01" * 32),
        replace(STARTED, session=bytes(16)),
        replace(EXPIRED, session=SESSION),
        replace(EXPIRED, expected=1),
        replace(EXPIRED, proof=b"\x01" * 32),
        replace(RESUMED, session=bytes(16)),
    ):
        with pytest.raises(ProtocolError):
            Ready.decode(wrong.encode())


class TestResumeProofs:
    def test_who_knows_the_session_s_secret_is_believed_in_this_handshake_alone(self) -> None:
        for message in (RESUMING, RESUMED):
            proven = message.proven(RESUME, TRANSCRIPT)
            assert proven.proof_holds(RESUME, TRANSCRIPT)
            assert not proven.proof_holds(b"x" * 32, TRANSCRIPT)
            assert not proven.proof_holds(RESUME, b"x" * 32)
            assert not message.proof_holds(RESUME, TRANSCRIPT)

    def test_no_field_of_a_hello_can_be_changed_afterwards(self) -> None:
        proven = RESUMING.proven(RESUME, TRANSCRIPT)
        for changed in (
            replace(proven, intent=Intent.JOIN),
            replace(proven, instance=b"x" * 16),
            replace(proven, session=b"x" * 16),
            replace(proven, lane=3),
            replace(proven, epoch=8),
            replace(proven, expected=1235),
        ):
            assert not changed.proof_holds(RESUME, TRANSCRIPT)

    def test_no_field_of_a_ready_can_be_changed_afterwards(self) -> None:
        proven = RESUMED.proven(RESUME, TRANSCRIPT)
        for changed in (
            replace(proven, answer=Answer.NEW),
            replace(proven, session=b"x" * 16),
            replace(proven, expected=100),
        ):
            assert not changed.proof_holds(RESUME, TRANSCRIPT)

    def test_a_proof_is_not_shown(self) -> None:
        assert "proof" not in repr(RESUMING.proven(RESUME, TRANSCRIPT))


class TestParameters:
    def written(self, *listed: tuple[int, int], agent: bytes = b"a") -> bytes:
        head = RESUMING.encode()[: -len(RESUMING.parameters.encode())]
        values = b"".join(bytes([number]) + value.to_bytes(4, "big") for number, value in listed)
        return head + lp8(agent) + bytes([len(listed)]) + values

    def test_what_is_absent_has_its_default(self) -> None:
        read = Hello.decode(self.written()).parameters
        assert (read.initial_window, read.max_streams, read.keepalive) == (131_072, 4096, 15)
        assert (read.lanes, read.resume_for) == (1, 0)

    def test_each_has_a_number_of_its_own(self) -> None:
        read = Hello.decode(self.written((5, 50), (4, 40), (3, 30), (2, 20), (1, 10))).parameters
        assert read == Parameters("a", 10, 20, 30, 40, 50)

    def test_what_is_unknown_is_ignored(self) -> None:
        assert Hello.decode(self.written((200, 1), (2, 5))).parameters == Parameters("a", max_streams=5)

    @pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 200])
    def test_what_comes_twice_is_an_error(self, number: int) -> None:
        with pytest.raises(ProtocolError, match="twice"):
            Hello.decode(self.written((number, 1), (number, 1)))

    def test_a_window_above_the_largest_is_an_error(self) -> None:
        assert Hello.decode(self.written((1, MAX_INITIAL_WINDOW))).parameters.initial_window == 16 * 2**20
        with pytest.raises(ProtocolError, match="above"):
            Hello.decode(self.written((1, MAX_INITIAL_WINDOW + 1)))
        with pytest.raises(LocalError):
            Parameters(initial_window=MAX_INITIAL_WINDOW + 1).encode()

    @pytest.mark.parametrize("agent", [b"\x1b[31m", b"a\nb", b"\x00", b"\x7f", b"\xc3\xa9", b"\xff"])
    def test_an_agent_that_could_play_tricks_on_a_terminal_is_an_error(self, agent: bytes) -> None:
        with pytest.raises(ProtocolError, match="printable"):
            Hello.decode(self.written(agent=agent))

    @pytest.mark.parametrize("text", ["é", "x" * 256, "a\n"])
    def test_nor_can_we_send_one(self, text: str) -> None:
        with pytest.raises(LocalError):
            Parameters(text).encode()
        with pytest.raises(LocalError):
            replace(STARTED, node=text).encode()


@pytest.mark.parametrize("message", [NEW, RESUMING, STARTED, RESUMED, EXPIRED, Close(CloseReason.BUSY, "later")])
def test_no_message_can_be_cut_or_lengthened(message: Hello | Ready | Close) -> None:
    whole = message.encode()
    assert type(message).decode(whole) == message
    for size in range(len(whole)):
        with pytest.raises(ProtocolError):
            type(message).decode(whole[:size])
    with pytest.raises(ProtocolError):
        type(message).decode(whole + b"\x00")


@pytest.mark.parametrize("code", [0, 4, 255])
def test_an_unknown_intent_or_answer_is_an_error(code: int) -> None:
    for message in (RESUMING, RESUMED):
        with pytest.raises(ProtocolError, match="unknown value"):
            type(message).decode(bytes([code]) + message.encode()[1:])


class TestClose:
    @pytest.mark.parametrize("reason", list(CloseReason))
    def test_every_reason_is_read_as_it_was_written(self, reason: CloseReason) -> None:
        close = Close(reason, "because: ü")
        assert Close.decode(memoryview(close.encode())) == close

    @pytest.mark.parametrize("code", [0, 9, 255])
    def test_an_unknown_reason_is_an_error(self, code: int) -> None:
        with pytest.raises(ProtocolError, match="unknown value"):
            Close.decode(bytes([code, 0, 0]))

    def test_a_text_that_is_too_long_is_cut_between_characters_when_sent_and_an_error_when_received(self) -> None:
        assert Close.decode(Close(CloseReason.BUSY, "ü" * 300).encode()).text == "ü" * 256
        assert Close.decode(Close(CloseReason.BUSY, "a" + "ü" * 300).encode()).text == "a" + "ü" * 255
        with pytest.raises(ProtocolError, match="513"):
            Close.decode(b"\x01\x02\x01" + b"a" * 513)

    def test_a_text_that_is_not_utf_8_is_still_read(self) -> None:
        assert Close.decode(b"\x02\x00\x03a\xffb") == Close(CloseReason.SHUTDOWN, "a\N{REPLACEMENT CHARACTER}b")


@given(st.binary(max_size=300))
def test_any_bytes_at_all_are_read_or_refused_by_a_protocol_error(data: bytes) -> None:
    for kind in (Hello, Ready, Close):
        try:
            read = kind.decode(data)
        except ProtocolError:
            continue
        assert kind.decode(read.encode()) == read
