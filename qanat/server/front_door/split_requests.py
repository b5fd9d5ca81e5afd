"""Which split pipe a request belongs to, over either version of HTTP."""

from __future__ import annotations

from qanat.transports.split import token as split_token
from qanat.transports.split.server import ServerPipe, SplitPipes
from qanat.transports.split.token import Kind, Token


def find_split(
    pipes: SplitPipes, method: str, headers: tuple[tuple[str, str], ...], query: str
) -> tuple[ServerPipe, Token] | None:
    """Return the split pipe that a request belongs to, and what it says, if its client made it."""
    unverified = split_token.request_token(headers, query)
    found = None if unverified is None else pipes.find(unverified)
    if found is None or (found[1].kind is Kind.UP) is not (method == "POST"):
        return None
    return found


def nothing() -> None:
    """Do nothing: a split pipe's end is not that of a connection."""
