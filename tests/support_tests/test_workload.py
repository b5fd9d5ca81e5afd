"""Promises about the workload itself, without a tunnel: it passes where all is well, and sees what is not."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.support.applications import Target
from tests.support.chaos import ChaosRelay
from tests.support.flows import Flow, Wrong
from tests.support.workload import SHAPES, Workload


def target_port(work: Workload) -> int:
    return int(work.address.rpartition(":")[2])


def wait_carried(work: Workload, least: int) -> None:
    """Until so many bytes went each way and every slot has had a stream."""
    while True:
        work.check()
        totals = work.totals
        if min(totals.up, totals.down) >= least and totals.turns >= 20 and totals.resets >= 4:
            return
        work.pause(0.01)


def test_every_shape_passes_where_nothing_goes_wrong() -> None:
    with Workload(seed=1, slots=4 * len(SHAPES)) as work:
        port = target_port(work)
        work.start(port, port)
        wait_carried(work, 5_000_000)
        totals = work.stop()
        assert totals.streams > 4 * len(SHAPES)
        assert totals.up >= 5_000_000


def test_it_passes_over_a_slow_network_too() -> None:
    with Workload(seed=2, slots=2 * len(SHAPES)) as work, ChaosRelay(target_port(work), calm=True, delay=0.05) as relay:
        work.start(relay.port)
        wait_carried(work, 2_000_000)
        assert work.stop().slowest >= 0.1


def test_a_connection_that_is_cut_is_a_failure_that_names_stream_offset_and_seed() -> None:
    with Workload(seed=3, slots=len(SHAPES)) as work, ChaosRelay(target_port(work), calm=True) as relay:
        work.start(relay.port)
        wait_carried(work, 1_000_000)
        relay.cut()
        with pytest.raises(AssertionError, match=r"seed 3:\nstream \d+ \(.*up \d+ of \d+ bytes arrived right"):
            work.stop()


def test_a_stream_that_hangs_is_a_failure() -> None:
    with ExitStack() as stack:
        silent = stack.enter_context(Target(lambda sock, target: str(target.closing.wait())))
        work = stack.enter_context(Workload(seed=4, slots=1, patience=0.3))
        work.start(silent.port)
        with pytest.raises(AssertionError, match=r"hangs for 0\.3 s"):
            work.stop()


def run_to_failure(work: Workload) -> None:
    """Until it raises, as it must before long."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        work.check()
        work.pause(0.01)


class Meddler:
    """A relay from the client to the target, of which `change` gets each chunk.  Nothing goes the other way."""

    def __init__(self, port: int, change: Callable[[bytes], bytes]) -> None:
        self._to, self._change = port, change

    def __call__(self, sock: socket.socket, target: Target) -> str:
        with socket.create_connection(("127.0.0.1", self._to)) as onward:
            onward.sendall(sock.recv(8, socket.MSG_WAITALL))
            while data := sock.recv(65536):
                onward.sendall(self._change(data))
        return "end"


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + data[-1:],
        lambda data: data[1:2] + data[:1] + data[2:],
        lambda data: bytes([data[0] ^ 1]) + data[1:],
    ],
    ids=["lost", "doubled", "reordered", "changed"],
)
def test_one_wrong_byte_is_a_failure(change: Callable[[bytes], bytes]) -> None:
    with ExitStack() as stack:
        work = stack.enter_context(Workload(seed=5, slots=1, patience=2))
        meddler = stack.enter_context(Target(Meddler(target_port(work), change)))
        work.start(meddler.port)
        with pytest.raises(AssertionError, match=r"the target's end got wrong bytes at offset \d+: "):
            run_to_failure(work)


def test_an_orderly_end_in_place_of_a_reset_is_a_failure() -> None:
    def soften(sock: socket.socket, target: Target) -> str:
        """A relay that knows no resets."""
        with socket.create_connection(("127.0.0.1", target_port(work))) as onward:
            ways = {sock: onward, onward: sock}
            with contextlib.suppress(OSError):
                while ways:
                    for source in select.select(ways, [], [])[0]:
                        if data := source.recv(65536):
                            ways[source].sendall(data)
                        else:
                            ways.pop(source).shutdown(socket.SHUT_WR)
        return "end"

    with ExitStack() as stack:
        work = stack.enter_context(Workload(seed=6, slots=len(SHAPES), patience=2))
        softener = stack.enter_context(Target(soften))
        work.start(softener.port)
        with pytest.raises(AssertionError, match=r"orderly end at offset .* had reset the stream"):
            run_to_failure(work)


def test_a_flow_is_the_same_however_it_is_cut_and_knows_what_was_sent() -> None:
    flow = Flow("a")
    data = b"".join(flow.make(count) for count in (1, 20_000, 3, 16_384, 7))
    assert data == Flow("a").make(len(data))
    assert data != Flow("b").make(len(data))
    for begin in range(0, len(data), 1000):
        flow.check(data[begin : begin + 1000])
    flow.check_end()
    after = Flow("a").make(len(data) + 1)[-1:]
    with pytest.raises(Wrong, match=f"got {len(data) + 1} bytes, and only {len(data)} were sent"):
        flow.check(after)


def test_a_flow_that_ends_early_or_goes_wrong_says_where() -> None:
    flow = Flow("a")
    data = flow.make(100)
    flow.check(data[:40])
    with pytest.raises(Wrong, match="the end at offset 40, and 100 bytes were sent"):
        flow.check_end()
    with pytest.raises(Wrong, match="wrong bytes at offset 41"):
        flow.check(data[40:41] + b"?" + data[42:])
