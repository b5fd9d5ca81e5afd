"""Tokens that were revoked, by their fingerprints: what `tunnel.py revoke` has done, kept in `state_dir` for good.

A token is revoked, not a name: whoever gets a new token in the configuration may come again, and the old one, should it
ever be put back there, is refused.  The file is JSON, replaced whole, and nobody's secret: it holds fingerprints.  One
that cannot be read ends the start, and fails a reload: to go on without it would let in who was thrown out.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from qanat.base.errors import UsageError
from qanat.base.private_files import open_regular, replace_file
from qanat.config.moments import format_moment

FILE_NAME = "revoked-tokens.json"
VERSION = 1
MAX_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Revoked:
    """One token that counts no more."""

    token: str
    """Its fingerprint."""
    client: str
    """Whose it was."""
    at: str
    by: str

    def __str__(self) -> str:
        return f"the token {self.token} of the client {self.client!r} was revoked at {self.at} by {self.by}"


class Revocations:
    """The list of one server.  Safe to use from any thread."""

    def __init__(self, directory: Path) -> None:
        """Read the list in `directory`, if there is one.  Raises UsageError."""
        self.path = directory / FILE_NAME
        self._lock = threading.Lock()  # held while the file is read or written
        self._revoked: Mapping[str, Revoked] = {}
        self.read_again()

    def find(self, token: str) -> Revoked | None:
        """Return what is known of the token of this fingerprint, None where it was not revoked."""
        return self._revoked.get(token)

    def read_again(self) -> None:
        """Read the file: somebody may have written it while no server ran, or restored it.  Raises UsageError."""
        with self._lock:
            self._revoked = _read(self.path)

    def add(self, client: str, tokens: Iterable[str], by: str) -> str:
        """Revoke the tokens of these fingerprints; return why that will not outlast this process, or "".

        Blocks until the disk has it.
        """
        at = format_moment(time.time())
        with self._lock:
            new = {token: Revoked(token, client, at, by) for token in tokens if token not in self._revoked}
            self._revoked = {**self._revoked, **new}
            return self._write_locked()

    def lift(self, client: str) -> tuple[list[str], str]:
        """Have the tokens of a client count again; return their fingerprints, and why not for good, or ""."""
        with self._lock:
            lifted = [token for token, one in self._revoked.items() if one.client == client]
            self._revoked = {token: one for token, one in self._revoked.items() if one.client != client}
            return lifted, self._write_locked() if lifted else ""

    def _write_locked(self) -> str:
        content = {"version": VERSION, "revoked": [asdict(one) for one in self._revoked.values()]}
        try:
            replace_file(self.path, json.dumps(content, indent=1).encode() + b"\n")
        except OSError as error:
            return f"{self.path} cannot be written: {error.strerror}"
        return ""


def _read(path: Path) -> dict[str, Revoked]:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(
            f"cannot read the revoked tokens in {path}: {error.strerror}",
            hint="let this user read it; without the list, who was revoked would be let in",
        ) from error
    try:
        if len(content) > MAX_BYTES:
            raise ValueError
        found = json.loads(content)
        if found["version"] != VERSION:
            raise ValueError
        return {
            one["token"]: Revoked(*(str(one[key]) for key in ("token", "client", "at", "by")))
            for one in found["revoked"]
        }
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(
            f"{path} is damaged, so it is not known which tokens are revoked",
            hint="restore it, or move it away and revoke again: the audit log has who was revoked",
        ) from None
