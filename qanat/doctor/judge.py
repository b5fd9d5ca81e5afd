"""From what was seen to causes, a verdict and the transport to use.  Pure.

What stands nearer to us hides what is behind it: a name that is not known says nothing about TLS.  So the first cause
on the way ends the list, and only what gets through to the server is judged in whole.
"""

from __future__ import annotations

import errno
import itertools
import re
import statistics
from collections.abc import Iterator

from qanat.doctor import products
from qanat.doctor.advice import settings_for
from qanat.doctor.codes import CODES
from qanat.doctor.reach import INTERCEPTORS
from qanat.doctor.report import Finding, Report, Severity, Verdict
from qanat.doctor.requests import CLOCK_OFF, SIZES_TRIED
from qanat.doctor.silence import KEEPALIVE
from qanat.doctor.subject import Asked, Seen, Subject, Tried

PREFERENCE = ("websocket", "http2", "grpc", "websocket-h2", "split")
"""Which transport to use of those that get through: fewest limits first (docs/PROXIES.md)."""
_SOON = 14.0  # days
_CUTTING = {"http2", "grpc"}  # their upload is one request, so a limit on its size cuts them

_REFUSES_GRPC = re.compile(r"\b(403|415|501)\b")

# X509_V_ERR_… of OpenSSL's <openssl/x509_vfy.h>
_NOT_YET, _EXPIRED, _WRONG_NAME = 9, 10, (62, 64)
_SELF_SIGNED, _UNKNOWN, _BAD_SIGNATURE = (18, 19), (2, 20, 21), 7


