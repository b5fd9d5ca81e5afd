"""The flags of a command line, made from the options that they set; what is declared nowhere has no flag here."""

from __future__ import annotations

import argparse
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from qanat.config.options import Flag, Kind, Option, options_of

_TYPES = {Kind.WHOLE: int, Kind.NUMBER: float, Kind.PATH: Path}


def add_flags(
    group: argparse._ActionsContainer, settings: type, *, beside_file: bool, without: Container[str] = ()
) -> None:
    """Add the flags of `settings` and of the sections and entries below: those that go with a file, or the others.

    `without` has the `dest` of those that are left out.
    """
    for option, flag in flags_of(settings):
        if flag.beside_file == beside_file and flag.dest not in without:
            _add_flag(group, option, flag)


def flags_of(settings: type) -> Iterator[tuple[Option, Flag]]:
    """Yield each option that has a flag, with it."""
    for option in options_of(settings):
        below = option.settings or option.declared.entries
        if below is not None:
            yield from flags_of(below)
        for flag in option.declared.flags:
            yield option, flag


def given_flags(options: argparse.Namespace, settings: type) -> Mapping[str, Any]:
    """Return the values of the flags of `settings` that stood on the command line, by their `dest`."""
    return {flag.dest: getattr(options, flag.dest) for _, flag in flags_of(settings) if hasattr(options, flag.dest)}


def _add_flag(group: argparse._ActionsContainer, option: Option, flag: Flag) -> None:
    more: dict[str, Any] = {}
    if flag.const is not None or option.kind is Kind.SWITCH:
        more |= {"action": "store_const", "const": True if flag.const is None else flag.const}
    else:
        more |= {"metavar": flag.metavar or None, "type": _type_of(option, flag)}
        if option.kind is Kind.CHOICE:
            more["choices"] = option.declared.choices
        if flag.repeated:
            more["action"] = "append"
    group.add_argument(
        *flag.names, dest=flag.dest, default=argparse.SUPPRESS, help=help_of(option, flag).replace("%", "%%"), **more
    )


def _type_of(option: Option, flag: Flag) -> type:
    # An option with a form of its own says by the metavar that a file is meant.
    return Path if option.kind is Kind.OWN and flag.metavar == "FILE" else _TYPES.get(option.kind, str)


def help_of(option: Option, flag: Flag) -> str:
    """Return what --help says: the documentation, and limits, unit and default."""
    declared = option.declared
    text = flag.help or _lowered(declared.doc.split(". ")[0].rstrip("."))
    facts = []
    if option.kind in (Kind.WHOLE, Kind.NUMBER):
        facts.append(f"{option.bounds} {declared.unit}".strip())
    default = declared.unset or _shown(option.default)
    if flag.const is None and default:
        facts.append(f"default: {default}")
    return f"{text} ({'; '.join(facts)})" if facts else text


def _shown(default: object) -> str:
    if isinstance(default, str | int | float) and not isinstance(default, bool):
        return f"{default:g}" if isinstance(default, float) else str(default)
    if isinstance(default, tuple) and all(isinstance(part, str) for part in default):
        return ",".join(default)
    return ""


def _lowered(text: str) -> str:
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
