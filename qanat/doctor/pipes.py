"""Each transport as a client would open it: bytes both ways, the time they take, and with a token the handshake."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qanat.base.deadline import Deadline
from qanat.base.errors import QanatError, RefusedError, TransportError, UsageError
from qanat.client import connect as client_connect
from qanat.client.connect import Connector
from qanat.client.known_hosts import KnownHosts
from qanat.client.ways import Candidate
from qanat.doctor.report import Outcome, Step
from qanat.doctor.subject import Seen, Subject, Tried
from qanat.handshake.key_pool import ClientKeyPool
from qanat.handshake.keys import fingerprint_of
from qanat.measure.probes import GREETING, MAX_MESSAGE, Order
from qanat.transports.pipe import Pipe

OPEN, SPEAK = 8.0, 5.0
"""Seconds until a pipe is open, and until each message has come back."""
PINGS = 10
SLOW = 1.0
"""Seconds of a round trip after which no further one is measured."""
BULK = 16
"""Messages of MAX_MESSAGE bytes each way at once: about 16 KiB, what a transport has to carry to count."""

UPLOAD = 4.0
"""Seconds that the upload may take."""
MAX_UPLOAD = 1_300_000
"""Bytes of it."""

Connect = Callable[..., Pipe]


def transports() -> dict[str, Connect]:
    """Return how each transport that there is opens a pipe, by its name."""
    return {name: made.connect for name, made in client_connect._CONNECT.items()}


def check_transport(subject: Subject, seen: Seen, name: str, connect: Connect) -> None:
    """Open a pipe, and have some bytes sent back."""
    tried = seen.tried[name] = Tried()
    began = time.monotonic()
    pipe: Pipe | None = None
    try:
        pipe = connect(subject.url, route=subject.probing("pipe"), deadline=Deadline(OPEN), cancel=subject.cancel)
        with subject.cancel.waking(lambda: pipe.close("the examination is over")):
            tried.opened = True
            pipe.set_read_timeout(SPEAK)
            pipe.set_unauthenticated(True)
            tried.probes = bytes(pipe.recv()) == GREETING
            tried.spoke = True
            tried.seconds = time.monotonic() - began
            if tried.probes:
                _exchange(pipe, tried)
                if name == "http2":
                    _upload(pipe, seen)
    except UsageError as error:
        tried.error, tried.hint = error.message, error.hint
    except QanatError as error:
        tried.error, tried.hint = error.message, error.hint
        tried.cut = tried.spoke
    finally:
        if pipe is not None:
            pipe.close("the examination is over")
    seen.add(40, Step("transport", name, _described(tried), _outcome(tried), time.monotonic() - began))


def _exchange(pipe: Pipe, tried: Tried) -> None:
    for _ in range(PINGS):
        began = time.monotonic()
        send(pipe, bytes((Order.ECHO,)) + b"ping")
        pipe.recv()
        tried.round_trips.append(time.monotonic() - began)
        if tried.round_trips[-1] > SLOW:
            break
    messages = [bytes((Order.ECHO,)) + os.urandom(MAX_MESSAGE - 1) for _ in range(BULK)]
    for message in messages:
        send(pipe, message)
    for message in messages:
        if bytes(pipe.recv()) != message[1:]:
            raise TransportError("what came back is not what was sent", hint="something on the path rewrites it")
    tried.echoed = True


def _upload(pipe: Pipe, seen: Seen) -> None:
    """Send more than 1 MiB in one request, which some proxies cut only then; give up where the path is slow."""
    sent, until = 0, time.monotonic() + UPLOAD
    message = bytes((Order.SINK,)) + bytes(MAX_MESSAGE - 1)
    try:
        while sent < MAX_UPLOAD and time.monotonic() < until:
            send(pipe, message)
            sent += len(message)
        send(pipe, bytes((Order.ECHO,)) + b"end")
        pipe.recv()
    except TransportError:
        seen.cut_upload = sent


def send(pipe: Pipe, message: bytes) -> None:
    """Send one message.  Raises TransportError."""
    pipe.send(memoryview(bytearray(pipe.headroom) + message))


def _described(tried: Tried) -> str:
    if tried.echoed:
        return f"{BULK * MAX_MESSAGE // 1000} KB went both ways"
    if tried.works:
        return "it opens, and the server's first message comes"
    if tried.opened and not tried.spoke:
        return f"it opens, and then nothing comes: {tried.error}"
    if tried.spoke:
        return f"it opens, and is cut: {tried.error}"
    return tried.error


def _outcome(tried: Tried) -> Outcome:
    return Outcome.OK if tried.works else Outcome.NOTE


def check_token(subject: Subject, seen: Seen, name: str) -> None:
    """Shake hands over a transport that gets through, and close: nothing is asked of the server beyond that."""
    keys = ClientKeyPool()
    known = KnownHosts((subject.settings.state_dir or Path()) / "known_hosts")
    settings = replace(subject.settings, transports=(name,), forwards=())
    server = replace(subject.server, urls=(str(subject.url),))
    began = time.monotonic()
    tried = f"the handshake as {settings.name}, over {name}"
    keys.start()
    try:
        connector = Connector(settings, server, keys, known)
        sealed = connector.connect(Candidate(subject.url, name), subject.cancel)
        seen.fingerprint = fingerprint_of(sealed.result.server_spki)
        seen.shook_hands = True
        sealed.close("the examination is over")
        text = f"the token is right, and the server's key is {seen.fingerprint}"
        seen.add(50, Step("handshake", tried, text, Outcome.OK, time.monotonic() - began))
    except RefusedError as error:
        seen.refused = error.message, error.hint
        seen.add(50, Step("handshake", tried, error.message.splitlines()[0], Outcome.BAD, time.monotonic() - began))
    except QanatError as error:
        seen.add(50, Step("handshake", tried, error.message, Outcome.NOTE, time.monotonic() - began))
    finally:
        keys.close()
