"""What must never be shown: texts that look like tokens, taken out of whatever is printed or logged.

The last defense, should one get into a message by accident: the program never shows a token on purpose.  Pure.  The
log's formatters and the faults of a configuration call this.
"""

from __future__ import annotations

import re

# A whole token is longer; eight characters of one are already too many to print.
_TOKEN = re.compile(r"qanat1-[A-Za-z0-9_-]{8,}")
_HIDDEN = "qanat1-[hidden]"


def hide_tokens(text: str) -> str:
    """Return `text` without anything that looks like a token."""
    return _TOKEN.sub(_HIDDEN, text)
