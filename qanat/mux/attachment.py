"""Which pipe a lane is on, and which may take it next (docs/PROTOCOL.md §3, Resuming).

Pure: the legal transitions are a table, and what is not in it is a fault of this program.  The higher epoch
has the lane, never merely the later arrival: a HELLO may have been on its way for long.  Both ends keep one for
each lane; `qanat.mux.lane` guards it with its lock.
"""

from __future__ import annotations

from enum import Enum

from qanat.base.errors import LocalError


class State(Enum):
    DETACHED = "detached"
    ATTACHED = "attached"
    YIELDING = "yielding"
    OVER = "over"


class Step(Enum):
    ATTACH = "attach"
    """A pipe that has been granted the lane carries it from now on."""
    YIELD = "yield"
    """A newer pipe has been granted the lane: the present one is to end."""
    PIPE_ENDED = "pipe ended"
    """No thread of the pipe touches the lane any more."""
    END = "end"
    """The lane is over for good."""


TRANSITIONS: dict[tuple[State, Step], State] = {
    (State.DETACHED, Step.ATTACH): State.ATTACHED,
    (State.DETACHED, Step.YIELD): State.DETACHED,
    (State.DETACHED, Step.END): State.OVER,
    (State.ATTACHED, Step.YIELD): State.YIELDING,
    (State.ATTACHED, Step.PIPE_ENDED): State.DETACHED,
    (State.ATTACHED, Step.END): State.OVER,
    (State.YIELDING, Step.YIELD): State.YIELDING,
    (State.YIELDING, Step.PIPE_ENDED): State.DETACHED,
    (State.YIELDING, Step.END): State.OVER,
    (State.OVER, Step.YIELD): State.OVER,
    (State.OVER, Step.PIPE_ENDED): State.OVER,
    (State.OVER, Step.END): State.OVER,
}


class Attachment:
    """See the module's docstring.  `epoch` is the highest that was ever granted the lane."""

    def __init__(self) -> None:
        self.state = State.DETACHED
        self.epoch = -1

    def grant(self, epoch: int) -> bool:
        """Give the lane to the pipe of `epoch`, and have the present one yield; False when a later one has it."""
        if epoch <= self.epoch:
            return False
        self.epoch = epoch
        self.advance(Step.YIELD)
        return True

    def advance(self, step: Step) -> None:
        """Make one step of the table; raises LocalError when it has none."""
        following = TRANSITIONS.get((self.state, step))
        if following is None:
            raise LocalError(f"a lane that is {self.state.value} cannot {step.value}")
        self.state = following
