"""The stable codes: how bad each is where nothing else is said, and what to do.  docs/DOCTOR.md has a section for each.

A code stays what it is once it was released; `settings` for single products are in `qanat.doctor.advice`.
"""

from __future__ import annotations

from dataclasses import dataclass

from qanat.doctor.report import Severity


@dataclass(frozen=True, slots=True)
class Code:
    """What a code means for the tunnel, and what to do about it in general."""

    severity: Severity
    cure: str
    means: str = ""
    """What was seen; for docs/DOCTOR.md, which is made from this."""


_FATAL, _FLAW, _LIMIT, _NOTE = Severity.FATAL, Severity.FLAW, Severity.LIMIT, Severity.NOTE

CODES: dict[str, Code] = {
    # the way there
    "name-unknown": Code(
        _FATAL,
        "check the spelling of the host in the URL, and the DNS record of that name",
        "The name in the URL has no address.",
    ),
    "name-server-silent": Code(
        _FATAL,
        "check this machine's network connection and its name servers (resolv.conf)",
        "No name server answered, or none has an answer now.",
    ),
    "address-dead": Code(
        _FLAW,
        "take the dead address out of the name's DNS records, or have it answered",
        "The name has several addresses, and some of them do not answer. Qanat goes on to the next one after a "
        "quarter of a second; other programs wait longer.",
    ),
    "refused": Code(
        _FATAL,
        "start the server or the proxy in front of it, and check the port in the URL",
        "Every address refuses the connection: nothing listens on that port.",
    ),
    "unreachable": Code(
        _FATAL,
        "check this machine's network connection, and the address in the DNS record",
        "This machine has no route to any of the addresses.",
    ),
    "no-answer": Code(
        _FATAL,
        "open the port in the firewall of the server, and check the address in the DNS record",
        "No address answers within 4 s. Mostly a firewall drops what comes, or the machine is off.",
    ),
    # a proxy on the way out
    "proxy-unreachable": Code(
        _FATAL,
        "check host and port of `proxy`, or of the environment's HTTPS_PROXY",
        "The proxy that `proxy` or the environment names cannot be connected to.",
    ),
    "proxy-login": Code(
        _FATAL,
        "put the login into the proxy's URL: http://USER@HOST:PORT, with proxy_password_file",
        "The proxy answers 407 and wants a user name and password.",
    ),
    "proxy-login-refused": Code(
        _FATAL,
        "check user and password of the proxy; @ is %40 in a URL",
        "The proxy answers 407 although it was given a user name and password.",
    ),
    "proxy-login-unspoken": Code(
        _FATAL,
        "run a proxy that speaks its login beside the client (cntlm, px) and name that",
        "The proxy wants NTLM, Kerberos or another login that is not spoken here.",
    ),
    "proxy-forbids": Code(
        _FATAL,
        "let the server listen on 443, or have its host and port allowed in the proxy",
        "The proxy does not let anybody connect to that host or port. Most allow 443 alone.",
    ),
    "proxy-cannot-reach": Code(
        _FATAL,
        "check host and port in the URL as the proxy sees them",
        "The proxy answers, and cannot connect to the server.",
    ),
    "proxy-is-none": Code(
        _FATAL, "check scheme, host and port of `proxy`", "What is named as the proxy does not answer as a proxy does."
    ),
    # TLS
    "port-without-tls": Code(
        _FATAL,
        "write ws:// in place of wss://, or use the port that speaks TLS",
        "The URL says wss:// or https://, and the port does not speak TLS.",
    ),
    "port-with-tls": Code(
        _FATAL, "write wss:// in place of ws://", "The URL says ws:// or http://, and the port speaks TLS."
    ),
    "certificate-expired": Code(
        _FATAL,
        "renew the certificate at what terminates TLS, and check this machine's clock",
        "The certificate's time is over, or this machine's clock is ahead.",
    ),
    "certificate-not-yet-valid": Code(
        _FATAL,
        "set this machine's clock",
        "The certificate's time has not begun. Mostly this machine's clock is behind.",
    ),
    "certificate-name": Code(
        _FATAL,
        "use a name of the certificate in the URL, or get one for the URL's name",
        "The certificate is for other names than the URL's.",
    ),
    "certificate-self-signed": Code(
        _FATAL,
        "name the certificate's file in tls.ca_file, or get one from an authority",
        "The certificate is signed by nobody but itself.",
    ),
    "certificate-unknown-authority": Code(
        _FATAL,
        "if it is your own authority, name its file in tls.ca_file; if it is a public one, have the server send its "
        "whole chain (fullchain.pem); if it is neither, somebody inspects TLS on the way",
        "The certificate is signed by an authority that this machine does not trust; or the server sends its own "
        "certificate without the intermediate ones.",
    ),
    "no-authorities": Code(
        _FATAL, "install ca-certificates", "This machine has no certificates of authorities at all."
    ),
    "tls-intercepted": Code(
        _FATAL,
        "have the server's name exempted from inspection; or, since the tunnel is sealed inside TLS, trust the "
        "inspector's authority: its file in tls.ca_file",
        "TLS does not end at the server but at somebody on the way who signs in its place: the issuer is known for "
        "that, makes certificates as they are asked for, or is not the authority in `tls.ca_file`. The tunnel "
        "inside is sealed, so it can be trusted in spite of this; the fingerprint says whether the server is the "
        "right one.",
    ),
    "tls-version": Code(
        _FATAL,
        "have what terminates TLS speak TLS 1.2 or newer",
        "What terminates TLS speaks only versions before 1.2.",
    ),
    "tls-failed": Code(
        _FATAL, "check that host and port in the URL are the server's", "The TLS handshake failed for another reason."
    ),
    "client-certificate": Code(
        _FATAL,
        "set tls.certificate and tls.key in client.yaml",
        "What terminates TLS wants a certificate from the client (mTLS).",
    ),
    "certificate-expires-soon": Code(
        _FLAW, "renew the certificate at what terminates TLS", "The certificate expires within 14 days."
    ),
    "clock-off": Code(
        _FLAW,
        "set the clock of the machine that is wrong (timedatectl set-ntp true)",
        "The date in the server's answers and this machine's clock differ by more than 2 minutes. Certificates are "
        "judged by the clock.",
    ),
    # what answers
    "not-http": Code(
        _FATAL,
        "check host and port in the URL: what answers there is no web server",
        "Something accepts the connection and does not answer as a web server.",
    ),
    "portal": Code(
        _FATAL,
        "log in to this network in a browser, then try again",
        "Something on the way answers everything itself, with a page or by sending to another host: a captive "
        "portal, or a filter.",
    ),
    "redirect": Code(
        _FATAL,
        "write the URL that it leads to, or take the redirect away for the tunnel's path",
        "The answer is a redirect, which a tunnel does not follow.",
    ),
    "login-wanted": Code(
        _FATAL,
        "exempt the tunnel's path from the login, or give it in `headers`",
        "Something in front of the server wants a login (401 or 407).",
    ),
    "forbidden": Code(
        _FATAL,
        "let the tunnel's path through the firewall or access rule that answers",
        "A firewall, a CDN or an access rule answers 403.",
    ),
    "wrong-path": Code(
        _FATAL,
        "compare the path in the URL with `path` in server.yaml, and with the proxy's routes",
        "A web server answers, and there is no tunnel at this path (404).",
    ),
    "host-unknown": Code(
        _FATAL,
        "check the host in the URL, and `host` and tls.server_name where they are set",
        "The web server does not serve this host name here (421).",
    ),
    "limited": Code(
        _FATAL,
        "raise the limit on requests for the tunnel's path",
        "Something in front limits how often one may come (429).",
    ),
    "head-too-large": Code(
        _FATAL,
        "shorten `headers`, or raise the proxy's limit for a request's head",
        "The request's head is larger than what answers takes (431).",
    ),
    "server-busy": Code(
        _FATAL,
        "wait; if it stays, raise limits.handshakes in server.yaml",
        "The server has no room for a handshake now (503 with Retry-After).",
    ),
    "backend-down": Code(
        _FATAL,
        "start the server, and check the address that the proxy has for it",
        "The proxy answers, and cannot reach the server behind it (502, 503, 504; CloudFlare 520 to 530).",
    ),
    "unexpected-answer": Code(
        _FATAL, "look at the log of what answers", "The answer has a status that no tunnel's server gives."
    ),
    # what gets through
    "upgrade-dropped": Code(
        _LIMIT,
        "have the proxy pass Upgrade and Connection on, over HTTP/1.1",
        "A request for WebSocket reaches the server without `Upgrade` and `Connection`, or not at all. Both are "
        "hop-by-hop headers, which a proxy passes on only if it knows them.",
    ),
    "black-hole": Code(
        _LIMIT,
        "something takes a WebSocket and carries nothing: exempt the tunnel's path from it",
        "The answer to the Upgrade is 101, and then nothing comes, though the server speaks first.",
    ),
    "http1-off": Code(
        _LIMIT,
        "switch HTTP/1.1 on beside HTTP/2, or use another transport",
        "HTTP/1.1 is not spoken, so there is no WebSocket by Upgrade.",
    ),
    "http2-off": Code(
        _LIMIT,
        "switch HTTP/2 on at what terminates TLS",
        "HTTP/2 is not spoken: in TLS it is not chosen, or in clear text the connection is closed.",
    ),
    "http2-426": Code(
        _LIMIT,
        "use `transport: websocket`, or have the proxy speak HTTP/2 to the server",
        "Over HTTP/2 the answer is 426 with an `Upgrade` header, which HTTP/2 forbids (RFC 9113 §8.2.2).",
    ),
    "http2-not-to-server": Code(
        _LIMIT,
        "have the proxy speak HTTP/2 to the server as well",
        "HTTP/2 is spoken with the proxy, and HTTP/1 between it and the server, which takes `http2` and `grpc` "
        "over HTTP/2 alone.",
    ),
    "request-held": Code(
        _LIMIT,
        "have the proxy pass a request on before it has ended",
        "A request is passed on only when it has ended. `http2` and `grpc` are one request that stays open.",
    ),
    "answer-held": Code(
        _LIMIT,
        "have the proxy pass an answer on as it comes",
        "An answer is passed on late: when it has ended, when so many bytes of it have come, or after a time.",
    ),
    "grpc-refused": Code(
        _LIMIT,
        "switch gRPC on for the tunnel's path, or use another transport",
        "Requests with gRPC's content type are refused, and others are not.",
    ),
    "cut": Code(
        _LIMIT,
        "look at the proxy's log for why it cut the connection",
        "A connection is opened, used, and cut within seconds.",
    ),
    "one-at-a-time": Code(
        _LIMIT,
        "let a connection have several requests at once",
        "On one HTTP/2 connection a second request waits until the first has its whole answer.",
    ),
    "body-limit": Code(
        _LIMIT,
        "lift the limit on a request's body for the tunnel's path",
        "A request that announces a large body is refused with 413. `http2` and `grpc` are cut each time that so "
        "much has gone up.",
    ),
    "idle-cut": Code(
        _NOTE,
        "raise the timeout, or set keepalive.interval below it at both ends",
        "A silent connection is cut after so many seconds (found with `--idle`). Qanat itself says something every "
        "15 s (`keepalive.interval`), so only a cut before that hurts.",
    ),
    # the server
    "token-refused": Code(
        _FATAL,
        "compare name and token with `clients` in server.yaml",
        "The server does not accept this name with this token.",
    ),
    "fingerprint-changed": Code(
        _FATAL,
        "find out who answers; `tunnel.py fingerprint` on the server prints its key",
        "The server's key is not the one that is pinned, or that was met before.",
    ),
    "no-probes": Code(
        _NOTE,
        "upgrade the server, or set doctor: true in server.yaml, to learn more",
        "The server gets the tunnel's first message through and does not answer probes, so some steps are left out.",
    ),
    # the running client
    "client-fails": Code(_FLAW, "look at the running client's log", "The running client has met failures of late."),
}
