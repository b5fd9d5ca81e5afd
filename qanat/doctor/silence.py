"""How long silence survives: connections that say nothing for 10 to 130 s, all of them at once."""

from __future__ import annotations

import time

from qanat.base.deadline import Deadline
from qanat.base.errors import QanatError
from qanat.base.threads import ThreadGroup
from qanat.doctor.pipes import OPEN, Connect, send
from qanat.doctor.report import Outcome, Step
from qanat.doctor.subject import Seen, Subject
from qanat.measure.probes import GREETING, silence

LEAST, MOST, RATIO = 10, 130, 1.1
_GRACE = 8.0
"""Seconds that the word after the silence may take."""


def lengths(least: int = LEAST, most: int = MOST) -> list[int]:
    """Return the seconds of each silence: every one at most a tenth longer than the one before."""
    found = [least]
    while found[-1] < most:
        found.append(min(most, max(found[-1] + 1, int(found[-1] * RATIO))))
    return found


def check_silence(subject: Subject, seen: Seen, name: str, connect: Connect, seconds: list[int]) -> None:
    """Open a connection for each silence, and see which of them are heard again.  Blocks for the longest of them."""
    cut: list[float] = []
    survived: list[float] = []
    lost: list[float] = []
    threads = ThreadGroup("silence")
    for one in seconds:
        threads.start(
            f"doctor-silence {one}",
            lambda one=one: _be_silent(subject, connect, one, cut, survived, lost),  # type: ignore[misc]
        )
    threads.join(seconds[-1] + OPEN + _GRACE + 5)
    if survived:
        seen.survived[name] = max(survived)
    # A cut that shows says it to the second; one that does not lies between what survived and what did not.
    if cut:
        seen.cut_after[name] = min(cut)
    elif lost:
        seen.cut_after[name] = min(lost)
    if name in seen.cut_after:
        how = "cut" if cut else "lost without a word"
        result, outcome = f"{how} after {seen.cut_after[name]:.0f} s", Outcome.BAD
        if seen.cut_after[name] > KEEPALIVE:
            outcome = Outcome.NOTE
    elif survived:
        result, outcome = f"{max(survived):.0f} s and more", Outcome.OK
    else:
        result, outcome = "no connection could be kept for that", Outcome.NOTE
    tried = f"{len(seconds)} silent connections over {name}, {seconds[0]} to {seconds[-1]} s"
    seen.add(60, Step("silence", tried, result, outcome))


KEEPALIVE = 15.0
"""Seconds after which Qanat says something itself, as installed."""


def _be_silent(
    subject: Subject, connect: Connect, seconds: int, cut: list[float], survived: list[float], lost: list[float]
) -> None:
    began = None
    pipe = None
    try:
        pipe = connect(subject.url, route=subject.probing("pipe"), deadline=Deadline(OPEN), cancel=subject.cancel)
        with subject.cancel.waking(lambda: pipe.close("the examination is over")):
            pipe.set_read_timeout(OPEN)
            pipe.set_unauthenticated(True)
            if bytes(pipe.recv()) != GREETING:
                return
            send(pipe, silence(seconds))
            began = time.monotonic()
            pipe.set_read_timeout(seconds + _GRACE)
            pipe.recv()
            survived.append(float(seconds))
    except QanatError:
        if began is None or subject.cancel.canceled:
            return
        passed = time.monotonic() - began
        (cut if passed < seconds - 0.5 else lost).append(min(passed, float(seconds)))
    finally:
        if pipe is not None:
            pipe.close("the examination is over")
