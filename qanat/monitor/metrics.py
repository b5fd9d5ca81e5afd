"""Metrics in Prometheus' text format, made when somebody asks for them.

`prometheus-client` writes the format and counts what the process itself costs.  Only an end with `monitor:` loads this.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from qanat.base.request_head import RequestHead
from qanat.monitor.http import Response


class Metrics:
    """What `/metrics` answers.  Safe to use from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def answer(self, head: RequestHead) -> Response:
        """Return all metrics as they are now."""
        return Response(generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4)
