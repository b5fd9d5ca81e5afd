"""What the reports in docs/ have in common: the machine, numbers, tables, and sections that replace older ones."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import ssl
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from qanat.base.version import __version__
from tests.support.machine.programs import find_program


def made_on(*, libraries: tuple[str, ...] = ("cryptography",), programs: Mapping[str, str] | None = None) -> str:
    """The day, this program's version, the machine, and the versions of what took part.

    `programs` maps the name of each other program to the option that makes it tell its version.
    """
    parts = [
        time.strftime("%Y-%m-%d"),
        f"qanat {__version__}",
        f"{os.cpu_count()} cores of {processor()}",
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
        ssl.OPENSSL_VERSION,
        *(f"{name} {importlib.metadata.version(name)}" for name in libraries),
        *(_version(name, option) for name, option in (programs or {}).items()),
    ]
    return ", ".join(parts)


def number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 1000 else f"{value:.3g}"


def table(figures: Mapping[str, float]) -> list[str]:
    """The lines of a table, and an empty one."""
    return ["| | |", "|---|---:|", *(f"| {name} | {number(value)} |" for name, value in figures.items()), ""]


def write_section(path: Path, head: list[str], title: str, lines: list[str]) -> None:
    """Put a section into the file at `path`, in place of the one with this title if there is one.

    `head` is what stands above all sections.
    """
    sections: dict[str, str] = {}
    if path.exists():
        _, *older = re.split(r"^## ", path.read_text(), flags=re.MULTILINE)
        sections = {section.partition("\n")[0]: section.partition("\n")[2].strip("\n") for section in older}
    sections[title] = "\n".join(lines).strip("\n")
    parts = ["\n".join(head).strip("\n"), *(f"## {name}\n\n{body}" for name, body in sections.items())]
    path.write_text("\n\n".join(parts) + "\n")


def processor() -> str:
    """Return the processor's name."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _version(program: str, option: str) -> str:
    path = find_program(program)
    if path is None:
        return f"no {program}"
    done = subprocess.run([path, option], capture_output=True, text=True)
    found = re.search(r"[0-9][0-9.]+", done.stdout + done.stderr)
    return f"{program} {found[0] if found else '?'}"
