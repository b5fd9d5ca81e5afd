"""Promises about what a server answers to `tunnel.py doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from qanat.base.deadline import Deadline
from qanat.measure.probes import GREETING, HEADER, TRICKLE_SIZES, VERSION, Arrived, Order, silence
from qanat.server.front_door import probes
from qanat.server.front_door.front_door import FrontDoor
from qanat.transports.dial.route import DIRECT
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2 import grpc, octet_stream
from qanat.transports.pipe import Pipe
from qanat.transports.websocket import upgrade
from tests.support.background import DEADLINE, Background
from tests.support.server.front_door_rig import exchange, front_door
from tests.support.troubles.http1 import Http1Asking
from tests.support.troubles.http2 import Http2Asking
from tests.support.troubles.wire import Asking, Request

CONNECT = {"websocket": upgrade.connect, "http2": octet_stream.connect, "grpc": grpc.connect}
both = pytest.mark.parametrize("kind", [Http1Asking, Http2Asking])
Kind = type[Http1Asking] | type[Http2Asking]


@pytest.fixture(scope="module")
def door() -> Iterator[FrontDoor]:
    with front_door() as door:
        assert exchange(door, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")  # so that its thread runs
        yield door


def ask(stack: ExitStack, door: FrontDoor, kind: Kind, probe: str, method: str = "GET") -> Asking:
    version = 2 if kind is Http2Asking else 1
    request = Request(method, "/tunnel", "localhost", ((HEADER, probe),), version)
    one = kind(door.addresses[0], request, b"" if method == "GET" else None)
    stack.callback(one.close)
    return one


def rest(one: Asking) -> bytes:
    parts = []
    while data := one.receive():
        parts.append(data)
    return b"".join(parts)


def pipe(stack: ExitStack, door: FrontDoor, transport: str) -> Pipe:
    host, port = door.addresses[0]
    url = TunnelUrl.parse(f"ws://{host}:{port}/tunnel")
    route = replace(DIRECT, headers=((HEADER, "pipe"),))
    made = CONNECT[transport](url, route=route, deadline=Deadline(DEADLINE))
    made.set_read_timeout(DEADLINE)
    stack.callback(made.close, "the test is over")
    return made


def send(pipe: Pipe, message: bytes) -> None:
    pipe.send(memoryview(bytearray(pipe.headroom) + message))


@both
def test_it_says_what_has_arrived(door: FrontDoor, kind: Kind) -> None:
    with ExitStack() as stack:
        one = ask(stack, door, kind, "plain")
        head = one.head()
        assert (head.status, head.value(HEADER)) == (200, VERSION)
        assert Arrived.decode(rest(one).decode()) == Arrived("2" if kind is Http2Asking else "1.1", False, False)


@both
def test_a_trickle_comes_in_parts(door: FrontDoor, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "TRICKLE_STEP", 0.05)
    with ExitStack() as stack:
        one = ask(stack, door, kind, "trickle")
        assert one.head().status == 200
        first = one.receive()
        assert first.startswith(b"0 ")
        assert len(first) == TRICKLE_SIZES[0]
        assert len(first) + len(rest(one)) == sum(TRICKLE_SIZES)


@both
def test_an_answer_begins_before_the_request_has_a_body(door: FrontDoor, kind: Kind) -> None:
    with ExitStack() as stack:
        one = ask(stack, door, kind, "echo", "POST")
        assert one.head().status == 200
        assert one.receive() == b"begun\n"
        one.send(b"\0\0\0\1x")
        assert rest(one) == b"came\n"


@pytest.mark.parametrize("transport", CONNECT)
def test_a_pipe_echoes_and_is_silent_for_as_long_as_it_is_asked(door: FrontDoor, transport: str) -> None:
    with ExitStack() as stack:
        one = pipe(stack, door, transport)
        assert bytes(one.recv()) == GREETING
        for size in (1, 999):
            message = bytes([Order.ECHO]) + bytes(size)
            send(one, message)
            assert bytes(one.recv()) == message[1:]
        send(one, silence(1))
        waiting = Background(lambda: bytes(one.recv()))
        assert not waiting.wait(0.5)
        assert waiting.result() == silence(1)


def test_only_so_many_are_served_at_once(door: FrontDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MAX_OF_ADDRESS", 1)
    with ExitStack() as stack:
        assert ask(stack, door, Http1Asking, "trickle").head().status == 200
        for kind in (Http1Asking, Http2Asking):
            assert ask(stack, door, kind, "trickle").head().status == 503


def test_a_server_that_does_not_want_to_be_asked_ignores_the_header() -> None:
    with front_door(doctor=False) as door, ExitStack() as stack:
        assert ask(stack, door, Http1Asking, "plain").head().status == 404
        assert ask(stack, door, Http2Asking, "trickle").head().status == 404
        one = pipe(stack, door, "websocket")  # the rig's own echo
        send(one, b"hello")
        assert bytes(one.recv()) == b"hello"
