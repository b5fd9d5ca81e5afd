"""docs/PROTOCOL.md as data: its tables and its hex examples, for tests that hold the code against them.

A table is found by the heading above it and the names of its columns, an example by the name behind
`hex` in its fence.  Nothing here knows what any of it means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PATH = Path(__file__).resolve().parents[2] / "docs" / "PROTOCOL.md"

Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    heading: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def codes(self, code: str, name: str) -> dict[str, int]:
        """The numbers in the column `code` by the words in the column `name`; rows without either are left out."""
        return {row[name].strip("`"): number(row[code]) for row in self.rows if row[code] and row[name]}


@dataclass(frozen=True)
class ProtocolPage:
    text: str
    tables: tuple[Table, ...]
    examples: dict[str, bytes]
    """The values of all blocks fenced as `hex NAME`, by name."""

    def table(self, *columns: str, under: str = "") -> Table:
        """The one table with all these columns, under a heading that contains `under`."""
        found = [table for table in self.tables if set(columns) <= set(table.columns) and under in table.heading]
        assert len(found) == 1, f"{len(found)} tables have the columns {columns} under a heading with {under!r}"
        return found[0]

    def says(self, *sentences: str) -> bool:
        """Whether each of `sentences` stands on the page, wherever its lines break."""
        flat = " ".join(self.text.split())
        missing = [sentence for sentence in sentences if sentence not in flat]
        assert not missing, f"the page no longer says {missing}"
        return True


def number(text: str) -> int:
    """The first whole number in `text`: "262,144 bytes" gives 262144, "16 MiB" 16777216."""
    found = re.search(r"(\d[\d,]*)\s*(KiB|MiB|GiB)?", text)
    assert found, f"no number in {text!r}"
    return int(found[1].replace(",", "")) * {None: 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[found[2]]


def load_page(path: Path = _PATH) -> ProtocolPage:
    text = path.read_text(encoding="utf-8")
    return ProtocolPage(text, tuple(_tables(text)), _examples(text))


def _tables(text: str) -> Iterator[Table]:
    heading = ""
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(line)
            continue
        if lines:
            yield _table(heading, lines)
            lines = []
        if line.startswith("#"):
            heading = line.lstrip("# ")


def _table(heading: str, lines: list[str]) -> Table:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    columns, rule, body = cells[0], cells[1], cells[2:]
    assert all(set(cell) == {"-"} for cell in rule), f"no table under {heading!r}: {lines[0]}"
    if len(set(columns)) == len(columns):
        return Table(heading, tuple(columns), tuple(dict(zip(columns, row, strict=True)) for row in body))
    # Two tables side by side share names of columns: the later ones are told apart by the first column of their half.
    named, left = [], columns[0]
    for position, column in enumerate(columns):
        if position and columns[position - 1] == "":
            left = column
        named.append(f"{left} {column}" if columns.count(column) > 1 and column else column)
    rows = tuple({key: cell for key, cell in zip(named, row, strict=True) if key} for row in body)
    return Table(heading, tuple(key for key in named if key), rows)


def _examples(text: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, body in re.findall(r"^```hex ([^\n]+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        assert name not in found, f"two examples are called {name!r}"
        found[name] = bytes.fromhex(body)
    return found
