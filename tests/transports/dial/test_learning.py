"""What a connection that could be made and was of no use teaches the next one."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from qanat.base import connect as happy_eyeballs
from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.transports.dial import tcp
from qanat.transports.dial.dialer import opening
from qanat.transports.dial.route import Route
from qanat.transports.dial.tcp import PATIENCE, SMALL_SEGMENT, Destination, learn_stall, learn_success
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.pipe import is_stall, silent_for, stuck_for
from qanat.transports.websocket.upgrade import connect
from qanat.transports.wire.tcp import TcpWire
from tests.support.background import DEADLINE, Background
from tests.support.transports.loopback import read_head, socket_pair


@pytest.fixture(autouse=True)
def nothing_learned() -> Iterator[None]:
    for memory in (happy_eyeballs._slow, tcp._experience):
        memory.clear()
    yield
    for memory in (happy_eyeballs._slow, tcp._experience):
        memory.clear()


class TwoHomes:
    """A name with two addresses, of which each can be connected to."""

    def __init__(self, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self._listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        addresses = [(socket.AF_INET, listener.getsockname()) for listener in self._listeners]
        monkeypatch.setattr(tcp, "resolve", lambda *_: addresses)

    def asked(self) -> int:
        """Connect once, which comes to nothing, and return which one was asked."""
        wire = TcpWire(tcp.connect(Destination("twohomed.example", 80), Deadline(DEADLINE), Cancel()))
        assert wire.addresses is not None
        with contextlib.suppress(TransportError), opening(wire, Deadline(DEADLINE), Cancel()):
            raise TransportError("it was of no use")
        return [listener.getsockname() for listener in self._listeners].index(wire.addresses[1])


def test_an_address_that_fails_again_and_again_leaves_its_place_to_the_next(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IPv6 that works for the first packets alone, or one dead server of several: both connect, and that is all."""
    name = TwoHomes(stack, monkeypatch)
    assert [name.asked() for _ in range(2 * PATIENCE)] == [0] * PATIENCE + [1] * PATIENCE
    assert name.asked() == 0, "the last one to fail comes last"


def test_a_connection_that_works_begins_the_count_anew(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    name = TwoHomes(stack, monkeypatch)
    assert [name.asked() for _ in range(PATIENCE - 1)] == [0] * (PATIENCE - 1)
    learn_success(name._listeners[0].getsockname())
    assert [name.asked() for _ in range(PATIENCE)] == [0] * PATIENCE
    assert name.asked() == 1


def failed_opening(
    stack: ExitStack, error: Exception, *, deadline: float = DEADLINE, cancel: Cancel | None = None
) -> TcpWire:
    wire = TcpWire(socket_pair(stack)[0])
    with pytest.raises(type(error)), opening(wire, Deadline(deadline), cancel or Cancel()):
        raise error
    return wire


def tried_first(wire: TcpWire) -> bool:
    """Whether its address still comes before another one."""
    assert wire.addresses is not None
    this, other = (socket.AF_INET, wire.addresses[1]), (socket.AF_INET, ("127.0.0.1", 1))
    return happy_eyeballs._in_order([this, other])[0] == this


def test_one_that_stalls_leaves_its_place_at_once(stack: ExitStack) -> None:
    assert not tried_first(failed_opening(stack, TransportError("no answer in time"), deadline=0.0))


def test_a_server_that_names_a_time_or_a_client_that_stops_is_no_failure(stack: ExitStack) -> None:
    canceled = Cancel()
    canceled.cancel()
    for _ in range(PATIENCE):
        assert tried_first(failed_opening(stack, TransportError("busy", retry_after=3), deadline=0.0))
        assert tried_first(failed_opening(stack, TransportError("stopped"), deadline=0.0, cancel=canceled))
        assert tried_first(failed_opening(stack, ValueError()))


@pytest.mark.skipif(sys.platform != "linux", reason="others tell another number")
def test_after_a_stall_segments_are_small_in_both_directions(stack: ExitStack) -> None:
    """On a path that loses large packets without a word, everything else would stall again and again."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    host, port = listener.getsockname()

    def sizes() -> list[int]:
        sock = stack.enter_context(tcp.connect(Destination(host, port), Deadline(DEADLINE), Cancel()))
        other = stack.enter_context(listener.accept()[0])
        return [end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) for end in (sock, other)]

    assert min(sizes()) > SMALL_SEGMENT
    learn_stall((host, port))
    assert max(sizes()) <= SMALL_SEGMENT


def test_what_counts_as_a_stall() -> None:
    assert is_stall(silent_for(45.0))
    assert is_stall(stuck_for(0.5))
    assert not is_stall("the connection was closed by the other end or the path")
    assert not is_stall(None)


def test_a_failure_names_the_size_of_large_headers(stack: ExitStack) -> None:
    """nginx says 400 to these, Apache too, and over HTTP/2 ENHANCE_YOUR_CALM: nothing that could be understood."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    url = TunnelUrl.parse(f"ws://127.0.0.1:{listener.getsockname()[1]}/t")

    def refuse() -> None:
        with listener.accept()[0] as sock:
            read_head(sock)
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    for size, named in ((8000, True), (2000, False)):
        refusing = Background(refuse)
        with pytest.raises(TransportError) as caught:
            connect(url, route=Route(headers=(("X-Token", "x" * size),)), deadline=Deadline(DEADLINE))
        refusing.result()
        assert ("large_client_header_buffers" in caught.value.hint) is named
