"""The blocking half: a handshake machine driven over a pipe, and the sealed pipe that comes of it.

This is the only module of the room that knows pipes.  The running client or server calls `client_handshake` or
`server_handshake`, then sends HELLO and READY through the SealedPipe, which the mux owns from there on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from qanat.base.deadline import Deadline
from qanat.base.errors import PipeEnded, ProtocolError, QanatError, RefusedError, TransportError
from qanat.base.paged_buffer import PagedBuffer
from qanat.base.unexpected import FAILED, log_unexpected
from qanat.base.workers import WORKERS
from qanat.handshake.hello import RecordKind
from qanat.handshake.machine import ClientHandshake, HandshakeResult, ServerHandshake
from qanat.handshake.sealed import KEY_UPDATE_RECORD, MAX_RECORD, TAG_SIZE, Opener, Sealer
from qanat.transports.pipe import Pipe

FRAMES_KIND: Final = int(RecordKind.FRAMES)
_FRAMES: Final = RecordKind.FRAMES

LAST_TIMEOUT: Final = 2.0
"""Seconds that a peer which was told the last word gets to end the pipe."""
REFUSAL_DELAY: Final = 0.1
"""Seconds from M3 to the refusal, so that its time tells nothing."""
PROBE_SIZE: Final = 16 * 1024
"""Bytes that a probe moves in each direction at once."""
PROBE_PART: Final = 4 * 1024
"""Bytes of it in one record."""
MAX_PROBES: Final = 32
"""PROBE records that a server answers on one pipe."""
MAX_PROBE_BYTES: Final = 64 * 1024
"""The same, in bytes of their content."""


class SealedPipe:
    """A pipe on which records travel instead of messages.

    One thread sends, one thread receives, any thread closes.  Once CLOSE has been sent nothing more
    can be; an end of the pipe before the peer's CLOSE is a cut and shows as PipeEnded.
    """

    def __init__(
        self, pipe: Pipe, result: HandshakeResult, sealer: Sealer, opener: Opener, *, answers_probes: bool = False
    ) -> None:
        """With `answers_probes`, as a server does, PROBE records are answered and not returned by `recv_record`."""
        self.pipe = pipe
        self._answers_probes = answers_probes
        self._probes = self._probed = 0  # records, and bytes
        self.probes_due: list[int] = []
        """The sizes of probes that were sent and are not answered yet: those stand in front of what comes next."""
        self.result = result
        self._sealer = sealer
        self._opener = opener
        # One for all records: making 256 KiB anew each time would cost page faults.
        self._pages = PagedBuffer(pipe.headroom + MAX_RECORD)
        self._scratch = self._pages.view

    def send_record(self, plaintext: memoryview | bytes) -> None:
        """Seal and send `plaintext`, whose first byte is the kind; blocks until the kernel has it.

        `plaintext` is only read, and is the caller's again on return.  A KEY_UPDATE goes first when it
        is due.  Raises PipeEnded, and LocalError for what may not be sent (see Sealer.seal_into).
        """
        if self._sealer.update_due(len(plaintext)):
            self._send(KEY_UPDATE_RECORD)
        self._send(plaintext)

    def can_send_now(self, size: int) -> bool:
        """Return whether `send_record_now` may be called for a plaintext of `size` bytes.  Does not block."""
        return self.pipe.can_send_now and not self._sealer.update_due(size)

    def send_record_now(self, plaintext: memoryview | bytes) -> bool:
        """Seal `plaintext` and have the pipe take it without blocking; False when `pipe.flush` must follow soon.

        Otherwise as `send_record`.  To be called only where `can_send_now`.
        """
        record = self._sealed(plaintext)
        try:
            return self.pipe.send_now(record)
        except QanatError:
            raise
        except Exception as error:
            raise _own_fault(self.pipe) from error

    def _send(self, plaintext: memoryview | bytes) -> None:
        record = self._sealed(plaintext)
        try:
            self.pipe.send(record)
        except QanatError:
            raise
        except Exception as error:
            raise _own_fault(self.pipe) from error

    def _sealed(self, plaintext: memoryview | bytes) -> memoryview:
        """Return the record with the pipe's headroom in front of it, valid until the next one."""
        headroom = self.pipe.headroom
        record = self._scratch[: headroom + len(plaintext) + TAG_SIZE]
        self._sealer.seal_into(plaintext, record[headroom:])
        return record

    def send_last(self, plaintext: bytes, cause: str) -> None:
        """Send a last record, block until the peer has ended the pipe, so that no reset overtakes it, and close.

        Blocks for LAST_TIMEOUT of silence at most.  `cause` is why the pipe has ended, for our logs.  Raises as
        `send_record`.
        """
        self.send_record(plaintext)
        self.set_read_timeout(LAST_TIMEOUT)
        try:
            while True:
                self.recv_record()
        except QanatError:
            self.close(cause)

    def recv_record(self) -> tuple[RecordKind, memoryview]:
        """Block for the next record: its kind, and its content, a view that may be kept.

        Raises PipeEnded when the pipe ends, which is a cut unless CLOSE was the last record, and ProtocolError
        for whatever is not the peer's next record; the pipe is closed by then.
        """
        record = self.recv_record_within(None)
        assert record is not None  # the end is raised
        return record

    def recv_record_within(self, seconds: float | None) -> tuple[RecordKind, memoryview] | None:
        """Receive as `recv_record` does, but return None when nothing has come for `seconds`; 0 does not block.

        Where the pipe is watched (see `Pipe.recv_within`), or with None, which waits as long as it takes.
        """
        while True:
            try:
                message = self.pipe.recv() if seconds is None else self.pipe.recv_within(seconds)
            except QanatError:
                raise
            except Exception as error:
                raise _own_fault(self.pipe) from error
            if message is None:
                return None
            try:
                plaintext = self._opener.open(message)
            except ProtocolError as error:
                self.pipe.close(error.message)
                raise
            if plaintext[0] == FRAMES_KIND:  # nearly all records
                return _FRAMES, memoryview(plaintext)[1:]
            kind = RecordKind(plaintext[0])
            if kind is RecordKind.PROBE and self._answers_probes:
                self._answer_probe(len(plaintext) - 1)
            elif kind is not RecordKind.KEY_UPDATE:
                return kind, memoryview(plaintext)[1:]

    def _answer_probe(self, size: int) -> None:
        """Send a PROBE as long as the client's.  Before HELLO the thread that receives is the one that sends, too."""
        self._probes += 1
        self._probed += size
        if self._probes > MAX_PROBES or self._probed > MAX_PROBE_BYTES:
            self.pipe.close("more is probed than the protocol allows")
            raise ProtocolError("more is probed than the protocol allows")
        self.send_record(bytes((RecordKind.PROBE,)) + bytes(size))

    def trim_reading(self) -> None:
        """Give memory back that receiving much has needed; by the thread that receives."""
        self.pipe.trim()

    def trim_sending(self) -> None:
        """Give memory back that sending much has needed; by the thread that sends."""
        self._pages.give_back()

    def set_read_timeout(self, seconds: float | None) -> None:
        """See Pipe.set_read_timeout."""
        self.pipe.set_read_timeout(seconds)

    def set_timeouts(self, seconds: float) -> None:
        """End the pipe after so long without one raw byte received, or without one that could be sent."""
        self.pipe.set_read_timeout(seconds)
        self.pipe.set_write_timeout(seconds)

    def close(self, cause: str) -> None:
        """End the pipe at once.  Idempotent, from any thread; does not send CLOSE and does not block."""
        self.pipe.close(cause)

    @property
    def cause(self) -> str | None:
        """Why the pipe has ended, or None while it lives."""
        return self.pipe.cause


