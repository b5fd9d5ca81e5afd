"""What is counted: values by size, happenings by word, and no more words than a few."""

from __future__ import annotations

import threading

from qanat.base.events import LATENCIES, MOST_LABELS, OTHER, Events, Histogram, Tally


def test_a_value_counts_within_each_bound_that_it_does_not_exceed() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 7.0):
        histogram.observe(value)
    assert histogram.read() == ([2, 3, 4], 10.0)


def test_labels_are_bounded() -> None:
    tally = Tally()
    for number in range(3 * MOST_LABELS):
        tally.add(str(number))
    tally.add("0")
    counts = tally.read()
    assert len(counts) == MOST_LABELS + 1
    assert counts["0"] == 2
    assert counts[OTHER] == 2 * MOST_LABELS


def test_nothing_is_lost_between_threads() -> None:
    events = Events()

    def count_loop() -> None:
        for _ in range(2000):
            events.answered(0.004)
            events.refused("quota")

    threads = [threading.Thread(target=count_loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts, total = events.round_trips.read()
    assert counts[-1] == 8000
    assert counts[LATENCIES.index(0.005)] == 8000
    assert abs(total - 32.0) < 1e-6
    assert {word: count for word, count in events.refusals.read().items() if count} == {"quota": 8000}
