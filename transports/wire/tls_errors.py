"""What a failed TLS handshake most likely means, in words that say what to do.

Used by `tls` when we are the client; a server only logs the bare reason, since its client is not authenticated.
"""

from __future__ import annotations

import os
import ssl

from qanat.base.errors import TransportError

# X509_V_ERR_… of OpenSSL's <openssl/x509_vfy.h>
_NOT_YET_VALID = 9
_EXPIRED = 10
_SELF_SIGNED = (18, 19)
_UNKNOWN_ISSUER = (2, 20, 21)
_WRONG_NAME = (62, 64)

_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")

_REFUSALS = {
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it has no cipher or certificate for this host name (check the name in the URL), "
    "or demands a client certificate (set tls.certificate and tls.key)",
    "TLSV1_UNRECOGNIZED_NAME": "it does not serve this host name; check the name in the URL",
    "TLSV1_ALERT_UNRECOGNIZED_NAME": "it does not serve this host name; check the name in the URL",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it speaks only versions before TLS 1.2; it must be updated",
    "UNSUPPORTED_PROTOCOL": "it speaks only versions before TLS 1.2; it must be updated",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it demands a client certificate: set tls.certificate and tls.key",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the authority of our tls.certificate; "
    "put the whole certificate chain into that file",
    "TLSV1_ALERT_DECRYPT_ERROR": "it does not accept our tls.certificate",
    "TLSV1_ALERT_ACCESS_DENIED": "it does not accept our tls.certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not accept our tls.certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it does not accept our tls.certificate: is that one for clients?",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our tls.certificate has expired: renew it",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "our tls.certificate was revoked: get a new one",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not accept our tls.certificate",
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": "it does not offer HTTP/1.1 on this port",
}


def explain_handshake_failure(error: ssl.SSLError, host: str, context: ssl.SSLContext) -> TransportError:
    """One message that says what to do about `error`, which came while connecting to `host` with this context."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _UNKNOWN_ISSUER and _knows_no_authority(context):
            return TransportError(
                f"the TLS certificate of {host} cannot be verified: this machine has no certificates of authorities",
                hint="install them (the package is mostly called ca-certificates), or name a PEM file with them in "
                "tls.ca_file or in the environment variable SSL_CERT_FILE",
            )
        return _explain_verification(error, host)
    reason = error.reason or ""
    if reason in _NOT_TLS:
        return TransportError(
            f"{host} does not speak TLS on this port",
            hint="check the port, or write ws:// instead of wss:// if the server has no TLS",
        )
    return TransportError(
        f"the TLS handshake with {host} failed: {reason_of(error)}",
        hint=hint_for_refusal(error) or "check that host and port in the URL are the server's",
    )


def hint_for_refusal(error: ssl.SSLError) -> str:
    """Say what to do about a server's alert, which in TLS 1.3 may come after the handshake; "" when not known."""
    return _REFUSALS.get(error.reason or "", "")


def reason_of(error: ssl.SSLError) -> str:
    """OpenSSL's reason in words: "unexpected message"."""
    return (error.reason or str(error) or type(error).__name__).replace("_", " ").lower()


def _knows_no_authority(context: ssl.SSLContext) -> bool:
    """Return whether there is none in a file, nor in the directory that OpenSSL would look into."""
    directory = ssl.get_default_verify_paths().capath
    try:
        return not context.cert_store_stats()["x509"] and not (directory and os.listdir(directory))
    except OSError:
        return True


def _explain_verification(error: ssl.SSLCertVerificationError, host: str) -> TransportError:
    code = error.verify_code
    if code in _WRONG_NAME:
        return TransportError(
            f"the TLS certificate is not for {host}",
            hint="use the name that is in the certificate in the URL or as tls.server_name, or check that this is the "
            "right server",
        )
    if code == _EXPIRED:
        return TransportError(
            f"the TLS certificate of {host} has expired",
            hint="renew it on the server, or check this machine's clock",
        )
    if code == _NOT_YET_VALID:
        return TransportError(f"the TLS certificate of {host} is not valid yet", hint="check this machine's clock")
    if code in _SELF_SIGNED or code in _UNKNOWN_ISSUER:
        kind = "self-signed" if code in _SELF_SIGNED else "signed by an authority that this machine does not know"
        hint = "set tls.ca_file to a PEM file with that authority; a proxy that inspects TLS also looks like this"
        if code in _UNKNOWN_ISSUER:
            hint += ", and so does a server that sends its own certificate alone: give it the chain (fullchain.pem)"
        return TransportError(f"the TLS certificate of {host} is {kind}", hint=hint)
    return TransportError(
        f"the TLS certificate of {host} does not verify: {error.verify_message}",
        hint="set tls.ca_file if the server uses an authority of its own",
    )
