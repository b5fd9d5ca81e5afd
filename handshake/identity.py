"""The file with the server's long-lived key: made once, and readable by nobody else.

A client pins this key's fingerprint, so losing the file means that every client must be told.
Called when a server starts and by the command line's `fingerprint` and `init`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from qanat.base.errors import UsageError
from qanat.base.private_files import open_regular, read_exposure, write_new
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
        raise UsageError(
            f"the server key {path} cannot be read: {error.strerror}",
            hint="let this user read it, or name another file in `identity`",
        ) from None
    identity = ServerIdentity.generate()
    try:
        created = write_new(path, identity.to_pem())
    except OSError as error:
        raise UsageError(
            f"the server key {path} cannot be written: {error.strerror}",
            hint="the directory must exist and this user must be allowed to write there",
        ) from None
    return identity if created else load_or_create_identity(path, create=False)


def _load(path: Path) -> ServerIdentity:
    with open_regular(path) as file:
        exposure = read_exposure(file, path)
        if exposure is not None:
            raise UsageError(
                f"the server key {path} can be read or changed by other users (mode {exposure.mode:04o})",
                hint=f"{exposure.cure}; if others may have read it already, replace it",
            )
        pem = file.read(_LARGEST_FILE + 1)
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
