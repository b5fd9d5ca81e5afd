"""Reaching a server: every address is tried, and each failure says what to do."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack
from typing import Any

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.transports.dial.dialer import dial
from qanat.transports.dial.urls import TunnelUrl
from tests.support.background import DEADLINE
from tests.support.machine.ports import silent_address, unused_port
from tests.support.transports.loopback import listen


def failure(text: str, seconds: float = 5) -> TransportError:
    with pytest.raises(TransportError) as caught:
        dial(TunnelUrl.parse(text), alpn=(), deadline=Deadline(seconds))
    assert caught.value.hint
    return caught.value


def names(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[Any, ...]) -> None:
    """Give every name these addresses: there is no name server in a test."""

    def look_up(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        families = [socket.AF_INET6 if ":" in a[0] else socket.AF_INET for a in addresses]
        return [(f, socket.SOCK_STREAM, 6, "", a) for f, a in zip(families, addresses, strict=True)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_a_name_is_resolved_and_reached(stack: ExitStack) -> None:
    listener, port = listen(stack)
    wire = dial(TunnelUrl.parse(f"ws://localhost:{port}/"), alpn=(), deadline=Deadline(DEADLINE))
    stack.callback(wire.close)
    with listener.accept()[0] as sock:
        wire.send_all(b"hello")
        assert sock.recv(5) == b"hello"
    assert wire.peer == f"localhost:{port}"


def test_every_address_is_tried(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, port = listen(stack)
    names(monkeypatch, ("127.0.0.1", unused_port()), ("::1", unused_port(), 0, 0), ("127.0.0.1", port))
    wire = dial(TunnelUrl.parse("ws://many.example/"), alpn=(), deadline=Deadline(DEADLINE))
    stack.callback(wire.close)
    listener.accept()[0].close()


def test_all_addresses_that_failed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = unused_port(), unused_port()
    names(monkeypatch, ("127.0.0.1", one), ("127.0.0.1", other))
    message = failure("ws://many.example/").message
    assert f"127.0.0.1:{one}: connection refused" in message
    assert f"127.0.0.1:{other}: connection refused" in message


def test_a_refused_connection_says_that_nothing_listens() -> None:
    error = failure(f"ws://127.0.0.1:{unused_port()}/")
    assert "connection refused" in error.message
    assert "check that the server runs" in error.hint


def test_an_address_that_does_not_answer_is_given_up_at_the_deadline(stack: ExitStack) -> None:
    error = failure(f"ws://127.0.0.1:{silent_address(stack)[1]}/", 0.2)
    assert "no answer in time" in error.message
    assert "firewalls" in error.hint


@pytest.mark.parametrize(
    ("number", "words"), [(socket.EAI_NONAME, "is not known"), (socket.EAI_AGAIN, "failed for now")]
)
def test_a_name_that_cannot_be_resolved_says_so(monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def look_up(*_: object, **__: object) -> None:
        raise socket.gaierror(number, "words of the C library")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert words in failure("ws://nowhere.example/").message


def test_a_label_that_is_too_long_is_an_unknown_name() -> None:
    assert "is not known" in failure(f"ws://{'a' * 70}.example/").message


def test_a_name_server_that_hangs_is_given_up_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def look_up(*_: object, **__: object) -> list[object]:
        answered.wait(DEADLINE)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert "too long" in failure("ws://slow.example/", 0.1).message
    answered.set()
