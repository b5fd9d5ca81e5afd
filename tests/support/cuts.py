"""Connections that are cut again and again, while what they carry must go on as if nothing had been."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.support.harness import SECONDS, Relay, Tunnel

CUTS = 20
RESUMED = r"resumed by \S+ over \S+ after .*; nothing was lost"
"""What a client logs each time."""
_PAUSE = 0.1
"""Seconds, at the least, from one resumption to the next cut; with the way back it is a cut about every 0.3 s."""


class Cuts:
    """Cuts what goes through `relay`, CUTS times, each time that the client has resumed and `progress` has grown.

    `progress` says how much the application has done: bytes, lines.  `least` is how much of that has to be done
    between two cuts, so that none of them hits an idle connection.  Leaving the `with` block waits for the last
    cut, and raises when one of them was too much.
    """

    def __init__(self, tunnel: Tunnel, relay: Relay, progress: Callable[[], int], *, least: int = 1) -> None:
        self._tunnel, self._relay = tunnel, relay
        self._progress, self._least = progress, least
        self._over = threading.Event()
        self._stop = threading.Event()
        self._failure: AssertionError | None = None
        self._thread = threading.Thread(target=self._cut_loop, name="cuts")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._stop.set()
        self._thread.join()
        if kind is None:
            if self._failure is not None:
                raise self._failure
            assert self._tunnel.client.count("connected to ") == 1, "a new session, where the old one should go on"
            assert self._tunnel.client.count(RESUMED) == CUTS

    @property
    def over(self) -> bool:
        """Whether all has been cut that will be; the application has to go on until then."""
        return self._over.is_set()

    def _cut_loop(self) -> None:
        try:
            for number in range(1, CUTS + 1):
                enough = self._progress() + self._least
                self._stop.wait(_PAUSE)
                deadline = time.monotonic() + SECONDS
                while self._progress() < enough and not self._stop.is_set():
                    assert time.monotonic() < deadline, f"nothing goes on after cut {number - 1}"
                    self._stop.wait(0.01)  # files that grow do not say so
                if self._stop.is_set():
                    return
                self._relay.cut()
                self._tunnel.client.wait_for(RESUMED, count=number)
        except AssertionError as error:
            self._failure = error
        finally:
            self._over.set()
