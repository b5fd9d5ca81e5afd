"""Parts of a JSON Schema (draft 2020-12) for the forms that values have in a configuration file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Schema = dict[str, Any]

VARIABLE = r"\$\{"
"""In a text `${NAME}` is replaced from the environment, so what it will be cannot be judged."""


def text(pattern: str = "", choices: Sequence[str] = (), doc: str = "") -> Schema:
    """Return the schema of a text that matches `pattern` as a whole, or is one of `choices`, or names a variable."""
    schema: Schema = {"type": "string"}
    if choices:
        schema = {"anyOf": [{"enum": list(choices)}, {"type": "string", "pattern": VARIABLE}]}
    elif pattern:
        schema["pattern"] = f"^(?:{pattern})$|{VARIABLE}"
    return described(schema, doc)


def one_or_several(item: Schema, *, least: int = 0, most: int | None = None, doc: str = "") -> Schema:
    """Return the schema of one value, or a list of them."""
    several: Schema = {"type": "array", "items": item}
    if least:
        several["minItems"] = least
    if most is not None:
        several["maxItems"] = most
    return described({"anyOf": [item, several]}, doc)


def list_of(item: Schema, *, least: int = 0, doc: str = "") -> Schema:
    """Return the schema of a list."""
    schema: Schema = {"type": "array", "items": item}
    if least:
        schema["minItems"] = least
    return described(schema, doc)


def closed(properties: dict[str, Schema], *, required: Sequence[str] = (), doc: str = "") -> Schema:
    """Return the schema of a section that has these keys and no others; null, with every key commented out."""
    schema: Schema = {
        "type": "object" if required else ["object", "null"],
        "properties": properties,
        "additionalProperties": False,
    }
    if required:
        schema["required"] = list(required)
    return described(schema, doc)


def described(schema: Schema, doc: str) -> Schema:
    """Return `schema` with a description, when there is one."""
    return {"description": doc, **schema} if doc else schema
