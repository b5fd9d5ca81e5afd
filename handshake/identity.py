"""The file with the server's long-lived key: made once, and readable by nobody else.

A client pins this key's fingerprint, so losing the file means that every client must be told.
Called when a server starts and by the command line's `fingerprint` and `init`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from qanat.base.errors import UsageError
from qanat.handshake.keys import EXPONENT, SERVER_BITS, ServerIdentity

_LARGEST_FILE: Final = 65_536
"""Bytes; an RSA-3072 key in PEM has about 2,500."""
_NEW_KEY_HINT: Final = "restore it, or move it away and a new one is made, whose fingerprint clients must then pin"


def load_or_create_identity(path: Path, *, create: bool = True) -> ServerIdentity:
    """Return the identity in `path`; when there is no such file and `create` holds, a new one is written there.

    Raises UsageError when the file is missing, readable by others, or not one RSA-3072 key, and when it
    cannot be written.  Two servers that start at once end up with the same key: the file is put in
    place whole, and whoever comes second takes what is there.
    """
    try:
        return _load(path)
    except FileNotFoundError:
        if not create:
            raise UsageError(
                f"there is no server key {path}", hint="`tunnel.py init` or the server's first start makes it"
            ) from None
    except OSError as error:
        raise UsageError(f"the server key {path} cannot be read: {error.strerror}") from None
    identity = ServerIdentity.generate()
    try:
        created = _write_new(path, identity.to_pem())
    except OSError as error:
        raise UsageError(
            f"the server key {path} cannot be written: {error.strerror}",
            hint="the directory must exist and this user must be allowed to write there",
        ) from None
    return identity if created else load_or_create_identity(path, create=False)


def _load(path: Path) -> ServerIdentity:
    # Not blocking, so that a FIFO in its place is refused below instead of waited for.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        # On the descriptor, not the path: what is checked is what is read.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"the server key {path} is not a file")
        if os.name == "posix" and status.st_mode & 0o077:
            raise UsageError(
                f"the server key {path} can be read or changed by other users (mode {status.st_mode & 0o777:04o})",
                hint=f"chmod 600 {path}; if others may have read it already, replace it",
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            pem = file.read(_LARGEST_FILE + 1)
    finally:
        os.close(descriptor)
    if len(pem) > _LARGEST_FILE:
        raise UsageError(f"the server key {path} is too large to be a key", hint=_NEW_KEY_HINT)
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # TypeError is what the library raises for a key under a passphrase.
        raise UsageError(
            f"the server key {path} is not an unencrypted private key in PEM", hint=_NEW_KEY_HINT
        ) from None
    if (
        not isinstance(key, rsa.RSAPrivateKey)
        or key.key_size != SERVER_BITS
        or key.public_key().public_numbers().e != EXPONENT
    ):
        raise UsageError(f"the server key {path} is not an RSA key of {SERVER_BITS} bits", hint=_NEW_KEY_HINT)
    return ServerIdentity(key)


def _write_new(path: Path, pem: bytes) -> bool:
    """Put `pem` at `path`, whole or not at all; False when something is there already."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        # A hard link, since a rename would replace a key that another process has just made and uses.
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    return True
