"""The JSON Schema (draft 2020-12) of configuration files, made from the declared options.

It accepts what `check` accepts, as far as a schema can say it, and refuses wrong types, ranges and unknown keys.  Two
things it cannot see: a number that YAML reads from another spelling (`010`), and what is read from a file or variable.
`tunnel.py schema` prints it; a copy lies in the package for editors, and a test holds the two equal.
"""

from __future__ import annotations

import json
from typing import Any

from qanat.base.share import share
from qanat.config.options import Kind, Option, options_of
from qanat.config.schema_forms import Schema, closed, described, list_of, one_or_several, text
from qanat.config.settings import ClientSettings, ServerSettings

FILE = "config.schema.json"
"""The copy's name in the package's `share`."""


def build_schema() -> Schema:
    """Return the schema of a whole file."""
    whole = closed(
        {
            "server": _section(ServerSettings, "The end that accepts connections."),
            "client": _section(ClientSettings, "The end that dials."),
        }
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Qanat's configuration",
        **whole,
        "type": "object",
        "minProperties": 1,
    }


def schema_text() -> str:
    """Return the schema as indented JSON, which ends with a line break."""
    return json.dumps(build_schema(), indent=2, ensure_ascii=False) + "\n"


def schema_location() -> str:
    """Return the file: URL of the copy that is installed with this program."""
    return share(FILE).absolute().as_uri()


def _section(settings: type, doc: str = "") -> Schema:
    properties: dict[str, Schema] = {}
    required: list[str] = []
    alternatives: list[Schema] = []
    for option in options_of(settings):
        declared = option.declared
        if declared.entries is not None:
            entry = _section(declared.entries)
            properties[option.key] = list_of(entry, least=1, doc=declared.doc)
            if declared.entry_may_stand_here:
                properties |= entry["properties"]
                here: Schema = {key: entry[key] for key in ("required", "oneOf") if key in entry}
                alternatives += [{"required": [option.key]}, here]
        elif declared.own is not None:
            properties |= {key: dict(schema) for key, schema in declared.own.items()}
            if declared.own_needed:
                alternatives += [{"required": [key]} for key in declared.own]
        else:
            properties[option.key] = _value(option)
        if declared.required:
            required.append(option.key)
    schema = closed(properties, required=required, doc=doc)
    if alternatives:
        schema["oneOf"] = alternatives
    return schema


def _value(option: Option) -> Schema:
    declared = option.declared
    match option.kind:
        case Kind.SECTION:
            assert option.settings is not None
            return _section(option.settings, declared.doc)
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
        case Kind.CHOICE | Kind.TEXT | Kind.OWN:
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
