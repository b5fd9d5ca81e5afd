"""What is said inside the sealed channel outside the mux: HELLO, READY, CLOSE and the kinds of records.

Frozen values, each with `encode` and a strict `decode` that accepts or raises ProtocolError
(docs/PROTOCOL.md §2 and §3).  The proofs for joining and resuming a session are here too.  The running client and
server send and judge these messages; `sealed` uses only the kinds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum, IntFlag
from typing import Final, TypeVar

from qanat.base.errors import LocalError, ProtocolError
from qanat.base.text import decode_text, encode_cut
from qanat.handshake.fields import FieldReader, lp8, lp16
from qanat.handshake.key_schedule import hmac_sha256, secrets_equal

MAX_CLOSE_TEXT: Final = 512
"""Bytes of UTF-8."""
MAX_INITIAL_WINDOW: Final = 16 * 1024 * 1024
ID_SIZE: Final = 16
PROOF_SIZE: Final = 32
_NO_ID: Final = bytes(ID_SIZE)
_NO_PROOF: Final = bytes(PROOF_SIZE)


class RecordKind(IntEnum):
    """A record's first plaintext byte."""

    HELLO = 1
    READY = 2
    FRAMES = 3
    KEY_UPDATE = 4
    CLOSE = 5
    PROBE = 7


class CloseReason(IntEnum):
    """Why the sender of CLOSE ends the pipe, or the session with it."""

    LEAVING = 1
    SHUTDOWN = 2
    NAME_IN_USE = 3
    REVOKED = 4
    REPLACED = 5
    BUSY = 6
    PROTOCOL = 7
    STALE = 8


class Intent(IntEnum):
    """What a client asks for in HELLO: a new session, one more lane, or a lane that it had."""

    NEW = 1
    JOIN = 2
    RESUME = 3


class Answer(IntEnum):
    """What a server answers in READY."""

    NEW = 1
    RESUMED = 2
    EXPIRED = 3


class ParameterId(IntEnum):
    """The number of a parameter on the wire."""

    INITIAL_WINDOW = 1
    MAX_STREAMS = 2
    KEEPALIVE = 3
    LANES = 4
    RESUME_FOR = 5
    MEASURE = 6
    FEATURES = 7


class Features(IntFlag):
    """What an end can do beyond the first version; an end without FEATURES can do nothing of it."""

    NONE = 0
    KINDS = 1
    """The stream requests CONNECT and THROUGH, and the control message LISTEN_AT."""
    DATAGRAMS = 2
    """DATAGRAM frames on streams for UDP."""
    CLOCK = 4
    """CLOCK frames, which tell how old datagrams are."""
    LATER_RULES = 8
    """The control messages LISTEN_ENDED and LISTEN_AGAIN, by which a server says what other rules mean for forwards."""