@contextmanager
def closed_at(deadline: Deadline, pipe: Pipe) -> Iterator[threading.Event]:
    """Close `pipe` when `deadline` passes before the block ends, whatever the block is waiting for.

    A read timeout is not enough: a peer that sends one byte every few seconds would never meet it.  Costs
    a thread of the pool meanwhile.  Raises TransportError when the time was up, and yields an Event that
    is set when that happens.
    """
    finished = threading.Event()
    expired = threading.Event()

    def watch_deadline_loop() -> None:
        if not finished.wait(deadline.remaining()):
            expired.set()
            pipe.close("the handshake was not finished in time")

    watcher = WORKERS.start(f"handshake-deadline {pipe.peer}", watch_deadline_loop)
    try:
        yield expired
    except PipeEnded:
        if not expired.is_set():
            raise
    finally:
        finished.set()
        watcher.join()
    if expired.is_set():
        raise TransportError(
            f"{pipe.peer} did not finish the handshake in time",
            hint="the path may hold back messages until a connection ends, or what answers is not a tunnel server",
        )


def client_handshake(pipe: Pipe, handshake: ClientHandshake, deadline: Deadline) -> SealedPipe:
    """Prove each other over `pipe` as the end that dialed; blocks until M4 or `deadline`.

    Raises RefusedError (final when the refusal provably comes from the server, or its key is not the
    pinned one), HandshakeError when the other end broke the protocol or proved nothing, and TransportError when the
    path failed or the time was up.  The pipe is closed by then.
    """
    with _closed_on_error(pipe), closed_at(deadline, pipe):
        while not handshake.done:
            _send_all(pipe, handshake.receive(pipe.recv()))
        result = handshake.result
        pipe.bind(result.split)
    return SealedPipe(
        pipe,
        result,
        Sealer(result.c2s, time.monotonic, opening=RecordKind.HELLO),
        Opener(result.s2c, opening=RecordKind.READY),
    )


