"""The states of one stream and every legal transition (docs/PROTOCOL.md §4, Streams).

The table is the law: what is not in it is a ProtocolError when the peer does it and a LocalError
when we do.  Pure data; `qanat.mux.core` is the only caller.
"""

from __future__ import annotations

from enum import Enum

from qanat.base.errors import LocalError, ProtocolError


class State(Enum):
    OPEN = "open"
    HALF_CLOSED_LOCAL = "half closed by us"
    HALF_CLOSED_REMOTE = "half closed by the peer"
    CLOSED = "closed"


class Step(Enum):
    SEND_DATA = "send DATA"
    RECV_DATA = "receive DATA"
    SEND_FIN = "send FIN"
    RECV_FIN = "receive FIN"
    SEND_RESET = "send RESET"
    RECV_RESET = "receive RESET"


PEER_STEPS = frozenset({Step.RECV_DATA, Step.RECV_FIN, Step.RECV_RESET})

TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.OPEN, Step.SEND_DATA): State.OPEN,
    (State.OPEN, Step.RECV_DATA): State.OPEN,
    (State.OPEN, Step.SEND_FIN): State.HALF_CLOSED_LOCAL,
    (State.OPEN, Step.RECV_FIN): State.HALF_CLOSED_REMOTE,
    (State.OPEN, Step.SEND_RESET): State.CLOSED,
    (State.OPEN, Step.RECV_RESET): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Step.RECV_DATA): State.HALF_CLOSED_LOCAL,
    (State.HALF_CLOSED_LOCAL, Step.RECV_FIN): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Step.SEND_RESET): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Step.RECV_RESET): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Step.SEND_DATA): State.HALF_CLOSED_REMOTE,
    (State.HALF_CLOSED_REMOTE, Step.SEND_FIN): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Step.SEND_RESET): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Step.RECV_RESET): State.CLOSED,
}


def advance(state: State, step: Step) -> State:
    """The state after `step`; raises ProtocolError or LocalError when the table has no such step."""
    try:
        return TRANSITIONS[state, step]
    except KeyError:
        if step in PEER_STEPS:
            raise ProtocolError(f"the peer sent {step.value[8:]} on a stream that is {state.value}") from None
        raise LocalError(f"cannot {step.value} on a stream that is {state.value}") from None
