"""The host names in this server's own certificate: they go on being served by it, whatever clients publish."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509


def certificate_names(path: Path) -> tuple[str, ...]:
    """Return the DNS names of the first certificate in a PEM file, in lower case; none when it cannot be read."""
    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return ()
    return tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))


def covers(names: Sequence[str], name: str) -> bool:
    """Return whether a certificate with `names` is one for `name` (RFC 6125 §6.4.3)."""
    return name in names or f"*.{name.partition('.')[2]}" in names
