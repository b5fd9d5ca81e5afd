"""Sealed records: in order, whole, once, from the right hand, and under a key that is young enough."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.errors import LocalError, ProtocolError
from qanat.handshake.hello import RecordKind
from qanat.handshake.key_schedule import expand
from qanat.handshake.sealed import (
    KEY_UPDATE_RECORD,
    MAX_PLAINTEXT,
    ORDER,
    RECEIVE_RECORDS,
    REKEY_BYTES,
    REKEY_RECORDS,
    REKEY_SECONDS,
    Opener,
    Phase,
    Sealer,
)
from tests.support.handshake.scenario import FakeClock, seal

SECRET = bytes(range(32))
HELLO, READY, FRAMES, KEY_UPDATE, CLOSE, PROBE = (bytes([kind]) for kind in RecordKind)


def make_sealer(
    secret: bytes = SECRET,
    clock: Callable[[], float] | None = None,
    opening: RecordKind = RecordKind.HELLO,
    *,
    max_bytes: int = REKEY_BYTES,
    max_records: int = REKEY_RECORDS,
) -> Sealer:
    return Sealer(secret, clock or FakeClock(), opening=opening, max_bytes=max_bytes, max_records=max_records)


def make_opener(
    secret: bytes = SECRET, opening: RecordKind = RecordKind.HELLO, *, max_records: int = RECEIVE_RECORDS
) -> Opener:
    return Opener(secret, opening=opening, max_records=max_records)


def records(*contents: bytes, secret: bytes = SECRET) -> list[bytes]:
    """The records of HELLO and then one FRAMES for each of `contents`."""
    sealer = make_sealer(secret)
    return [seal(sealer, HELLO), *(seal(sealer, FRAMES + content) for content in contents)]


def assert_refused(opener: Opener, message: bytes, match: str | None = None) -> None:
    """`opener` must refuse `message`, and everything after it too."""
    with pytest.raises(ProtocolError, match=match):
        opener.open(message)
    with pytest.raises(ProtocolError, match="after one that was refused"):
        opener.open(message)


def test_what_was_sealed_is_opened_in_order() -> None:
    opener = make_opener()
    opened = [opener.open(message) for message in records(b"one", b"", b"three")]
    assert opened == [HELLO, FRAMES + b"one", FRAMES, FRAMES + b"three"]


def test_a_record_is_sixteen_bytes_longer_and_shows_nothing_of_its_content() -> None:
    first, second = records(b"the same", b"the same")[1:]
    assert len(first) == 1 + len(b"the same") + 16
    assert b"same" not in first
    assert first != second


def test_a_record_is_written_to_the_front_of_the_buffer_and_no_further() -> None:
    out = bytearray(b"\xee" * 64)
    size = make_sealer().seal_into(memoryview(HELLO + b"abc"), memoryview(out))
    assert size == 20
    assert out[20:] == b"\xee" * 44


def test_the_largest_record_passes_and_one_byte_more_does_not() -> None:
    sealer, opener = make_sealer(), make_opener()
    opener.open(seal(sealer, HELLO))
    largest = FRAMES + bytes(MAX_PLAINTEXT - 1)
    assert opener.open(seal(sealer, largest)) == largest
    for wrong in (b"", largest + b"\x00"):
        with pytest.raises(LocalError):
            seal(sealer, wrong)


class TestTheThief:
    """One on the path who has every record and no key."""

    def test_cannot_replay(self) -> None:
        hello, one, two = records(b"one", b"two")
        for replayed in (hello, one):
            opener = make_opener()
            for message in (hello, one):
                opener.open(message)
            assert_refused(opener, replayed, "not the next one")
        assert two

    def test_cannot_reorder(self) -> None:
        hello, _, two = records(b"one", b"two")
        opener = make_opener()
        opener.open(hello)
        assert_refused(opener, two, "not the next one")

    def test_cannot_leave_one_out(self) -> None:
        assert_refused(make_opener(), records(b"one")[1], "not the next one")

    def test_cannot_cut_a_record_short_or_lengthen_it(self) -> None:
        hello = records()[0]
        for size in range(len(hello)):
            assert_refused(make_opener(), hello[:size])
        assert_refused(make_opener(), hello + b"\x00")
        assert_refused(make_opener(), hello + hello)

    def test_cannot_change_a_bit(self) -> None:
        hello = records()[0]
        for bit in range(len(hello) * 8):
            changed = bytearray(hello)
            changed[bit // 8] ^= 1 << bit % 8
            assert_refused(make_opener(), bytes(changed), "not the next one")

    def test_cannot_send_a_record_back_to_who_sealed_it(self) -> None:
        """Each direction has its own secret."""
        c2s, s2c = bytes([1]) * 32, bytes([2]) * 32
        from_client = records(secret=c2s)[0]
        at_the_client = make_opener(s2c, RecordKind.READY)
        assert_refused(at_the_client, from_client, "not the next one")

    def test_cannot_splice_a_record_of_another_session_in(self) -> None:
        mine, other = records(b"mine"), records(b"other", secret=bytes(32))
        opener = make_opener()
        opener.open(mine[0])
        assert_refused(opener, other[1], "not the next one")

    def test_cannot_make_one_up(self) -> None:
        for message in (b"", b"\x01", bytes(16), bytes(17), bytes(1000), bytes(MAX_PLAINTEXT + 16)):
            assert_refused(make_opener(), message)
        assert_refused(make_opener(), bytes(MAX_PLAINTEXT + 17), "is not between")


class TestKinds:
    """HELLO and READY come first and once, CLOSE comes last, and each in its own direction."""

    @pytest.mark.parametrize("opening", [RecordKind.HELLO, RecordKind.READY])
    @pytest.mark.parametrize("before", [(), ("opening",), ("opening", "frames"), ("opening", "close"), ("close",)])
    @pytest.mark.parametrize("first_byte", [0, 1, 2, 3, 4, 5, 6, 255])
    def test_only_what_the_table_allows_is_sealed_and_only_that_is_opened(
        self, opening: RecordKind, before: tuple[str, ...], first_byte: int
    ) -> None:
        said = {"opening": bytes([opening]), "frames": FRAMES, "close": CLOSE}
        legal: set[RecordKind] = {
            (): {opening, RecordKind.CLOSE},
            ("opening",): {RecordKind.FRAMES, RecordKind.KEY_UPDATE, RecordKind.CLOSE},
            ("opening", "frames"): {RecordKind.FRAMES, RecordKind.KEY_UPDATE, RecordKind.CLOSE},
        }.get(before, set())
        sealer, opener, honest = make_sealer(opening=opening), make_opener(opening=opening), NaiveSealer(SECRET)
        for word in before:
            seal(sealer, said[word])
            opener.open(honest.seal(said[word]))
        plaintext = bytes([first_byte])
        if first_byte in legal:
            assert opener.open(seal(sealer, plaintext)) == plaintext
        else:
            with pytest.raises(LocalError):
                seal(sealer, plaintext)
            assert_refused(opener, honest.seal(plaintext))

    def test_the_peer_s_close_is_seen_as_the_end_and_nothing_else_is(self) -> None:
        sealer, opener = make_sealer(), make_opener()
        for plaintext in (HELLO, FRAMES):
            opener.open(seal(sealer, plaintext))
            assert not opener.ended
        opener.open(seal(sealer, CLOSE + b"\x01\x00\x00"))
        assert opener.ended

    def test_every_kind_has_its_place_in_the_table(self) -> None:
        assert {kind for _, kind in ORDER} == set(RecordKind)
        assert not [kind for phase, kind in ORDER if phase is Phase.ENDED]


class NaiveSealer:
    """The formulas of docs/PROTOCOL.md §2 and no rules at all: a peer that may misbehave."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.counter = 0

    def seal(self, plaintext: bytes) -> bytes:
        iv = int.from_bytes(expand(self.secret, b"qanat/1 iv", 12), "big")
        nonce = (iv ^ self.counter).to_bytes(12, "big")
        self.counter += 1
        return AESGCM(expand(self.secret, b"qanat/1 key")).encrypt(nonce, plaintext, None)

    def update(self) -> None:
        self.secret = expand(self.secret, b"qanat/1 update")
        self.counter = 0


