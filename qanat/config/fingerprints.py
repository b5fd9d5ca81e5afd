"""The form of a server's fingerprint as people write it; how one is made stands in `qanat.handshake.keys`.

`qanat.config.texts`, `qanat.config.command_line` and `qanat.client.known_hosts` check with this what a person or a
file gave them.
"""

from __future__ import annotations

import re

from qanat.base.errors import UsageError

# 43 characters for 32 bytes leave two bits over, which are zero.
FINGERPRINT_PATTERN = r"SHA256:[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]"
_FINGERPRINT = re.compile(FINGERPRINT_PATTERN)
_RIGHT_BUT_THE_LAST = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


def check_fingerprint(text: str) -> str:
    """Return `text`, when it is `SHA256:` and 43 characters of base64.  Raises UsageError."""
    if _RIGHT_BUT_THE_LAST.fullmatch(text) and not _FINGERPRINT.fullmatch(text):
        raise UsageError(
            "is mistyped: no fingerprint ends in that character",
            hint="compare it with what `tunnel.py fingerprint` on the server prints, or copy the whole line from there",
        )
    if not _FINGERPRINT.fullmatch(text):
        raise UsageError(
            "is not a fingerprint: SHA256: and 43 characters of base64",
            hint="`tunnel.py fingerprint` on the server prints it; copy the whole line",
        )
    return text
