"""What this program asks of TLS: versions, certificates, protocols offered.

Both ends speak TLS 1.2 or newer and never renegotiate.  Used by the transports' clients and by the
front door; the connection itself is `tls`.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

from qanat.base.errors import UsageError
from qanat.transports.wire.tls_errors import reason_of

log = logging.getLogger("qanat.tls")


def client_tls_context(
    ca_file: Path | None,
    alpn: Sequence[str],
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    system_too: bool = False,
) -> ssl.SSLContext:
    """Return a context that verifies the server and its name against `ca_file`, or the system's authorities.

    `certificate` and `key` are shown to a server that asks for them.  With `system_too` a `ca_file` adds to the
    system's authorities instead of replacing them.  Reads files.  Raises UsageError when one cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None or system_too else str(ca_file))
        if ca_file is not None and system_too:
            context.load_verify_locations(ca_file)
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(
            f"{ca_file} has no certificate that can be read", hint="ca_file must be PEM: -----BEGIN CERTIFICATE-----"
        ) from error
    except OSError as error:
        raise UsageError(
            f"cannot read {ca_file}: {error.strerror}", hint="check tls.ca_file and who may read it"
        ) from error
    if certificate is not None:
        _load_pair(context, certificate, key)
    _harden(context, alpn)
    return context


class ReloadingServerContext:
    """The server's context, made anew when one of its files changes."""

    def __init__(self, certificate: Path, key: Path, alpn: Sequence[str], *, client_ca: Path | None = None) -> None:
        """With `client_ca` (PEM), only clients with a certificate of these authorities get through the handshake.

        Loads all at once; raises UsageError when they cannot be used.
        """
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._alpn = tuple(alpn)
        self._lock = threading.Lock()
        self._seen = self._state_of_files()
        self._context = self._load()

    @property
    def changed(self) -> bool:
        """Whether one of its files is another one than was loaded."""
        with self._lock:
            return self._state_of_files() != self._seen

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection: two `stat` calls, and loading only after a change.

        When the new files cannot be used, the old context stays, and the log says so once for each change:
        a certificate and its key are never replaced in the same instant.
        """
        with self._lock:
            state = self._state_of_files()
            if state != self._seen:
                self._seen = state
                try:
                    self._context = self._load()
                    log.info("loaded the changed TLS certificate %s", self._certificate)
                except UsageError as error:
                    log.warning("keeping the old TLS certificate: %s", error)
            return self._context

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _load_pair(context, self._certificate, self._key)
        if self._client_ca is not None:
            _demand_certificates(context, self._client_ca)
        _harden(context, self._alpn)
        return context

    def _state_of_files(self) -> tuple[tuple[int, int, int] | None, ...]:
        files = (self._certificate, self._key, self._client_ca)
        return tuple(_state_of(path) for path in files if path is not None)


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        # An encrypted key would make OpenSSL ask on the terminal; the empty answer fails at once.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise UsageError(
            f"the certificate {certificate} and the key {key} cannot be used: {reason_of(error)}",
            hint="both must be PEM, belong together, and the key must not be encrypted",
        ) from error
    except OSError as error:
        raise UsageError(
            f"cannot read {certificate} or {key}: {error.strerror}",
            hint="check tls.certificate, tls.key and who may read them",
        ) from error


def _demand_certificates(context: ssl.SSLContext, client_ca: Path) -> None:
    try:
        context.load_verify_locations(client_ca)
    except ssl.SSLError as error:
        raise UsageError(
            f"{client_ca} has no certificate that can be read",
            hint="client_ca must be PEM: -----BEGIN CERTIFICATE-----",
        ) from error
    except OSError as error:
        raise UsageError(
            f"cannot read {client_ca}: {error.strerror}", hint="check tls.client_ca and who may read it"
        ) from error
    context.verify_mode = ssl.CERT_REQUIRED


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None  # between removal and replacement
    return status.st_mtime_ns, status.st_size, status.st_ino


def _harden(context: ssl.SSLContext, alpn: Sequence[str]) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Whoever names an intermediate authority, or a single certificate, means to trust that.  And from Python 3.13 on,
    # strict checks are the default: they refuse authorities made by hand, without key identifiers, that no other
    # program refuses.  What is accepted must not depend on the version of Python.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
    # A renegotiation would make OpenSSL want to read while we write.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if alpn:
        context.set_alpn_protocols(list(alpn))
