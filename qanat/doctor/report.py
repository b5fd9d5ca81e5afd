"""What a doctor says: steps, findings and a verdict, and the same as JSON (docs/DOCTOR.md).  Pure."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qanat.base.redaction import hide_tokens
from qanat.base.text import printable

VERSION = 1
"""Of the JSON object: a higher one may have other keys, or mean something else by them."""


class Verdict(enum.Enum):
    """How it is."""

    SOUND = "sound"  # a way through, and nothing to change on it
    FLAWED = "flawed"  # a way through, and something that should be changed
    BLOCKED = "blocked"  # no way through
    REFUSED = "refused"  # a way through to a server that will not have us, or is not who it should be


class Severity(enum.Enum):
    """What a finding does."""

    FATAL = "fatal"  # nothing gets through, or nobody is let in, while this is so
    FLAW = "flaw"  # it gets through, and this will hurt
    LIMIT = "limit"  # a transport does not get through; another one does
    NOTE = "note"  # worth knowing


class Outcome(enum.Enum):
    """What became of a step."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried, what came of it, and how long that took."""

    name: str
    tried: str
    result: str
    outcome: Outcome
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """What to change, and where: the product's name and lines of its configuration, or words."""

    product: str
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A cause, by its stable code (docs/DOCTOR.md), what was seen of it, and what to change."""

    code: str
    severity: Severity
    text: str
    cure: str
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All of it, for one URL."""

    url: str
    steps: tuple[Step, ...]
    findings: tuple[Finding, ...]
    verdict: Verdict
    transport: str
    """The one to use; "" when none gets through."""
    transports: Mapping[str, bool | None] = field(default_factory=dict)
    """Which get through; None is not known."""
    split: Mapping[str, bool | None] = field(default_factory=dict)
    """Which of the two forms of split would get through: `streamed` and `packets`."""
    product: str = ""
    """What stands in front, as far as it shows."""
    figures: Mapping[str, float] = field(default_factory=dict)
    found: bool | None = None
    """Whether a server was found at the path; None when no answer could tell."""
    refuted: frozenset[str] = frozenset()
    """Codes that were measured not to be so.  `--proxy-config` needs them; the JSON object has neither of the two."""

    def to_json(self) -> str:
        """Return one JSON object, with a line end.  Nothing in it is secret: tokens and logins are left out."""
        content: dict[str, Any] = {
            "version": VERSION,
            "url": self.url,
            "verdict": self.verdict.value,
            "transport": self.transport or None,
            "transports": dict(self.transports),
            "split": dict(self.split),
            "product": self.product or None,
            "figures": {name: round(value, 6) for name, value in self.figures.items()},
            "findings": [
                {
                    "code": finding.code,
                    "severity": finding.severity.value,
                    "text": _clean(finding.text),
                    "cure": _clean(finding.cure),
                    "settings": [{"product": one.product, "text": one.text} for one in finding.settings],
                }
                for finding in self.findings
            ],
            "steps": [
                {
                    "name": step.name,
                    "tried": _clean(step.tried),
                    "result": _clean(step.result),
                    "outcome": step.outcome.value,
                    "seconds": None if step.seconds is None else round(step.seconds, 4),
                }
                for step in self.steps
            ],
        }
        return json.dumps(content, indent=2) + "\n"


def _clean(text: str) -> str:
    return hide_tokens(printable(text.replace("\n", " ")))
