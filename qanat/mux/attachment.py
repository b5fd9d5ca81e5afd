"""Which pipe a lane is on, and which may take it next (docs/PROTOCOL.md §3, Resuming).

Pure: the legal transitions are a table, and what is not in it is a fault of this program.  The higher epoch
has the lane, never merely the later arrival: a HELLO may have been on its way for long.  Both ends keep one for
each lane; `qanat.mux.lane` guards it with its lock.
"""

from __future__ import annotations

from enum import Enum

from qanat.base.errors import LocalError


class AttachmentState(Enum):
    """Whether a pipe carries the lane; the value is for messages."""

    DETACHED = "detached"
    ATTACHED = "attached"
    YIELDING = "yielding"
    OVER = "over"


class AttachmentStep(Enum):
    """What takes a lane from one state to another; the value is for messages."""

    ATTACH = "attach"
    """A pipe that has been granted the lane carries it from now on."""
    YIELD = "yield"
    """A newer pipe has been granted the lane: the present one has to end."""
    PIPE_ENDED = "pipe ended"
    """No thread of the pipe touches the lane any more."""
    END = "end"
    """The lane is over for good."""


TRANSITIONS: dict[tuple[AttachmentState, AttachmentStep], AttachmentState] = {
    (AttachmentState.DETACHED, AttachmentStep.ATTACH): AttachmentState.ATTACHED,
    (AttachmentState.DETACHED, AttachmentStep.YIELD): AttachmentState.DETACHED,
    (AttachmentState.DETACHED, AttachmentStep.END): AttachmentState.OVER,
    (AttachmentState.ATTACHED, AttachmentStep.YIELD): AttachmentState.YIELDING,
    (AttachmentState.ATTACHED, AttachmentStep.PIPE_ENDED): AttachmentState.DETACHED,
    (AttachmentState.ATTACHED, AttachmentStep.END): AttachmentState.OVER,
    (AttachmentState.YIELDING, AttachmentStep.YIELD): AttachmentState.YIELDING,
    (AttachmentState.YIELDING, AttachmentStep.PIPE_ENDED): AttachmentState.DETACHED,
    (AttachmentState.YIELDING, AttachmentStep.END): AttachmentState.OVER,
    (AttachmentState.OVER, AttachmentStep.YIELD): AttachmentState.OVER,
    (AttachmentState.OVER, AttachmentStep.PIPE_ENDED): AttachmentState.OVER,
    (AttachmentState.OVER, AttachmentStep.END): AttachmentState.OVER,
}


class Attachment:
    """One lane's state, and the highest epoch that was ever granted it; -1 before the first."""

    def __init__(self) -> None:
        self.state = AttachmentState.DETACHED
        self.epoch = -1

    def grant(self, epoch: int) -> bool:
        """Give the lane to the pipe of `epoch`, and have the present one yield; False when a later one has it."""
        if epoch <= self.epoch:
            return False
        self.epoch = epoch
        self.advance(AttachmentStep.YIELD)
        return True

    def advance(self, step: AttachmentStep) -> None:
        """Make one step of the table; raises LocalError when it has none."""
        following = TRANSITIONS.get((self.state, step))
        if following is None:
            raise LocalError(f"a lane that is {self.state.value} cannot {step.value}")
        self.state = following
