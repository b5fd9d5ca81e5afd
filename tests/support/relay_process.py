"""A `Relay` in a process of its own, so that its connections, which come and go, are not the test's.

As a program (`python -m tests.support.relay_process PORT`) it says where it listens, and cuts at each SIGUSR1.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.background import wait_until
from tests.support.harness import ROOT, Program, Relay


class RelayProcess(Program):
    """Leads to `port`."""

    def __init__(self, port: int) -> None:
        super().__init__(sys.executable, "-m", "tests.support.relay_process", port, cwd=ROOT)
        self.port = int(self.wait_for(r"relays at (\d+)")[1])
        self._cuts = 0

    def cut(self) -> None:
        """Reset every connection at both ends."""
        self._cuts += 1
        self.process.send_signal(signal.SIGUSR1)
        self.wait_for(f"^cut {self._cuts}$")

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """Nothing gets through for the length of a `with` block; then all that was sent meanwhile does."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            stat = Path(f"/proc/{self.process.pid}/stat")
            wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the relay has stopped")
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    with Relay(int(sys.argv[1])) as relay:
        print(f"relays at {relay.port}", flush=True)
        cuts = 0
        while signal.sigwait({signal.SIGUSR1}):
            relay.cut()
            cuts += 1
            print(f"cut {cuts}", flush=True)


if __name__ == "__main__":
    main()
