"""Ends what no client comes back to: each lane without a pipe has `resume_for` seconds to get another one.

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
class _Timeout:
    expire: Callable[[_Timeout], bool]  # False when it was stopped
    session: Session
    number: int
    lane: Lane
    deadline: Deadline

    def cut(self) -> None:
        if self.expire(self):
            self.session.lane_expired(self.number, self.lane)


class ResumeTimeouts:
    """Safe to use from any thread; nothing blocks but `join`."""

    def __init__(self) -> None:
        """Begin.  Sessions have the same seconds, so that the first to begin is the first to expire.

        After other settings, one that has fewer than an older one may end as late as that.
        """
        self._watch = DeadlineWatch("resume timeouts")
        self._lock = threading.Lock()
        self._timeouts: dict[Lane, _Timeout] = {}  # guarded by the lock

    def start(self) -> None:
        """Start the thread that ends lanes."""
        self._watch.start()

    def begin(self, session: Session, number: int, lane: Lane) -> None:
        """Give `lane`, which has lost its pipe, its time; if it has one again by then, nothing happens."""
        self.stop(lane)
        timeout = _Timeout(self._expire, session, number, lane, Deadline(session.resume_for))
        with self._lock:
            self._timeouts[lane] = timeout
        self._watch.add(timeout)

    def stop(self, lane: Lane) -> None:
        """Forget `lane`: it is on a pipe again, or over.  Idempotent."""
        with self._lock:
            timeout = self._timeouts.pop(lane, None)
        if timeout is not None:
            self._watch.forget(timeout)

    def _expire(self, timeout: _Timeout) -> bool:
        with self._lock:
            if self._timeouts.get(timeout.lane) is not timeout:
                return False
            del self._timeouts[timeout.lane]
            return True

    def close(self) -> None:
        """End no lane any more.  Idempotent."""
        self._watch.close()

    def join(self, timeout: float) -> list[str]:
        """Do as `DeadlineWatch.join`."""
        return self._watch.join(timeout)
