"""A thread of a test, whose result or error the test asks for, with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

DEADLINE = 20.0
"""Seconds after which a test gives up; never waited for when all is well."""


class Background(Generic[T]):
    """Runs `function` in a thread of its own from now on."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="test background", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result.append(self._function())
        except BaseException as error:
            self._error = error

    def wait(self, timeout: float) -> bool:
        """Whether it has ended within `timeout` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def result(self, timeout: float = DEADLINE) -> T:
        assert self.wait(timeout), f"still running after {timeout:g} s"
        if self._error is not None:
            raise self._error
        return self._result[0]

    def error(self, timeout: float = DEADLINE) -> BaseException:
        """The error that it ended with."""
        assert self.wait(timeout), f"still running after {timeout:g} s"
        assert self._error is not None, "it ended without an error"
        return self._error


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what no lock announces, such as another process's or the kernel's state."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        time.sleep(0.002)