@dataclass(frozen=True)
class Parameters:
    """What each end tells the other about itself; the defaults are what an absent parameter means."""

    agent: str = ""  # program and version, printable ASCII, at most 255 bytes
    initial_window: int = 131_072  # bytes of credit that each stream towards the sender starts with
    max_streams: int = 4_096  # streams that the peer may have open at once
    keepalive: int = 15  # seconds between the sender's PINGs
    lanes: int = 1  # that a client would like to have, and a server grants
    resume_for: int = 0  # seconds that a server keeps a session without a pipe; 0 from a client
    measure: int = 0  # 1: the session is for measuring; said only where it is
    features: Features = Features.NONE

    def encode(self) -> bytes:
        """Return the end of HELLO or READY.  Raises LocalError for values that the peer would refuse."""
        if not 0 <= self.initial_window <= MAX_INITIAL_WINDOW:
            raise LocalError(f"an initial window of {self.initial_window} bytes is not allowed")
        values = [
            (ParameterId.INITIAL_WINDOW, self.initial_window),
            (ParameterId.MAX_STREAMS, self.max_streams),
            (ParameterId.KEEPALIVE, self.keepalive),
            (ParameterId.LANES, self.lanes),
            (ParameterId.RESUME_FOR, self.resume_for),
        ]
        if self.measure:
            values.append((ParameterId.MEASURE, self.measure))
        if self.features:
            values.append((ParameterId.FEATURES, self.features))
        listed = b"".join(bytes([number]) + value.to_bytes(4, "big") for number, value in values)
        return _encode_label(self.agent) + bytes([len(values)]) + listed

    @classmethod
    def read(cls, reader: FieldReader) -> Parameters:
        """Read what `encode` made from the front of `reader`.  Raises ProtocolError."""
        agent = _read_label(reader, "agent")
        values: dict[int, int] = {}
        for _ in range(reader.u8()):
            number = reader.u8()
            if number in values:
                raise ProtocolError(f"the parameter {number} came twice")
            values[number] = reader.u32()
        defaults = cls()
        window = values.get(ParameterId.INITIAL_WINDOW, defaults.initial_window)
        if window > MAX_INITIAL_WINDOW:
            raise ProtocolError(f"the peer's initial window of {window} bytes is above {MAX_INITIAL_WINDOW}")
        return cls(
            agent=agent,
            initial_window=window,
            max_streams=values.get(ParameterId.MAX_STREAMS, defaults.max_streams),
            keepalive=values.get(ParameterId.KEEPALIVE, defaults.keepalive),
            lanes=values.get(ParameterId.LANES, defaults.lanes),
            resume_for=values.get(ParameterId.RESUME_FOR, defaults.resume_for),
            measure=values.get(ParameterId.MEASURE, defaults.measure),
            features=Features(values.get(ParameterId.FEATURES, defaults.features)),
        )


@dataclass(frozen=True)
class Hello:
    """The client's first record.  With NEW everything but instance and parameters is zero."""

    instance: bytes  # 16 random bytes, the same for as long as the client's process lives
    parameters: Parameters
    intent: Intent = Intent.NEW
    session: bytes = _NO_ID
    lane: int = 0
    epoch: int = 0
    expected: int = 0  # number of the frame that the client expects next
    proof: bytes = field(default=_NO_PROOF, repr=False)

    def _before_proof(self) -> bytes:
        return b"".join(
            (
                bytes([self.intent]),
                self.instance,
                self.session,
                self.lane.to_bytes(2, "big"),
                self.epoch.to_bytes(4, "big"),
                self.expected.to_bytes(8, "big"),
            )
        )

    def encode(self) -> bytes:
        """Return the record's content, without its kind."""
        return self._before_proof() + self.proof + self.parameters.encode()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Hello:
        """Parse a record's content.  Raises ProtocolError."""
        reader = FieldReader(content, "HELLO")
        intent = _member(Intent, reader.u8(), "HELLO's intent")
        hello = cls(
            intent=intent,
            instance=reader.take(ID_SIZE),
            session=reader.take(ID_SIZE),
            lane=reader.u16(),
            epoch=reader.u32(),
            expected=reader.u64(),
            proof=reader.take(PROOF_SIZE),
            parameters=Parameters.read(reader),
        )
        reader.end()
        if intent is Intent.NEW and hello != cls(hello.instance, hello.parameters):
            raise ProtocolError("HELLO asks for a new session and names an old one")
        return hello

    def proven(self, resume: bytes, transcript: bytes) -> Hello:
        """Return the same with the proof for joining or resuming.

        `resume` is the secret of the session's first handshake, `transcript` is TH of the present one.
        """
        return replace(self, proof=self._expected_proof(resume, transcript))

    def proof_holds(self, resume: bytes, transcript: bytes) -> bool:
        """Whether the sender knows the session's secret and speaks in this very handshake."""
        return secrets_equal(self._expected_proof(resume, transcript), self.proof)

    def _expected_proof(self, resume: bytes, transcript: bytes) -> bytes:
        return hmac_sha256(resume, b"qanat/1 resume client" + transcript + self._before_proof())