def probe(sealed: SealedPipe, deadline: Deadline, came_back: Callable[[int], None]) -> None:
    """Have PROBE_SIZE bytes move in both directions at once, and then one byte; blocks until `deadline` at most.

    A path that holds back, loses or cuts what is large, or goes only one way at a time, is found by that; the single
    byte tells whether the last of what is sent waits for more.  To be called after `client_handshake`, before HELLO,
    where the server takes probes.  `came_back` is told the bytes that have come back so far.  Raises as
    `client_handshake`; the pipe is closed then.
    """
    with _closed_on_error(sealed.pipe), closed_at(deadline, sealed.pipe):
        send_probe(sealed)
        await_probe(sealed, came_back)


def send_probe(sealed: SealedPipe) -> None:
    """Send what `probe` sends; `await_probe` follows, perhaps when HELLO was sent.  Blocks and raises as sending."""
    sizes = [*[PROBE_PART] * (PROBE_SIZE // PROBE_PART), 1]
    for size in sizes:
        sealed.send_record(bytes((RecordKind.PROBE,)) + bytes(size))
        sealed.probes_due.append(size)


def await_probe(sealed: SealedPipe, came_back: Callable[[int], None]) -> None:
    """Block until all probes that were sent have come back.  Raises as receiving."""
    came = 0
    while sealed.probes_due:
        kind, content = sealed.recv_record()
        size = sealed.probes_due.pop(0)
        if kind is not RecordKind.PROBE or len(content) != size:
            raise ProtocolError(f"a {kind.name} record of {len(content)} bytes where a PROBE of {size} was due")
        came += size
        came_back(came)


def server_handshake(pipe: Pipe, handshake: ServerHandshake, deadline: Deadline) -> SealedPipe:
    """Prove each other over `pipe` as the end that was dialed; blocks until M4 was sent or `deadline`.

    Raises RefusedError, whose message is for our log only, after the peer was refused; otherwise as
    `client_handshake`.  The pipe is closed by then.
    """
    with _closed_on_error(pipe), closed_at(deadline, pipe) as expired:
        pipe.set_unauthenticated(True)
        pipe.send(_with_headroom(pipe, handshake.start()))
        while not handshake.done:
            message = pipe.recv()
            answer_time = Deadline(REFUSAL_DELAY)
            answers = handshake.receive(message)
            if handshake.refused:
                # Ends early only when the whole handshake's time is up.
                expired.wait(answer_time.remaining())
            if handshake.done:
                pipe.bind(handshake.result.split)  # before the client can know it, and use it
            _send_all(pipe, answers)
            if handshake.refused:
                raise RefusedError(handshake.refusal_detail)
        pipe.set_unauthenticated(False)
    result = handshake.result
    return SealedPipe(
        pipe,
        result,
        Sealer(result.s2c, time.monotonic, opening=RecordKind.READY),
        Opener(result.c2s, opening=RecordKind.HELLO),
        answers_probes=True,
    )


def _own_fault(pipe: Pipe) -> PipeEnded:
    """Log the error that is being handled, which nobody expected of a transport, and end the pipe for it.

    What a transport stumbles over comes from the path, before anything is proven, so it must cost no more than a cut.
    """
    log_unexpected(f"the connection with {pipe.peer} ended")
    pipe.close(FAILED)
    return PipeEnded(FAILED)


@contextmanager
def _closed_on_error(pipe: Pipe) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # The reason is for our log alone: a transport may tell its peer the cause that it is given.
        pipe.close("the handshake failed")
        raise


def _send_all(pipe: Pipe, messages: list[bytes]) -> None:
    for message in messages:
        pipe.send(_with_headroom(pipe, message))


def _with_headroom(pipe: Pipe, message: bytes) -> memoryview:
    return memoryview(bytearray(pipe.headroom) + message)
