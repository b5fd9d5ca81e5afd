"""A snapshot's JSON as a snapshot again, for who shows another process: `read_snapshot`.

That process may be of another version: what it says beyond what is known here is ignored, and what it does not say has
its default, or is empty.  Its texts come out printable.  Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from qanat.base.text import printable
from qanat.monitor.snapshot import ClientSnapshot, ServerSnapshot, Snapshot

_EMPTY: dict[type, Any] = {str: "", int: 0, float: 0.0, bool: False}


def read_snapshot(content: object) -> Snapshot:
    """Return what `to_json` was made from.  Raises ValueError for what is nothing of the kind."""
    if not isinstance(content, Mapping) or content.get("role") not in ("server", "client"):
        raise ValueError("that is no status of a server or a client")
    snapshot: Snapshot = _read(ServerSnapshot if content["role"] == "server" else ClientSnapshot, content)
    return snapshot


@cache
def _shape(kind: type) -> tuple[tuple[Field[Any], Any], ...]:
    hints = get_type_hints(kind)
    return tuple((each, hints[each.name]) for each in fields(kind))


def _read(hint: Any, value: Any) -> Any:
    """Return `value` as what `hint` says, an empty one where it is something else."""
    if get_origin(hint) is tuple:
        return tuple(_read(get_args(hint)[0], each) for each in value) if isinstance(value, list) else ()
    if isinstance(hint, UnionType):
        inner = next(each for each in get_args(hint) if each is not NoneType)
        return None if value is None else _read(inner, value)
    if is_dataclass(hint):
        return _read_fields(hint, value if isinstance(value, Mapping) else {})  # type: ignore[arg-type]
    if hint is str:
        return printable(value) if isinstance(value, str) else ""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value if isinstance(value, hint) else _EMPTY[hint]


def _read_fields(kind: type, content: Mapping[str, Any]) -> Any:
    given: dict[str, Any] = {}
    for each, hint in _shape(kind):
        key = each.name.rstrip("_")
        if key in content:
            given[each.name] = _read(hint, content[key])
        elif each.default is MISSING:
            given[each.name] = _read(hint, None)
    return kind(**given)
