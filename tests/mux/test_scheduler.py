"""Promises of qanat.mux.scheduler: equal shares whatever the size of frames, and no turn that nobody needs."""

from __future__ import annotations

from collections import deque

import pytest

from qanat.mux.scheduler import QUANTUM, Scheduler
from qanat.mux.stream_state import StreamState
from qanat.mux.window import ReceiveWindow, WindowBudget


def stream(number: int) -> StreamState:
    return StreamState(number, b"", 1 << 20, ReceiveWindow(131_072, 1 << 20, WindowBudget(1 << 20), 0.0))


def sent_by(sizes: dict[int, int], frames: int) -> dict[int, int]:
    """Bytes that each stream has sent after so many frames, all of the size that `sizes` has for it."""
    scheduler, sent = Scheduler(), dict.fromkeys(sizes, 0)
    for number in sizes:
        one = stream(number)
        scheduler.add(one)
        one.queue.append(b"something, always")
    for _ in range(frames):
        turn = scheduler.peek()
        assert turn is not None
        scheduler.charge(turn, sizes[turn.id])
        sent[turn.id] += sizes[turn.id]
    return sent


@pytest.mark.parametrize("sizes", [{1: 100, 3: 255 * 1024}, {1: 16_384, 3: 131_072, 5: 255 * 1024}])
def test_streams_with_small_frames_have_as_many_bytes_as_others(sizes: dict[int, int]) -> None:
    sent = sent_by(sizes, 20_000)
    assert max(sent.values()) - min(sent.values()) <= max(sizes.values()) + QUANTUM


@pytest.mark.parametrize("size", [1, QUANTUM - 1, QUANTUM, QUANTUM + 1, 255 * 1024])
def test_who_is_alone_has_its_turn_at_once_and_no_more_than_its_turns_would_give(size: int) -> None:
    scheduler, alone = Scheduler(), stream(1)
    scheduler.add(alone)
    alone.queue.append(b"something, always")
    by_turns = QUANTUM
    for _ in range(50):
        assert scheduler.peek() is alone
        while by_turns <= 0:
            by_turns += QUANTUM
        assert alone.deficit == by_turns
        scheduler.charge(alone, size)
        by_turns -= size


@pytest.mark.parametrize("twice", [0, 1, 4])
def test_of_many_that_come_anew_all_the_time_none_waits_longer_than_all_others_take(twice: int) -> None:
    # As the sender has a crowd's sockets read: a few at a time, in turn; some had two buffers waiting once.
    size, at_once, streams = 96 * 1024, 5, [stream(number) for number in range(1, 401, 2)]
    scheduler, line, waiting = Scheduler(), deque(streams), 0
    last, longest = dict.fromkeys(streams, 0), 0
    for turn in range(10 * len(streams)):
        while waiting < at_once:
            one = line.popleft()
            frames = 2 if turn == 0 and waiting < 2 * twice else 1
            if not one.queue:
                scheduler.add(one, size)
            one.queue.extend([b"a buffer"] * frames)
            waiting += frames
            line.append(one)
        sent = scheduler.peek()
        assert sent is not None
        sent.queue.popleft()
        scheduler.charge(sent, size)
        waiting -= 1
        longest, last[sent] = max(longest, turn - last[sent]), turn
    assert longest <= len(streams) + 4 * at_once


@pytest.mark.parametrize("others", [2, 8, 16])
@pytest.mark.parametrize("late", [0, 1, 2, 4])
def test_who_runs_empty_after_each_large_frame_has_no_more_than_others(others: int, late: int) -> None:
    scheduler, size, large = Scheduler(), 128 * 1024, 255 * 1024
    refilled, steady = stream(1), [stream(number) for number in range(3, 3 + 2 * others, 2)]
    sent = dict.fromkeys([refilled, *steady], 0)
    due = 0
    for turn in range(4000):
        for one in steady[: turn + 1]:  # they begin one after the other
            if not one.queue:
                scheduler.add(one, size)
                one.queue += [b"a buffer"] * 2
        if not refilled.queue and turn >= due:
            scheduler.add(refilled, large)
            refilled.queue.append(b"a large one")
        turns = scheduler.peek()
        assert turns is not None
        turns.queue.popleft()
        taken = large if turns is refilled else size
        scheduler.charge(turns, taken)
        sent[turns] += taken
        if turns is refilled:
            due = turn + 1 + late
    assert sent[refilled] <= 1.1 * sum(sent[one] for one in steady) / others
