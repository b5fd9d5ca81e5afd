"""What the path does to ordinary requests: versions of HTTP, Upgrade, bodies held back, sizes, who stands there.

Each check dials for itself, so all of them can run at once.  Where the server answers probes they say what has really
arrived; where it does not, what can be told from outside is told.
"""

from __future__ import annotations

import base64
import datetime
import itertools
import os
import time

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.base.untrusted import header_text, http_date, words
from qanat.doctor import products
from qanat.doctor.conversation import Conversation, Head, Http2Conversations, ask
from qanat.doctor.report import Outcome, Step
from qanat.doctor.subject import Asked, Held, Seen, Subject
from qanat.measure.probes import HEADER, TRICKLE_SIZES, TRICKLE_STEP, VERSION, Arrived
from qanat.transports.dial.dialer import dial
from qanat.transports.wire.tls import TlsWire

PLAIN, BODIES, SIZES = 8.0, 12.0, 6.0
"""Seconds that each may take."""
HELD_AFTER = 1.2
"""Seconds after which an answer that should have come at once counts as held back."""
_SETTLE = 1.5  # seconds that a refusal of a large body may take
SIZES_TRIED = (65_536, 1_000_000, 1_048_577, 10_485_761, 104_857_601, 1_073_741_825)
"""Bytes: around the limits that proxies have by default (nginx 1 MiB, CloudFlare 100 MB)."""
_NAMES = {1: "HTTP/1.1", 2: "HTTP/2"}


def check_plain(subject: Subject, seen: Seen, version: int) -> None:
    """Ask the tunnel's path for what has arrived there."""
    asked = Asked()
    began = time.monotonic()
    tried = f"GET {subject.url.path} over {_NAMES[version]}"
    deadline = Deadline(PLAIN)
    try:
        talk = ask(subject.url, subject.probing("plain"), version, deadline, subject.cancel)
        try:
            asked.head = talk.head(deadline)
            asked.seconds = time.monotonic() - began
            asked.body = header_text(talk.body(Deadline(3.0)))[:4096]
        finally:
            talk.close()
    except TransportError as error:
        asked.error = error.message
    if asked.head is None:
        seen.add(30, Step("http", tried, asked.error, Outcome.NOTE, time.monotonic() - began))
    else:
        if asked.head.value(HEADER) == VERSION:
            asked.arrived = Arrived.decode(asked.body)
        text = f"{asked.head.status}"
        if asked.arrived is not None:
            text += f", from the server, which it reached as HTTP/{asked.arrived.http}"
        elif name := asked.head.value("server"):
            text += f", server: {words(name, 60)}"
        seen.add(30, Step("http", tried, text, Outcome.OK, asked.seconds))
        _compare_clock(seen, asked.head.value("date"))
    seen.asked[version] = asked


def _compare_clock(seen: Seen, date: str) -> None:
    at = http_date(date)
    if at is None or seen.clock is not None:
        return
    seen.clock = (at - datetime.datetime.now(datetime.UTC)).total_seconds()
    off = abs(seen.clock) > CLOCK_OFF
    text = f"{abs(seen.clock):.0f} s {'ahead of' if seen.clock > 0 else 'behind'} this machine's"
    result = text if abs(seen.clock) > 2 else "the same as this machine's"
    seen.add(25, Step("clock", "the date in an answer", result, Outcome.BAD if off else Outcome.OK))


CLOCK_OFF = 120.0
"""Seconds that two clocks may differ."""


def check_settings(subject: Subject, seen: Seen) -> None:
    """Open an HTTP/2 connection, look at what the other end announces, and whether it takes two requests at once."""
    began = time.monotonic()
    deadline = Deadline(BODIES)
    try:
        wire = dial(subject.url, alpn=("h2",), deadline=deadline, route=subject.route, cancel=subject.cancel)
    except TransportError:
        return  # said elsewhere
    with subject.cancel.waking(wire.close):
        try:
            if isinstance(wire, TlsWire) and wire.alpn != "h2":
                return
            connection = Http2Conversations(wire)
            seen.settings = connection.wait_settings(deadline)
            settings = seen.settings
            connect = "extended CONNECT" if settings["enable_connect_protocol"] else "no extended CONNECT (RFC 8441)"
            text = (
                f"{connect}, windows of {settings['initial_window_size']:,} bytes, frames of at most "
                f"{settings['max_frame_size']:,}, {settings['max_concurrent_streams'] or 'any number of'} streams"
            )
            seen.add(31, Step("h2 settings", "an HTTP/2 connection", text, Outcome.OK, time.monotonic() - began))
            _ask_two(subject, seen, connection, deadline)
        except TransportError:
            pass
        finally:
            wire.close()


