"""The figures of a measurement, from what was timed: latency, jitter, throughput, and how they change over time.

Pure.  Seconds, bytes and bits a second; what is shown to people is in `qanat.measure.chart`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

INTERVAL = 0.1
"""Seconds of one point in what is shown over time."""


@dataclass(frozen=True, slots=True)
class Ping:
    """One question that was answered: when it was asked, in seconds since the step began, and how long it took."""

    at: float
    took: float


@dataclass(frozen=True, slots=True)
class Mark:
    """How many bytes had come when a step was so many seconds old."""

    at: float
    received: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Round trips, in seconds.  `jitter` is the mean of how far each is from the one before it (RFC 3550 §6.4.1)."""

    count: int
    least: float
    median: float
    p90: float
    p99: float
    most: float
    jitter: float

    @classmethod
    def of(cls, pings: Sequence[Ping]) -> Latency | None:
        """Return the figures of `pings`, in the order in which they were asked; None without any."""
        if not pings:
            return None
        took = [ping.took for ping in pings]
        ordered = sorted(took)
        changes = [abs(later - earlier) for earlier, later in pairwise(took)]
        return cls(
            count=len(took),
            least=ordered[0],
            median=statistics.median(ordered),
            p90=percentile(ordered, 90),
            p99=percentile(ordered, 99),
            most=ordered[-1],
            jitter=statistics.fmean(changes) if changes else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Throughput:
    """What went one way: `received` bytes in `seconds`, and the bits a second of each INTERVAL."""

    received: int
    seconds: float
    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, marks: Sequence[Mark]) -> Throughput | None:
        """Return the figures of `marks`, in their order; None where no time passed between the first and the last."""
        samples = sorted(rates(marks))
        if not samples:
            return None
        return cls(
            received=marks[-1].received,
            seconds=marks[-1].at - marks[0].at,
            median=statistics.median(samples),
            p10=percentile(samples, 10),
            p90=percentile(samples, 90),
        )


@dataclass(frozen=True, slots=True)
class Step:
    """What one step has timed: pings, and while they were sent the bytes that came; none in an idle step."""

    pings: Sequence[Ping]
    marks: Sequence[Mark] = ()

    @property
    def latency(self) -> Latency | None:
        """The figures of its pings."""
        return Latency.of(self.pings)

    @property
    def throughput(self) -> Throughput | None:
        """The figures of its bytes."""
        return Throughput.of(self.marks)

    def latency_over_time(self) -> list[float | None]:
        """Return the longest round trip of each INTERVAL, in seconds; None for one in which no ping was asked."""
        return _over_time([(ping.at, ping.took) for ping in self.pings], max)

    def throughput_over_time(self) -> list[float]:
        """Return the bits a second of each INTERVAL."""
        return rates(self.marks)


def rates(marks: Sequence[Mark]) -> list[float]:
    """Return the bits a second of each whole INTERVAL from the first to the last of `marks`; of all, if it is shorter.

    Between two marks bytes come evenly, as far as anyone knows; so a stall is as long here as it was.
    """
    if not marks or marks[-1].at <= marks[0].at:
        return []
    first, last = marks[0].at, marks[-1].at
    whole = int((last - first) / INTERVAL + 1e-6)
    if not whole:
        return [(marks[-1].received - marks[0].received) * 8 / (last - first)]
    reached = _at_times(marks, [first + INTERVAL * number for number in range(whole + 1)])
    return [(later - earlier) * 8 / INTERVAL for earlier, later in pairwise(reached)]


def _at_times(marks: Sequence[Mark], times: Sequence[float]) -> list[float]:
    """Return how many bytes had come at each of `times`, which ascend and begin with the first mark's."""
    reached: list[float] = []
    number = 1
    for time in times:
        while number < len(marks) - 1 and marks[number].at < time:
            number += 1
        before, after = marks[number - 1], marks[number]
        took = after.at - before.at
        share = min(1.0, (time - before.at) / took) if took > 0 else 1.0
        reached.append(before.received + (after.received - before.received) * share)
    return reached


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the least of `ordered`, which must not be empty, that so many percent of them do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _over_time(values: Sequence[tuple[float, float]], combine: Callable[[list[float]], float]) -> list[float | None]:
    slots: dict[int, list[float]] = {}
    for at, value in values:
        slots.setdefault(max(0, int(at / INTERVAL)), []).append(value)
    return [combine(slots[slot]) if slot in slots else None for slot in range(max(slots, default=-1) + 1)]
