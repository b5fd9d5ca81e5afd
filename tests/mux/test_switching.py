"""Two lanes, real threads, and a client that changes its mind: whatever the order of things, each byte comes once.

A seed decides what happens; threads decide when.  What it must never do is end a session, or the bytes on it.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, SessionEnded, TransportError
from qanat.mux.lane import Superseded
from qanat.mux.parameters import ResumePoint
from tests.support.background import Background
from tests.support.mux.resuming_rig import MIB, Bulk, Lanes, Pipe
from tests.support.mux.rig import DEADLINE, run_lane

TRIES = 120


@pytest.fixture(autouse=True)
def _nervous_interpreter() -> Iterator[None]:
    """Switch threads fifty times as often as usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 50)
    yield
    sys.setswitchinterval(usual)


@dataclass
class Switches:
    """A client that says HELLO for pipe after pipe, and the server's side of each."""

    lanes: Lanes
    chance: random.Random
    epoch: int = 0
    moved: int = 0
    abandoned: int = 0
    stale: int = 0
    faults: list[str] = field(default_factory=list)
    threads: list[Background[None]] = field(default_factory=list)

    def turn(self) -> None:
        """Perhaps a cut; then HELLO on a new pipe, which may be late, be given up, or lose its READY."""
        chance, client = self.chance, self.lanes.client.lane
        if chance.random() < 0.4:
            pipe = chance.choice(self.lanes.pipes[-3:])
            chance.choice((pipe.client, pipe.server)).close("the network was cut")
        pipe, expects = self.lanes.new_pipe(), client.pause_writer()
        self.epoch += 1
        answer, answered = [0], threading.Event()
        epoch, late = self.epoch, chance.choice((0.0, 0.0, 0.0, 0.001, 0.02, 0.08)) * chance.random()
        self.threads.append(Background(lambda: self._serve(pipe, epoch, expects, late, answer, answered)))
        in_time = answered.wait(chance.choice((0.0, 0.002, 0.05, 0.3)))
        if not in_time or chance.random() < 0.2:
            client.resume_writer()
            self.abandoned += 1
            if chance.random() < 0.5:
                pipe.client.close("given up")
            return
        client.acquire(epoch, answer[0], Deadline(DEADLINE))
        self.threads.append(Background(lambda: self._carry(pipe, epoch, answer[0], expects)))
        self.moved += 1

    def _serve(
        self, pipe: Pipe, epoch: int, expects: int, late: float, answer: list[int], answered: threading.Event
    ) -> None:
        time.sleep(late)  # HELLO is on its way
        server = self.lanes.server.lane
        try:
            answer[0] = server.acquire(epoch, expects, Deadline(DEADLINE))
        except Superseded:
            self.stale += 1
            pipe.cut()
            return
        except (SessionEnded, TransportError):
            pipe.cut()
            return
        except ProtocolError as error:
            self.faults.append(f"HELLO of epoch {epoch}: {error}")
            pipe.cut()
            return
        answered.set()
        ending = run_lane(server, pipe.server, ResumePoint(epoch, expects, answer[0]))
        if ending.fault:
            self.faults.append(f"the server's epoch {epoch}: {ending.cause}")

    def _carry(self, pipe: Pipe, epoch: int, answer: int, expects: int) -> None:
        ending = run_lane(self.lanes.client.lane, pipe.client, ResumePoint(epoch, answer, expects))
        if ending.fault:
            self.faults.append(f"the client's epoch {epoch}: {ending.cause}")


@pytest.mark.parametrize("seed", range(3))
def test_no_order_of_hellos_cuts_and_late_answers_costs_a_byte_or_the_session(seed: int) -> None:
    with Lanes() as lanes:
        bulks = [Bulk(lanes, 24 * MIB) for _ in range(3)]
        switches = Switches(lanes, random.Random(seed))
        for _ in range(TRIES):
            switches.turn()
            assert not switches.faults, f"seed {seed}: {switches.faults}"
        while not all(bulk.over for bulk in bulks):
            lanes.epoch = switches.epoch
            lanes.connect()
            switches.epoch = lanes.epoch
            bulk = next((each for each in bulks if not each.over), bulks[0])
            bulk.wait_received(bulk.received + 8 * MIB)
        for bulk in bulks:
            bulk.check()
        for pipe in lanes.pipes:
            pipe.cut()
        for thread in switches.threads:
            thread.result()
        assert not switches.faults, f"seed {seed}: {switches.faults}"
        assert switches.moved > TRIES / 6
        assert switches.abandoned > TRIES / 6
