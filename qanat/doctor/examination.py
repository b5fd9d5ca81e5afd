"""One examination: all checks side by side, each in a thread and with a deadline, and a judgment of what they found.

Checks dial for themselves and know nothing of each other, so the whole takes as long as the longest of them; only the
handshake waits for the transports, and silence for the one that is best.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from qanat.base.cancel import Cancel
from qanat.base.errors import NoThread
from qanat.base.threads import ThreadGroup
from qanat.client.connect import route_of
from qanat.config.client_settings import ClientSettings, RemoteServer
from qanat.doctor import pipes, reach, requests, silence
from qanat.doctor.judge import PREFERENCE, judge
from qanat.doctor.report import Outcome, Report, Step
from qanat.doctor.subject import Seen, Subject
from qanat.transports.dial.urls import TunnelUrl

LIMIT = 18.0
"""Seconds that everything but silence may take."""
_AT_ONCE = 12
"""Threads that check at once: more would slow each other's times down."""

Progress = Callable[[str, float], object]
"""Is told what is being done, and how much of it all is done, from 0 to 1."""


def examine(
    settings: ClientSettings,
    server: RemoteServer,
    url: TunnelUrl,
    *,
    has_token: bool,
    idle: bool = False,
    progress: Progress = lambda what, done: None,
    silences: list[int] | None = None,
) -> Report:
    """Examine one URL, and return what was found.  Blocks for LIMIT seconds, with `idle` for some minutes.

    Raises UsageError for files and variables that cannot be used.
    """
    route = route_of(settings)
    route = replace(route, proxy=route.proxy_for(url))
    if url.tls:
        route.tls_context(())  # what is wrong with files ends the examination before it begins
    cancel = Cancel()
    subject, seen = Subject(url, route, settings, server, has_token, cancel), Seen()
    try:
        _run(subject, seen, progress)
        if idle:
            _be_silent(subject, seen, silences or silence.lengths(), progress)
    finally:
        cancel.cancel()
    requests.name_product(seen)
    return judge(subject, seen)


def _run(subject: Subject, seen: Seen, progress: Progress) -> None:
    """Run the checks; those that are not over in time are left behind, canceled, and said to be so."""
    ends = time.monotonic() + LIMIT
    first: list[tuple[str, Callable[[], object]]] = [
        ("the name and its addresses", partial(reach.check_name, subject, seen)),
        ("the proxy", partial(reach.check_proxy, subject, seen)),
        ("TLS", partial(reach.check_tls, subject, seen)),
        *(
            (f"the transport {name}", partial(pipes.check_transport, subject, seen, name, connect))
            for name, connect in pipes.transports().items()
        ),
        ("Upgrade", partial(requests.check_upgrade, subject, seen)),
        *((f"HTTP/{version}", partial(requests.check_plain, subject, seen, version)) for version in (1, 2)),
        ("HTTP/2's settings", partial(requests.check_settings, subject, seen)),
        *((f"requests, HTTP/{v}", partial(requests.check_request_held, subject, seen, v)) for v in (1, 2)),
        *((f"answers, HTTP/{v}", partial(requests.check_answer_held, subject, seen, v)) for v in (1, 2)),
        ("who stands there", partial(requests.check_product, subject, seen)),
        *((f"bodies of {size:,}", partial(requests.check_sizes, subject, seen, size)) for size in requests.SIZES_TRIED),
    ]
    _all(first, seen, progress, ends, subject.cancel)
    works = _working(seen)
    silent = not works and not any(asked.head for asked in seen.asked.values())
    if silent and not subject.url.tls and any(one.seconds is not None for one in seen.connected):
        _all([("TLS", partial(reach.check_tls_on_plain, subject, seen))], seen, progress, ends, subject.cancel)
    if subject.has_token and works and not subject.cancel.canceled:
        handshake = partial(pipes.check_token, subject, seen, works[0])
        _all([("the handshake", handshake)], seen, progress, ends, subject.cancel)


def _all(
    checks: list[tuple[str, Callable[[], object]]], seen: Seen, progress: Progress, ends: float, cancel: Cancel
) -> None:
    threads = ThreadGroup("doctor")
    waiting = list(checks)
    running: dict[str, object] = {}
    done = 0

    def run(name: str, check: Callable[[], object]) -> None:
        try:
            check()
        finally:
            running.pop(name, None)

    while waiting or running:
        while waiting and len(running) < _AT_ONCE:
            name, check = waiting.pop(0)
            running[name] = check
            try:
                threads.start(f"doctor {name}", partial(run, name, check))
            except NoThread:
                running.pop(name)
                seen.add(90, Step("skipped", name, "there was no thread for it", Outcome.SKIPPED))
        if time.monotonic() >= ends:
            cancel.cancel()
            for name in [*running, *(name for name, _ in waiting)]:
                seen.add(90, Step("skipped", name, "it was not over in time", Outcome.SKIPPED))
            break
        done = len(checks) - len(waiting) - len(running)
        progress(", ".join(list(running)[:2]), done / len(checks))
        time.sleep(0.02)  # there is no condition to wait on that would draw the bar too
    threads.join(1.0)


def _working(seen: Seen) -> list[str]:
    works = {name for name, tried in seen.tried.items() if tried.works}
    return [name for name in PREFERENCE if name in works] + sorted(works - set(PREFERENCE))


def _be_silent(subject: Subject, seen: Seen, seconds: list[int], progress: Progress) -> None:
    """Have the best transport be silent for every time, and each other one for the longest."""
    works = [name for name in _working(seen) if seen.tried[name].probes]
    known = pipes.transports()
    threads = ThreadGroup("silence")
    ends = time.monotonic() + seconds[-1] + 20
    over: list[str] = []

    def check(name: str, chosen: list[int]) -> None:
        silence.check_silence(subject, seen, name, known[name], chosen)
        over.append(name)

    for number, name in enumerate(works):
        chosen = seconds if number == 0 else seconds[-1:]
        threads.start(f"doctor silence {name}", partial(check, name, chosen))
    began = time.monotonic()
    while len(over) < len(works) and time.monotonic() < ends:
        progress("silence", min(1.0, (time.monotonic() - began) / (seconds[-1] + 1)))
        time.sleep(0.1)
    subject.cancel.cancel()
    threads.join(2.0)
