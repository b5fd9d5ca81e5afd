"""Promises of an answer that the watcher reads: it is over when its last byte has come, or when it never will."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import pytest

from qanat.base.errors import ProtocolError, TransportError
from qanat.transports.split.exchange import PIECES_IN_TURN, Connection, Exchange, Failed
from tests.transports.split.test_http1 import HEAD, Pieces


class Kept:
    """Takes in an answer, and keeps it."""

    def __init__(self) -> None:
        self.patience = 0.0
        self.body = b""
        self.over: list[Exception | None] = []
        self.refuses = False

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        if self.refuses:
            raise Failed(f"status {status}", status=status)

    def piece(self, content: memoryview) -> None:
        self.body += content

    def end(self) -> None: ...

    def ended(self, exchange: Exchange, error: Exception | None) -> None:
        self.over.append(error)


class AtOnce(Pieces):
    """A wire whose pieces are all there."""

    def recv_within(self, buffer: memoryview, seconds: float) -> int | None:
        return self.recv_into(buffer) if self.pieces else None


def begun(pieces: list[bytes], kind: type[Pieces] = Pieces) -> tuple[Kept, Exchange]:
    """An exchange whose answer comes in these, each in an event of its own for who does not wait."""
    connection = Connection(kind(pieces))
    connection.source.within = 0
    taker = Kept()
    connection.exchange = Exchange(connection, taker, taker.ended)
    return taker, connection.exchange


@pytest.mark.parametrize("kind", [Pieces, AtOnce])
@pytest.mark.parametrize("count", range(1, 3 * PIECES_IN_TURN))
def test_an_answer_is_over_with_its_last_byte_however_many_pieces_it_comes_in(count: int, kind: type[Pieces]) -> None:
    head = HEAD + b"Content-Length: %d\r\n\r\n" % count
    pieces = [head, *[b"x"] * count]
    taker, exchange = begun(pieces, kind)
    while pieces:  # the descriptor says that there is more
        exchange.read()
    assert taker.body == b"x" * count
    assert taker.over == [None], "and nobody has to ask once more"
    assert exchange.connection.reusable
    assert not exchange.read()
    assert taker.over == [None]


def test_what_has_come_already_is_asked_for_again() -> None:
    chunks = b"".join(b"1\r\n%b\r\n" % bytes([65 + number]) for number in range(10)) + b"0\r\n\r\n"
    taker, exchange = begun([HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks])
    while exchange.read() or not taker.body:
        pass
    assert taker.body == b"ABCDEFGHIJ"
    assert taker.over == [None]


@pytest.mark.parametrize("pieces", [[], [HEAD], [HEAD + b"Content-Length: 5\r\n\r\n", b"123"]])
def test_an_answer_that_is_cut_has_failed_once(pieces: list[bytes]) -> None:
    taker, exchange = begun(pieces)
    for _ in range(6):
        exchange.read()
    assert len(taker.over) == 1
    assert isinstance(taker.over[0], TransportError)
    assert not exchange.fail(TransportError("late"))
    assert len(taker.over) == 1


def test_interim_answers_without_end_are_no_answer() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    taker, exchange = begun([interim * 3 + HEAD + b"Content-Length: 1\r\n\r\nx"], AtOnce)
    exchange.read()
    assert (taker.body, taker.over) == (b"x", [None])
    taker, exchange = begun([interim * 1000], AtOnce)
    exchange.read()
    assert [type(error) for error in taker.over] == [ProtocolError]


def test_a_refusal_is_over_with_its_head() -> None:
    taker, exchange = begun([HEAD + b"Content-Length: 5\r\n\r\n"])
    taker.refuses = True
    exchange.read()
    exchange.read()
    assert [getattr(error, "status", None) for error in taker.over] == [200]


def test_each_piece_of_an_answer_that_goes_on_puts_off_its_end() -> None:
    taker, exchange = begun([HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nA\r\n"])
    taker.patience = 100.0
    assert exchange.deadline == math.inf
    exchange.read()
    exchange.read()
    assert taker.body == b"A"
    assert 90.0 < exchange.deadline - time.monotonic() <= 100.0


def test_it_ends_once_by_whoever_is_first() -> None:
    taker, exchange = begun([HEAD + b"Content-Length: 0\r\n\r\n"])
    first = TransportError("first")
    assert exchange.fail(first)
    assert not exchange.fail(TransportError("second"))
    exchange.read()
    assert taker.over == [first]
    assert exchange.is_over
    assert not exchange.hold(1.0)


def test_while_a_thread_holds_it_the_watcher_reads_nothing() -> None:
    pieces = [HEAD + b"Content-Length: 2\r\n\r\n", b"a", b"b"]
    taker, exchange = begun(pieces)
    exchange.hold(0.1)
    exchange.read()
    assert len(pieces) == 3
    for _ in range(10):
        exchange.read(held=True)
    assert taker.body == b"ab"
    assert taker.over == [None]
