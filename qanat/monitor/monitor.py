"""What one running end serves for those who look after it: the listener, and what answers on which path.

The server and the client make one each, where their settings have `monitor:`, and give it other ones while it runs: the
listener is another one then, and what it shows goes on, the last hour and the metrics' labels included.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from qanat.base.deadline import Deadline
from qanat.base.errors import BindError, EndpointError
from qanat.base.events import Events
from qanat.base.watcher import Watcher
from qanat.config.settings import MonitorSettings
from qanat.monitor.http import Handler
from qanat.monitor.listener import MonitorListener
from qanat.monitor.page.page import Page
from qanat.monitor.snapshot import Finding, Snapshot
from qanat.monitor.sums import Look

log = logging.getLogger("qanat.monitor")


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
        self.settings = settings
        """What it goes by now."""
        self._watcher = watcher
        self._source = source
        self._page = Page(source.snapshot, watcher)
        self._metrics = _metrics(settings, source)
        self._listener = self._listen(settings, self._metrics)

    def _listen(self, settings: MonitorSettings, metrics: Handler) -> MonitorListener:
        return MonitorListener(settings, {"/metrics": metrics, **self._page.routes}, self._watcher)

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

    def change(self, settings: MonitorSettings) -> Callable[[], None]:
        """Answer by other settings from now on; return what takes that back.  One thread at a time.

        A browser that watches comes back by itself.  Raises as the beginning and `start`: then all is as it was.
        """
        former, metrics, before = self.settings, self._metrics, self._listener
        wanted = metrics if settings.max_clients == former.max_clients else _metrics(settings, self._source)
        try:
            self._begin(self._listen(settings, wanted))
        except (BindError, EndpointError):
            before.close()  # it may stand in the way
            try:
                self._begin(self._listen(settings, wanted))
            except BaseException:
                self._begin(self._listen(former, metrics))
                raise
        before.close()
        self.settings, self._metrics = settings, wanted

        def take_back() -> None:
            self._listener.close()
            self.settings, self._metrics = former, metrics
            try:
                self._begin(self._listen(former, metrics))
            except (BindError, EndpointError) as error:
                log.error("%s; it was listened on before, and is not any more", error)

        return take_back

    def _begin(self, listener: MonitorListener) -> None:
        try:
            listener.start()
        except BaseException:
            listener.close()
            raise
        self._listener = listener

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


@dataclass(frozen=True, slots=True)
class MonitorChange:
    """What other settings make of a monitor.  It is in effect; one of `keep` and `undo` is called then."""

    monitor: Monitor | None
    keep: Callable[[], object]
    undo: Callable[[], object]


def change_monitor(
    monitor: Monitor | None, settings: MonitorSettings | None, watcher: Watcher, source: Source
) -> MonitorChange:
    """Have a running end go by these settings of its `monitor`, None where it has or wants none; return what that is.

    Raises BindError or EndpointError, and has changed nothing then.
    """
    if monitor is None:
        made = open_monitor(settings, watcher, source)
        if made is None:
            return MonitorChange(None, _nothing, _nothing)
        try:
            made.start()
        except BaseException:
            made.close()
            raise
        return MonitorChange(made, _nothing, made.close)
    if settings is None:
        return MonitorChange(None, monitor.close, _nothing)
    return MonitorChange(monitor, _nothing, _nothing if settings == monitor.settings else monitor.change(settings))


def _nothing() -> None:
    """There is nothing to do."""


def _metrics(settings: MonitorSettings, source: Source) -> Handler:
    from qanat.monitor.metrics import Metrics  # with a library that nobody else needs

    return Metrics(source.sums, source.events, settings.max_clients).answer
