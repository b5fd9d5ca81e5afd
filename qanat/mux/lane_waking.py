"""One lane's lock, and who is woken under it.

Who wakes whom: the core notes it, `wake_locked` does it before the lock is released, whatever was raised
meanwhile.  `_work` has one waiter, the writer, and a stream's `writable` has one, its uplink: `notify` is
enough.  `_room` has waiters of two kinds, for a block and for the outbox, and a stream's `readable` may have
two, so those get `notify_all`: woken one by one, the wrong one might take the turn and go back to sleep.
`_settled` is for whoever waits until the pipe is gone, `_pong` for whoever waits for an answer.

A part of `qanat.mux.lane.Lane`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from qanat.mux.core import LaneCore
from qanat.mux.parameters import LaneParameters
from qanat.mux.stream_io import StreamIO


class LaneWaking:
    """The core, its lock and the conditions on that."""

    def __init__(self, name: str, parameters: LaneParameters, clock: Callable[[], float]) -> None:
        self.name = name
        self.clock = clock
        self.lock = threading.Lock()
        self.core = LaneCore(parameters, clock())
        self._work = threading.Condition(self.lock)
        self._room = threading.Condition(self.lock)
        self._pong = threading.Condition(self.lock)
        self._settled = threading.Condition(self.lock)

    # --- for StreamIO, with the lock held -------------------------------------------------------

    def work_locked(self) -> list[StreamIO]:
        """There is something to send, and perhaps someone to wake; returns what to `tell` without the lock."""
        self.core.work_made = True
        return self.wake_locked()

    def wait_for_room_locked(self) -> None:
        """Wait until blocks or outbox room came back, or the session ended; spurious wake-ups happen."""
        self._room.wait()

    def wake_locked(self) -> list[StreamIO]:
        """Wake whom the core has named since the last time; returns whom to `tell` without the lock."""
        core = self.core
        if core.wake_readers:
            for stream in core.wake_readers:
                if stream.io is not None:
                    stream.io.readable.notify_all()
            core.wake_readers.clear()
        failed: list[StreamIO] = []
        if core.wake_writers:
            for stream in core.wake_writers:
                if stream.io is not None:
                    stream.io.writable.notify()
                    if stream.failure is not None:
                        failed.append(stream.io)
            core.wake_writers.clear()
        if core.room_made or failed:
            core.room_made = False
            self._room.notify_all()
        if core.work_made:
            core.work_made = False
            self._work.notify()
        return failed

    def tell(self, failed: list[StreamIO]) -> None:
        """Call the failure callbacks, without the lock."""
        for stream in failed:
            stream.fail()