def _ask_two(subject: Subject, seen: Seen, connection: Http2Conversations, deadline: Deadline) -> None:
    """Have one answer trickle, and see whether another one is given meanwhile."""
    began = time.monotonic()
    slow = connection.ask(subject.url, subject.probing("trickle"), "GET", ())
    if slow.head(deadline).value(HEADER) != VERSION:
        return
    quick = connection.ask(subject.url, subject.probing("plain"), "GET", ())
    quick.head(deadline)
    slow_is_over = slow.ended
    waited = time.monotonic() - began
    seen.forbidden += connection.forbidden
    if not slow_is_over and waited < TRICKLE_STEP * len(TRICKLE_SIZES):
        seen.one_at_a_time = False
        result, outcome = "both were answered side by side", Outcome.OK
    else:
        seen.one_at_a_time = True
        result, outcome = "the second waited until the first was over", Outcome.BAD
    seen.add(35, Step("at once", "two requests on one HTTP/2 connection", result, outcome, waited))


def check_upgrade(subject: Subject, seen: Seen) -> None:
    """Ask for a WebSocket, and see what the answer is."""
    asked = Asked()
    began = time.monotonic()
    deadline = Deadline(PLAIN)
    fields = (
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", base64.b64encode(os.urandom(16)).decode()),
        ("Sec-WebSocket-Protocol", "qanat.1"),
    )
    try:
        talk = ask(subject.url, subject.probing("pipe"), 1, deadline, subject.cancel, fields=fields)
        try:
            asked.head = talk.head(deadline)
            asked.seconds = time.monotonic() - began
            if asked.head.status != 101:
                asked.body = header_text(talk.body(Deadline(2.0)))[:4096]
        finally:
            talk.close()
    except TransportError as error:
        asked.error = error.message
    seen.upgrade = asked
    status = asked.head.status if asked.head is not None else 0
    text = asked.error or ("101, switched" if status == 101 else f"{status}, not switched")
    outcome = Outcome.OK if status == 101 else Outcome.BAD
    seen.add(32, Step("upgrade", "GET with Upgrade: websocket", text, outcome, time.monotonic() - began))


def check_request_held(subject: Subject, seen: Seen, version: int) -> None:
    """Send a request whose body stays open, and see when the server hears of it; what seems held is asked twice."""
    began = time.monotonic()
    deadline = Deadline(BODIES)
    try:
        held = _is_request_held(subject, version, deadline)
        if held:
            held = _is_request_held(subject, version, deadline)
    except TransportError:
        return
    if held is None:
        return
    seen.request_held[version] = held
    result = "the server got it only when it had ended" if held else "its first bytes reached the server at once"
    tried = f"POST over {_NAMES[version]} whose body stays open"
    seen.add(33, Step("request", tried, result, Outcome.BAD if held else Outcome.OK, time.monotonic() - began))


def _is_request_held(subject: Subject, version: int, deadline: Deadline) -> bool | None:
    """Return whether the answer came only when the request had ended; None where there are no probes."""
    talk = ask(
        subject.url,
        subject.probing("echo"),
        version,
        deadline,
        subject.cancel,
        method="POST",
        open_body=True,
        fields=(("Content-Type", "application/octet-stream"),),
    )
    try:
        talk.send(b"\0\0\0\1x")
        head = _head_soon(talk)
        held = head is None
        if head is None:
            talk.send(b"", last=True)
            head = talk.head(deadline)
        return held if head.value(HEADER) == VERSION else None
    finally:
        talk.close()


def _head_soon(talk: Conversation) -> Head | None:
    """Return the head of an answer that comes at once; None when it is late."""
    try:
        return talk.head(Deadline(HELD_AFTER))
    except TransportError as error:
        if error.message == "nothing came in time":
            return None
        raise


def check_answer_held(subject: Subject, seen: Seen, version: int) -> None:
    """Have an answer come bit by bit, and see when its parts arrive; what seems held is asked for twice."""
    deadline = Deadline(BODIES + 4)
    held = _listen(subject, version, deadline)
    if held is not None and held.is_held:
        held = _listen(subject, version, deadline) or held
    if held is None:
        return
    seen.answer_held[version] = held
    if held.until_end:
        text, outcome = "it came when it had ended", Outcome.BAD
    elif held.between is not None:
        text, outcome = f"it came once {held.between[0]:,} to {held.between[1]:,} bytes of it had", Outcome.BAD
    elif held.seconds:
        text, outcome = f"its parts were collected for {held.seconds:.1f} s at a time", Outcome.BAD
    else:
        text, outcome = "each part came when it was sent", Outcome.OK
    tried = f"GET over {_NAMES[version]} whose answer comes bit by bit"
    seen.add(34, Step("answer", tried, text, outcome, held.first))