class _Judge:
    """One judgment."""

    def __init__(self, subject: Subject, seen: Seen) -> None:
        self._subject = subject
        self._seen = seen
        self._product = seen.product.name if seen.product is not None else ""
        self.findings: list[Finding] = []

    def find(self, code: str, text: str, *, severity: Severity | None = None, cure: str = "") -> None:
        """Add a finding."""
        entry = CODES[code]
        settings = settings_for(
            code,
            self._product,
            products.ADVISED,
            path=self._subject.url.path.partition("?")[0],
            name=self._subject.url.host,
            port=str(self._subject.url.port),
        )
        self.findings.append(Finding(code, severity or entry.severity, text, cure or entry.cure, settings))

    # --- the way there

    def judge_way(self) -> bool:
        """Judge all up to TLS; return whether HTTP could be spoken."""
        seen, subject = self._seen, self._subject
        lookup = seen.lookup
        if lookup.error:
            what = f"the proxy {subject.proxy}: " if subject.proxy is not None else ""
            self.find("name-unknown" if lookup.unknown else "name-server-silent", what + lookup.error)
            return False
        alive = [one for one in seen.connected if one.seconds is not None]
        dead = [one for one in seen.connected if one.seconds is None]
        if seen.connected and not alive:
            self._judge_unreached()
            return False
        if dead:
            names = ", ".join(f"{one.address} ({one.error or 'no answer'})" for one in dead)
            self.find("address-dead", f"of the addresses of the name, these do not answer: {names}")
        if seen.proxy_error is not None:
            self._judge_proxy(*seen.proxy_error)
            return False
        if seen.tls is not None and seen.tls.error:
            self._judge_tls()
            return False
        if seen.tls is not None and seen.tls.days_left is not None and seen.tls.days_left < _SOON:
            days = f"{max(0.0, seen.tls.days_left):.0f} days"
            self.find("certificate-expires-soon", f"the certificate expires in {days}, on {seen.tls.not_after}")
        if seen.clock is not None and abs(seen.clock) > CLOCK_OFF:
            which = "ahead of" if seen.clock > 0 else "behind"
            self.find("clock-off", f"the server's clock is {abs(seen.clock):.0f} s {which} this machine's")
        return True

    def _judge_unreached(self) -> None:
        numbers = {one.number for one in self._seen.connected}
        names = ", ".join(f"{one.address}: {one.error or 'no answer in time'}" for one in self._seen.connected)
        if self._subject.proxy is not None:
            self.find("proxy-unreachable", f"the proxy {self._subject.proxy} cannot be connected to: {names}")
        elif numbers <= {errno.ECONNREFUSED}:
            self.find("refused", names)
        elif numbers & {errno.ENETUNREACH, errno.EHOSTUNREACH} and not numbers & {errno.ETIMEDOUT}:
            self.find("unreachable", names)
        else:
            self.find("no-answer", names)

    def _judge_proxy(self, message: str, hint: str) -> None:
        if "407" in message or "user name" in message:
            if "not spoken here" in message:
                code = "proxy-login-unspoken"
            elif "does not accept" in message:
                code = "proxy-login-refused"
            else:
                code = "proxy-login"
        elif "answered 403" in message or "not allowed" in message or "ruleset" in message:
            code = "proxy-forbids"
        elif any(f"answered {status}" in message for status in (502, 503, 504)) or "cannot connect to" in message:
            code = "proxy-cannot-reach"
        else:
            code = "proxy-is-none"
        if self._seen.product is None or code == "proxy-forbids":
            self._product = products.SQUID if code == "proxy-forbids" else self._product
        self.find(code, message, cure=hint)

    def _judge_tls(self) -> None:
        tls, subject = self._seen.tls, self._subject
        assert tls is not None
        code = tls.verify_code
        about = f"; it is for {', '.join(tls.names[:4]) or tls.subject}, signed by {tls.issuer}" if tls.issuer else ""
        if code and (INTERCEPTORS.search(tls.issuer) or tls.forged):
            how = "it makes certificates as they are asked for" if tls.forged else "known for inspecting TLS"
            self.find("tls-intercepted", f"{tls.error}: TLS ends at {tls.issuer}, {how}")
        elif code == _BAD_SIGNATURE:
            self.find("tls-intercepted", f"{tls.error}: somebody calls himself {tls.issuer}, and has another key")
        elif code == _EXPIRED:
            self.find("certificate-expired", f"{tls.error}, on {tls.not_after}{about}")
        elif code == _NOT_YET:
            self.find("certificate-not-yet-valid", f"{tls.error}: only from {tls.not_before} on{about}")
        elif code in _WRONG_NAME:
            self.find("certificate-name", f"{tls.error}{about}")
        elif code in _SELF_SIGNED and tls.self_issued:
            self.find("certificate-self-signed", f"{tls.error}{about}")
        elif code in (*_UNKNOWN, *_SELF_SIGNED):
            if "no certificates of authorities" in tls.error:
                self.find("no-authorities", tls.error, cure=tls.hint)
            elif subject.route.ca_file is not None:
                text = f"{tls.error}: not by the authority in tls.ca_file, but by {tls.issuer}"
                self.find("tls-intercepted", text)
            else:
                self.find("certificate-unknown-authority", f"{tls.error}{about}")
        elif "does not speak TLS" in tls.error or tls.plain_answers:
            self.find("port-without-tls", tls.error)
        elif "client certificate" in tls.hint and "demands" in tls.hint and "CERTIFICATE_REQUIRED" in tls.error.upper():
            self.find("client-certificate", tls.error, cure=tls.hint)
        elif "before TLS 1.2" in tls.hint:
            self.find("tls-version", tls.error)
        elif "serve this host name" in tls.hint or "no cipher or certificate" in tls.hint:
            self.find("certificate-name", tls.error, cure=tls.hint)
        else:
            self.find("tls-failed", tls.error, cure=tls.hint)

    # --- what answers

    def judge_answers(self, works: set[str]) -> bool:
        """Judge what answers at the path; return whether that is, or may be, a Qanat server."""
        seen = self._seen
        if works or _answered(seen):
            return True
        if self._judge_port():
            return False
        answers = [asked for asked in (*seen.asked.values(), seen.upgrade) if asked is not None and asked.head]
        if not answers:
            errors = [a.error for a in (*seen.asked.values(), seen.upgrade) if a is not None and a.error]
            tls = [tried for tried in seen.tried.values() if "client certificate" in tried.hint]
            if tls:
                self.find("client-certificate", tls[0].error, cure=tls[0].hint)
            else:
                self.find("not-http", errors[0] if errors else "nothing answered in time")
            return False
        return self._judge_statuses(answers)

    def _judge_port(self) -> bool:
        if self._seen.speaks_tls:
            self.find("port-with-tls", f"{self._subject.url.address} speaks TLS")
            return True
        errors = " ".join(
            [tried.error for tried in self._seen.tried.values()] + [a.error for a in self._seen.asked.values()]
        )
        if not self._subject.url.tls and "speaks TLS on this port" in errors:
            self.find("port-with-tls", f"{self._subject.url.address} speaks TLS")
            return True
        bodies = " ".join(a.body for a in self._seen.asked.values())
        if not self._subject.url.tls and (
            "sent to HTTPS port" in bodies or "speaks TLS: use https" in bodies or "speaking plain HTTP" in bodies
        ):
            self.find("port-with-tls", f"{self._subject.url.address} speaks TLS")
            return True
        return False

    def _judge_statuses(self, answers: list[Asked]) -> bool:
        upgrade = self._seen.upgrade
        decisive = upgrade if upgrade is not None and upgrade.head is not None else answers[0]
        head = decisive.head
        assert head is not None
        status = head.status
        kind = head.value("content-type")
        plain = self._seen.asked.get(1) or self._seen.asked.get(2)
        answered = f"it answered {status}"
        if status in (301, 302, 303, 307, 308):
            where = head.value("location")
            if self._same_host(where):
                self.find("redirect", f"{answered}, and sends to {_safe(where)}")
            else:
                self.find("portal", f"{answered} and sends to {_safe(where)}, another host")
        elif status == 200 and kind.startswith("text/html") and _all_pages(answers):
            self.find("portal", "everything is answered with 200 and a page")
        elif status in (401, 407):
            self.find("login-wanted", answered)
        elif status == 403:
            self.find("forbidden", answered)
        elif status == 404 or (status == 405 and plain is not None and plain.head and plain.head.status in (404, 405)):
            who = (
                "the server"
                if kind.startswith("text/plain") and decisive.body.startswith("Not Found")
                else "a web server"
            )
            self.find("wrong-path", f"{answered}: {who} answers, and there is no tunnel at {self._subject.url.path}")
        elif status == 421:
            self.find("host-unknown", answered)
        elif status == 429:
            self.find("limited", answered)
        elif status == 431:
            self.find("head-too-large", answered)
        elif status == 503 and head.value("retry-after") and not self._product:
            self.find("server-busy", f"{answered}, and asks for {head.value('retry-after')} s")
        elif status in (502, 503, 504):
            self.find("backend-down", answered)
        elif 520 <= status <= 530:
            self._product = products.CLOUDFLARE
            self.find("backend-down", f"{answered}: CloudFlare cannot reach the origin")
        elif status in (400, 426, 501):
            return True  # a server may be behind what takes the Upgrade away
        elif 200 <= status < 300:  # Qanat's own server would answer 400 or 404
            self.find("wrong-path", f"{answered}: a web server answers, and it is no tunnel")
        else:
            self.find("unexpected-answer", answered)
        return False

    def _same_host(self, location: str) -> bool:
        return location.startswith("/") or f"//{self._subject.url.host}" in location

    # --- the transports

    def judge_transports(self, works: set[str]) -> None:
        """Judge why those transports that do not get through do not."""
        seen = self._seen
        limit = Severity.FATAL
        if works:
            # What a user has asked for by name has to work; and split alone is worth a change.
            asked_for = set(self._subject.asked_for) & set(seen.tried)
            through = asked_for & works if asked_for else works - {"split"}
            limit = Severity.LIMIT if through else Severity.FLAW
        over_http2 = seen.asked.get(2)
        websocket = seen.tried.get("websocket")
        if websocket is not None and not websocket.works:
            self._judge_websocket(websocket, limit)
        open_posts: list[str] = [
            name for name in ("http2", "grpc") if name in seen.tried and not seen.tried[name].works
        ]
        if open_posts:
            if over_http2 is None or over_http2.head is None:
                if "http2" in open_posts:
                    why = seen.tried["http2"].error or (over_http2.error if over_http2 is not None else "")
                    self.find("http2-off", why or "HTTP/2 is not spoken", severity=limit)
            elif seen.forbidden or over_http2.head.status == 426:
                self.find("http2-426", "over HTTP/2 it answers 426, with a header that HTTP/2 forbids", severity=limit)
            else:
                self._judge_open_posts(open_posts, limit)
        held = [one for one in seen.answer_held.values() if one.is_held]
        if seen.one_at_a_time and not held:
            self.find("one-at-a-time", "a second request waits until the first has its answer")

    def _judge_websocket(self, websocket: Tried, limit: Severity) -> None:
        upgrade = self._seen.upgrade
        head = upgrade.head if upgrade is not None else None
        over_http1 = self._seen.asked.get(1)
        if head is not None and head.status == 101 and not websocket.spoke:
            self.find("black-hole", "101 comes, and after it nothing", severity=limit)
        elif head is not None and head.status == 101:
            self.find("cut", f"over websocket: {websocket.error}", severity=limit)
        elif head is None and (over_http1 is None or over_http1.head is None):
            self.find("http1-off", "HTTP/1.1 is not spoken, so there is no WebSocket", severity=limit)
        elif head is None:
            text = "a request for an Upgrade has no answer, and others have"
            self.find("upgrade-dropped", text, severity=limit)
        elif head.status in (400, 426, 501) or head.status < 300:
            text = f"the answer to Upgrade was {head.status}: it reached the server without Upgrade and Connection"
            self.find("upgrade-dropped", text, severity=limit)
        elif head.status == 502:
            text = "502 to a WebSocket, though the server can be reached: the proxy speaks HTTP/2 alone to it"
            self.find("upgrade-dropped", text, severity=limit)
        elif head.status == 403:
            self.find("forbidden", "403 to a WebSocket", severity=limit)
        else:
            self.find("upgrade-dropped", f"the answer to Upgrade was {head.status}", severity=limit)

    def _judge_open_posts(self, names: list[str], limit: Severity) -> None:
        seen = self._seen
        held_request = seen.request_held.get(2) or (2 not in seen.request_held and seen.request_held.get(1, False))
        held_answer = seen.answer_held.get(2) or seen.answer_held.get(1)
        is_held = held_answer is not None and held_answer.is_held
        if names == ["grpc"] or (
            "grpc" in names and _REFUSES_GRPC.search(seen.tried["grpc"].error.replace(self._subject.url.address, ""))
        ):
            self.find("grpc-refused", f"http2 gets further than grpc: {seen.tried['grpc'].error}", severity=limit)
            names = [name for name in names if name != "grpc"]
            if not names:
                return
        if held_request:
            self.find("request-held", "a request reaches the server only when it has ended", severity=limit)
        if is_held:
            self._judge_answer_held(limit)
        if held_request or is_held:
            return
        arrived = seen.asked[2].arrived if 2 in seen.asked else None
        if arrived is not None and arrived.http != "2":
            text = f"what comes as HTTP/2 reaches the server as HTTP/{arrived.http}"
            self.find("http2-not-to-server", text, severity=limit)
        elif arrived is None:
            errors = "; ".join(dict.fromkeys(seen.tried[name].error for name in names))
            code = "request-held" if "in time" in errors else "http2-not-to-server"
            self.find(code, errors, severity=limit)
        else:
            errors = "; ".join(dict.fromkeys(seen.tried[name].error for name in names))
            self.find("cut" if any(seen.tried[n].cut for n in names) else "request-held", errors, severity=limit)

    def _judge_answer_held(self, severity: Severity) -> None:
        held = self._seen.answer_held.get(2) or self._seen.answer_held.get(1)
        assert held is not None
        if held.until_end:
            text = "an answer is passed on only when it has ended"
        elif held.between is not None:
            text = f"an answer is held until {held.between[0]:,} to {held.between[1]:,} bytes of it have come"
        else:
            text = f"an answer's bytes are collected for {held.seconds:.1f} s at a time"
        self.find("answer-held", text, severity=severity)

    def judge_quality(self, chosen: str) -> None:
        """Judge what will hurt on the transport that is used."""
        seen = self._seen
        known = {finding.code for finding in self.findings}
        held = [one for one in seen.answer_held.values() if one.is_held]
        if "answer-held" not in known and len(held) == len(seen.answer_held) and held:
            severity = Severity.FLAW if chosen in _CUTTING or chosen.startswith("split") else Severity.LIMIT
            self._judge_answer_held(severity)
        if (
            not known & {"request-held", "http2-off", "http2-not-to-server"}
            and seen.request_held
            and all(seen.request_held.values())
        ):
            severity = Severity.FLAW if chosen in _CUTTING else Severity.LIMIT
            self.find("request-held", "a request reaches the server only when it has ended", severity=severity)
        if seen.refused_size is not None:
            severity = Severity.FLAW if chosen in _CUTTING else Severity.LIMIT
            below = f", {seen.largest:,} not" if seen.largest and seen.largest < seen.refused_size else ""
            text = f"a request of {seen.refused_size:,} bytes is refused (413){below}"
            self.find("body-limit", text, severity=severity)
        elif seen.cut_upload is not None:
            severity = Severity.FLAW if chosen in _CUTTING else Severity.LIMIT
            self.find(
                "body-limit", f"an open request is cut after {seen.cut_upload:,} bytes or less", severity=severity
            )
        for name, seconds in seen.cut_after.items():
            severity = Severity.FLAW if seconds <= KEEPALIVE and name == chosen else Severity.NOTE
            text = f"over {name} a connection is cut after {seconds:.0f} s of silence"
            self.find("idle-cut", text, severity=severity)

    def judge_server(self, works: set[str]) -> None:
        """Judge what the server itself says."""
        seen = self._seen
        if seen.refused is not None:
            message, hint = seen.refused
            lower = message.lower()
            if "key" in lower and ("pinned" in lower or "changed" in lower):
                self.find("fingerprint-changed", message.splitlines()[0], cure=hint)
            else:
                self.find("token-refused", message.splitlines()[0], cure=hint)
        elif works and not _answered(seen) and not any(tried.probes for tried in seen.tried.values()):
            self.find("no-probes", "the server answers no probes: it is older, or has doctor: false")


