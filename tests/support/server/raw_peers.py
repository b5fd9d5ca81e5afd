"""A client and a server that pass the handshake and then say whatever a test wants, to the real other end.

`RawClient` talks to a `qanat.server.server.Server`, `RawServer` is dialled by a `qanat.client.client.Client`.  Both
speak records; `carry` gives them a lane for frames.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from qanat.base.deadline import Deadline
from qanat.config.server_settings import ServerSettings
from qanat.handshake.exchange import SealedPipe, client_handshake, server_handshake
from qanat.handshake.hello import Answer, Close, CloseReason, Hello, Intent, Parameters, Ready, RecordKind
from qanat.handshake.keys import ClientKey
from qanat.handshake.machine import ClientHandshake, ServerHandshake
from qanat.mux.lane import Lane
from qanat.mux.parameters import FIRST_PIPE, LaneParameters, ResumePoint
from qanat.mux.pipe_result import PipeResult
from qanat.mux.stream import Stream
from qanat.server.admission.admission import HandshakeSlot
from qanat.server.admission.client_address import ClientAddress
from qanat.server.front_door.front_door import FrontDoor
from qanat.server.server import Server
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.pipe import Pipe
from qanat.transports.websocket import upgrade as websocket
from tests.support.identities import placed_identity
from tests.support.mux.rig import run_lane

SECONDS = 20.0
PARAMETERS = Parameters("raw/1", 131_072, 4096, 15)

Record = tuple[RecordKind, bytes]


@cache
def client_key() -> ClientKey:
    """One key for all tests: making one costs more than the rest of a handshake."""
    return ClientKey.generate()


@dataclass
class Carried:
    """A lane in a thread of its own, and what came in on it."""

    lane: Lane
    thread: threading.Thread
    opened: queue.SimpleQueue[Stream]
    control: queue.SimpleQueue[bytes]
    endings: list[PipeResult] = field(default_factory=list)

    def end(self) -> PipeResult:
        """Wait until the pipe has ended; how."""
        self.thread.join(SECONDS)
        assert self.endings, "the lane still runs"
        return self.endings[0]


def carry(
    sealed: SealedPipe,
    *,
    client: bool,
    before: Carried | None = None,
    resume: ResumePoint = FIRST_PIPE,
    resumable: bool = True,
) -> Carried:
    """Run a lane on `sealed` until it ends: a new one, or the one of `before`, which `take` has granted."""
    endings: list[PipeResult] = []
    if before is None:
        opened: queue.SimpleQueue[Stream] = queue.SimpleQueue()
        control: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        parameters = LaneParameters(client=client, resumable=resumable)
        lane = Lane("raw", parameters, on_open=opened.put, on_control=control.put)
    else:
        lane, opened, control = before.lane, before.opened, before.control

    def run() -> None:
        endings.append(run_lane(lane, sealed, resume, silence=SECONDS))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return Carried(lane, thread, opened, control, endings)


@dataclass(frozen=True)
class Kept:
    """What a client keeps of a session, to resume it: the id, and the secret of the first handshake."""

    session: bytes
    secret: bytes


class RawClient:
    """A client of `server` after the handshake, before HELLO."""

    def __init__(self, server: Server, name: str, token: bytes, instance: bytes = b"i" * 16) -> None:
        host, port = server.addresses[0]
        self.instance = instance
        deadline = Deadline(SECONDS)
        pipe = websocket.connect(TunnelUrl.parse(f"ws://{host}:{port}/tunnel"), deadline=deadline)
        handshake = ClientHandshake(name, token, client_key(), lambda spki: None)
        self.sealed = client_handshake(pipe, handshake, deadline)
        self.sealed.set_read_timeout(SECONDS)
        self.carried: Carried | None = None
        self.kept = Kept(b"", b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.sealed.close("the test is over")
        if self.carried is not None:
            self.carried.end()

    def say(self, kind: RecordKind, content: bytes) -> None:
        self.sealed.send_record(bytes((kind,)) + content)

    def hear(self) -> Record:
        kind, content = self.sealed.recv_record()
        return kind, bytes(content)

    def greet(self, *, lanes: int = 1) -> Record:
        """Say HELLO; the answer."""
        self.say(RecordKind.HELLO, Hello(self.instance, replace(PARAMETERS, lanes=lanes)).encode())
        return self.hear()

    def join(self, *, lanes: int = 1) -> Carried:
        """Begin a session."""
        kind, content = self.greet(lanes=lanes)
        assert kind is RecordKind.READY
        self.kept = Kept(Ready.decode(content).session, self.sealed.result.resume)
        self.carried = carry(self.sealed, client=True)
        return self.carried

    def ask(
        self, kept: Kept, intent: Intent = Intent.RESUME, *, lane: int = 0, epoch: int = 1, expected: int = 0
    ) -> Record:
        """Say HELLO for a session that there may be, with the proof that belongs to it; the answer."""
        hello = Hello(self.instance, PARAMETERS, intent, kept.session, lane, epoch, expected)
        self.say(RecordKind.HELLO, hello.proven(kept.secret, self.sealed.result.transcript).encode())
        return self.hear()

    def go_on(
        self, kept: Kept, before: Carried | None, intent: Intent = Intent.RESUME, *, lane: int = 0, epoch: int = 1
    ) -> Carried:
        """Resume a lane, or join a new one where there is none `before`."""
        expected = 0 if before is None else before.lane.pause_writer()
        kind, content = self.ask(kept, intent, lane=lane, epoch=epoch, expected=expected)
        assert kind is RecordKind.READY, Close.decode(content)
        ready = Ready.decode(content)
        assert (ready.answer, ready.session) == (Answer.RESUMED, kept.session)
        assert ready.proof_holds(kept.secret, self.sealed.result.transcript)
        if before is not None:
            before.lane.acquire(epoch, ready.expected, Deadline(SECONDS))
        self.carried = carry(
            self.sealed, client=True, before=before, resume=ResumePoint(epoch, ready.expected, expected)
        )
        return self.carried

    def end(self, reason: CloseReason) -> PipeResult:
        """Say CLOSE on the lane; returns when the server has ended the pipe."""
        assert self.carried is not None
        self.carried.lane.close(reason, "")
        return self.carried.end()


class RawServer:
    """A server that calls `behave(sealed)` for each client that has authenticated, in that connection's thread."""

    def __init__(self, directory: Path, token: bytes, behave: Callable[[SealedPipe], None]) -> None:
        self._identity = placed_identity(directory / "raw-server.key")
        self._token = token
        self._behave = behave
        self._door = FrontDoor(ServerSettings(clients=(), listen=(("127.0.0.1", 0),)), self._on_pipe)
        self.fingerprint = self._identity.fingerprint
        self.greeted = threading.Semaphore(0)
        """Released for each client that has authenticated."""

    def __enter__(self) -> Self:
        self._door.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._door.close()
        assert self._door.join(SECONDS) == []

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._door.addresses[0][1]}/tunnel"

    def _on_pipe(self, pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        handshake = ServerHandshake(self._identity, lambda name: (self._token,), None)
        sealed = server_handshake(pipe, handshake, Deadline(SECONDS))
        slot.release()
        self.greeted.release()
        self._behave(sealed)


def welcome(sealed: SealedPipe) -> Carried:
    """Answer HELLO with READY, as a server does, and begin the session."""
    kind, _ = sealed.recv_record()
    assert kind is RecordKind.HELLO
    ready = Ready(Answer.NEW, "raw", PARAMETERS, session=b"s" * 16)
    sealed.send_record(bytes((RecordKind.READY,)) + ready.encode())
    return carry(sealed, client=False)
