"""A bar chart of one figure as SVG, written by hand so that nothing has to be installed for it."""

from __future__ import annotations

from html import escape
from pathlib import Path

from benchmarks.contenders import SSH
from benchmarks.figures import Figure
from benchmarks.report.results import Results
from benchmarks.report.tables import number

_ROW, _LEFT, _WIDTH, _RIGHT, _TOP = 24, 220, 420, 150, 44
_OURS, _SSH, _OTHERS = "#1f6f8b", "#99582a", "#a3a9ad"


def bars(results: Results, figure: Figure) -> str | None:
    """Return the SVG of a figure: a bar to each median, a line from least to greatest; None when nothing has it."""
    found = [(one, results.spread(one.name, figure.name)) for one in results.contenders]
    rows = [(one, spread) for one, spread in found if spread is not None]
    if not rows:
        return None
    top = max(spread.greatest for _, spread in rows) or 1.0
    unit = f", {figure.unit}" if figure.unit else ""
    width, height = _LEFT + _WIDTH + _RIGHT, _TOP + _ROW * len(rows) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="10" y="24" font-size="15">{escape(figure.title + unit)} ({figure.better} is better)</text>',
    ]
    for number_of_row, (one, spread) in enumerate(rows):
        y = _TOP + _ROW * number_of_row
        color = _SSH if one.name == SSH else _OURS if one.title.startswith("Qanat") else _OTHERS
        end, least, most = (_LEFT + _WIDTH * v / top for v in (spread.median, spread.least, spread.greatest))
        parts += [
            f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(one.title)}</text>',
            f'<rect x="{_LEFT}" y="{y}" width="{max(1.0, end - _LEFT):.1f}" height="17" fill="{color}"/>',
            f'<path d="M{least:.1f} {y + 8.5}H{most:.1f}M{least:.1f} {y + 4}v9M{most:.1f} {y + 4}v9" stroke="#000"/>',
            f'<text x="{max(end, most) + 8:.1f}" y="{y + 13}">{number(spread.median)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Write an SVG for every figure that has values into `folder`, which is made; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in results.figures:
        picture = bars(results, figure)
        if picture is not None:
            written.append(folder / f"{figure.name}.svg")
            written[-1].write_text(picture)
    return written
