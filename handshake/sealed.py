"""The sealed channel without its pipe: records in one direction, AES-256-GCM, rekeyed in band.

Pure but for the clock it is given.  A Sealer makes records and an Opener reads them; no caller ever
chooses a nonce, and neither can be used again after an error or after CLOSE.  Which kinds may
come when is the table below (docs/PROTOCOL.md §2).  `exchange.SealedPipe` owns one of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qanat.base.errors import LocalError, ProtocolError
from qanat.handshake.hello import RecordKind
from qanat.handshake.key_schedule import expand

MAX_PLAINTEXT: Final = 262_144
"""Bytes in a record's plaintext, its kind included."""
TAG_SIZE: Final = 16
MAX_RECORD: Final = MAX_PLAINTEXT + TAG_SIZE

REKEY_BYTES: Final = 64 * 1024**3
REKEY_RECORDS: Final = 2**24
REKEY_SECONDS: Final = 3600.0
RECEIVE_RECORDS: Final = 2**25
"""Records under one key that a receiver accepts: twice what a sender may send."""

KEY_UPDATE_RECORD: Final = bytes([RecordKind.KEY_UPDATE])
"""The whole plaintext of a KEY_UPDATE."""


class Phase(Enum):
    """Where one direction of a sealed channel is."""

    FIRST = auto()
    RUNNING = auto()
    ENDED = auto()


ORDER: Final[Mapping[tuple[Phase, RecordKind], Phase]] = {
    (Phase.FIRST, RecordKind.HELLO): Phase.RUNNING,
    (Phase.FIRST, RecordKind.READY): Phase.RUNNING,
    (Phase.FIRST, RecordKind.CLOSE): Phase.ENDED,
    (Phase.FIRST, RecordKind.PROBE): Phase.FIRST,
    (Phase.RUNNING, RecordKind.FRAMES): Phase.RUNNING,
    (Phase.RUNNING, RecordKind.KEY_UPDATE): Phase.RUNNING,
    (Phase.RUNNING, RecordKind.CLOSE): Phase.ENDED,
}
"""All records that may come.  HELLO is the client's only and READY the server's only."""

_KINDS: Final = {int(kind): kind for kind in RecordKind}
_FRAMES: Final = int(RecordKind.FRAMES)
_RUNNING: Final = Phase.RUNNING
_ENDED: Final = Phase.ENDED
"""For the records of which there are many: looking a member up in its class takes longer than comparing it."""


class _Direction:
    """One direction's key, counter and phase, which both ends keep alike."""

    def __init__(self, secret: bytes, opening: RecordKind) -> None:
        self._opening = opening
        self._phase = Phase.FIRST
        self._install(secret)

    def _install(self, secret: bytes) -> None:
        self._secret = secret
        self._cipher = AESGCM(expand(secret, b"qanat/1 key"))
        self._iv = int.from_bytes(expand(secret, b"qanat/1 iv", 12), "big")
        self._counter = 0

    def _update(self) -> None:
        """Go to the next key; the old secret is forgotten, and cannot be found from the new one."""
        self._install(expand(self._secret, b"qanat/1 update"))

    def _nonce(self) -> bytes:
        return (self._iv ^ self._counter).to_bytes(12, "big")

    def _following(self, first_byte: int, size: int) -> tuple[RecordKind, Phase] | str:
        """Return a record's kind, from its `first_byte`, and the phase after it; or why it is not allowed."""
        kind = _KINDS.get(first_byte)
        if kind is None:
            return f"a record has the unknown kind {first_byte}"
        phase = ORDER.get((self._phase, kind))
        wrong_role = kind in (RecordKind.HELLO, RecordKind.READY) and kind is not self._opening
        if phase is None or wrong_role:
            return f"a record {kind.name} is not allowed here (phase {self._phase.name})"
        if kind is RecordKind.KEY_UPDATE and size != 1:
            return "a KEY_UPDATE carries something"
        if kind is RecordKind.KEY_UPDATE and self._counter == 0:
            return "a KEY_UPDATE is the first record of its key"
        return kind, phase


