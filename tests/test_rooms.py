"""Imports point downward only, no room has a circle inside, and what must not do I/O reaches nothing that could.

Imports for type checkers alone count like any other: who needs a name to be understood depends on it.
"""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "qanat"
ROOMS = [
    "base",
    "transports",
    "handshake",
    "mux",
    "endpoints",
    "config",
    "process",
    "service",
    "session",
    "monitor",
    "control",
    "measure",
    "client",
    "doctor",
    "server",
    "cli",
]
"""From the bottom up: each may import itself and those before it.  `server` knows neither `client` nor `doctor`."""

PURE = [
    "base/proxy_protocol",
    "mux/*",
    "handshake/*",
    "session/messages",
    "client/backoff",
    "config/access_rules",
    "config/address_ranges",
    "base/addresses",
    "endpoints/dynamic/asked",
    "endpoints/dynamic/http_proxy",
    "endpoints/dynamic/passwords",
    "endpoints/dynamic/socks4",
    "endpoints/dynamic/socks5",
    "monitor/snapshot",
    "base/errors",
    "transports/dial/urls",
    "transports/http2/frames",
    "transports/websocket/frames",
]
"""Patterns of modules that are pure: bytes and `now` in, values out."""
IMPURE = [
    "mux/lane",
    "mux/pipe_reader",
    "mux/pipe_runner",
    "mux/stream",
    "handshake/exchange",
    "handshake/key_pool",
    "handshake/identity",
]
"""The exceptions in those rooms: what has threads, a pipe or a file."""
FORBIDDEN = {"socket", "ssl", "select", "selectors", "threading", "queue", "time", "subprocess", "asyncio", "signal"}


def modules() -> list[str]:
    """Every module of the package by its path in it, without the ending: "mux/lane"."""
    found = PACKAGE.glob("**/*.py"), (PACKAGE / "transports").glob("**/*.py"), (PACKAGE / "handshake").glob("**/*.py")
    return sorted({str(path.relative_to(PACKAGE))[:-3] for paths in found for path in paths})


@cache
def imported(module: str) -> frozenset[str]:
    """What `module` imports: modules of the package by their paths, others by their first word."""
    return frozenset(_imports(module))


def _imports(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _named(alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            name = node.module or ""
            for alias in node.names:
                yield from _named(f"{name}.{alias.name}") if _path(f"{name}.{alias.name}") else _named(name)


def _named(name: str) -> Iterator[str]:
    path = _path(name)
    if path is not None:
        yield path
    elif not name.startswith("qanat"):
        yield name.partition(".")[0]


def _path(name: str) -> str | None:
    if not name.startswith("qanat."):
        return None
    path = name.removeprefix("qanat.").replace(".", "/")
    if (PACKAGE / f"{path}.py").exists():
        return path
    return f"{path}/__init__" if (PACKAGE / path / "__init__.py").exists() else None


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_is_below_it(room: str) -> None:
    above = {*ROOMS[ROOMS.index(room) + 1 :], "__init__", "__main__"} | (
        {"client", "doctor"} if room == "server" else set()
    )
    wrong = {
        f"{module} imports {name}"
        for module in modules()
        if module.startswith(f"{room}/")
        for name in imported(module)
        if name.partition("/")[0] in above or name in ("tests", "benchmarks", "tunnel", "transports", "handshake")
    }
    assert not wrong


def test_every_module_is_in_a_room() -> None:
    assert {module.partition("/")[0] for module in modules()} == {*ROOMS, "__init__", "__main__"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done or not (PACKAGE / f"{module}.py").exists():
            return []
        path.append(module)
        for name in sorted(imported(module)):
            if circle := visit(name):
                return circle
        path.pop()
        done.add(module)
        return []

    for module in modules():
        assert not (circle := visit(module)), " -> ".join(circle)


def _pure() -> list[str]:
    return [
        module
        for module in modules()
        if any(fnmatch.fnmatch(module, pattern) for pattern in PURE) and module not in IMPURE
    ]


@pytest.mark.parametrize("module", _pure())
def test_a_pure_module_reaches_no_socket_thread_or_clock(module: str) -> None:
    seen: set[str] = set()
    waiting = [(module, module)]
    while waiting:
        name, via = waiting.pop()
        assert name not in FORBIDDEN, f"{module} reaches {name} by {via}"
        if name not in seen and (PACKAGE / f"{name}.py").exists():
            seen.add(name)
            waiting.extend((next_name, name) for next_name in imported(name))
