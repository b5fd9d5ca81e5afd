"""Results as tables in Markdown, for the terminal, docs/PERFORMANCE.md and README.md."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.contenders import DIRECT, SSH
from benchmarks.figures import Figure
from benchmarks.report.goals import GOALS
from benchmarks.report.results import Results, machine
from benchmarks.report.summary import Spread

COLUMNS = (
    ("throughput.up.1", "up, Gbit/s"),
    ("throughput.down.1", "down, Gbit/s"),
    ("throughput.down.64", "64 streams down"),
    ("ping.p50", "ping p50, µs"),
    ("ping.p99", "ping p99, µs"),
    ("ping-bulk.p50", "ping beside bulk, ms"),
    ("connections.turn", "connections/s"),
    ("http.rate", "HTTP requests/s"),
    ("cpu.down", "CPU, ms/GB"),
)
"""Of the short table: figures and what their columns are called there."""


def number(value: float) -> str:
    """Return three digits that mean something."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def short_table(results: Results, only: Collection[str] | None = None) -> list[str]:
    """Return the main figures of every contender, or of `only` those: the median, and the ratio to OpenSSH -L."""
    known = {figure.name for figure in results.figures}
    columns = [(name, title) for name, title in COLUMNS if name in known]
    if not columns:
        columns = [(figure.name, _with_unit(figure)) for figure in results.figures[:6]]
    figures = {figure.name: figure for figure in results.figures}
    rows = []
    for one in results.contenders:
        if only is not None and one.name not in only:
            continue
        cells = []
        for name, _ in columns:
            spread, ratio = results.spread(one.name, name), results.ratio(one.name, name)
            if spread is None:
                cells.append("failed" if results.why_not(one.name, figures[name]).startswith("failed") else "")
            elif ratio is None or one.name in (SSH, DIRECT):
                cells.append(number(spread.median))
            else:
                cells.append(f"{number(spread.median)} ({ratio.median:.2f}x)")
        why = results.skipped.get(one.name)
        rows.append([one.title, *([why, *[""] * (len(columns) - 1)] if why else cells)])
    return _markdown(["", *(title for _, title in columns)], rows)


def full_tables(results: Results) -> list[str]:
    """Return every figure: median, least to greatest, ratio to OpenSSH -L, contenders in columns' stead in rows."""
    lines = []
    for figure in results.figures:
        rows = []
        for one in results.contenders:
            spread = results.spread(one.name, figure.name)
            if spread is None:
                why = results.why_not(one.name, figure)
                if why:
                    rows.append([one.title, why, "", ""])
                continue
            ratio = results.ratio(one.name, figure.name)
            rows.append(
                [
                    one.title,
                    number(spread.median),
                    _range(spread),
                    "" if ratio is None else f"{ratio.median:.2f} ({ratio.least:.2f} to {ratio.greatest:.2f})",
                ]
            )
        if rows:
            lines += [f"**{_with_unit(figure)}**, {figure.better} is better", ""]
            lines += [*_markdown(["", "median", "least to greatest", "to OpenSSH -L, in the same round"], rows), ""]
    return lines


def goal_table(results: Results) -> list[str]:
    """Return the goals that were measured, and whether each is reached."""
    rows = []
    for goal in GOALS:
        judged = goal.judge(results)
        if judged is not None:
            spread, reached = judged
            bound = f"{'at least' if goal.at_least else 'at most'} {number(goal.bound)} {goal.unit}".strip()
            rows.append([goal.title, bound, number(spread.median), _range(spread), "yes" if reached else "**no**"])
    return _markdown(["goal", "bound", "median", "least to greatest", "reached"], rows) if rows else []


def made_with(results: Results) -> str:
    """Return the day, the machine, and the versions of what took part, in one sentence."""
    about = machine()
    versions = {}
    for one in results.contenders:
        if one.name != DIRECT and not one.missing:
            program = "Qanat" if one.title.startswith("Qanat") else one.title.split(" ")[0].rstrip(",")
            if version := one.version():
                versions[program] = version
    parts = [
        results.date.split(" ")[0],
        f"{about['cores']} cores of {about['processor']}, {about['memory_gib']:.0f} GiB",
        str(about["kernel"]),
        f"Python {about['python']}",
        *(f"{name} {version}" for name, version in versions.items()),
        f"{results.rounds} round{'s' if results.rounds > 1 else ''}{', --quick' if results.quick else ''}",
        f"load average {about['load_average'][0]:.1f} at the end",
    ]
    return ", ".join(parts) + "."


def notes(results: Results) -> list[str]:
    """Return what a reader has to know beside the figures: what failed, what is missing, what the load itself took."""
    lines = [f"- {name}: {why}" for name, why in results.skipped.items()]
    for failure in results.failures:
        lines.append(f"- {failure.contender}, {failure.group}, round {failure.round + 1}: failed: {failure.why}")
    if results.load_cores:
        shown = ", ".join(f"{group} {cores:.2f}" for group, cores in results.load_cores.items())
        lines.append(f"- Cores that the load and the target took themselves, at most: {shown}.")
    if results.interrupted:
        lines.append("- The run was interrupted.")
    return lines


def put_between(path: Path, marker: str, lines: Sequence[str]) -> None:
    """Replace what stands between the two marker lines of a file.  Raises ValueError when they are not there."""
    text = path.read_text()
    first, last = f"<!-- {marker}: from here -->\n", f"<!-- {marker}: to here -->"
    if first not in text or last not in text:
        raise ValueError(f"{path.name} has no lines {first.strip()} and {last}")
    before, _, rest = text.partition(first)
    _, _, after = rest.partition(last)
    path.write_text(before + first + "\n".join(lines).rstrip() + "\n" + last + after)


def plain(lines: Sequence[str]) -> list[str]:
    """Return Markdown tables with their columns aligned, for a terminal."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    widths = [max((len(row[n]) for row in rows if n < len(row)), default=0) for n in range(max(map(len, rows)))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
        if not re.fullmatch(r"[-: ]*", "".join(row))
    ]


def _range(spread: Spread) -> str:
    return f"{number(spread.least)} to {number(spread.greatest)}"


def _with_unit(figure: Figure) -> str:
    return f"{figure.title}, {figure.unit}" if figure.unit else figure.title


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
