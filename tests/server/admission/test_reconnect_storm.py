"""A server that comes back to many clients at once: all get in, at the rate it can bear, and without much asking.

First by a clock of its own, with hundreds of clients; then for real, on loopback, with lower limits.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.client.backoff import Backoff
from qanat.config.client_settings import Reconnect
from qanat.config.server_settings import ClientAccount, ServerLimits, ServerSettings
from qanat.handshake.hello import RecordKind
from qanat.server.admission.admission import Admission, HandshakeSlot
from qanat.server.admission.handshake_rate import LONGEST
from qanat.server.server import Server
from tests.support.identities import place_identity
from tests.support.server.raw_peers import RawClient


@dataclass
class Storm:
    """Clients of one Admission, with the real Backoff, in the time of a fake clock."""

    limits: ServerLimits
    handshake: float = 0.2  # seconds that one takes
    dial: float = 0.05  # seconds from the end of a delay to the request
    seed: int = 1
    now: float = 0.0
    begun: list[float] = field(default_factory=list)  # when handshakes began
    requests: list[int] = field(default_factory=list)  # of each client that is in

    def __post_init__(self) -> None:
        self._uniform = random.Random(self.seed).uniform
        self._admission = Admission(self.limits, clock=lambda: self.now)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def add(self, address: str) -> None:
        """A client that has just lost its server, with its first try to come."""
        backoff = Backoff(Reconnect(), self._uniform)
        self._after(backoff.delay() + self.dial, lambda: self._ask(address, backoff, 1))

    def add_flood(self, address: str, rate: float) -> None:
        """One that asks `rate` times a second whatever it is told."""
        slot = self._admission.enter(address, _uncut)
        if slot is None:
            self._admission.retry_after(address)
        else:
            self._begin(slot)
        self._after(1 / rate, lambda: self.add_flood(address, rate))

    def run(self, clients: int) -> None:
        """Until as many are in."""
        while len(self.requests) < clients:
            self.now, _, event = heapq.heappop(self._events)
            assert self.now < 600, f"{len(self.requests)} clients are in after ten minutes"
            event()

    @property
    def most_in_a_second(self) -> int:
        return max(sum(start <= other <= start + 1 for other in self.begun[n:]) for n, start in enumerate(self.begun))

    def _ask(self, address: str, backoff: Backoff, requests: int) -> None:
        slot = self._admission.enter(address, _uncut)
        if slot is not None:
            self._begin(slot)
            self.requests.append(requests)
            return
        backoff.failed()
        delay = backoff.delay(self._admission.retry_after(address))
        self._after(delay + self.dial, lambda: self._ask(address, backoff, requests + 1))

    def _begin(self, slot: HandshakeSlot) -> None:
        self.begun.append(self.now)
        self._after(self.handshake, slot.release)

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))


def _uncut() -> None:
    """Nobody is there to be cut."""


SINGLES = [f"198.51.{number // 250}.{number % 250}" for number in range(5000)]
ONE_ADDRESS = ["192.0.2.1"] * 500
OFFICES = [f"203.0.113.{number % 50}" for number in range(500)]
MIXED = SINGLES[:400] + ONE_ADDRESS[:100]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "addresses", [SINGLES[:500], ONE_ADDRESS, OFFICES, MIXED], ids=["singles", "one address", "offices", "mixed"]
)
def test_five_hundred_clients_come_in_at_the_rate_and_with_few_requests(addresses: list[str], seed: int) -> None:
    limits = ServerLimits()
    storm = Storm(limits, seed=seed)
    for address in addresses:
        storm.add(address)
    storm.run(500)
    assert storm.most_in_a_second <= limits.handshakes + limits.handshake_rate
    assert storm.now <= (500 - limits.handshakes) / limits.handshake_rate + 3
    assert sum(storm.requests) < 500 * 2.1  # two are what it takes for all but the first
    assert max(storm.requests) <= 5


def test_five_thousand_wait_for_as_long_as_it_takes_and_still_ask_seldom() -> None:
    limits = ServerLimits()
    storm = Storm(limits)
    for address in SINGLES:
        storm.add(address)
    storm.run(5000)
    assert storm.now <= (5000 - limits.handshakes) / limits.handshake_rate + 10
    assert sum(storm.requests) < 5000 * 3


def test_who_floods_meanwhile_neither_delays_nor_shuts_out_the_others() -> None:
    limits = ServerLimits()
    storm = Storm(limits)
    storm.add_flood("192.0.2.66", rate=300)
    for address in SINGLES[:500]:
        storm.add(address)
    storm.run(500)
    assert storm.most_in_a_second <= limits.handshakes + limits.handshake_rate
    assert storm.now <= 500 / limits.handshake_rate + 3
    assert sum(storm.requests) < 500 * 2.2


# --- for real

CLIENTS = 150
RATE, BURST = 20.0, 10


def test_a_real_server_lets_all_in_at_its_rate_and_tells_the_others_when_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[float, float]] = []  # between which moments
    enter = Admission.enter

    def noted(self: Admission, address: str, cut: Callable[[], None]) -> HandshakeSlot | None:
        before = time.monotonic()
        slot = enter(self, address, cut)
        if slot is not None:
            begun.append((before, time.monotonic()))
        return slot

    monkeypatch.setattr(Admission, "enter", noted)
    token = os.urandom(32)
    names = [f"client-{number}" for number in range(CLIENTS)]
    server = Server(
        ServerSettings(
            clients=tuple(ClientAccount(name, (token,)) for name in names),
            listen=(("127.0.0.1", 0),),
            identity=place_identity(tmp_path / "server.key"),
            drain=0.2,
            limits=ServerLimits(handshakes=BURST, handshake_rate=RATE, per_address_burst=10_000),
        )
    )
    requests: dict[str, int] = {}
    strange: list[Exception] = []
    all_at_once = threading.Barrier(CLIENTS)
    deadline = Deadline(2 * LONGEST)

    def come_back(name: str) -> None:
        backoff = Backoff(Reconnect(), random.Random(name).uniform)
        all_at_once.wait()
        for request in itertools.count(1):
            try:
                with RawClient(server, name, token) as client:
                    kind, _ = client.greet()
                    assert kind is RecordKind.READY
            except TransportError as error:
                if "503" not in str(error) or not 1 <= (error.retry_after or 0) <= LONGEST or deadline.passed:
                    strange.append(error)
                    return
                backoff.failed()
                time.sleep(backoff.delay(error.retry_after))  # as a client does
            except Exception as error:
                strange.append(error)
                return
            else:
                requests[name] = request
                return

    server.start()
    started = time.monotonic()
    threads = [threading.Thread(target=come_back, args=(name,), name=name) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * LONGEST)
    took = time.monotonic() - started
    server.stop()
    assert strange == []
    assert len(requests) == CLIENTS == len(begun)
    for start, _ in begun:
        for _, end in begun:
            between = sum(start <= before and after <= end for before, after in begun)
            assert between <= BURST + RATE * max(0.0, end - start)
    assert took < (CLIENTS - BURST) / RATE + 2 * LONGEST  # and what a busy machine takes for so many handshakes
    assert sum(requests.values()) < 3 * CLIENTS
