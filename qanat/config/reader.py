"""A section of a configuration file, read as its options are declared.

`qanat.config.client` and `qanat.config.server` call this, and give it the values of what has a form of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from qanat.config.options import Kind, Option, conflicts_of, keys_below, options_of
from qanat.config.section import Section

T = TypeVar("T")


def read_options(s: Section, settings: type[T], *, elsewhere: Mapping[str, str] | None = None, **given: object) -> T:
    """Return what `s` sets, and note every key of it that is unknown, missing or wrong.

    Options in `given`, by their fields' names, have been read already.  `elsewhere` tells, beside the sections below,
    where keys of other sections belong.  What is returned means nothing when a fault was noted.
    """
    values: dict[str, Any] = {}
    complete = True
    for option in options_of(settings):
        s.knows(*option.keys)
        if option.declared.required and option.field not in given and option.key not in s:
            s.require(option.key, option.declared.required)
            complete = False
        values[option.field] = given[option.field] if option.field in given else read_option(s, option)
    made = settings(**values)
    if complete:
        for conflict in conflicts_of(made):
            key = next((key for key in conflict.keys if key in s), None)
            if key is not None:
                s.refuse(key, conflict.text)
    s.finish({**keys_below(settings), **(elsewhere or {})})
    return made


def read_option(s: Section, option: Option) -> Any:
    """Return the value of one option, or its default."""
    declared, key, default = option.declared, option.key, option.default
    if key not in s and option.kind not in (Kind.SECTION, Kind.OWN):
        s.knows(key)  # as most are: a reload must be cheap
        return () if option.kind is Kind.TEXTS and default is None else default
    match option.kind:
        case Kind.SWITCH:
            return s.switch(key, default)
        case Kind.WHOLE | Kind.NUMBER:
            return _read_number(s, option)
        case Kind.CHOICE:
            return s.choice(key, default, declared.choices)
        case Kind.TEXT:
            return s.text(key, default, declared.value_of, port_alone=declared.port_alone)
        case Kind.TEXTS:
            return _read_texts(s, option)
        case Kind.PATH:
            return s.path(key, declared.check) or default
        case Kind.SECTION:
            assert option.settings is not None
            inner = s.section(key)
            return None if default is None and key not in s else read_options(inner, option.settings)
        case Kind.OWN:
            raise AssertionError(f"`{key}` has a form of its own")


def _read_number(s: Section, option: Option) -> Any:
    number = s.number(option.key, whole=option.kind is Kind.WHOLE, wanted=option.wanted)
    if number is None:
        return option.default
    if not option.allows(number):
        s.refuse(option.key, option.wanted, s.value_place(option.key))
        return option.default
    return number


def _read_texts(s: Section, option: Option) -> tuple[Any, ...]:
    declared, found = option.declared, list[Any]()

    def parse(text: str) -> Any:
        found.append(declared.value_of(text, found))
        return found[-1]

    if declared.empty:
        s.not_empty(option.key, declared.empty)
    return s.tuple_of(option.key, option.default or (), parse, port_alone=declared.port_alone)
