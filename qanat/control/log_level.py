"""`log-level`: changes how much the running process logs, until it is changed again, or the process ends."""

from __future__ import annotations

from qanat.control.commands import Answer, Request
from qanat.process.log import log_levels, set_log_level


def log_level(request: Request) -> Answer:
    """Set `level` for `logger` (default: all), where there is one; answer with what is set now."""
    level = request.text("level", "")
    if level:
        set_log_level(level, request.text("logger", ""))
    return {"levels": log_levels()}
