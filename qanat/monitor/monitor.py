"""What one running end serves for those who look after it: the listener, and what answers on which path.

The server and the client make one each, where their settings have `monitor:`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qanat.base.deadline import Deadline
from qanat.base.events import Events
from qanat.base.watcher import Watcher
from qanat.config.settings import MonitorSettings
from qanat.monitor.http import Handler
from qanat.monitor.listener import MonitorListener
from qanat.monitor.page.page import Page
from qanat.monitor.snapshot import Finding, Snapshot
from qanat.monitor.sums import Look


@dataclass(frozen=True, slots=True)
class Source:
    """What is shown: one running server or client."""

    snapshot: Callable[[], Snapshot]
    """Takes a snapshot, with all streams; may block for a moment."""
    sums: Look
    """Adds up what a scrape needs: cheap, however many sessions and streams there are."""
    events: Events


class Monitor:
    """The listener and what it serves, from `start` to `close`; any thread may call these."""

    def __init__(self, settings: MonitorSettings, watcher: Watcher, source: Source) -> None:
        """Bind.  Raises BindError or EndpointError when the address cannot be had."""
        self._page = Page(source.snapshot, watcher)
        self._listener = MonitorListener(settings, {**routes(settings, source), **self._page.routes}, watcher)

    @property
    def address(self) -> str:
        """What is listened on: ADDRESS:PORT with the real port, or the path of a Unix socket."""
        return self._listener.address

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong, as of a few seconds ago."""
        return self._page.findings

    def start(self) -> None:
        """Answer from now on, and keep the last hour.  Does not block.  Raises EndpointError without a thread."""
        self._listener.start()
        self._page.start()

    def close(self, timeout: float = 0.0) -> list[str]:
        """Listen no more, and end all answers.  Idempotent.

        Blocks at most `timeout` seconds for the threads; returns the names of those that still run.
        """
        deadline = Deadline(timeout)
        stuck = self._listener.close(timeout)
        return [*stuck, *self._page.close(deadline.remaining() or 0.0)]


def open_monitor(settings: MonitorSettings | None, watcher: Watcher, source: Source) -> Monitor | None:
    """Return the listener with all that is served on it, bound and not started; None where none is wanted.

    Raises BindError or EndpointError when its address cannot be had.
    """
    return None if settings is None else Monitor(settings, watcher, source)


def routes(settings: MonitorSettings, source: Source) -> Mapping[str, Handler]:
    """Return what answers for each path beside the page's."""
    from qanat.monitor.metrics import Metrics  # with a library that nobody else needs

    return {"/metrics": Metrics(source.sums, source.events, settings.max_clients).answer}