@dataclass(frozen=True)
class Ready:
    """The server's first record.  Only RESUMED carries a proof; EXPIRED carries no session either."""

    answer: Answer
    node: str  # the server's name, printable ASCII, at most 255 bytes
    parameters: Parameters
    session: bytes = _NO_ID
    expected: int = 0  # number of the frame that the server expects next
    proof: bytes = field(default=_NO_PROOF, repr=False)

    def _before_proof(self) -> bytes:
        return bytes([self.answer]) + self.session + self.expected.to_bytes(8, "big")

    def encode(self) -> bytes:
        """Return the record's content, without its kind."""
        return self._before_proof() + self.proof + _encode_label(self.node) + self.parameters.encode()

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Ready:
        """Parse a record's content.  Raises ProtocolError."""
        reader = FieldReader(content, "READY")
        ready = cls(
            answer=_member(Answer, reader.u8(), "READY's answer"),
            session=reader.take(ID_SIZE),
            expected=reader.u64(),
            proof=reader.take(PROOF_SIZE),
            node=_read_label(reader, "node name"),
            parameters=Parameters.read(reader),
        )
        reader.end()
        if ready.answer is not Answer.RESUMED and (ready.expected or ready.proof != _NO_PROOF):
            raise ProtocolError("READY resumes nothing and says where to continue")
        if (ready.answer is Answer.EXPIRED) != (ready.session == _NO_ID):
            raise ProtocolError("READY names a session where it should not, or none where it should")
        return ready

    def proven(self, resume: bytes, transcript: bytes) -> Ready:
        """Return the same with the proof that the server knows the session's secret; see Hello.proven."""
        return replace(self, proof=self._expected_proof(resume, transcript))

    def proof_holds(self, resume: bytes, transcript: bytes) -> bool:
        """Whether the server knows the session's secret and speaks in this very handshake."""
        return secrets_equal(self._expected_proof(resume, transcript), self.proof)

    def _expected_proof(self, resume: bytes, transcript: bytes) -> bytes:
        return hmac_sha256(resume, b"qanat/1 resume server" + transcript + self._before_proof())


@dataclass(frozen=True)
class Close:
    """The last record of a direction."""

    reason: CloseReason
    text: str = ""  # for people; cut at 512 bytes of UTF-8

    def encode(self) -> bytes:
        """Return the record's content, without its kind."""
        return bytes([self.reason]) + lp16(encode_cut(self.text, MAX_CLOSE_TEXT))

    @classmethod
    def decode(cls, content: bytes | memoryview) -> Close:
        """Parse a record's content.  Raises ProtocolError."""
        reader = FieldReader(content, "CLOSE")
        reason = _member(CloseReason, reader.u8(), "CLOSE's reason")
        text = reader.lp16()
        reader.end()
        if len(text) > MAX_CLOSE_TEXT:
            raise ProtocolError(f"CLOSE's text has {len(text)} bytes, more than {MAX_CLOSE_TEXT}")
        return cls(reason, decode_text(text))


_Member = TypeVar("_Member", bound=IntEnum)


def _member(kind: type[_Member], value: int, what: str) -> _Member:
    try:
        return kind(value)
    except ValueError:
        raise ProtocolError(f"{what} has the unknown value {value}") from None


def _encode_label(text: str) -> bytes:
    if not _is_label(text):
        raise LocalError("an agent or node name is at most 255 characters of printable ASCII")
    return lp8(text.encode("ascii"))


def _read_label(reader: FieldReader, what: str) -> str:
    # Printable only: both go into logs and onto terminals.
    text = reader.lp8().decode("latin-1")
    if not _is_label(text):
        raise ProtocolError(f"the peer's {what} is not printable ASCII")
    return text


def _is_label(text: str) -> bool:
    return len(text) <= 255 and text.isascii() and text.isprintable()