def _safe(location: str) -> str:
    return location.partition("?")[0][:100]


def _all_pages(answers: list[Asked]) -> bool:
    return all(one.head is not None and one.head.value("content-type").startswith("text/html") for one in answers)


def judge(subject: Subject, seen: Seen) -> Report:
    """Return the report."""
    works = {name for name, tried in seen.tried.items() if tried.works}
    chosen = next((name for name in PREFERENCE if name in works), next(iter(sorted(works)), ""))
    judging = _Judge(subject, seen)
    # What works in spite of all that a check saw is believed before the check.
    if judging.judge_way() or works:
        if judging.judge_answers(works):
            judging.judge_transports(works)
            judging.judge_quality(chosen)
        judging.judge_server(works)
    transports: dict[str, bool | None] = {name: tried.works for name, tried in seen.tried.items()}
    findings = tuple(sorted(judging.findings, key=lambda finding: list(Severity).index(finding.severity)))
    return Report(
        url=str(subject.url),
        steps=tuple(step for _, step in sorted(seen.steps, key=lambda pair: pair[0])),
        findings=findings,
        verdict=_verdict(findings, bool(chosen)),
        transport=chosen,
        transports=transports,
        split=_split_forms(seen),
        product=seen.product.name if seen.product is not None else "",
        figures=dict(_figures(seen, chosen)),
        found=_found(seen, works, findings),
        refuted=frozenset(_refuted(seen, works)),
    )


