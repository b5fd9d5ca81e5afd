"""Sessions whose clients stay away: each lane without a pipe has `resume_for` seconds to get one again.

Owned by `service.server`, which says when a lane loses its pipe and when it has one again.
"""

from __future__ import annotations

from attrs import frozen

from base.deadline import Deadline
from mux.lane import Lane
from service.deadline_watch import DeadlineWatch
from service.session import Session


@frozen(eq=False)
class _Absence:
    absences: dict[Lane, _Absence]
    session: Session
    number: int
    lane: Lane
    deadline: Deadline

    def cut(self) -> None:
        if self.absences.get(self.lane) is self:
            del self.absences[self.lane]
            self.session.lane_expired(self.number, self.lane)


class Absences:
    """Safe to use from any thread; nothing blocks but `join`."""

    def __init__(self, resume_for: float) -> None:
        """`resume_for` is in seconds and the same for all, so that the first to go is the first to expire."""
        self._resume_for = resume_for
        self._watch = DeadlineWatch("absences")
        self._absences: dict[Lane, _Absence] = {}  # each step on it is atomic

    def start(self) -> None:
        self._watch.start()

    def began(self, session: Session, number: int, lane: Lane) -> None:
        """`lane` is on no pipe any more; or on the next one already, which then decides when the time is up."""
        self.ended(lane)
        absence = _Absence(self._absences, session, number, lane, Deadline(self._resume_for))
        self._absences[lane] = absence
        self._watch.add(absence)

    def ended(self, lane: Lane) -> None:
        """`lane` is on a pipe again, or over.  Idempotent."""
        absence = self._absences.pop(lane, None)
        if absence is not None:
            self._watch.forget(absence)

    def close(self) -> None:
        """Let nobody expire any more.  Idempotent."""
        self._watch.close()

    def join(self, timeout: float) -> list[str]:
        """As `DeadlineWatch.join`."""
        return self._watch.join(timeout)
