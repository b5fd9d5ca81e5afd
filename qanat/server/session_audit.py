"""What one session does, told to the audit log: its connections, its streams and its remote forwards.

Each line has the client, the session's public id and, where a stream is meant, its number, so that they can be put
together again.  docs/AUDIT.md has the events and their fields.
"""

from __future__ import annotations

import time

from qanat.base.errors import ProtocolError
from qanat.base.text import printable
from qanat.monitor.sessions import public_id
from qanat.mux.frames import reason_name
from qanat.mux.stream import Stream
from qanat.server.audit import AuditLog
from qanat.session.messages import Connect, Measure, Through, decode_request
from qanat.session.places import Tally


class SessionAudit:
    """One session's part of the audit log.  Safe to use from any thread; nothing blocks."""

    def __init__(self, audit: AuditLog, client: str, session_id: bytes) -> None:
        self._audit = audit
        self._client = client
        self._session = public_id(session_id)
        self._began = time.monotonic()

    def connected(self, event: str, lane: int, token: str, address: str, via: str, transport: str, agent: str) -> None:
        """Note that a pipe carries a lane: `connected` for the first, `joined` or `resumed` for others."""
        self._record(event, lane=lane, token=token, address=address, via=via or None, transport=transport, agent=agent)

    def disconnected(self, lane: int, address: str, cause: str) -> None:
        """Note that a pipe has ended."""
        self._record("disconnected", lane=lane, address=address, cause=cause)

    def ended(self, why: str, tally: Tally) -> None:
        """Note that the session is over."""
        self._record(
            "session ended",
            why=printable(why),
            seconds=round(time.monotonic() - self._began, 3),
            streams=tally.streams,
            bytes_received=tally.received,
            bytes_sent=tally.sent,
        )

    def revoked(self, token: str, why: str, by: str) -> None:
        """Note that the session ends since its token does not count any more."""
        self._record("session revoked", token=token, why=why, by=by)

    # --- forwards -----------------------------------------------------------------------------------

    def listening(self, forward: int, place: str) -> None:
        """Note that the server listens for a remote forward."""
        self._record("listening", forward=forward, listen=place)

    def listen_refused(self, forward: int, place: str, reason: int, text: str) -> None:
        """Note that a remote forward was refused."""
        self._record("listen refused", forward=forward, listen=place, reason=reason_name(reason), text=text)

    def listens_no_more(self, forward: int, place: str, why: str) -> None:
        """Note that a remote forward has ended before its session."""
        self._record("listening ended", forward=forward, listen=place, why=why)

    # --- streams (`qanat.session.joined_streams.StreamObserver`) ----------------------------------------

    def opened(self, stream: Stream, address: str) -> None:
        """Note that a stream leads to a connection, which is with `address`."""
        if self._audit.enabled:
            self._of_stream("stream opened", stream, address=address or None)

    def refused(self, stream: Stream, reason: int, text: str) -> None:
        """Note that a stream was refused."""
        self._of_stream("stream refused", stream, reason=reason_name(reason), text=text)

    def closed(self, stream: Stream) -> None:
        """Note that a stream is over."""
        if not self._audit.enabled:
            return
        figures, failure = stream.figures(), stream.failure
        self._of_stream(
            "stream closed",
            stream,
            reason="finished" if failure is None else reason_name(failure[0]),
            text=printable(failure[1]) or None if failure is not None else None,
            bytes_received=figures.received,
            bytes_sent=figures.sent,
        )

    def _of_stream(self, event: str, stream: Stream, **facts: object) -> None:
        if not self._audit.enabled:
            return
        try:
            request = decode_request(stream.request)
        except ProtocolError:
            request = None
        what: dict[str, object] = {"stream": stream.label}
        match request:
            case Connect(to, origin):
                what |= {"to": str(to), "from": origin or None}
            case Through(forward, origin, to):
                what |= {"forward": forward, "from": origin or None, "to": None if to is None else str(to)}
            case Measure(measurement):
                what |= {"to": f"measure {measurement.name.lower()}"}
        self._record(event, **what, **facts)

    def _record(self, event: str, **facts: object) -> None:
        self._audit.record(event, client=self._client, session=self._session, **facts)
