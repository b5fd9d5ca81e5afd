"""A machine that vanished while something was on its way to it is noticed; where an application pauses, it answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from qanat.endpoints.vanished import ASKS_THE_KERNEL
from qanat.endpoints.wakeable import WakeableSocket
from tests.support.background import wait_until
from tests.support.machine.networks import SERVER, TwoCables, within
from tests.support.sockets import SECONDS

pytestmark = pytest.mark.skipif(not ASKS_THE_KERNEL, reason="only Linux tells what was acknowledged")

LIMIT = 1.0


@dataclass
class Far:
    """A socket of ours, and an application on another machine."""

    network: TwoCables
    ours: WakeableSocket
    application: socket.socket

    def vanish(self) -> None:
        for cable in ("cable1", "cable2"):
            self.network.on_client("link", "set", cable, "down")

    def fill(self) -> None:
        """Send until the application's window is closed, since it does not read."""
        refused = 0
        while refused < 5:  # the kernel's buffers may take more a moment later
            if self.ours.send_now(memoryview(bytes(65536))):
                refused = 0
            else:
                refused += 1
                time.sleep(0.05)


@pytest.fixture
def far() -> Iterator[Far]:
    with TwoCables() as network, ExitStack() as stack:
        listener = stack.enter_context(within(network.server, lambda: socket.create_server((SERVER, 0))))
        address = (SERVER, listener.getsockname()[1])
        sock = within(network.client, lambda: socket.create_connection(address, SECONDS))
        ours = WakeableSocket(sock)
        stack.callback(ours.close, orderly=False)
        application = stack.enter_context(listener.accept()[0])
        yield Far(network, ours, application)


def test_a_machine_that_vanished_with_something_on_its_way_is_noticed(far: Far) -> None:
    far.ours.send_all(memoryview(b"heard"))
    wait_until(lambda: far.ours.silence() is None, "it was acknowledged")
    far.vanish()
    far.ours.send_all(memoryview(b"never heard"))
    wait_until(lambda: (far.ours.silence() or 0.0) >= LIMIT, "nothing is acknowledged")


def test_a_machine_whose_application_does_not_read_answers(far: Far) -> None:
    far.fill()
    until = time.monotonic() + 3 * LIMIT
    while time.monotonic() < until:
        silence = far.ours.silence()
        assert silence is not None, "something is on its way"
        assert silence < LIMIT
        time.sleep(0.05)
    far.vanish()
    wait_until(lambda: (far.ours.silence() or 0.0) >= LIMIT, "its probes are not answered")
