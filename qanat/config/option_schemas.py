"""The JSON Schema of one option's value, made from its declaration.

`qanat.config.schema` makes that of a whole file; `qanat.config.client_settings` that of an entry with a form of its
own.
"""

from __future__ import annotations

from typing import Any

from qanat.config.options import Kind, Option, options_of
from qanat.config.schema_forms import Schema, described, one_or_several, text


def value_schemas(settings: type) -> dict[str, Schema]:
    """Return the schemas of all options of a class of settings without sections, by their keys."""
    return {option.key: value_schema(option) for option in options_of(settings)}


def value_schema(option: Option) -> Schema:
    """Return the schema of an option's value; of one that is no section."""
    declared = option.declared
    match option.kind:
        case Kind.SWITCH:
            schema: Schema = {"type": "boolean"}
        case Kind.WHOLE | Kind.NUMBER:
            kind = "integer" if option.kind is Kind.WHOLE else "number"
            schema = {"type": kind, "minimum": declared.low, "maximum": declared.high}
        case Kind.TEXTS:
            item = text(declared.pattern, declared.choices)
            schema = one_or_several(item, least=1 if declared.empty else 0)
        case Kind.PATH:
            schema = {"type": "string", "minLength": 1}
        case Kind.CHOICE | Kind.TEXT | Kind.OWN | Kind.SECTION:
            schema = text(declared.pattern, declared.choices)
    schema = described(schema, _description(option))
    default = _json(option.default)
    return schema if default is None else {**schema, "default": default}


def _description(option: Option) -> str:
    declared = option.declared
    parts = [declared.doc]
    if declared.unit and declared.unit not in declared.doc.lower():
        parts.append(f"In {declared.unit}.")
    if declared.unset:
        parts.append(f"Default: {declared.unset}.")
    return " ".join(parts)


def _json(default: Any) -> Any:
    """Return a default as it would stand in a file, or None where it has no such form."""
    if isinstance(default, tuple) and default and all(isinstance(part, str) for part in default):
        return default[0] if len(default) == 1 else list(default)
    if isinstance(default, float) and default.is_integer():
        return int(default)
    return default if isinstance(default, bool | int | float) or (isinstance(default, str) and default) else None
