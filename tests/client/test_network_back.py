"""A client without a session waits for its next try, and the network comes back meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qanat.base.watcher import Watcher
from qanat.client.backoff import Backoff
from qanat.client.known_hosts import KnownHosts
from qanat.client.network_watch import WAYS_OUT, NetworkWatch
from qanat.client.server_connection import ServerConnection
from qanat.config.client_settings import ClientSettings, Reconnect, RemoteServer
from qanat.handshake.key_pool import ClientKeyPool
from qanat.transports.pipe import SockAddr
from tests.support.background import wait_until
from tests.support.machine.ports import unused_port

AGES = Reconnect(first=3600, min=3600, max=3600)
HOME, CAFE = ("10.0.0.2", 40000), ("192.168.1.7", 40000)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


class Machine:
    """A client on a machine whose network the test changes; its server is not there, and each try fails at once."""

    def __init__(self, stack: ExitStack, directory: Path, log: pytest.LogCaptureFixture) -> None:
        self._log = log
        self.source: SockAddr | None = None
        self.asleep = 1000.0
        self.asked: set[SockAddr] = set()
        self.port = unused_port()
        watch = NetworkWatch(0.01, source_for=self._source_for, slept=lambda: self.asleep, netlink=False)
        server = RemoteServer((f"ws://127.0.0.1:{self.port}/tunnel",), bytes(32), "SHA256:" + "A" * 43)
        settings = ClientSettings(name="a", servers=(server,), reconnect=AGES)
        keys, watcher = ClientKeyPool(), Watcher()
        connection = ServerConnection(
            "connector",
            settings,
            server,
            keys=keys,
            known=KnownHosts(directory / "known_hosts"),
            watch=watch,
            watcher=watcher,
            max_streams=10,
            changed=lambda: None,
        )
        connection._backoff = Backoff(AGES, uniform=lambda low, high: high)
        for close in (watch.close, keys.close, watcher.close, connection.close):
            stack.callback(close)
        watch.start()
        connection.want(True)
        connection.start()

    def _source_for(self, remote: SockAddr) -> SockAddr | None:
        self.asked.add(remote)
        return self.source

    def wait_for_tries(self, count: int) -> None:
        wait_until(lambda: self._logged("cannot connect to") == count, f"the client has tried {count} times")
        wait_until(lambda: self._logged("trying again in") == count, "it waits for its next try")

    def _logged(self, words: str) -> int:
        return sum(words in record.message for record in self._log.records)


def test_a_network_that_is_back_ends_the_wait(
    stack: ExitStack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was gone for long, so the next try may be a minute away; laptops and whatever starts before its network."""
    caplog.set_level(logging.INFO, "qanat")
    machine = Machine(stack, tmp_path, caplog)
    machine.wait_for_tries(1)
    machine.source = HOME
    machine.wait_for_tries(2)
    machine.source = CAFE
    machine.wait_for_tries(3)
    machine.asleep += 60
    machine.wait_for_tries(4)
    assert machine.asked >= {*WAYS_OUT, ("127.0.0.1", machine.port)}
