"""`status`: show what runs here, who is connected and what moves; its exit code is for monitoring."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qanat.base.errors import QanatError, UsageError
from qanat.cli.output import write_out
from qanat.cli.status_tables import MOST_ROWS, Table, heading_of, tables_of
from qanat.cli.target import FINDING, SAME_VERSION, add_target, chosen
from qanat.control.asking import MAX_LINE, ControlFault, NotRunning
from qanat.control.running import NothingRuns, Running
from qanat.monitor.reading import read_snapshot
from qanat.monitor.snapshot import Snapshot
from qanat.monitor.summary import name_of, problems_of, summary_of

if TYPE_CHECKING:
    from rich.console import RenderableType

OK, WARNING, CRITICAL = 0, 1, 2
"""The exit codes, as Nagios and its kin read those of a plugin."""
WIDE = 120
"""Columns of a terminal from which on tables are drawn."""

DETAILS = (
    """\
The first line of each process begins with OK, WARNING or CRITICAL, and the exit code is that of the worst, as
Nagios, Icinga and monit expect of a check:
  0  all is connected: at a client every server that it wants, at a server every client that it waits for
  1  something is not connected, a forward does not listen, a lane does not move, or a NAME is not connected
  2  nothing runs, or what runs does not answer (also bad usage)

"""
    + FINDING
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    add_target(parser)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="clients that must be connected; other sessions are left out"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print one JSON object (docs/CONTROL.md)")
    shape.add_argument("--brief", action="store_true", help="print the first line of each alone")
    parser.add_argument("--all", action="store_true", help="show every row of a long table")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=2.0,
        metavar="SECONDS",
        help="show it again every so many seconds (default: 2) until Ctrl-C",
    )
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="SECONDS", help="wait so long for an answer (default: 10)"
    )


@dataclass(frozen=True, slots=True)
class Look:
    """What one round of asking has found."""

    snapshots: tuple[Snapshot, ...]
    content: tuple[object, ...]  # what they were made from
    faults: tuple[QanatError, ...]  # of those that do not answer
    missing: tuple[str, ...]  # of the names that must be connected

    @property
    def code(self) -> int:
        """The exit code."""
        if self.faults or not self.snapshots:
            return CRITICAL
        return WARNING if self.missing or any(map(problems_of, self.snapshots)) else OK


def run(options: argparse.Namespace) -> int:
    """Show it, once or until Ctrl-C, and return the exit code.  Raises UsageError and ConfigError."""
    for value, name in ((options.watch, "--watch"), (options.timeout, "--timeout")):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{name} must be a number of seconds above 0")
    if options.watch is None:
        look = _look(options)
        _show(look, options)
        return look.code
    return _watch(options)


def _watch(options: argparse.Namespace) -> int:
    drawn = _is_wide() and not (options.json or options.brief)
    code = CRITICAL
    try:
        if drawn:
            from rich.live import Live

            with Live(screen=True, auto_refresh=False) as live:
                while True:
                    look = _look(options)
                    live.update(_drawn(look, options), refresh=True)
                    code = look.code
                    time.sleep(options.watch)
        while True:
            look = _look(options)
            _show(look, options)
            code = look.code
            if not options.json:
                write_out("\n")
            time.sleep(options.watch)
    except KeyboardInterrupt:
        return code


# --- asking -----------------------------------------------------------------------------------------


def _look(options: argparse.Namespace) -> Look:
    snapshots: list[Snapshot] = []
    content: list[object] = []
    faults: list[QanatError] = []
    try:
        meant = chosen(options)
    except NothingRuns as error:
        meant, faults = [], [error]
    for one in meant:
        try:
            said, snapshot = _ask(one, options)
        except NotRunning:
            if options.config is not None or options.socket is not None:
                faults.append(NothingRuns(f"nothing runs on {options.socket or options.config}", hint="start it"))
        except QanatError as error:
            faults.append(error)
        else:
            content.append(said)
            snapshots.append(snapshot)
    if not snapshots and not faults:
        faults.append(
            NothingRuns("nothing runs here", hint="start it, say which with -c FILE, or run this as its user")
        )
    connected = {s.name for each in snapshots for s in each.sessions if s.state == "connected" and not s.measures}
    missing = tuple(name for name in options.names if name not in connected)
    return Look(tuple(_named(each, options.names) for each in snapshots), tuple(content), tuple(faults), missing)


def _ask(one: Running, options: argparse.Namespace) -> tuple[object, Snapshot]:
    # Nobody is asked for thousands of sessions and streams that are not shown.
    wanted: dict[str, Any] = {}
    if not (options.json or options.all or options.names):
        wanted["sessions"] = wanted["streams"] = 0 if options.brief else MOST_ROWS
    elif options.names and not options.json:
        if len(json.dumps(options.names)) < MAX_LINE // 2:
            wanted["names"] = options.names
        if options.brief:
            wanted["streams"] = 0
    said = one.ask("status", timeout=options.timeout, **wanted).get("status")
    try:
        return said, read_snapshot(_outline(said) if options.json else said)
    except (ValueError, TypeError, KeyError) as error:
        raise ControlFault(f"what {one.path} answers is not understood", hint=SAME_VERSION) from error


def _outline(said: object) -> object:
    """Return what was said with no more of its sessions than the exit code needs: thousands of values less to read."""
    if not isinstance(said, dict) or not isinstance(said.get("sessions"), list):
        return said
    sessions = [
        {key: each.get(key) for key in ("name", "state", "measures")}
        for each in said["sessions"]
        if isinstance(each, dict)
    ]
    return {**said, "sessions": sessions, "peers": []}


def _named(snapshot: Snapshot, names: Sequence[str]) -> Snapshot:
    """Return the snapshot with the sessions of these names alone, where there are any names."""
    if not names:
        return snapshot
    return replace(
        snapshot,
        sessions=tuple(each for each in snapshot.sessions if each.name in names),
        forwards=tuple(each for each in snapshot.forwards if each.client in names),
    )


# --- showing ----------------------------------------------------------------------------------------


def _show(look: Look, options: argparse.Namespace) -> None:
    if options.json:
        found = {"version": 1, "code": look.code, "processes": look.content, "errors": [str(e) for e in look.faults]}
        write_out(json.dumps(found) + "\n")
        return
    if _is_wide() and not options.brief:
        from rich.console import Console

        Console().print(_drawn(look, options))
        return
    write_out("\n".join(_plain(look, options)) + "\n")


def _is_wide() -> bool:
    return sys.stdout.isatty() and shutil.get_terminal_size().columns >= WIDE


def _verdicts(look: Look) -> list[str]:
    """Return the first line of each process, and what else is wrong."""
    lines = [f"CRITICAL: {error}" for error in look.faults]
    for name in look.missing:
        lines.append(f"WARNING: {name} is not connected")
    return lines


def _verdict(snapshot: Snapshot) -> str:
    wrong = problems_of(snapshot)
    text = f"{'WARNING' if wrong else 'OK'}: {name_of(snapshot)}: {summary_of(snapshot)}"
    more = [each for each in wrong if each not in text]
    return text + (f" ({'; '.join(more)})" if more else "")


def _plain(look: Look, options: argparse.Namespace) -> list[str]:
    lines = _verdicts(look)
    for snapshot in look.snapshots:
        lines.append(_verdict(snapshot))
        if options.brief:
            continue
        lines += (f"  {line}" for line in heading_of(snapshot))
        for table in tables_of(snapshot, everything=options.all):
            lines += ["", f"  {table.title}"]
            lines += _narrow(table) if sys.stdout.isatty() else _columns(table)
    return lines


def _columns(table: Table) -> list[str]:
    """Return a table as aligned columns, whole lines however long they are."""
    rows = [table.columns, *table.rows]
    widths = [max(len(row[index]) for row in rows) for index in range(len(table.columns))]
    aligned = [
        (str.rjust if column in table.right else str.ljust, width)
        for column, width in zip(table.columns, widths, strict=True)
    ]
    lines = [
        "    " + "  ".join(align(cell, width) for cell, (align, width) in zip(row, aligned, strict=True)).rstrip()
        for row in rows
    ]
    return [*lines, *([f"    {table.more}"] if table.more else [])]


def _narrow(table: Table) -> list[str]:
    """Return a table as a paragraph for each row, for a terminal that its columns would not fit."""
    lines: list[str] = []
    for row in table.rows:
        first, *rest = zip(table.columns, row, strict=True)
        said = ", ".join(f"{column.lower()} {cell}" for column, cell in rest if cell not in ("-", "none", ""))
        lines.append(f"    {first[1]}: {said}")
    return [*lines, *([f"    {table.more}"] if table.more else [])]


def _drawn(look: Look, options: argparse.Namespace) -> RenderableType:
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    parts: list[RenderableType] = [Text(line, style="bold red") for line in _verdicts(look)]
    for snapshot in look.snapshots:
        style = "bold yellow" if problems_of(snapshot) else "bold green"
        parts.append(Text(_verdict(snapshot), style=style))
        parts += (Text(f"  {line}", style="dim") for line in heading_of(snapshot))
        for table in tables_of(snapshot, everything=options.all):
            drawn = RichTable(title=Text(table.title), title_justify="left", caption=Text(table.more), pad_edge=False)
            # A column that says nothing of any row only takes the others' room.
            kept = [n for n in range(len(table.columns)) if any(row[n] not in ("-", "none") for row in table.rows)]
            for column in (table.columns[index] for index in kept):
                drawn.add_column(column, justify="right" if column in table.right else "left", overflow="fold")
            for row in table.rows:
                drawn.add_row(*(Text(row[index]) for index in kept))
            parts.append(drawn)
    return Group(*parts)
