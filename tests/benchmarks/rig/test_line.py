"""The line between two namespaces: rate, queue, and loss by segment.  No device is needed for these."""

from __future__ import annotations

import os
import random
import struct

import pytest

from benchmarks.rig.line import Direction, split_by_loss

MSS = 1000
VIRTIO = struct.Struct("<BBHHHH")


def bundle(body: bytes, *, sequence: int = 7000, flags: int = 0x18) -> bytes:
    """TCP over IPv4 as the kernel hands it over with TSO: a virtio header, IP, TCP, and several segments' bytes."""
    tcp = struct.pack("!HHIIBBHHH", 1, 2, sequence, 0, 5 << 4, flags, 100, 0, 0)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + len(body), 0, 0, 64, 6, 0, b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02")
    return VIRTIO.pack(1, 1, 40, MSS, 20, 16) + ip + tcp + body


class Chance(random.Random):
    """Loses those whose numbers are given, counted from the first question on."""

    def __init__(self, *lost: int) -> None:
        super().__init__(0)
        self._lost, self._asked = lost, -1

    def random(self) -> float:
        self._asked += 1
        return 0.0 if self._asked in self._lost else 1.0


def parsed(packet: bytes) -> tuple[int, int, bytes]:
    """Sequence number, flags and body; checks the lengths and IP's checksum."""
    assert struct.unpack_from("!H", packet, 12)[0] == len(packet) - 10
    assert sum(struct.unpack_from("!10H", packet, 10)) % 0xFFFF == 0
    return struct.unpack_from("!I", packet, 34)[0], packet[43], packet[50:]


def test_without_loss_a_bundle_stays_what_it_is() -> None:
    whole = bundle(bytes(3 * MSS))
    assert split_by_loss(whole, 0.5, Chance()) == [whole]


@pytest.mark.parametrize("size", [3 * MSS, 2 * MSS + 1])
def test_a_lost_segment_leaves_what_was_before_and_after_it(size: int) -> None:
    body = os.urandom(size)
    first, last = split_by_loss(bundle(body), 0.5, Chance(1))
    assert parsed(first) == (7000, 0x10, body[:MSS])
    assert parsed(last) == (7000 + 2 * MSS, 0x18, body[2 * MSS :])
    assert VIRTIO.unpack_from(last)[1] == 0, "one segment is no bundle"


def test_all_of_it_may_be_lost() -> None:
    assert split_by_loss(bundle(bytes(2 * MSS)), 0.5, Chance(0, 1)) == []
    single = VIRTIO.pack(0, 0, 0, 0, 0, 0) + bytes(40)
    assert split_by_loss(single, 0.5, Chance(0)) == []
    assert split_by_loss(single, 0.5, Chance()) == [single]


def test_loss_is_as_often_as_asked_for() -> None:
    chance, left = random.Random(1), 0
    for _ in range(1000):
        left += sum(len(parsed(bytes(part))[2]) for part in split_by_loss_with_sums(chance))
    assert left / (1000 * 40 * MSS) == pytest.approx(0.99, abs=0.002)


def split_by_loss_with_sums(chance: random.Random) -> list[bytes]:
    """Those of a bundle that was touched; one that was not has no checksum yet, and counts as it is."""
    whole = bytearray(bundle(bytes(40 * MSS)))
    total = sum(struct.unpack_from("!10H", whole, 10))
    struct.pack_into("!H", whole, 20, ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)
    return split_by_loss(bytes(whole), 0.01, chance)


def test_packets_leave_at_the_rate_and_arrive_after_the_delay() -> None:
    reading, writing = os.pipe()
    try:
        way = Direction(writing, delay=1.0, rate=8000.0, queue=10_000, loss=0.0, seed=1)
        packet = VIRTIO.pack(0, 0, 0, 0, 0, 0) + bytes(1000)  # a second of the line
        way.take(packet, 100.0)
        way.take(packet, 100.0)
        assert way.deliver(101.9) == 102.0
        assert way.deliver(102.0) == 103.0
        assert way.deliver(103.0) is None
        assert len(os.read(reading, 5000)) == 2 * len(packet)
    finally:
        os.close(reading)
        os.close(writing)


def test_what_does_not_fit_into_the_queue_is_dropped() -> None:
    reading, writing = os.pipe()
    try:
        way = Direction(writing, delay=0.0, rate=8000.0, queue=2500, loss=0.0, seed=1)
        packet = VIRTIO.pack(0, 0, 0, 0, 0, 0) + bytes(1000)
        for _ in range(10):
            way.take(packet, 100.0)
        assert way.deliver(1000.0) is None
        assert len(os.read(reading, 50_000)) == 3 * len(packet)
    finally:
        os.close(reading)
        os.close(writing)
