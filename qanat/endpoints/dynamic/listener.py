"""What listens for a dynamic forward: a port of any kind, and the proxy behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from qanat.endpoints.dynamic.passwords import Passwords
from qanat.endpoints.dynamic.port import DynamicPort


class PortListener(Protocol):
    """A `qanat.endpoints.tcp.Listener`, or what looks like one."""

    address: str
    port: int

    def close(self) -> None:
        """Accept no more."""


class DynamicListener:
    """As a `Listener`: `address`, `port`, and `close`, which lets go of all that leads nowhere."""

    def __init__(self, listener: PortListener, proxy: DynamicPort, start: Callable[[], None] = lambda: None) -> None:
        """Own both; `listener` gives its connections to `proxy`, once `start` was called if that is there."""
        self.address = listener.address
        self.port = listener.port
        self._listener = listener
        self._start = start
        self._proxy = proxy

    def ask_for(self, passwords: Passwords | None) -> None:
        """Ask whoever comes from now on for one of these; for none with None."""
        self._proxy.passwords = passwords

    def start(self) -> None:
        """Accept from now on; as `qanat.endpoints.tcp.Listener.start`."""
        self._start()

    def close(self) -> None:
        """Accept no more, and end what waits for a request.  What is under way goes on.  Idempotent; blocks briefly."""
        self._listener.close()
        self._proxy.close()
