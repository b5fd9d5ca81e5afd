"""A line between two TUN devices: `python -m benchmarks.rig.line FD FD DELAY RATE QUEUE LOSS`.

Each way has its own queue: a packet leaves it when those before it have, at RATE bits a second, and arrives DELAY
seconds later.  What would have to wait behind more than QUEUE bytes is dropped, as by a router; so is a share of LOSS
at random, by a fixed seed.

The kernel hands over TCP's segments in bundles of up to 64 KiB (TSO), which is what lets Python carry gigabits.  Loss
is by segment all the same: a bundle that loses one goes on as what was before the hole, and what was after it.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import struct
import sys
import time
from collections import deque

_VNET = struct.Struct("<BBHHHH")
"""struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset."""
_TCP4 = 1
"""gso_type: a bundle of TCP segments over IPv4."""
_LARGEST = 65536 + 64
_IN_FLIGHT = 4096
"""Packets read from one device before the other has its turn."""


class Direction:
    """Packets that are on their way from one device to the other."""

    def __init__(self, out: int, delay: float, rate: float, queue: int, loss: float, seed: int) -> None:
        self._out, self._delay, self._bytes_a_second, self._queue, self._loss = out, delay, rate / 8, queue, loss
        self._random = random.Random(seed)
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._free = 0.0
        """When the line will have sent everything that it has taken."""

    def take(self, packet: bytes, now: float) -> None:
        """A packet, with its virtio header, has come to the line."""
        for part in split_by_loss(packet, self._loss, self._random) if self._loss else (packet,):
            if (self._free - now) * self._bytes_a_second > self._queue:
                continue
            self._free = max(self._free, now) + (len(part) - _VNET.size) / self._bytes_a_second
            self._under_way.append((self._free + self._delay, part))

    def deliver(self, now: float) -> float | None:
        """Hand over what has arrived; when the next will arrive, or None."""
        while self._under_way and self._under_way[0][0] <= now:
            try:
                os.write(self._out, self._under_way.popleft()[1])
            except OSError:
                continue  # the far kernel has no room: lost, as anywhere
        return self._under_way[0][0] if self._under_way else None


def split_by_loss(packet: bytes, loss: float, chance: random.Random) -> list[bytes]:
    """Return what is left of a packet, or bundle of them, when each segment is lost with probability `loss`."""
    _, kind, _, size, _, _ = _VNET.unpack_from(packet)
    bundle = kind & 0x7F == _TCP4 and size > 0
    if not bundle:
        return [] if chance.random() < loss else [packet]
    ip = _VNET.size
    headers = (packet[ip] & 0xF) * 4
    headers += (packet[ip + headers + 12] >> 4) * 4
    body = packet[ip + headers :]
    segments = -(-len(body) // size)
    lost = [number for number in range(segments) if chance.random() < loss]
    if not lost:
        return [packet]
    parts, first = [], 0
    for hole in (*lost, segments):
        if hole > first:
            last = hole == segments
            parts.append(_part(packet, ip, headers, first * size, body[first * size : hole * size], last))
        first = hole + 1
    return parts


def _part(packet: bytes, ip: int, headers: int, skipped: int, body: bytes, last: bool) -> bytes:
    """Some segments of a bundle, beginning `skipped` bytes into it, with headers of their own.

    The checksum of TCP is left to do, as it was: the kernel that gets it does not look at one that has never left the
    machine.
    """
    flags, kind, head, size, start, offset = _VNET.unpack_from(packet)
    if len(body) <= size:
        kind = size = 0
    out = bytearray(packet[: ip + headers])
    _VNET.pack_into(out, 0, flags, kind, head, size, start, offset)
    struct.pack_into("!H", out, ip + 2, headers + len(body))
    struct.pack_into("!H", out, ip + 10, 0)
    length = (out[ip] & 0xF) * 4
    struct.pack_into("!H", out, ip + 10, _checksum(out[ip : ip + length]))
    tcp = ip + length
    sequence = struct.unpack_from("!I", out, tcp + 4)[0]
    struct.pack_into("!I", out, tcp + 4, (sequence + skipped) & 0xFFFFFFFF)
    if not last:
        out[tcp + 13] &= ~0x09 & 0xFF  # FIN and PSH belong to the last segment
    return bytes(out) + body


def _checksum(header: bytes | bytearray) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def carry(first: int, second: int, delay: float, rate: float, queue: int, loss: float) -> None:
    """Carry packets between two devices for ever."""
    ways = {
        first: Direction(second, delay, rate, queue, loss, 1),
        second: Direction(first, delay, rate, queue, loss, 2),
    }
    wait: float | None = None
    while True:
        ready, _, _ = select.select(list(ways), (), (), wait)
        for device in ready:
            for _ in range(_IN_FLIGHT):
                try:
                    packet = os.read(device, _LARGEST)
                except BlockingIOError:
                    break
                ways[device].take(packet, time.monotonic())
        now = time.monotonic()
        times = [at for way in ways.values() if (at := way.deliver(now)) is not None]
        wait = max(0.0, min(times) - time.monotonic()) if times else None


def main() -> None:
    """Read the arguments; this process is what the network is made of, so it goes before others where it may."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    first, second, delay, rate, queue, loss = sys.argv[1:]
    carry(int(first), int(second), float(delay), float(rate), int(queue), float(loss))


if __name__ == "__main__":
    main()
