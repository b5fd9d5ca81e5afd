"""What is in a build, as CycloneDX 1.6 JSON (https://cyclonedx.org/docs/1.6/json/), beside the file that was built.

Written here and not by cyclonedx-bom, which describes an environment and puts a random number and the time of day into
what it writes: the same build has to give the same bytes.  The tests hold it against CycloneDX's own schema.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packages.source import epoch_text, requirements, summary, version
from packages.wheels import Wheel, normalized

Component = Mapping[str, Any]

_KNOWN = {
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
}


def write_sbom(
    built: Path, wheels: Sequence[Wheel] = (), *, purl: str, others: Sequence[Component] = (), to: Path | None = None
) -> Path:
    """Write the SBOM of the file `built`, which holds `wheels` and `others`, and return its path.

    It goes beside `built`, as NAME.cdx.json, or to `to`.  Without wheels it names what Qanat asks for, and that
    `built` holds none of it.
    """
    root = {
        "type": "application",
        "bom-ref": purl,
        "name": "qanat",
        "version": version(),
        "description": summary(),
        "purl": purl,
        "licenses": [{"license": {"id": "MIT"}}],
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(built.read_bytes()).hexdigest()}],
    }
    inside = [wheel for wheel in wheels if wheel.name != "qanat"]
    components = [_component_of(wheel) for wheel in inside] if inside else [_wanted(text) for text in requirements()]
    components += [dict(component) for component in others]
    direct = {normalized(re.split(r"[<>=!~;\[ ]", text, maxsplit=1)[0]) for text in requirements()}
    refs = {str(component["name"]): str(component["bom-ref"]) for component in components}
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": epoch_text(),
            "component": root,
            "properties": [{"name": "qanat:built", "value": built.name}],
        },
        "components": components,
        "dependencies": [
            {
                "ref": purl,
                "dependsOn": sorted(
                    {refs[name] for name in direct if name in refs} | {str(other["bom-ref"]) for other in others}
                ),
            },
            *(
                {"ref": refs[wheel.name], "dependsOn": sorted(refs[name] for name in wheel.needs if name in refs)}
                for wheel in inside
            ),
        ],
    }
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}"
    path = to or built.with_name(f"{built.name}.cdx.json")
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", "utf-8")
    path.chmod(0o644)
    return path


def _component_of(wheel: Wheel) -> dict[str, Any]:
    purl = f"pkg:pypi/{wheel.name}@{wheel.version}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": wheel.name,
        "version": wheel.version,
        "purl": purl,
        "scope": "required",
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
        "properties": [{"name": "qanat:wheel", "value": wheel.path.name}],
    }
    if wheel.summary:
        component["description"] = wheel.summary
    if wheel.license:
        component["licenses"] = [_license(wheel.license)]
    if re.match(r"https?://\S+$", wheel.home):
        component["externalReferences"] = [{"type": "website", "url": wheel.home}]
    return component


def _wanted(text: str) -> dict[str, Any]:
    """Return the component of a requirement that is not inside: a name, and which versions will do."""
    name = normalized(re.split(r"[<>=!~;\[ ]", text, maxsplit=1)[0])
    return {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}",
        "name": name,
        "purl": f"pkg:pypi/{name}",
        "scope": "required",
        "properties": [
            {"name": "qanat:requirement", "value": text},
            {"name": "qanat:inside", "value": "no"},
        ],
    }


def _license(text: str) -> dict[str, Any]:
    text = _KNOWN.get(text, text)
    if " OR " in text or " AND " in text or " WITH " in text:
        return {"expression": text}
    return {"license": {"id": text} if _is_identifier(text) else {"name": text}}


def _is_identifier(text: str) -> bool:
    # The schema takes an `id` of the list alone; what looks like one and is none goes under `name`.
    return text in {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MPL-2.0", "PSF-2.0", "Python-2.0"}