def _listen(subject: Subject, version: int, deadline: Deadline) -> Held | None:
    """Return what was done to one such answer; None where there are no probes."""
    arrivals: list[tuple[float, int]] = []
    try:
        talk = ask(subject.url, subject.probing("trickle"), version, deadline, subject.cancel)
        began = time.monotonic()
        try:
            if talk.head(deadline).value(HEADER) != VERSION:
                return None
            while data := talk.receive(deadline):
                arrivals.append((time.monotonic() - began, len(data)))
        finally:
            talk.close()
    except TransportError:
        pass  # what has come by then says enough
    return _held(arrivals, sum(TRICKLE_SIZES)) if arrivals else None


def _held(arrivals: list[tuple[float, int]], length: int) -> Held:
    """Return what was done to an answer, from when how much of it came."""
    whole = TRICKLE_STEP * (len(TRICKLE_SIZES) - 1)
    first, received = arrivals[0][0], sum(size for _, size in arrivals)
    held = Held(first=first, complete=received >= length)
    if first < HELD_AFTER:
        return held
    bursts = [arrivals[0][0]]
    for at, _ in arrivals[1:]:
        if at - bursts[-1] > 2 * TRICKLE_STEP:
            bursts.append(at)
    if first >= whole - TRICKLE_STEP / 2:
        held.until_end = True
        return held
    small = sum(1 for size in TRICKLE_SIZES if size == TRICKLE_SIZES[0])
    if first < small * TRICKLE_STEP:  # small parts were let through, so it is not their size
        held.seconds = min(later - earlier for earlier, later in itertools.pairwise(bursts)) if (
            len(bursts) > 1
        ) else first  # fmt: skip
        return held
    sent = min(int(first / TRICKLE_STEP) + 1, len(TRICKLE_SIZES))
    held.between = sum(TRICKLE_SIZES[: sent - 1]), sum(TRICKLE_SIZES[:sent])
    return held


def check_sizes(subject: Subject, seen: Seen, size: int) -> None:
    """Announce a body of `size` bytes, send one byte, and see whether somebody refuses it."""
    version = 1
    fields = (("Content-Length", str(size)), ("Content-Type", "application/octet-stream"))
    refused = False
    began = time.monotonic()
    try:
        deadline = Deadline(SIZES)
        try:
            talk = ask(
                subject.url, subject.probing("size"), version, deadline, subject.cancel,
                method="POST", fields=fields, open_body=True,
            )  # fmt: skip
        except TransportError:
            version = 2
            talk = ask(
                subject.url, subject.probing("size"), version, deadline, subject.cancel,
                method="POST", fields=fields, open_body=True,
            )  # fmt: skip
        try:
            talk.send(b"x")
            refused = talk.head(Deadline(_SETTLE)).status == 413
        finally:
            talk.close()
    except TransportError as error:
        if error.message != "nothing came in time":
            return  # nothing can be said
    if refused:
        seen.refused_size = min(size, seen.refused_size or size)
        text, outcome = "413: nobody takes that much", Outcome.NOTE
    else:
        seen.largest = max(size, seen.largest or 0)
        text, outcome = "nobody refused it", Outcome.OK
    tried = f"POST that announces {size:,} bytes"
    seen.add(36, Step("size", tried, text, outcome, time.monotonic() - began))


def check_product(subject: Subject, seen: Seen) -> None:
    """Send what is not HTTP, and know who answers by how."""
    deadline = Deadline(PLAIN)
    page, fields = "", {}
    try:
        url = subject.url
        wire = dial(url, alpn=("http/1.1",), deadline=deadline, route=subject.route, cancel=subject.cancel)
        with subject.cancel.waking(wire.close):
            try:
                wire.send_all(f"GET /%\x01 HTTP/1.1\r\nHost: {subject.route.authority(url)}\r\n\r\n".encode())
                received = bytearray()
                buffer = memoryview(bytearray(8192))
                while len(received) < 16_384:
                    wire.set_read_timeout(min(2.0, deadline.remaining() or 0.1))
                    count = wire.recv_into(buffer)
                    if not count:
                        break
                    received += buffer[:count]
            except TransportError:
                pass
            finally:
                wire.close()
        head, _, page = header_text(bytes(received)).partition("\r\n\r\n")
        lines = (line.partition(":") for line in head.split("\r\n")[1:])
        fields = {name.strip().lower(): value.strip() for name, _, value in lines}
    except TransportError:
        return
    found = products.by_page(fields, page)
    if found is not None:
        seen.product = found


def name_product(seen: Seen) -> None:
    """Say who stands there, from all that has been answered."""
    answers = [*seen.asked.values(), *([seen.upgrade] if seen.upgrade is not None else [])]
    for asked in answers:
        if asked.head is not None and (found := products.by_headers(asked.head.fields)) is not None:
            seen.product = found
            break
    if seen.product is None:
        seen.add(37, Step("who", "its headers and error pages", "nothing tells what stands there", Outcome.NOTE))
        return
    known = products.KNOWN_FOR.get(seen.product.name, "")
    text = f"{seen.product.name} ({seen.product.evidence}); known for: {known}"
    seen.add(37, Step("who", "its headers and error pages", text, Outcome.OK))
