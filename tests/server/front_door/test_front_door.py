"""What the front door answers, over real sockets."""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import Iterator

import pytest
import websocket

from qanat.base.errors import TransportError, UsageError
from qanat.config.server_settings import ServerLimits, ServerSettings
from qanat.server.admission.admission import HandshakeSlot
from qanat.server.admission.client_address import ClientAddress
from qanat.server.front_door.front_door import FrontDoor
from qanat.transports.pipe import Pipe
from tests.support.background import DEADLINE, wait_until
from tests.support.server.front_door_rig import (
    WEBSOCKET,
    connect,
    echo,
    exchange,
    front_door,
    read_head,
    read_to_end,
    request,
    without_date,
)


def test_healthz_says_ok_to_get_and_head() -> None:
    with front_door() as door:
        get = exchange(door, request("GET /healthz HTTP/1.1"))
        head = exchange(door, request("HEAD /healthz HTTP/1.1"))
        old = exchange(door, b"GET /healthz HTTP/1.0\r\n\r\n")
        query = exchange(door, request("GET /healthz?probe=1 HTTP/1.1"))
        absolute = exchange(door, request("GET http://x/healthz HTTP/1.1"))
    assert get.startswith(b"HTTP/1.1 200 OK\r\n")
    assert get.endswith(b"\r\n\r\nok\n")
    assert head.endswith(b"\r\n\r\n")
    assert without_date(get) == without_date(head) + b"ok\n"
    assert {without_date(answer) for answer in (old, query, absolute)} == {without_date(get)}


@pytest.mark.parametrize(
    "line",
    [
        "GET /nothing HTTP/1.1",
        "GET / HTTP/1.1",
        "GET /tunnel HTTP/1.1",
        "GET /tunnel/ HTTP/1.1",
        "POST /tunnel HTTP/1.1",
        "POST /healthz HTTP/1.1",
        "DELETE /healthz HTTP/1.1",
        "BREW /tunnel HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "CONNECT x:443 HTTP/1.1",
        "GET /healthz/ HTTP/1.1",
        "GET /tunnel HTTP/1.0",
    ],
)
def test_all_else_gets_one_and_the_same_404(line: str) -> None:
    with front_door() as door:
        expected = without_date(exchange(door, request("GET /elsewhere HTTP/1.1")))
        plain = exchange(door, request(line))
        with_body = exchange(door, request(line, "Content-Length: 5", body=b"hello"))
    assert expected.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert without_date(plain) == expected
    assert without_date(with_body) == expected


@pytest.mark.parametrize(
    "head",
    [
        f"GET /wrong HTTP/1.1\r\n{WEBSOCKET}\r\n",
        f"GET /healthz/x HTTP/1.1\r\n{WEBSOCKET}\r\n",
        f"POST /tunnel HTTP/1.1\r\n{WEBSOCKET}\r\n",
        f"GET /tunnel HTTP/1.1\r\n{WEBSOCKET}Content-Length: 5\r\n\r\nhello",
        "GET /tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        "Upgrade: h2c\r\nHTTP2-Settings: AAM\r\n\r\n",
    ],
)
def test_an_upgrade_that_is_not_ours_gets_the_same_404_and_no_upgrade_header(head: str) -> None:
    with front_door() as door:
        expected = without_date(exchange(door, request("GET /elsewhere HTTP/1.1")))
        answer = exchange(door, head.encode())
    assert without_date(answer) == expected
    assert b"upgrade" not in answer.lower()