_PAST_TUNNEL = {"wrong-path", "portal", "redirect", "unexpected-answer"}
"""Codes of answers by which a server that is no tunnel, or the wrong page of one, is known."""


def _answered(seen: Seen) -> bool:
    """Return whether the server itself has answered a request at the path."""
    return any(asked.probed for asked in seen.asked.values())


def _found(seen: Seen, works: set[str], findings: tuple[Finding, ...]) -> bool | None:
    if works or _answered(seen):
        return True
    return False if _PAST_TUNNEL & {finding.code for finding in findings} else None


def _refuted(seen: Seen, works: set[str]) -> Iterator[str]:
    """Yield the codes of a proxy's configuration that are not so, since what they would keep out was let in."""
    asked = seen.asked.get(2)
    if works or _answered(seen):
        yield from ("wrong-path", "forbidden", "login-wanted")
    if "websocket" in works:
        yield from ("upgrade-dropped", "http1-off")
    if "grpc" in works:
        yield "grpc-refused"
    if _CUTTING & works or (asked is not None and asked.head is not None):
        yield "http2-off"
    if works >= _CUTTING:
        yield from ("http2-not-to-server", "request-held")
    if seen.answer_held and not any(held.is_held for held in seen.answer_held.values()):
        yield "answer-held"
    if works and seen.refused_size is None and seen.cut_upload is None and seen.largest == max(SIZES_TRIED):
        yield "body-limit"
    if seen.one_at_a_time is False:
        yield "one-at-a-time"
    if seen.survived and not seen.cut_after and min(seen.survived.values()) >= 2 * KEEPALIVE:
        yield "idle-cut"


