"""docs/DOCTOR.md's sections, made from the program's codes and settings: `python -m tests.support.doctor_page`.

The text before them is the page's own.
"""

from __future__ import annotations

from qanat.doctor.advice import SETTINGS
from qanat.doctor.codes import CODES
from qanat.doctor.products import ADVISED
from tests.support.harness import ROOT

PAGE = ROOT / "docs" / "DOCTOR.md"
BEGIN = "<!-- the codes: from here on made by python -m tests.support.doctor_page -->\n"
VALUES = {"path": "/tunnel", "name": "tunnel.example.com", "port": "443"}


def sections() -> str:
    """Markdown with a section for each code."""
    parts = []
    for code, entry in CODES.items():
        parts.append(f"\n### {code}\n\n{entry.means}\n\nTo do: {entry.cure}.\n")
        settings = SETTINGS.get(code, {})
        for product in ADVISED:
            if product in settings:
                parts.append(f"\n{product}:\n```\n{settings[product].format(**VALUES)}\n```\n")
    return "".join(parts)


def whole() -> str:
    """What the page should be."""
    return PAGE.read_text().partition(BEGIN)[0] + BEGIN + sections()


if __name__ == "__main__":
    PAGE.write_text(whole())
