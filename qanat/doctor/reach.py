"""The way there, before any HTTP: the name, its addresses, a proxy on the way, and TLS with its certificate."""

from __future__ import annotations

import datetime
import errno
import re
import ssl
import time
from dataclasses import replace

from cryptography import x509
from cryptography.x509.oid import NameOID

from qanat.base.addresses import parse_address
from qanat.base.connect import connect as connect_to_first
from qanat.base.deadline import Deadline
from qanat.base.errors import ConnectError, NameLookupError, QanatError, TransportError
from qanat.base.resolve import Address, LookupShare, resolve
from qanat.base.sockets import describe_os_error, format_address
from qanat.base.threads import ThreadGroup
from qanat.base.untrusted import words
from qanat.doctor.conversation import ask
from qanat.doctor.report import Outcome, Step
from qanat.doctor.subject import Connected, Seen, Subject, TlsSeen
from qanat.transports.dial.dialer import dial
from qanat.transports.wire.tls import TlsWire

LOOKUP, CONNECT, TLS = 5.0, 4.0, 8.0
"""Seconds that each may take."""
MAX_ADDRESSES = 8
_NOBODY = "no-such-name-as-this.invalid"

INTERCEPTORS = re.compile(
    r"zscaler|fortinet|fortigate|palo ?alto|blue ?coat|symantec web|sophos|netskope|umbrella|kaspersky|eset ssl|avast|"
    r"mcafee|trellix|forcepoint|websense|check ?point|watchguard|barracuda|untangle|mitmproxy|burp|charles proxy|"
    r"fiddler|portswigger|squid|smoothwall|cyberoam|sonicwall|lightspeed|securly|contentkeeper|iboss|menlo|"
    r"web gateway|ssl inspection|tls inspection|ssl proxy|proxy ca",
    re.I,
)
"""Issuers that sign in somebody else's place."""


def check_name(subject: Subject, seen: Seen) -> None:
    """Look the name up; with a proxy, the proxy's name."""
    proxy = subject.proxy
    host, port = (proxy.host, proxy.port) if proxy is not None else subject.route.target(subject.url)
    what = f"look up {host}" + (" (the proxy)" if proxy is not None else "")
    began = time.monotonic()
    literal = parse_address(host.partition("%")[0]) is not None
    try:
        seen.lookup.addresses = resolve(host, port, Deadline(LOOKUP), LookupShare(), subject.cancel)
        names = [format_address(address[1]) for address in seen.lookup.addresses]
        result = "an address, not a name" if literal else ", ".join(names)
        seen.add(10, Step("name", what, result, Outcome.OK, time.monotonic() - began))
    except NameLookupError as error:
        seen.lookup.error, seen.lookup.unknown = error.message, error.unknown
        seen.add(10, Step("name", what, error.message, Outcome.BAD, time.monotonic() - began))
        return
    addresses = list(dict.fromkeys(seen.lookup.addresses))[:MAX_ADDRESSES]
    threads = ThreadGroup("doctor")
    found = [Connected(format_address(address[1])) for address in addresses]
    seen.connected = found
    for address, result_of in zip(addresses, found, strict=True):
        threads.start("doctor-connect", lambda a=address, c=result_of: _connect(a, c, subject))  # type: ignore[misc]
    threads.join(CONNECT + 1)
    for one in found:
        outcome = Outcome.BAD if one.seconds is None else Outcome.OK
        family = "IPv6" if one.address.startswith("[") else "IPv4"
        text = one.error or ("connected" if one.seconds is not None else "no answer in time")
        seen.add(11, Step("connect", f"TCP to {one.address} ({family})", text, outcome, one.seconds))


def _connect(address: Address, result: Connected, subject: Subject) -> None:
    began = time.monotonic()
    try:
        sock, _ = connect_to_first([address], Deadline(CONNECT), subject.cancel)
        result.seconds = time.monotonic() - began
        sock.close()
    except ConnectError as error:
        result.number = error.last.errno or errno.EINVAL
        result.error = describe_os_error(error.last)
    except QanatError as error:
        result.error, result.number = error.message, errno.EINVAL


def check_proxy(subject: Subject, seen: Seen) -> None:
    """Have the proxy connect to the server."""
    proxy = subject.proxy
    if proxy is None:
        return
    plain = replace(subject.url, tls=False)
    began = time.monotonic()
    tried = f"{'CONNECT' if proxy.scheme != 'socks5h' else 'SOCKS5'} to {subject.url.address} through {proxy}"
    try:
        dial(plain, alpn=(), deadline=Deadline(TLS), route=subject.route, cancel=subject.cancel).close()
        seen.add(12, Step("proxy", tried, "it connects", Outcome.OK, time.monotonic() - began))
    except TransportError as error:
        seen.proxy_error = error.message, error.hint
        seen.add(12, Step("proxy", tried, error.message, Outcome.BAD, time.monotonic() - began))