def _split_forms(seen: Seen) -> dict[str, bool | None]:
    """Return whether requests that end get there, and whether an answer may be streamed: the two forms of split."""
    if not _answered(seen):
        return {"streamed": None, "packets": None}
    streamed = any(not (held.until_end or held.between) for held in seen.answer_held.values())
    return {"streamed": streamed if seen.answer_held else None, "packets": True}


def _verdict(findings: tuple[Finding, ...], through: bool) -> Verdict:
    codes = {finding.code for finding in findings}
    if codes & {"token-refused", "fingerprint-changed"}:
        return Verdict.REFUSED
    if not through:
        return Verdict.BLOCKED
    if any(finding.severity in (Severity.FATAL, Severity.FLAW) for finding in findings):
        return Verdict.FLAWED
    return Verdict.SOUND


def _figures(seen: Seen, chosen: str) -> Iterator[tuple[str, float]]:
    trips = seen.tried[chosen].round_trips if chosen in seen.tried else []
    if trips:
        yield "round_trip_s", statistics.median(trips)
    if len(trips) > 1:
        yield "jitter_s", statistics.fmean(abs(b - a) for a, b in itertools.pairwise(trips))
    if seen.largest is not None:
        yield "largest_body_bytes", float(seen.largest)
    for name, seconds in seen.cut_after.items():
        yield f"cut_after_s_{name}", seconds
