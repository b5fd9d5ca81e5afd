"""Whether what comes and goes is freed as soon as nobody needs it, or stays until the collector finds it.

`stays_behind` does something several times without the collector, and says what of this program, or of a library that
it uses, is still there afterwards or can only be freed by the collector.  Logging is off meanwhile: pytest keeps what
is logged, and the errors in it keep their frames.
"""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from types import CellType, FrameType, FunctionType, MethodType
from typing import Any

from tests.support.background import DEADLINE

_OURS = frozenset({"qanat", "h2", "hpack", "hyperframe", "h11", "wsproto", "websocket", "simple_websocket", "ssl"})
_KEPT = frozenset({"_Worker", "Buffer", "ClientKey"})  # for the next one to use, by a pool


def stays_behind(action: Callable[[], object], times: int = 3) -> str:
    """Do `action`, once and then `times` times without the collector; return what stays, "" when nothing does.

    Waits for what is ending anyway.  It must not fail, and leave as much alive as it has found.
    """
    logging.disable()
    try:
        action()
        gc.collect()
        gc.disable()
        before = _alive()
        for _ in range(times):
            action()
        text = _grown(before, times)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        text += _describe(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        logging.disable(logging.NOTSET)
    return text


def _grown(before: Counter[str], times: int) -> str:
    """Wait until no type has one more for each time; return those that do.  Threads may hold their last."""
    deadline = time.monotonic() + DEADLINE
    while grown := Counter({name: n for name, n in (_alive() - before).items() if n >= times}):
        if time.monotonic() > deadline:
            return f"still alive: {dict(grown)}\n"
        time.sleep(0.02)
    return ""


def _alive() -> Counter[str]:
    """How many instances of our types there are, in cycles or not."""
    kinds = Counter(map(type, gc.get_objects()))
    alive: Counter[str] = Counter()
    for kind, count in kinds.items():
        if _is_ours(kind) and kind.__name__ not in _KEPT:
            alive[f"{kind.__module__}.{kind.__qualname__}"] += count
    return alive


def _describe(garbage: list[Any]) -> str:
    if not garbage:
        return ""
    types = Counter(_name(each) for each in garbage)
    lines = [f"only the collector frees {len(garbage)} objects: {dict(types.most_common(12))}"]
    inside = {id(each) for each in garbage}
    found: dict[frozenset[str], str] = {}
    for each in garbage:
        if _is_ours(type(each)) or isinstance(each, FrameType | MethodType | FunctionType):
            names = [_name(one) for one in _cycle(each, inside)]
            found.setdefault(frozenset(names), " -> ".join(names))
    return "\n".join([*lines, *sorted(filter(None, found.values()), key=len)[:8]])


def _cycle(start: Any, inside: set[int]) -> list[Any]:
    """Return the shortest way from `start` to itself by what the collector has found; nothing when there is none."""
    came_from: dict[int, Any] = {}
    waiting = deque([start])
    while waiting:
        each = waiting.popleft()
        for referent in gc.get_referents(each):
            if referent is start:
                way = [each]
                while way[-1] is not start:
                    way.append(came_from[id(way[-1])])
                return way[::-1]
            if id(referent) in inside and id(referent) not in came_from:
                came_from[id(referent)] = each
                waiting.append(referent)
    return []


def _is_ours(kind: type) -> bool:
    return str(kind.__module__).partition(".")[0] in _OURS


def _name(each: Any) -> str:
    if isinstance(each, FrameType):
        return f"frame of {each.f_code.co_qualname}, line {each.f_lineno}"
    if isinstance(each, FunctionType | MethodType):
        return f"{type(each).__name__} {each.__qualname__}"
    if isinstance(each, CellType):
        return "cell"
    return f"{type(each).__module__}.{type(each).__qualname__}"