def check_tls(subject: Subject, seen: Seen) -> None:
    """Do the handshake as a client would, then look at the certificate, whatever it is worth."""
    if not subject.url.tls:
        return
    found = TlsSeen()
    name = subject.route.tls_name(subject.url)
    began = time.monotonic()
    try:
        wire = _tls(subject, subject.route.tls_context(("h2", "http/1.1")), name)
        found.version, found.alpn = wire.version, wire.alpn
        _read_certificate(found, wire)
        wire.close()
    except TransportError as error:
        cause = error.__cause__
        found.error, found.hint = error.message, error.hint
        if isinstance(cause, ssl.SSLCertVerificationError):
            found.verify_code = cause.verify_code
    seconds = time.monotonic() - began
    if found.verify_code:
        _look_anyway(subject, found, name)
    elif found.error:
        found.plain_answers = _answers_without_tls(subject)
    tried = f"TLS to {subject.url.address} as {name}, offering h2 and http/1.1"
    if found.error:
        seen.add(20, Step("tls", tried, f"{found.error}{_described(found)}", Outcome.BAD, seconds))
    else:
        result = f"{found.version}, chose {found.alpn or 'no protocol'}{_described(found)}"
        seen.add(20, Step("tls", tried, result, Outcome.OK, seconds))
    seen.tls = found


def _answers_without_tls(subject: Subject) -> bool:
    deadline = Deadline(TLS / 2)
    try:
        talk = ask(replace(subject.url, tls=False), subject.route, 1, deadline, subject.cancel, target="/healthz")
        try:
            talk.head(deadline)
        finally:
            talk.close()
    except TransportError:
        return False
    return True


def check_tls_on_plain(subject: Subject, seen: Seen) -> None:
    """Where nothing is answered without TLS, see whether the port speaks it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    began = time.monotonic()
    try:
        _tls(subject, context, subject.route.tls_name(subject.url)).close()
        seen.speaks_tls = True
        seen.add(
            20,
            Step("tls", "TLS, since nothing answers without", "it speaks TLS", Outcome.BAD, time.monotonic() - began),
        )
    except TransportError:
        pass


def _tls(subject: Subject, context: ssl.SSLContext, name: str) -> TlsWire:
    deadline = Deadline(TLS)
    wire = dial(replace(subject.url, tls=False), alpn=(), deadline=deadline, route=subject.route, cancel=subject.cancel)
    with subject.cancel.waking(wire.close):
        return TlsWire(wire, context, server_hostname=name, deadline=deadline)


def _look_anyway(subject: Subject, found: TlsSeen, name: str) -> None:
    """Read the certificate that does not verify, and ask for one of a name that nobody has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        wire = _tls(subject, context, name)
        found.version = wire.version
        _read_certificate(found, wire)
        wire.close()
        other = TlsSeen()
        wire = _tls(subject, context, _NOBODY)
        _read_certificate(other, wire)
        wire.close()
        found.forged = _NOBODY in other.names or _NOBODY in other.subject
    except (TransportError, ValueError):
        pass  # what is known already has to do


def _read_certificate(found: TlsSeen, wire: TlsWire) -> None:
    content = wire.certificate
    if content is None:
        return
    certificate = x509.load_der_x509_certificate(content)
    now = datetime.datetime.now(datetime.UTC)
    found.issuer, found.subject = _name_of(certificate.issuer), _name_of(certificate.subject)
    found.self_issued = certificate.issuer == certificate.subject
    found.not_before = certificate.not_valid_before_utc.date().isoformat()
    found.not_after = certificate.not_valid_after_utc.date().isoformat()
    found.days_left = (certificate.not_valid_after_utc - now).total_seconds() / 86_400
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found.names = tuple(words(str(one.value), 100) for one in alternatives)[:20]
    except (x509.ExtensionNotFound, ValueError):
        found.names = ()


def _name_of(name: x509.Name) -> str:
    parts = [
        str(attribute.value)
        for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
        for attribute in name.get_attributes_for_oid(oid)
    ]
    return words(", ".join(parts) or name.rfc4514_string(), 120)


def _described(found: TlsSeen) -> str:
    if not found.issuer:
        return ""
    who = "signed by itself" if found.self_issued else f"signed by {found.issuer}"
    for_names = ", ".join(found.names[:4]) or found.subject
    return f"; the certificate is for {for_names}, {who}, valid {found.not_before} to {found.not_after}"