@pytest.mark.parametrize(
    "head",
    [
        f"GET /tunnel HTTP/1.0\r\n{WEBSOCKET}\r\n",  # nginx without proxy_http_version
        f"GET /tunnel HTTP/1.1\r\n{WEBSOCKET}\r\n".replace("Connection: Upgrade\r\nUpgrade: websocket\r\n", ""),
        f"GET /tunnel HTTP/1.0\r\n{WEBSOCKET}\r\n".replace("Upgrade\r\nUpgrade: websocket", "close"),  # nginx's default
    ],
)
def test_an_upgrade_that_was_lost_on_the_way_is_said_to_both_ends(head: str, caplog: pytest.LogCaptureFixture) -> None:
    with front_door() as door:
        answers = [exchange(door, head.encode()) for _ in range(3)]
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"upgrade" not in answer.lower()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "proxy_set_header Upgrade $http_upgrade" in warning


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /healthz HTTP/3.0\r\nHost: a\r\n\r\n",
        b"GET /tunnel HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",  # no key
        b"\x00\xff" * 500,
        b"\r\n" * 5000,
        b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
        b"GET /" + b"a" * 100_000,
    ],
)
def test_malformed_requests_get_a_short_refusal_and_never_a_traceback(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with front_door() as door:
        answer = exchange(door, data)
        assert exchange(door, request("GET /healthz HTTP/1.1")).endswith(b"ok\n")
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505"))
    assert b"upgrade" not in answer.lower()
    assert b"server:" not in answer.lower()
    assert len(answer) < 400
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_event(caplog: pytest.LogCaptureFixture) -> None:
    with front_door() as door:
        for data in (b"", b"G", b"GET /healthz HTTP/1.1\r\nHost"):
            with connect(door) as sock:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                assert read_to_end(sock) == b""
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_pipelined_requests_get_one_answer() -> None:
    with front_door() as door:
        answer = exchange(door, request("GET /healthz HTTP/1.1") * 3)
    assert answer.count(b"HTTP/1.1 200") == 1


def test_an_answer_survives_a_large_body_that_nobody_reads() -> None:
    body = b"x" * 200_000
    with front_door() as door:
        answer = exchange(door, request("POST /upload HTTP/1.1", f"Content-Length: {len(body)}", body=body))
    assert answer.endswith(b"Not Found\n")


def test_who_expects_100_continue_gets_the_final_answer_instead() -> None:
    with front_door() as door:
        answer = exchange(door, request("POST /x HTTP/1.1", "Content-Length: 9", "Expect: 100-continue"))
    assert answer.startswith(b"HTTP/1.1 404")


def test_a_websocket_client_comes_in_and_exchanges_messages() -> None:
    arrived: list[ClientAddress] = []

    def on_pipe(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        arrived.append(address)
        echo(pipe, address, slot)

    with front_door(on_pipe) as door:
        host, port = door.addresses[0]
        for path in ("/tunnel", "/tunnel?x=y"):
            client = websocket.create_connection(
                f"ws://{host}:{port}{path}", timeout=10, subprotocols=["qanat.1"], suppress_origin=True
            )
            try:
                for message in (b"one", b"", b"x" * 100_000):
                    client.send_binary(message)
                    assert client.recv() == message
            finally:
                client.shutdown()  # type: ignore[no-untyped-call]
    assert [address.client for address in arrived] == ["127.0.0.1"] * 2
    assert not any(address.via_proxy for address in arrived)


def test_bytes_that_came_with_the_upgrade_request_belong_to_the_pipe() -> None:
    frame = b"\x82\x83\x00\x00\x00\x00abc"  # a masked binary message, RFC 6455 §5.7
    with front_door() as door, connect(door) as sock:
        sock.sendall(f"GET /tunnel HTTP/1.1\r\n{WEBSOCKET}\r\n".encode() + frame)
        assert read_head(sock).startswith(b"HTTP/1.1 101 ")
        assert sock.recv(5, socket.MSG_WAITALL) == b"\x82\x03abc"


class Reports(logging.Handler):
    """What was logged, to be waited for: a thread reports its error after all else."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: queue.Queue[logging.LogRecord] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.queue.put(record)


@pytest.fixture
def fault_reports() -> Iterator[Reports]:
    reports = Reports()
    logger = logging.getLogger("qanat.unexpected")
    logger.addHandler(reports)
    yield reports
    logger.removeHandler(reports)


def test_an_error_in_the_handler_ends_that_pipe_and_no_other(fault_reports: Reports) -> None:
    def broken(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        raise ZeroDivisionError

    with front_door(broken) as door:
        with connect(door) as sock:
            sock.sendall(f"GET /tunnel HTTP/1.1\r\n{WEBSOCKET}\r\n".encode())
            assert read_to_end(sock).startswith(b"HTTP/1.1 101 ")
        assert exchange(door, request("GET /healthz HTTP/1.1")).endswith(b"ok\n")
        report = fault_reports.queue.get(timeout=DEADLINE)
        assert report.exc_info is not None
        assert report.exc_info[0] is ZeroDivisionError
        assert door.admission.handshakes == 0


def test_a_port_in_use_is_refused_with_the_command_that_shows_who_has_it() -> None:
    with front_door() as door:
        second = FrontDoor(ServerSettings(clients=(), listen=(("127.0.0.1", 0), door.addresses[0])), echo)
        with pytest.raises(TransportError, match="ss -ltnp") as caught:
            second.start()
        assert str(door.addresses[0][1]) in str(caught.value)
        assert second.join(DEADLINE) == []


@pytest.mark.parametrize(
    ("host", "error"), [("192.0.2.77", TransportError), ("no-address.invalid", UsageError), ("", UsageError)]
)
def test_an_address_that_is_not_ours_is_refused(host: str, error: type[Exception]) -> None:
    door = FrontDoor(ServerSettings(clients=(), listen=((host, 0),)), echo)
    with pytest.raises(error, match="cannot listen on"):
        door.start()


def test_several_addresses_are_served_ipv6_among_them() -> None:
    if not _has_ipv6():
        pytest.skip("no IPv6 on this machine")
    with front_door(listen=(("127.0.0.1", 0), ("::1", 0))) as door:
        for address in door.addresses:
            with socket.create_connection(address, 10) as sock:
                sock.sendall(request("GET /healthz HTTP/1.1"))
                assert read_to_end(sock).endswith(b"ok\n")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_new_front_door_takes_the_port_at_once() -> None:
    with front_door() as door:
        address = door.addresses[0]
        exchange(door, request("GET /healthz HTTP/1.1"))
        with front_door_pipe(door) as sock:
            assert sock.getpeername() == address
    with front_door(listen=(address,)) as again:
        assert exchange(again, request("GET /healthz HTTP/1.1")).endswith(b"ok\n")


def front_door_pipe(door: FrontDoor) -> socket.socket:
    """A socket that has been upgraded."""
    sock = connect(door)
    sock.sendall(f"GET /tunnel HTTP/1.1\r\n{WEBSOCKET}\r\n".encode())
    assert read_head(sock).startswith(b"HTTP/1.1 101 ")
    return sock


def test_closing_refuses_new_connections_ends_half_open_ones_and_leaves_pipes_alone() -> None:
    started, finish = threading.Event(), threading.Event()
    causes: list[str | None] = []

    def on_pipe(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        started.set()
        finish.wait(3 * DEADLINE)
        causes.append(pipe.cause)

    with (
        front_door(on_pipe, limits=ServerLimits(header_timeout=60)) as door,
        connect(door) as half_open,
        front_door_pipe(door) as pipe,
    ):
        half_open.sendall(b"GET /hea")
        assert started.wait(DEADLINE)
        door.close()
        door.close()
        assert read_to_end(half_open) == b""
        with pytest.raises(OSError):
            connect(door).close()
        wait_until(lambda: len(door.join(0)) == 1, "only the pipe's own thread is left")
        finish.set()
        assert read_to_end(pipe) is not None
        assert door.join(DEADLINE) == []
    assert causes == [None]
