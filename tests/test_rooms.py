"""Imports point downward only, and what must not do I/O imports nothing that could."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ["base", "transports", "handshake", "mux", "endpoints", "service"]
"""From the bottom up: each may import itself and those before it."""

PURE = [
    *(f"mux/{name}.py" for name in (
        "core", "frames", "outbox", "owed", "parameters", "receiving", "scheduler", "sending", "slab", "stream",
        "stream_state", "window",
    )),
    *(f"handshake/{name}.py" for name in ("fields", "hello", "machine", "messages", "schedule", "sealed", "tokens")),
    "service/backoff.py", "service/messages.py",
]  # fmt: skip
IMPURE = {"socket", "ssl", "select", "selectors", "threading", "queue", "time", "subprocess", "asyncio"}


def imported(path: Path) -> Iterator[str]:
    """The first words of all that `path` imports, those for type checkers alone left out."""
    tree = ast.parse(path.read_text(), str(path))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_is_below_it(room: str) -> None:
    above = {*ROOMS[ROOMS.index(room) + 1 :], "tunnel", "tests", "benchmarks"}
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / room).rglob("*.py")
        for name in imported(path)
        if name in above
    }
    assert not wrong


@pytest.mark.parametrize("file", PURE)
def test_a_sans_io_module_imports_no_socket_thread_or_clock(file: str) -> None:
    assert not IMPURE & set(imported(ROOT / file))
