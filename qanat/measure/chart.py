"""A measurement as people read it in a terminal: a table, bars over time, and a bar that shows how far it is.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qanat.measure.figures import Latency, Throughput
from qanat.measure.report import DOWNLOAD, IDLE, UPLOAD, Report

NARROWEST = 40
"""Columns that are used however narrow the terminal says it is."""
WIDEST = 120
"""Columns that are used however wide it is."""

_LEVELS = "▁▂▃▄▅▆▇█"
_ASCII_LEVELS = "_.:-=+*#"
_LABEL = 10
_TITLES = {IDLE: "idle", DOWNLOAD: "download", UPLOAD: "upload"}
_LATENCY_COLUMNS = ("median", "p90", "p99", "min", "max", "jitter")
_THROUGHPUT_COLUMNS = ("median", "p10", "p90", "in all")


@dataclass(frozen=True, slots=True)
class Style:
    """What the terminal can show."""

    width: int = 80
    unicode: bool = True
    color: bool = False

    @property
    def columns(self) -> int:
        """How many columns to use."""
        return max(NARROWEST, min(WIDEST, self.width))

    def bold(self, text: str) -> str:
        """Return `text` as a heading."""
        return f"\x1b[1m{text}\x1b[0m" if self.color else text

    def tinted(self, text: str) -> str:
        """Return `text` as part of a plot."""
        return f"\x1b[36m{text}\x1b[0m" if self.color else text


def report_text(report: Report, style: Style) -> str:
    """Return the table and the plots, in lines that end."""
    lines = [style.bold(f"{report.client} to {report.url} over {report.transport}")]
    lines += [f"server {report.node}, {report.agent}", ""]
    lines += _table("latency", _LATENCY_COLUMNS, _latency_rows(report), style)
    lines += _table("throughput", _THROUGHPUT_COLUMNS, _throughput_rows(report), style)
    lines += _plots(report, style)
    if not report.complete:
        lines.append("The measurement was cut short: this is what there was until then.")
    return "\n".join(lines) + "\n"


def bars(values: Sequence[float | None], width: int, *, unicode: bool) -> str:
    """Return a bar for each value, from 0 to the largest, at most `width` of them; a space where there is none.

    More values than `width` are put together: a bar shows the largest of its own.
    """
    levels = _LEVELS if unicode else _ASCII_LEVELS
    shown = _fit(values, width)
    top = max((value for value in shown if value is not None), default=0.0)
    drawn = []
    for value in shown:
        if value is None:
            drawn.append(" ")
        else:
            drawn.append(levels[min(len(levels) - 1, int(value / top * len(levels)))] if top > 0 else levels[0])
    return "".join(drawn)


def progress_bar(what: str, done: float, style: Style) -> str:
    """Return one line, without an end, that says how far `what` is; `done` is from 0 to 1."""
    width = style.columns - _LABEL - 8
    full = round(max(0.0, min(1.0, done)) * width)
    filled, empty = ("█", "░") if style.unicode else ("#", ".")
    return f"{what:<{_LABEL}} {style.tinted(filled * full)}{empty * (width - full)} {done:4.0%}"


def rate_text(bits: float) -> str:
    """Return bits a second for people: `940 Mbit/s`."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits < 999.5:
            return f"{_three_digits(bits)} {unit}"
        bits /= 1000
    return f"{_three_digits(bits)} Gbit/s"


def time_text(seconds: float) -> str:
    """Return a time for people: `0.62 ms`."""
    return f"{_three_digits(seconds * 1000)} ms" if seconds < 1 else f"{_three_digits(seconds)} s"


def size_text(size: float) -> str:
    """Return an amount of bytes for people: `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{_three_digits(size)} {unit}"
        size /= 1000
    return f"{_three_digits(size)} TB"


def _three_digits(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _fit(values: Sequence[float | None], width: int) -> list[float | None]:
    if len(values) <= width:
        return list(values)
    fitted: list[float | None] = []
    for column in range(width):
        part = values[column * len(values) // width : (column + 1) * len(values) // width]
        fitted.append(max((value for value in part if value is not None), default=None))
    return fitted


def _latency_rows(report: Report) -> list[tuple[str, list[str]]]:
    rows = []
    for name, step in report.steps.items():
        found: Latency | None = step.latency
        if found is not None:
            times = (found.median, found.p90, found.p99, found.least, found.most, found.jitter)
            rows.append((_TITLES[name], [time_text(value) for value in times]))
    return rows


def _throughput_rows(report: Report) -> list[tuple[str, list[str]]]:
    rows = []
    for name, step in report.steps.items():
        found: Throughput | None = step.throughput
        if found is not None:
            cells = [rate_text(value) for value in (found.median, found.p10, found.p90)]
            rows.append((_TITLES[name], [*cells, size_text(found.received)]))
    return rows


def _table(title: str, columns: Sequence[str], rows: list[tuple[str, list[str]]], style: Style) -> list[str]:
    """Return a table of as many columns as the terminal has room for, and an empty line; nothing without rows."""
    if not rows:
        return []
    widths = [
        max(len(text) for text in texts) + 2 for texts in zip(columns, *(cells for _, cells in rows), strict=True)
    ]
    while sum(widths) + _LABEL > style.columns and len(widths) > 1:
        widths.pop()
    head = f"{title:<{_LABEL}}" + "".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=False))
    lines = [style.bold(head)]
    for label, cells in rows:
        lines.append(f"{label:<{_LABEL}}" + "".join(f"{t:>{width}}" for t, width in zip(cells, widths, strict=False)))
    return [*lines, ""]


def _plots(report: Report, style: Style) -> list[str]:
    """Return bars over time for each step: throughput, and the longest round trip."""
    lines: list[str] = []
    for name, step in report.steps.items():
        rates, times = step.throughput_over_time(), step.latency_over_time()
        series: list[tuple[str, Sequence[float | None], Callable[[float], str]]] = []
        if rates:
            series.append((_TITLES[name], rates, rate_text))
        if any(value is not None for value in times):
            series.append(("  latency" if series else _TITLES[name], times, time_text))
        for label, values, text in series:
            top = max(value for value in values if value is not None)
            most = f" max {text(top)}"
            drawn = bars(values, style.columns - _LABEL - 16, unicode=style.unicode)
            lines.append(f"{label:<{_LABEL}}{style.tinted(drawn)}{most}")
    return [*lines, ""] if lines else []
