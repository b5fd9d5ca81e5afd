"""config.example.yaml, and what it becomes with all that is commented out."""

from __future__ import annotations

import re
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "config.example.yaml"

_ONE_SERVER = re.compile(r"^  (?:url|token_file|server_fingerprint): .*\n", re.MULTILINE)
_SEVERAL_SERVERS = re.compile(r"^  (?:servers:\n(?:    .*\n)+|failover_after: .*\n)", re.MULTILINE)
COMMENTED_OUT = re.compile(
    r"^( *)# ((?:(?: {2})?(?:[a-z_]+:|- )| {4}(?:token_file|server_fingerprint):).*)$", re.MULTILINE
)


def everything(*, several: bool = False) -> str:
    """The example with all that is commented out brought in, but for the second way to give a token.

    Of a client with one server and a client with several, the one that is wanted.
    """
    text = COMMENTED_OUT.sub(
        lambda match: "" if match[2].startswith("token:") else match[1] + match[2], EXAMPLE.read_text()
    )
    text = text.replace("  forwards: []\n", "").replace("  proxy: environment\n", "")
    return (_ONE_SERVER if several else _SEVERAL_SERVERS).sub("", text)
