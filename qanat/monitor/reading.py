"""A snapshot's JSON as a snapshot again, for who shows another process: `read_snapshot`.

That process may be of another version: what it says beyond what is known here is ignored, and what it does not say has
its default, or is empty.  Its texts come out printable.  Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from qanat.base.text import printable
from qanat.monitor.snapshot import ClientSnapshot, ServerSnapshot, Snapshot

_EMPTY: dict[type, Any] = {int: 0, bool: False}


def read_snapshot(content: object) -> Snapshot:
    """Return what `to_json` was made from.  Raises ValueError for what is nothing of the kind."""
    if not isinstance(content, Mapping) or content.get("role") not in ("server", "client"):
        raise ValueError("that is no status of a server or a client")
    snapshot: Snapshot = _reader(ServerSnapshot if content["role"] == "server" else ClientSnapshot)(content)
    return snapshot


@cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    """Return what makes a value as `hint` says of whatever was read, an empty one of what is something else.

    Made once for each hint: a large server's answer has a hundred thousand values.
    """
    if get_origin(hint) is tuple:
        read_each = _reader(get_args(hint)[0])
        return lambda value: tuple(map(read_each, value)) if isinstance(value, list) else ()
    if isinstance(hint, UnionType):
        read = _reader(next(each for each in get_args(hint) if each is not NoneType))
        return lambda value: None if value is None else read(value)
    if is_dataclass(hint) or hasattr(hint, "_fields"):
        return _fields_reader(hint)
    if hint is str:
        return lambda value: printable(value) if isinstance(value, str) else ""
    if hint is float:
        return lambda value: value if type(value) is float else float(value) if type(value) is int else 0.0
    empty = _EMPTY[hint]
    return lambda value: value if isinstance(value, hint) else empty


def _fields_reader(kind: type) -> Callable[[Any], Any]:
    hints = get_type_hints(kind)
    if is_dataclass(kind):
        defaults = {each.name: each.default for each in fields(kind)}
    else:  # a named tuple
        known: Mapping[str, Any] = getattr(kind, "_field_defaults", {})
        defaults = {name: known.get(name, MISSING) for name in hints}
    forms = [(name.rstrip("_"), _reader(hints[name]), default) for name, default in defaults.items()]

    def read(value: Any) -> Any:
        content = value if isinstance(value, Mapping) else {}
        return kind(
            *[
                read_field(content.get(key)) if default is MISSING or key in content else default
                for key, read_field, default in forms
            ]
        )

    return read
