"""JSON Schema's validators, loaded by the tests that need one.

Importing jsonschema takes seconds where its optional grammars are installed, and each process that shares the tests
imports every test file.
"""

from __future__ import annotations

from typing import Any


def validator(schema: dict[str, Any]) -> Any:
    """Return what validates against `schema`, as `jsonschema.Draft202012Validator` does, once that is a schema."""
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def bill_of_materials_validator() -> Any:
    """Return what validates CycloneDX 1.6 strictly: `validate_str` returns None or what is wrong."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6)
