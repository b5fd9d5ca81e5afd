"""What one running end serves for those who look after it: the listener, and what answers on which path.

The server and the client make one each, where their settings have `monitor:`.
"""

from __future__ import annotations

from collections.abc import Mapping

from qanat.base.watcher import Watcher
from qanat.config.settings import MonitorSettings
from qanat.monitor.http import Handler
from qanat.monitor.listener import MonitorListener


def open_monitor(settings: MonitorSettings | None, watcher: Watcher) -> MonitorListener | None:
    """Return the listener with all that is served on it, bound and not started; None where none is wanted.

    Raises BindError or EndpointError when its address cannot be had.
    """
    if settings is None:
        return None
    return MonitorListener(settings, routes(), watcher)


def routes() -> Mapping[str, Handler]:
    """Return what answers for each path."""
    from qanat.monitor.metrics import Metrics  # with a library that nobody else needs

    return {"/metrics": Metrics().answer}