class TestRekeying:
    def test_a_sender_asks_for_a_new_key_before_the_records_run_out(self) -> None:
        sealer, opener = make_sealer(max_records=4), make_opener()
        kinds = []
        for plaintext in [HELLO] + [FRAMES] * 10:
            if sealer.update_due(1):
                opener.open(seal(sealer, KEY_UPDATE_RECORD))
                kinds.append("update")
            kinds.append(opener.open(seal(sealer, plaintext)).hex())
        # Never more than four under one key, the KEY_UPDATE being one of them.
        assert " ".join(kinds) == "01 03 03 update 03 03 03 update 03 03 03 update 03 03"

    def test_a_sender_asks_for_a_new_key_before_the_bytes_run_out(self) -> None:
        sealer = make_sealer(max_bytes=1000)
        seal(sealer, HELLO + bytes(399))
        assert not sealer.update_due(599)  # 400 + 599 + the KEY_UPDATE's one byte
        assert sealer.update_due(600)
        with pytest.raises(LocalError, match="used up"):
            seal(sealer, FRAMES + bytes(599))
        seal(sealer, KEY_UPDATE_RECORD)
        assert not sealer.update_due(600)
        seal(sealer, FRAMES + bytes(599))

    def test_a_sender_asks_for_a_new_key_when_the_hour_since_its_first_record_is_over(self) -> None:
        clock = FakeClock()
        sealer = make_sealer(clock=clock)
        clock.now += 10 * REKEY_SECONDS
        assert not sealer.update_due(1)  # nothing has been sealed yet, so there is nothing to renew
        seal(sealer, HELLO)
        clock.now += REKEY_SECONDS - 0.5
        assert not sealer.update_due(1)
        clock.now += 0.5
        assert sealer.update_due(1)
        seal(sealer, KEY_UPDATE_RECORD)
        clock.now += 10 * REKEY_SECONDS
        assert not sealer.update_due(1)
        seal(sealer, FRAMES)
        clock.now += REKEY_SECONDS
        assert sealer.update_due(1)

    def test_a_key_that_is_used_up_seals_nothing_but_the_update(self) -> None:
        sealer = make_sealer(max_records=2)
        seal(sealer, HELLO)
        with pytest.raises(LocalError, match="used up"):
            seal(sealer, FRAMES)
        with pytest.raises(LocalError, match="used up"):
            seal(sealer, CLOSE)
        seal(sealer, KEY_UPDATE_RECORD)
        seal(sealer, FRAMES)

    def test_the_defaults_are_far_below_what_gcm_bears_and_the_receiver_allows_twice_the_sender_s(self) -> None:
        sealer = Sealer(SECRET, FakeClock(), opening=RecordKind.HELLO)
        assert (sealer._max_bytes, sealer._max_records, sealer._max_seconds) == (64 * 2**30, 2**24, 3600)
        assert Opener(SECRET, opening=RecordKind.HELLO)._max_records == 2**25

    def test_a_receiver_refuses_more_records_under_one_key_than_are_allowed(self) -> None:
        opener, peer = make_opener(max_records=3), NaiveSealer(SECRET)
        for plaintext in (HELLO, FRAMES, FRAMES):
            opener.open(peer.seal(plaintext))
        assert_refused(opener, peer.seal(FRAMES), "more than 3 records")

    def test_a_receiver_counts_anew_under_a_new_key(self) -> None:
        opener, peer = make_opener(max_records=3), NaiveSealer(SECRET)
        for plaintext in (HELLO, FRAMES, KEY_UPDATE):
            opener.open(peer.seal(plaintext))
        peer.update()
        for plaintext in (FRAMES, FRAMES, FRAMES):
            opener.open(peer.seal(plaintext))

    def test_a_receiver_refuses_an_update_as_the_first_record_of_a_key(self) -> None:
        opener, peer = make_opener(), NaiveSealer(SECRET)
        opener.open(peer.seal(HELLO))
        opener.open(peer.seal(KEY_UPDATE))
        peer.update()
        assert_refused(opener, peer.seal(KEY_UPDATE), "first record of its key")

    def test_a_sender_cannot_send_an_update_as_the_first_record_of_a_key(self) -> None:
        sealer = make_sealer()
        seal(sealer, HELLO)
        seal(sealer, KEY_UPDATE_RECORD)
        with pytest.raises(LocalError, match="first record of its key"):
            seal(sealer, KEY_UPDATE_RECORD)

    def test_an_update_that_carries_something_is_refused(self) -> None:
        opener, peer = make_opener(), NaiveSealer(SECRET)
        opener.open(peer.seal(HELLO))
        assert_refused(opener, peer.seal(KEY_UPDATE + b"x"), "carries something")

    def test_a_record_under_the_old_key_is_refused_after_the_update(self) -> None:
        opener, peer = make_opener(), NaiveSealer(SECRET)
        opener.open(peer.seal(HELLO))
        opener.open(peer.seal(KEY_UPDATE))
        assert_refused(opener, peer.seal(FRAMES), "not the next one")

    def test_the_first_record_of_the_old_key_is_refused_under_the_new_one(self) -> None:
        opener, peer = make_opener(), NaiveSealer(SECRET)
        hello = peer.seal(HELLO)
        opener.open(hello)
        opener.open(peer.seal(KEY_UPDATE))
        assert_refused(opener, hello, "not the next one")

    def test_an_update_left_out_on_the_way_is_noticed(self) -> None:
        opener, peer = make_opener(), NaiveSealer(SECRET)
        opener.open(peer.seal(HELLO))
        peer.seal(KEY_UPDATE)
        peer.update()
        assert_refused(opener, peer.seal(FRAMES), "not the next one")

    def test_the_old_secret_is_forgotten_at_both_ends(self) -> None:
        sealer, opener = make_sealer(), make_opener()
        for plaintext in (HELLO, KEY_UPDATE_RECORD):
            opener.open(seal(sealer, plaintext))
        for end in (sealer, opener):
            assert end._secret == expand(SECRET, b"qanat/1 update")
            assert SECRET not in vars(end).values()


