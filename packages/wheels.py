"""The wheels that Qanat needs at run time: fetched with pip, read for what they say of themselves, unpacked.

They are unpacked here rather than installed by pip, which writes its own version, the paths of this machine and
compiled files beside them.  Bundles (pyz, deb, oci) all hold the same tree.
"""

from __future__ import annotations

import email.parser
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from packages.source import requirements


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel, and what its METADATA says."""

    path: Path
    name: str
    """As PyPI writes it in addresses: lower case, with hyphens."""
    version: str
    summary: str
    license: str
    """An SPDX expression, or free text of an older package, or ""."""
    home: str
    needs: tuple[str, ...]
    """The names of what it needs itself, wherever it runs."""

    @property
    def sha256(self) -> str:
        """The hash of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def tag(self) -> str:
        """The end of the file's name: for which Python and which machines it is."""
        return self.path.stem.split("-", 2)[2]


def fetch(into: Path, *, locked: Path | None = None) -> None:
    """Fetch the wheels that setup.cfg asks for, and those that these ask for, for the Python that runs this.

    With `locked`, an SBOM of an earlier build, exactly those that it names, by their hashes.  Blocks on the network,
    or on pip's cache.  Raises CalledProcessError.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        lines = _locked_lines(locked) if locked is not None else requirements()
        file.write("\n".join(lines) + "\n")
        file.flush()
        exact = ["--no-deps", "--require-hashes"] if locked is not None else []
        subprocess.run([*pip, "--dest", str(into), *exact, "--requirement", file.name], check=True)


def read_all(directory: Path) -> list[Wheel]:
    """Return the wheels in `directory`, sorted by name."""
    return sorted((read(path) for path in directory.glob("*.whl")), key=lambda wheel: wheel.name)


def read(path: Path) -> Wheel:
    """Return what the wheel at `path` says of itself."""
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        said = email.parser.Parser().parsestr(archive.read(name).decode("utf-8"))
    home = said.get("Home-page") or next(
        (text.partition(", ")[2] for text in said.get_all("Project-URL", []) if "://" in text), ""
    )
    needs = {
        normalized(re.split(r"[\s<>=!~;(\[]", text, maxsplit=1)[0])
        for text in said.get_all("Requires-Dist", [])
        if "extra ==" not in text
    }
    return Wheel(
        path=path,
        name=normalized(said["Name"]),
        version=said["Version"],
        summary=said.get("Summary") or "",
        license=_license(said),
        home=home,
        needs=tuple(sorted(needs)),
    )


def normalized(name: str) -> str:
    """Return `name` as PyPI's addresses have it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unpack(wheels: Sequence[Wheel], into: Path) -> None:
    """Unpack `wheels` beside each other, importable with `into` on the path; no scripts, nothing compiled."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel.path) as archive:
            for entry in archive.infolist():
                name = _place(entry.filename)
                if name is None or entry.is_dir():
                    continue
                path = into / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(entry))


def _place(name: str) -> str | None:
    """Return where a file of a wheel goes below site-packages (PEP 427), None where it goes elsewhere."""
    first, _, rest = name.partition("/")
    if first.endswith(".data"):
        kind, _, inner = rest.partition("/")
        return inner if kind in ("purelib", "platlib") else None
    return name


def _license(said: Message) -> str:
    expression = said.get("License-Expression") or said.get("License") or ""
    if expression and "\n" not in expression:
        return str(expression)
    classifiers = [text for text in said.get_all("Classifier", []) if text.startswith("License ::")]
    return ", ".join(text.rpartition(" :: ")[2] for text in classifiers)


def _locked_lines(sbom: Path) -> list[str]:
    found = []
    for component in json.loads(sbom.read_text("utf-8"))["components"]:
        if str(component.get("purl", "")).startswith("pkg:pypi/") and component.get("hashes"):
            found.append(
                f"{component['name']}=={component['version']} --hash=sha256:{component['hashes'][0]['content']}"
            )
    if not found:
        raise SystemExit(f"{sbom} names no wheels by their hashes; give the SBOM of a pyz, a deb or an image.")
    return found
