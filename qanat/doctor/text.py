"""A report as people read it in a terminal: what was tried, what was found, and what to do.  Pure."""

from __future__ import annotations

import textwrap

from qanat.base.redaction import hide_tokens
from qanat.base.text import printable
from qanat.doctor.report import Finding, Outcome, Report, Severity, Step, Verdict
from qanat.measure.chart import Style

_MARKS = {Outcome.OK: "ok", Outcome.NOTE: "--", Outcome.BAD: "!!", Outcome.SKIPPED: ".."}
_COLORS = {Outcome.OK: "32", Outcome.NOTE: "33", Outcome.BAD: "31", Outcome.SKIPPED: "2"}
_SEVERITIES = {
    Severity.FATAL: "problem",
    Severity.FLAW: "flaw",
    Severity.LIMIT: "limit",
    Severity.NOTE: "note",
}
_VERDICTS = {
    Verdict.SOUND: "The path is sound.",
    Verdict.FLAWED: "It gets through, and something should be changed.",
    Verdict.BLOCKED: "Nothing gets through.",
    Verdict.REFUSED: "The path is sound, and the server refuses.",
}
_NAME = 12
_TIME = 9


def report_text(report: Report, style: Style, *, details: bool = False) -> str:
    """Return the report, in lines that end; `details` has settings for every product, where one is not known."""
    lines = [style.bold(report.url), ""]
    for step in report.steps:
        lines += _step(step, style)
    lines.append("")
    for finding in report.findings:
        lines += _finding(finding, style, details=details)
    lines += _verdict(report, style)
    return "\n".join(hide_tokens(line) for line in lines) + "\n"


def _step(step: Step, style: Style) -> list[str]:
    mark = _MARKS[step.outcome]
    if style.color:
        mark = f"\x1b[{_COLORS[step.outcome]}m{mark}\x1b[0m"
    seconds = "" if step.seconds is None else _duration(step.seconds)
    head = f"{mark} {step.name:<{_NAME}} {seconds:>{_TIME}}  "
    indent = " " * (4 + _NAME + _TIME + 2)
    text = printable(f"{step.tried}: {step.result}")
    wrapped = textwrap.wrap(text, max(30, style.columns - len(indent))) or [""]
    return [head + wrapped[0], *(indent + line for line in wrapped[1:])]


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _finding(finding: Finding, style: Style, *, details: bool) -> list[str]:
    lines = [style.bold(f"{_SEVERITIES[finding.severity]}: {finding.code}")]
    lines += _wrapped(finding.text, style)
    lines += _wrapped(f"To do: {finding.cure}.", style)
    settings = finding.settings
    if len(settings) > 1 and not details:
        names = ", ".join(one.product for one in settings)
        lines += _wrapped(f"The setting for {names}: docs/DOCTOR.md#{finding.code}, or --verbose.", style)
        settings = ()
    for one in settings:
        lines.append(f"  {one.product}:")
        lines += [f"    {line}" for line in one.text.splitlines()]
    lines.append("")
    return lines


def _wrapped(text: str, style: Style) -> list[str]:
    return [f"  {line}" for line in textwrap.wrap(printable(text), style.columns - 2)]


def _verdict(report: Report, style: Style) -> list[str]:
    lines = [style.bold(_VERDICTS[report.verdict])]
    if report.transport:
        through = [name for name, works in report.transports.items() if works]
        lines.append(f"Use `transport: {report.transport}`.  What gets through: {', '.join(through)}.")
    trip = report.figures.get("round_trip_s")
    if trip is not None:
        jitter = report.figures.get("jitter_s", 0.0)
        lines.append(f"Round trip {_duration(trip)}, jitter {_duration(jitter)}.")
    return lines
