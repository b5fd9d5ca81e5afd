"""Figures over lines that are long or narrow: between two namespaces, through `benchmarks.rig.line`.

Raw TCP takes the same line, and is the row to compare with.
"""

from __future__ import annotations

from benchmarks.contenders import Contender, Running
from benchmarks.figures import Figure, Lengths, Values, percentile
from benchmarks.rig import load
from benchmarks.rig.namespaces import Line

MBIT, GBIT = 1_000_000, 1_000_000_000


def _bytes(rate: float, seconds: float) -> int:
    return int(rate / 8 * seconds)


LONG = Line("long", "100 ms, 1 Gbit/s", 0.05, GBIT, _bytes(GBIT, 0.1))
"""Its queue holds as much as the line itself: what a router for such a line has."""
NARROW = Line("narrow", "40 ms, 20 Mbit/s", 0.02, 20 * MBIT, _bytes(20 * MBIT, 0.25))
"""With a queue of 250 ms, as home routers have: who fills it waits in it."""


def lines(lengths: Lengths) -> list[Line]:
    """Return the lines to measure over."""
    long = [
        Line(
            f"{LONG.name}{f'-{loss:.1%}' if loss else ''}",
            f"{LONG.title}, {loss:.1%} loss" if loss else LONG.title,
            LONG.delay,
            LONG.rate,
            LONG.queue,
            loss,
        )
        for loss in lengths.losses
    ]
    return [*long, NARROW]


def path_figures(lengths: Lengths) -> list[Figure]:
    """Return the figures of all lines."""
    found = []
    for line in lines(lengths):
        if line is NARROW:
            found += [
                Figure(f"{line.name}.idle.p99", f"{line.title}: ping p99, idle", "ms", "less"),
                Figure(f"{line.name}.p99", f"{line.title}: ping p99 beside 8 streams both ways", "ms", "less"),
                Figure(f"{line.name}.up", f"{line.title}: share of the line, up", "%", "more"),
                Figure(f"{line.name}.down", f"{line.title}: share of the line, down", "%", "more"),
            ]
        else:
            for way in ("up", "down"):
                found.append(Figure(f"{line.name}.{way}", f"{line.title}: {way}, 1 stream", "Gbit/s", "more"))
            if not line.loss and 64 in lengths.streams:
                found.append(Figure(f"{line.name}.64", f"{line.title}: down, 64 streams", "Gbit/s", "more"))
                found.append(Figure(f"{line.name}.fair", f"{line.title}: slowest of 64 to their mean", "", "more"))
    return found


def measure_path(running: Running, contender: Contender, lengths: Lengths, line: Line) -> Values:
    """Measure a contender that runs over `line`, from its near end."""
    address, values = running.address, Values()
    if line.rate <= NARROW.rate:
        idle = sorted(load.ping(address, lengths.path / 2))
        with load.Beside(address, streams=8, up=True, down=True, warm=lengths.path_warm) as beside:
            loaded = sorted(load.ping(address, lengths.path))
        assert beside.carried is not None
        values[f"{line.name}.idle.p99"] = percentile(idle, 0.99) * 1e3
        values[f"{line.name}.p99"] = percentile(loaded, 0.99) * 1e3
        values[f"{line.name}.up"] = beside.carried.up * 8 / line.rate * 100
        values[f"{line.name}.down"] = beside.carried.down * 8 / line.rate * 100
        return values

    def carry(streams: int, up: bool) -> load.Carried:
        return load.bulk(address, streams=streams, up=up, down=not up, seconds=lengths.path, warm=lengths.path_warm)

    values[f"{line.name}.up"] = carry(1, True).up * 8 / 1e9
    values[f"{line.name}.down"] = carry(1, False).down * 8 / 1e9
    if not line.loss and 64 in lengths.streams:
        carried = carry(64, False)
        values[f"{line.name}.64"] = carried.down * 8 / 1e9
        values[f"{line.name}.fair"] = carried.fairness
    return values
