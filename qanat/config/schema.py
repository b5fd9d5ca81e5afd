"""The JSON Schema (draft 2020-12) of configuration files, made from the declared options.

It accepts what `check` accepts, as far as a schema can say it, and refuses wrong types, ranges and unknown keys.  Two
things it cannot see: a number that YAML reads from another spelling (`010`), and what is read from a file or variable.
`tunnel.py schema` prints it; a copy lies in the package for editors, and a test holds the two equal.
"""

from __future__ import annotations

import json

from qanat.base.share import share
from qanat.config.client_settings import ClientSettings
from qanat.config.option_schemas import value_schema
from qanat.config.options import options_of
from qanat.config.schema_forms import Schema, closed, list_of
from qanat.config.server_settings import ServerSettings

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
            inner = option.settings
            properties[option.key] = value_schema(option) if inner is None else _section(inner, declared.doc)
        if declared.required:
            required.append(option.key)
    schema = closed(properties, required=required, doc=doc)
    if alternatives:
        schema["oneOf"] = alternatives
    return schema
