"""`kick`: ends a session or a stream at an operator's wish, and tells the other end that it was one.

A client that is kicked may come back at once, and does: to keep it out, take its token or its account away (`revoke`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from qanat.base.errors import UsageError
from qanat.base.text import printable
from qanat.control.commands import Answer, Command, Request
from qanat.handshake.hello import Close, CloseReason
from qanat.monitor.sessions import public_id
from qanat.mux.frames import Reason
from qanat.session.session import Session

log = logging.getLogger("qanat.control")


def kick_command(sessions: Callable[[], Iterable[Session]], who: str) -> Command:
    """Return the command `kick` for these sessions; `who` is what the other end gets to know of us."""

    def kick(request: Request) -> Answer:
        target = request.text("target")
        name, slash, rest = _as_status_writes(target).partition("/")
        chosen = [session for session in sessions() if name in (session.name, public_id(session.id))]
        if not chosen:
            raise UsageError(f"there is no session {printable(name)} here", hint="`status` lists them")
        if slash:
            return {"sessions": 0, "streams": _reset(chosen, target, rest, who)}
        streams = sum(session.open_streams for session in chosen)
        for session in chosen:
            text = f"ended by the operator of {who}"
            log.warning("kicked %s, with %d streams", session.name, session.open_streams, extra={"event": "kicked"})
            # SHUTDOWN, as of any end that is meant: what is said beside it is for people.
            session.end(text, Close(CloseReason.SHUTDOWN, text))
        return {"sessions": len(chosen), "streams": streams}

    return kick


def _reset(sessions: Iterable[Session], target: str, rest: str, who: str) -> int:
    """Reset the stream LANE/NUMBER, or a lane's streams; return how many those were."""
    lane_text, slash, number_text = rest.partition("/")
    if not slash or not _is_number(lane_text) or not _is_number(number_text):
        raise UsageError(f"{printable(target)} is no stream", hint="write it as `status` does: NAME/LANE/NUMBER")
    found = [
        stream
        for session in sessions
        for lane in (session.find_lane(int(lane_text)),)
        if lane is not None
        for stream in lane.streams
        if stream.id == int(number_text)
    ]
    if not found:
        raise UsageError(f"there is no stream {printable(target)} here any more", hint="`status` lists them")
    for stream in found:
        log.warning("kicked the stream %s", target, extra={"event": "kicked"})
        stream.reset(Reason.CANCELED, f"ended by the operator of {who}")
    return len(found)


def _as_status_writes(target: str) -> str:
    """Return NAME/LANE/NUMBER also for what the logs call a stream: NAME NUMBER, and beyond lane 0 NAME/LANE NUMBER."""
    lane, space, number = target.rpartition(" ")
    if not space:
        return target
    return f"{lane}/{number}" if "/" in lane else f"{lane}/0/{number}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10