class Sealer(_Direction):
    """The sending end of one direction.  One thread at a time."""

    def __init__(
        self,
        secret: bytes,
        clock: Callable[[], float],
        *,
        opening: RecordKind,
        max_bytes: int = REKEY_BYTES,
        max_records: int = REKEY_RECORDS,
        max_seconds: float = REKEY_SECONDS,
    ) -> None:
        """Start with `secret`, 32 bytes; `opening` is the kind of our first record, HELLO or READY.

        `clock` returns seconds that never go back.  The limits are for tests to lower.
        """
        super().__init__(secret, opening)
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_records = max_records
        self._last_byte, self._last_record = max_bytes - 1, max_records - 1  # which a KEY_UPDATE needs
        self._max_seconds = max_seconds
        self._bytes = 0
        self._until = math.inf  # the end of the key's hour

    def update_due(self, size: int) -> bool:
        """Whether a KEY_UPDATE must go before a record whose plaintext has `size` bytes.

        Room for the KEY_UPDATE itself is kept.  A key that has sealed nothing is never changed, and
        its hour begins with its first record: the receiver refuses a KEY_UPDATE that comes first.
        """
        if self._bytes + size <= self._last_byte and self._counter < self._last_record and self._clock() < self._until:
            return False
        return self._counter > 0 and self._phase is _RUNNING

    def seal_into(self, plaintext: memoryview | bytes, out: memoryview) -> int:
        """Write the record of `plaintext`, which begins with its kind, to the front of `out`; return its size.

        The record is 16 bytes longer than the plaintext.  A KEY_UPDATE changes the key after itself.  Raises
        LocalError for a plaintext that is empty or too long, a kind that may not come now, and a key that is used up;
        its hour is not looked at here: it may end between `update_due` and this.
        """
        size = len(plaintext)
        if not 1 <= size <= MAX_PLAINTEXT:
            raise LocalError(f"a record's plaintext of {size} bytes is not between 1 and {MAX_PLAINTEXT}")
        counter, sealed, phase, updates = self._counter, self._bytes + size, _RUNNING, False
        if plaintext[0] != _FRAMES or self._phase is not _RUNNING:  # seldom
            following = self._following(plaintext[0], size)
            if isinstance(following, str):
                raise LocalError(following)
            kind, phase = following
            updates = kind is RecordKind.KEY_UPDATE
        full = counter >= self._last_record or sealed > self._last_byte
        # What is left is for a KEY_UPDATE, which may not come before HELLO or READY.
        if full and (counter >= self._max_records or not (updates or counter == 0 or self._phase is not _RUNNING)):
            raise LocalError("this key is used up: a KEY_UPDATE must come first")
        if counter == 0:
            self._until = self._clock() + self._max_seconds
        written = self._cipher.encrypt_into(self._nonce(), plaintext, None, out[: size + TAG_SIZE])
        self._counter, self._bytes, self._phase = counter + 1, sealed, phase
        if updates:
            self._update()
            self._bytes, self._until = 0, math.inf
        return written


class Opener(_Direction):
    """The receiving end of one direction.  One thread at a time.

    Everything that is not the next record in order raises ProtocolError, and so does every later call.
    """

    def __init__(self, secret: bytes, *, opening: RecordKind, max_records: int = RECEIVE_RECORDS) -> None:
        """Start with `secret`, 32 bytes; `opening` is the kind of the peer's first record."""
        super().__init__(secret, opening)
        self._max_records = max_records
        self._broken = False

    @property
    def ended(self) -> bool:
        """Whether the peer's CLOSE has come, so that an end of the pipe is no cut."""
        return self._phase is Phase.ENDED

    def open(self, message: memoryview | bytes) -> bytes:
        """Return the plaintext of the next record: its kind, then its content, in fresh bytes.

        A KEY_UPDATE is returned like the others, and has changed the key already.
        """
        counter, size = self._counter, len(message)
        if self._broken or self._phase is _ENDED or counter >= self._max_records or not TAG_SIZE < size <= MAX_RECORD:
            self._refuse(size)
        self._broken = True  # until it is known to be the next one
        try:
            plaintext = self._cipher.decrypt(self._nonce(), message, None)
        except InvalidTag:
            raise ProtocolError(
                "a record was changed on the way, or is not the next one", hint="something on the path interferes"
            ) from None
        kind = RecordKind.FRAMES
        if plaintext[0] != _FRAMES or self._phase is not _RUNNING:  # seldom
            following = self._following(plaintext[0], len(plaintext))
            if isinstance(following, str):
                raise ProtocolError(following)
            kind, self._phase = following
        self._counter = counter + 1
        if kind is RecordKind.KEY_UPDATE:
            self._update()
        self._broken = False
        return plaintext

    def _refuse(self, size: int) -> NoReturn:
        """Raise for a record of `size` bytes that is not opened at all."""
        if self._broken:
            raise ProtocolError("a record came after one that was refused")
        self._broken = True
        if not TAG_SIZE < size <= MAX_RECORD:
            raise ProtocolError(f"a record of {size} bytes is not between {TAG_SIZE + 1} and {MAX_RECORD}")
        if self._phase is _ENDED:
            raise ProtocolError("a record came after CLOSE")
        raise ProtocolError(f"the peer sealed more than {self._max_records} records under one key")
