"""What a proxy makes of HTTP: targets, heads without what concerns one hop, bodies whole, and errors in its words."""

from __future__ import annotations

import base64

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.endpoints.dynamic.asked import Asked, Command
from qanat.endpoints.dynamic.http_proxy import HttpProxy
from qanat.endpoints.dynamic.passwords import Passwords
from qanat.mux.frames import Reason

GET = b"GET http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def lines(head: bytes) -> list[bytes]:
    return head.partition(b"\r\n\r\n")[0].split(b"\r\n")


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer[9:12])


def asking(url: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {url} HTTP/{version}", "Host: elsewhere", *headers, "", ""]).encode()


def test_connect_leads_to_its_target_with_what_came_behind_it() -> None:
    proxy = HttpProxy()
    assert proxy.receive(b"CONNECT [::1]:443 HTTP/1.1\r\nHost: x\r\n\r\nhello") == Asked("::1", 443)
    assert proxy.take_output() == b""
    assert proxy.take_rest() == b"hello"
    assert status(proxy.accepted("10.0.0.5:443")) == 200


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.NOT_ALLOWED, 403),
        (Reason.REFUSED, 502),
        (Reason.UNREACHABLE, 502),
        (Reason.NO_ROUTE, 502),
        (Reason.LIMIT, 503),
        (Reason.SESSION_ENDED, 503),
        (Reason.TIMED_OUT, 504),
    ],
)
def test_a_refusal_of_connect_is_a_status_with_its_reason_in_the_body(reason: Reason, code: int) -> None:
    proxy = HttpProxy()
    proxy.receive(b"CONNECT a.example:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = proxy.refused(reason, "no rule\r\nEvil: x")
    assert status(answer) == code
    assert answer.endswith(b"\n")
    assert b"cannot connect to a.example:443: no rule" in answer
    assert b"\r\nEvil" not in answer
    assert b"Connection: close" in answer
    assert proxy.over


@pytest.mark.parametrize(
    ("url", "target", "host", "path"),
    [
        ("http://a.example/x?y=1", ("a.example", 80), b"a.example", b"/x?y=1"),
        ("HTTP://a.example:8080", ("a.example", 8080), b"a.example:8080", b"/"),
        ("http://a.example?q", ("a.example", 80), b"a.example", b"/?q"),
        ("http://a.example:/x", ("a.example", 80), b"a.example:", b"/x"),
        ("http://user:secret@a.example/x", ("a.example", 80), b"a.example", b"/x"),
        ("http://[::1]/x", ("::1", 80), b"[::1]", b"/x"),
        ("http://[::1]:81/x#part", ("::1", 81), b"[::1]:81", b"/x"),
        ("ws://a.example/chat", ("a.example", 80), b"a.example", b"/chat"),
    ],
)
def test_a_whole_url_becomes_a_target_a_host_and_a_path(
    url: str, target: tuple[str, int], host: bytes, path: bytes
) -> None:
    proxy = HttpProxy()
    assert proxy.receive(asking(url)) == Asked(*target, Command.REQUEST)
    first, *headers = lines(proxy.take_to_server())
    assert first == b"GET " + path + b" HTTP/1.1"
    assert [line for line in headers if line.lower().startswith(b"host")] == [b"Host: " + host]


@pytest.mark.parametrize(
    ("request_bytes", "code", "word"),
    [
        (asking("/x"), 400, b"this is a proxy"),
        (asking("https://a.example/"), 501, b"CONNECT"),
        (asking("ftp://a.example/"), 501, b"ftp"),
        (asking("http:///x"), 400, b"authority"),
        (asking("http://a.example:99999/x"), 400, b"port"),
        (asking("a.example", method="CONNECT"), 400, b"port"),
        (b"GARBAGE\r\n\r\n", 400, b""),
        (b"GET http://a/ HTTP/1.1\r\n\r\n", 400, b"Host"),
        (b"GET http://a/ HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000, 431, b""),
        (b"GET http://a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, b""),
        (b"GET http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, b""),
    ],
)
def test_what_cannot_be_done_is_answered(request_bytes: bytes, code: int, word: bytes) -> None:
    proxy = HttpProxy()
    assert proxy.receive(request_bytes) is None
    answer = proxy.take_output()
    assert status(answer) == code
    assert word in answer
    assert proxy.over
    assert proxy.problem


def test_what_concerns_one_hop_goes_no_further_either_way() -> None:
    proxy = HttpProxy()
    proxy.receive(
        asking(
            "http://a.example/",
            "Proxy-Connection: keep-alive",
            "Connection: keep-alive, X-Hop",
            "Keep-Alive: timeout=5",
            "X-Hop: 1",
            "TE: trailers",
            "Proxy-Authorization: Basic eDp5",
            "X-Kept: yes",
            "Accept: */*",
        )
    )
    assert lines(proxy.take_to_server()) == [b"GET / HTTP/1.1", b"Host: a.example", b"X-Kept: yes", b"Accept: */*"]
    proxy.receive_from_server(
        b"HTTP/1.1 200 Fine\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nX-Kept: yes\r\n"
        b"Content-Length: 2\r\n\r\nok"
    )
    answer = proxy.take_output()
    assert lines(answer) == [b"HTTP/1.1 200 Fine", b"X-Kept: yes", b"Content-Length: 2"]
    assert answer.endswith(b"ok")
    assert not proxy.over  # the target's connection ends, ours does not
    assert proxy.take_dropped()


def test_one_connection_goes_to_several_targets_and_keeps_to_one_while_it_can() -> None:
    proxy = HttpProxy()
    assert proxy.receive(GET) == Asked("a.example", 80, Command.REQUEST)
    proxy.take_to_server()
    assert proxy.receive_from_server(OK) is None
    assert proxy.receive(GET) is None  # the same again
    assert lines(proxy.take_to_server())[0] == b"GET /x HTTP/1.1"
    assert not proxy.take_dropped()
    proxy.receive_from_server(OK)
    assert proxy.receive(GET.replace(b"a.example", b"b.example:81")) == Asked("b.example", 81, Command.REQUEST)
    assert proxy.take_dropped()
    proxy.take_to_server()
    proxy.receive_from_server(OK)
    assert proxy.take_output().count(b"200 OK") == 3
    assert proxy.idle
    assert not proxy.over


def test_requests_in_a_row_are_answered_one_after_the_other() -> None:
    proxy = HttpProxy()
    assert proxy.receive(GET + GET + GET.replace(b"a.example", b"b.example")) == Asked("a.example", 80, Command.REQUEST)
    assert proxy.take_to_server().count(b"GET") == 1
    assert proxy.receive_from_server(OK) is None
    assert proxy.take_to_server().count(b"GET") == 1
    assert proxy.receive_from_server(OK) == Asked("b.example", 80, Command.REQUEST)
    assert proxy.take_dropped()
    assert proxy.take_to_server().count(b"Host: b.example") == 1


def test_a_flood_of_requests_in_a_row_is_left_where_it_is() -> None:
    proxy = HttpProxy()
    proxy.receive(GET)
    for _ in range(20):
        if proxy.full:
            break
        proxy.receive(GET * 100)
    assert proxy.full
    for _ in range(5):
        proxy.receive_from_server(OK)
    assert not proxy.full


def test_connect_may_follow_a_request() -> None:
    proxy = HttpProxy()
    proxy.receive(GET)
    proxy.receive_from_server(OK)
    proxy.take_output()
    assert proxy.receive(b"CONNECT b.example:443 HTTP/1.1\r\nHost: x\r\n\r\nrest") == Asked("b.example", 443)
    assert proxy.take_dropped()
    assert proxy.take_rest() == b"rest"


@pytest.mark.parametrize("step", [1, 7, 4096])
@pytest.mark.parametrize("chunked", [True, False])
def test_bodies_go_through_whole_both_ways(chunked: bool, step: int) -> None:
    body = bytes(range(256)) * 5
    framed = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:500], body[500:])) + b"0\r\nX-Sum: 1\r\n\r\n"
    head = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    request = asking("http://a.example/", head, method="POST") + (framed if chunked else body)
    proxy, server = HttpProxy(), h11.Connection(h11.SERVER)
    for start in range(0, len(request), step):
        proxy.receive(request[start : start + step])
        if data := proxy.take_to_server():
            server.receive_data(data)
    received = b""
    while not isinstance(event := server.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        received += bytes(event.data) if isinstance(event, h11.Data) else b""
    assert received == body
    if chunked:
        assert (b"x-sum", b"1") in list(event.headers)
    answer = b"HTTP/1.1 200 OK\r\n" + head.encode() + b"\r\n\r\n" + (framed if chunked else body)
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    for start in range(0, len(answer), step):
        proxy.receive_from_server(answer[start : start + step])
    client.receive_data(proxy.take_output())
    received = b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        received += bytes(event.data) if isinstance(event, h11.Data) else b""
    assert received == body
    assert proxy.idle


def test_an_answer_that_ends_with_its_connection_is_told_apart_from_one_that_was_cut() -> None:
    for cut in (False, True):
        proxy = HttpProxy()
        proxy.receive(GET)
        proxy.receive_from_server(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        if cut:
            proxy.lose_server()
        else:
            proxy.receive_from_server(b"")
        assert proxy.broken == cut
        assert proxy.take_output().endswith(b"0\r\n\r\n") == (not cut)


@pytest.mark.parametrize("part", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", OK[:-1]])
def test_an_answer_that_is_not_whole_never_looks_so(part: bytes) -> None:
    proxy = HttpProxy()
    proxy.receive(GET)
    proxy.receive_from_server(part)
    proxy.receive_from_server(b"")
    assert proxy.broken


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 2", b"SSH-2.0-OpenSSH\r\n", b"\0\0\0"])
def test_a_target_that_does_not_answer_is_a_bad_gateway(part: bytes) -> None:
    proxy = HttpProxy()
    proxy.receive(GET)
    if part:
        proxy.receive_from_server(part)
    if not proxy.over:
        proxy.receive_from_server(b"")
    answer = proxy.take_output()
    assert status(answer) == 502
    assert b"a.example:80" in answer


def test_a_kept_target_that_goes_ends_the_connection_without_an_answer_so_that_it_may_be_tried_again() -> None:
    proxy = HttpProxy()
    proxy.receive(GET)
    proxy.receive_from_server(OK)
    proxy.take_output()
    proxy.receive(GET)
    proxy.receive_from_server(b"")
    assert (proxy.take_output(), proxy.over, proxy.broken) == (b"", True, False)


def test_a_kept_target_that_goes_between_requests_costs_nothing() -> None:
    proxy = HttpProxy()
    proxy.receive(GET)
    proxy.receive_from_server(OK)
    proxy.receive_from_server(b"")
    assert proxy.take_dropped()
    assert not proxy.over
    assert proxy.receive(GET) == Asked("a.example", 80, Command.REQUEST)


def test_expectations_and_early_hints_pass() -> None:
    proxy = HttpProxy()
    proxy.receive(asking("http://a.example/", "Content-Length: 3", "Expect: 100-continue", method="PUT"))
    assert b"Expect: 100-continue" in proxy.take_to_server()
    proxy.receive_from_server(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
    assert [line for line in proxy.take_output().split(b"\r\n") if line] == [
        b"HTTP/1.1 100 Continue", b"HTTP/1.1 103 Early Hints", b"Link: x"
    ]  # fmt: skip
    proxy.receive(b"abc")
    assert proxy.take_to_server().endswith(b"abc")


def test_a_target_that_answers_early_may_still_read_the_rest() -> None:
    proxy = HttpProxy()
    proxy.receive(asking("http://a.example/", "Content-Length: 6", method="PUT") + b"abc")
    proxy.take_to_server()
    proxy.receive_from_server(OK)
    assert proxy.take_output().endswith(b"ok")
    assert (proxy.over, proxy.idle) == (False, False)
    proxy.receive(b"def" + GET)
    assert proxy.take_to_server().startswith(b"defGET /x")
    proxy.receive_from_server(OK)
    assert proxy.idle


@pytest.mark.parametrize("cut", [True, False])
def test_a_target_that_answers_early_and_goes_has_answered(cut: bool) -> None:
    proxy = HttpProxy()
    proxy.receive(asking("http://a.example/", "Content-Length: 6", method="PUT") + b"abc")
    proxy.receive_from_server(OK)
    if cut:
        proxy.lose_server()
    else:
        proxy.receive_from_server(b"")
    assert proxy.take_output().endswith(b"ok")
    assert (proxy.over, proxy.broken) == (True, False)


def test_an_answer_after_which_its_target_ends_ends_a_request_that_is_not_whole() -> None:
    proxy = HttpProxy()
    proxy.receive(asking("http://a.example/", "Content-Length: 300", method="PUT") + b"abc")
    proxy.receive_from_server(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    assert status(proxy.take_output()) == 413
    assert proxy.over
    assert not proxy.broken


def test_a_request_that_is_cut_never_looks_whole_to_its_target() -> None:
    proxy = HttpProxy()
    proxy.receive(asking("http://a.example/", "Content-Length: 300", method="PUT") + b"abc")
    proxy.receive(b"")
    assert proxy.broken


def test_an_application_that_half_closes_still_gets_its_answer() -> None:
    proxy = HttpProxy()
    proxy.receive(GET)
    proxy.receive(b"")
    assert not proxy.over
    proxy.receive_from_server(OK)
    assert proxy.take_output().endswith(b"ok")
    assert proxy.over


def test_http_1_0_gets_no_chunks_and_no_interim_answers() -> None:
    proxy = HttpProxy()
    proxy.receive(asking("http://a.example/", version="1.0"))
    proxy.receive_from_server(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    proxy.receive_from_server(b"2\r\nok\r\n0\r\n\r\n")
    answer = proxy.take_output()
    assert status(answer) == 200
    assert b"chunked" not in answer
    assert answer.endswith(b"\r\n\r\nok")
    assert proxy.over


def test_head_has_no_body_whatever_its_length_says() -> None:
    proxy = HttpProxy()
    proxy.receive(asking("http://a.example/", method="HEAD"))
    proxy.receive_from_server(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    assert b"Content-Length: 500" in proxy.take_output()
    assert proxy.idle


def test_an_upgrade_makes_both_ends_go_through_unread() -> None:
    proxy = HttpProxy()
    proxy.receive(
        asking("http://a.example/chat", "Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: k")
    )
    sent = lines(proxy.take_to_server())
    assert b"Upgrade: websocket" in sent
    assert b"Connection: Upgrade" in sent
    assert b"Sec-WebSocket-Key: k" in sent
    proxy.receive_from_server(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x02hi"
    )
    answer = proxy.take_output()
    assert status(answer) == 101
    assert b"Upgrade: websocket" in answer
    assert answer.endswith(b"\x81\x02hi")
    assert proxy.opaque
    proxy.receive(b"\x00anything")
    proxy.receive_from_server(b"GET \xff")
    assert proxy.take_to_server() == b"\x00anything"
    assert proxy.take_output() == b"GET \xff"


def test_an_upgrade_that_the_target_does_not_want_is_an_ordinary_answer() -> None:
    proxy = HttpProxy()
    proxy.receive(asking("http://a.example/chat", "Connection: Upgrade", "Upgrade: websocket"))
    proxy.receive_from_server(OK)
    assert proxy.take_output().endswith(b"ok")
    assert proxy.idle
    assert proxy.receive(GET) is None  # on the same connection to the same target


def test_an_upgrade_to_http2_is_not_passed_on() -> None:
    proxy = HttpProxy()
    proxy.receive(asking("http://a/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA"))
    assert lines(proxy.take_to_server()) == [b"GET / HTTP/1.1", b"Host: a"]


def test_passwords_are_asked_for_and_never_passed_on() -> None:
    passwords = Passwords({b"alice": b"wonder:land"})
    good, bad = (base64.b64encode(text).decode() for text in (b"alice:wonder:land", b"alice:wrong"))
    for request in (asking("http://a/"), asking("a:443", method="CONNECT")):
        proxy = HttpProxy(passwords)
        assert proxy.receive(request) is None
        answer = proxy.take_output()
        assert status(answer) == 407
        assert b"Proxy-Authenticate: Basic" in answer
    for value in (f"Basic {bad}", "Basic ???", "Basic", "Bearer x", f"Digest {good}"):
        proxy = HttpProxy(passwords)
        assert proxy.receive(asking("http://a/", f"Proxy-Authorization: {value}")) is None
        assert status(proxy.take_output()) == 407
    proxy = HttpProxy(passwords)
    assert proxy.receive(asking("http://a/", f"Proxy-Authorization: basic {good}")) is not None
    assert b"uthorization" not in proxy.take_to_server()


def test_a_slow_head_is_told_that_it_is_late() -> None:
    proxy = HttpProxy()
    proxy.receive(b"GET http://a.exam")
    assert proxy.partial
    proxy.too_late()
    assert status(proxy.take_output()) == 408
    assert proxy.over


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=8), st.lists(st.binary(min_size=1, max_size=200)))
def test_garbage_from_either_side_ends_it_or_does_nothing(ours: list[bytes], theirs: list[bytes]) -> None:
    proxy = HttpProxy()
    proxy.receive(GET)
    for data in theirs:
        proxy.receive_from_server(data)
    proxy.receive_from_server(b"")
    for data in ours:
        proxy.receive(data)
    proxy.receive(b"")
    proxy.take_output()
    proxy.take_to_server()
    assert proxy.over or proxy.broken or proxy.opaque or proxy.idle