@given(
    contents=st.lists(st.binary(max_size=200), max_size=30),
    max_records=st.integers(min_value=2, max_value=6),
    max_bytes=st.integers(min_value=400, max_value=1000),
)
def test_any_sequence_passes_any_limits_and_no_nonce_is_ever_used_twice(
    contents: list[bytes], max_records: int, max_bytes: int
) -> None:
    sealer, opener = make_sealer(max_records=max_records, max_bytes=max_bytes), make_opener(max_records=max_records)
    used: set[tuple[bytes, bytes]] = set()

    def pass_on(plaintext: bytes) -> None:
        nonce = (sealer._secret, sealer._nonce())
        assert nonce not in used
        used.add(nonce)
        assert opener.open(seal(sealer, plaintext)) == plaintext

    for plaintext in [HELLO, *(FRAMES + content for content in contents), CLOSE]:
        if sealer.update_due(len(plaintext)):
            pass_on(KEY_UPDATE_RECORD)
        pass_on(plaintext)
    assert opener.ended


@given(st.binary(max_size=400))
def test_any_bytes_at_all_are_refused_by_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        make_opener().open(data)


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=6))
def test_any_plaintexts_under_the_right_key_are_opened_or_refused_by_a_protocol_error(plaintexts: list[bytes]) -> None:
    opener, peer = make_opener(), NaiveSealer(SECRET)
    try:
        for plaintext in plaintexts:
            assert opener.open(peer.seal(plaintext)) == plaintext
            if plaintext == KEY_UPDATE:
                peer.update()
    except ProtocolError:
        pass
