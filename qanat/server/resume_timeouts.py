"""Sessions whose clients stay away: each lane without a pipe has `resume_for` seconds to get one again.

Owned by `qanat.server.server`, which says when a lane loses its pipe and when it has one again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from qanat.base.deadline import Deadline
from qanat.base.deadline_watch import DeadlineWatch
from qanat.mux.lane import Lane
from qanat.session.session import Session


@dataclass(frozen=True, slots=True, eq=False)
class _Absence:
    take: Callable[[_Absence], bool]  # False when its lane is back
    session: Session
    number: int
    lane: Lane
    deadline: Deadline

    def cut(self) -> None:
        if self.take(self):
            self.session.lane_expired(self.number, self.lane)


class ResumeTimeouts:
    """Safe to use from any thread; nothing blocks but `join`."""

    def __init__(self, resume_for: float) -> None:
        """`resume_for` is in seconds and the same for all, so that the first to go is the first to expire."""
        self._resume_for = resume_for
        self._watch = DeadlineWatch("absences")
        self._lock = threading.Lock()
        self._resume_timeouts: dict[Lane, _Absence] = {}  # guarded by the lock

    def start(self) -> None:
        self._watch.start()

    def began(self, session: Session, number: int, lane: Lane) -> None:
        """`lane` is on no pipe any more; or on the next one already, which then decides when the time is up."""
        self.ended(lane)
        absence = _Absence(self._take, session, number, lane, Deadline(self._resume_for))
        with self._lock:
            self._resume_timeouts[lane] = absence
        self._watch.add(absence)

    def ended(self, lane: Lane) -> None:
        """`lane` is on a pipe again, or over.  Idempotent."""
        with self._lock:
            absence = self._resume_timeouts.pop(lane, None)
        if absence is not None:
            self._watch.forget(absence)

    def _take(self, absence: _Absence) -> bool:
        with self._lock:
            if self._resume_timeouts.get(absence.lane) is not absence:
                return False
            del self._resume_timeouts[absence.lane]
            return True

    def close(self) -> None:
        """Let nobody expire any more.  Idempotent."""
        self._watch.close()

    def join(self, timeout: float) -> list[str]:
        """As `DeadlineWatch.join`."""
        return self._watch.join(timeout)
