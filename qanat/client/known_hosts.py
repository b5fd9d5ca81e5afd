"""The servers' fingerprints that a client has seen: trust on first use, as ssh does.

The file has one `HOST:PORT SHA256:…` a line; empty lines and those that begin with # are left
alone.  A client without `server_fingerprint` asks `check` before it sends anything and calls
`remember` only once the server has proven that it holds the key *and* knows the token: a
impostor's key, met once on the way, must not be what the true server is then compared with.
Processes that share the file are kept apart by a lock file beside it; readers need no lock,
since the file is replaced whole.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qanat.base.errors import RefusedError, UsageError
from qanat.base.private_files import Draft, open_regular, replace_file, write_exposure
from qanat.config.fingerprints import check_fingerprint

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger("qanat.known_hosts")

_LARGEST_FILE = 1_048_576
"""Bytes; a server takes about a hundred."""

_ELSEWHERE = "set state_dir to a directory that this user may write, or pin server_fingerprint (--fingerprint)"
_BANNER = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@        WARNING: THE SERVER'S KEY HAS CHANGED!           @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
Someone may be between this client and the server and reading along, or the server was given a new key.
  server       {host}
  known key    {known}   ({file}, line {line})
  offered key  {offered}
Nothing was sent."""


@dataclass(frozen=True, slots=True)
class _Entry:
    line: int
    host: str
    fingerprint: str


class KnownHosts:
    """One known-hosts file.  Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        """`path` need not exist yet; `remember` makes it, and its directory (0700)."""
        self.path = path

    def check_usable(self, hosts: Sequence[str]) -> None:
        """Raise UsageError when `remember` could not keep the keys of `hosts`; for before anything is dialed.

        What is known already need not be written.  Makes the directory; blocks on the disk only.
        """
        known = {entry.host for entry in self._read()}
        if all(_checked_host(host) in known for host in hosts):
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with Draft(self.path):
                pass
        except OSError as error:
            raise self._unwritable(error) from error

    def check(self, url_host_port: str, fingerprint: str) -> bool:
        """Whether this server is known, with this very key; False when it was never met.

        Reads the file only.  Raises RefusedError, final, when another key is known, and
        UsageError when the file cannot be read or understood.
        """
        host = _checked_host(url_host_port)
        for entry in self._read():
            if entry.host == host:
                if entry.fingerprint != fingerprint:
                    raise self._changed(entry, fingerprint)
                return True
        return False

    def remember(self, url_host_port: str, fingerprint: str) -> None:
        """Trust this key from now on, unless it is known already.  Blocks while another process writes.

        Raises what `check` raises, since another process may have met the server meanwhile, and
        UsageError when the file cannot be written.
        """
        host = _checked_host(url_host_port)
        check_fingerprint(fingerprint)
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                if self.check(host, fingerprint):
                    return
                self._append(f"{host} {fingerprint}\n")
        except OSError as error:
            raise self._unwritable(error) from error
        log.warning(
            "first connection to %s: its key %s is trusted from now on (%s); compare it with "
            "`tunnel.py fingerprint` on the server, or pin it as server_fingerprint",
            host,
            fingerprint,
            self.path,
        )

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(
            f"cannot write {self.path}: {error.strerror}",
            hint=_ELSEWHERE,
        )

    def _read(self) -> list[_Entry]:
        try:
            with open_regular(self.path) as file:
                exposure = write_exposure(file, self.path)
                content = file.read(_LARGEST_FILE + 1)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UsageError(
                f"cannot read {self.path}: {error.strerror}",
                hint=_ELSEWHERE,
            ) from error
        if len(content) > _LARGEST_FILE:
            raise UsageError(
                f"{self.path} has more than {_LARGEST_FILE} bytes, so it is something else",
                hint="move it away, or set state_dir to another directory",
            )
        if exposure is not None:
            raise UsageError(
                f"{self.path} can be changed by others, so what it says cannot be trusted",
                hint=f"look through it, then: {exposure.cure}",
            )
        return list(self._parse(content))

    def _parse(self, content: bytes) -> Iterator[_Entry]:
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            try:
                host, fingerprint = words
                check_fingerprint(fingerprint)
            except (ValueError, UsageError):
                # Passing over it would be to trust anyone once more for the host that it was about.
                raise UsageError(
                    f"line {number} of {self.path} is not `HOST:PORT SHA256:…`",
                    hint="repair the line, or delete it when you know why it is there",
                ) from None
            yield _Entry(number, host.lower(), fingerprint)

    def _changed(self, entry: _Entry, offered: str) -> RefusedError:
        return RefusedError(
            _BANNER.format(host=entry.host, known=entry.fingerprint, offered=offered, file=self.path, line=entry.line),
            hint=f"if `tunnel.py fingerprint` on the server prints the offered key, delete line {entry.line} of "
            f"{self.path}; else find out who answers at this address",
        )

    def _append(self, line: str) -> None:
        """Replace the file by itself and one line more, so that a crash leaves the old one or the new one whole."""
        try:
            old = self.path.read_bytes()
        except FileNotFoundError:
            old = b"# Servers that this client trusts, and the key that each had when it was first met.\n"
        if old and not old.endswith(b"\n"):
            old += b"\n"
        replace_file(self.path, old + line.encode())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock file, which is never removed: two processes must lock the same one.

        Where the file system has no locks it goes without: the file stays whole, and of two servers that are met in
        the same instant one may be asked about again.
        """
        lock_path = self.path.with_name(self.path.name + ".lock")
        handle = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if sys.platform == "win32":
                msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
            else:
                with contextlib.suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)  # gives the lock back


def _checked_host(url_host_port: str) -> str:
    if not url_host_port or url_host_port.startswith("#") or len(url_host_port.split()) != 1:
        raise UsageError("a server's address for known_hosts must be HOST:PORT")
    return url_host_port.lower()
