"""Promises of the server's end of a split pipe, to its client and against everybody else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from qanat.base.errors import PipeEnded
from qanat.base.watcher import Watcher
from qanat.transports.split.segments import WELCOME_SIZE, Segment, SegmentReader, decode_welcome
from qanat.transports.split.sequence import PREFIX
from qanat.transports.split.server import MAX_ASKERS, MAX_GIVEN, MAX_SERVED, Asker, ServerPipe, SplitPipes
from qanat.transports.split.token import Kind, Token, digest_of, parse
from tests.support.background import DEADLINE, wait_until

SECRET = bytes(range(32))


class Request(Asker):
    """A request for bytes whose answer is kept."""

    def __init__(self) -> None:
        self.body = b""
        self.over = threading.Event()
        self.took = True
        """Whether its connection takes more."""

    def respond(self, body: bytes) -> None:
        assert not self.over.is_set(), "a request has one answer"
        self.body = body
        self.over.set()

    def begin(self) -> None:
        assert not self.body

    def write(self, data: bytes) -> bool:
        self.body += data
        return self.took

    def finish(self) -> None:
        self.over.set()

    @property
    def segments(self) -> list[Segment]:
        return [segment for segment, _, _ in SegmentReader().feed(memoryview(self.body))]

    @property
    def content(self) -> bytes:
        return b"".join(bytes(piece) for _, _, piece in SegmentReader().feed(memoryview(self.body)))


class Client:
    """Makes the requests of one pipe."""

    def __init__(self, pipe: ServerPipe) -> None:
        self.pipe = pipe
        self.number = 0
        self.sent = 0
        self.acknowledged = 0
        self.oldest = 1

    def token(self, kind: Kind, body: bytes = b"", *, at: int | None = None, wait: float = 60.0) -> Token:
        self.number += 1
        return Token(
            self.pipe.id,
            kind,
            number=self.number,
            acknowledged=self.acknowledged,
            limit=self.acknowledged + 1_000_000,
            oldest=self.oldest,
            at=self.sent if at is None else at,
            size=len(body) if kind is Kind.UP else 100_000,
            wait=round(wait * 1000),
            digest=digest_of(body) if body else bytes(16),
        )

    def post(self, message: bytes) -> Token:
        """Send a message; the request, to be sent again."""
        body = PREFIX.pack(len(message)) + message
        token = self.token(Kind.UP, body)
        assert self.pipe.take_up(token, bytearray(body)) is not None
        self.sent += len(body)
        return token

    def ask(self, kind: Kind = Kind.PACKET, *, wait: float = 60.0) -> Request:
        request = Request()
        self.pipe.ask(self.token(kind, wait=wait), request)
        return request


@pytest.fixture
def pipes() -> Iterator[SplitPipes]:
    watcher = Watcher()
    yield SplitPipes(watcher, lambda: None)
    watcher.close()


@pytest.fixture
def pipe(pipes: SplitPipes) -> ServerPipe:
    made = pipes.create("peer:1", None)
    made.welcome(Request(), 0)
    made.send(framed(b"first"))
    made.set_unauthenticated(False)
    made.bind(SECRET)
    return made


@pytest.fixture
def client(pipe: ServerPipe) -> Client:
    made = Client(pipe)
    made.acknowledged = PREFIX.size + len(b"first")
    made.ask()  # is answered at once: the window has become larger
    return made


def framed(message: bytes) -> memoryview:
    return memoryview(bytearray(PREFIX.size) + message)


def test_the_answer_to_the_first_request_has_the_id_and_what_is_sent_first(pipes: SplitPipes) -> None:
    pipe, request = pipes.create("peer:1", None), Request()
    pipe.welcome(request, 3)
    assert not request.over.is_set()
    pipe.send(framed(b"hello"))
    welcome = decode_welcome(request.body)
    assert (welcome.id, welcome.secret, welcome.carriers) == (pipe.id, pipe.secret, 3)
    request.body = request.body[WELCOME_SIZE:]
    assert request.content == PREFIX.pack(5) + b"hello"


def test_an_id_is_of_no_use_to_who_has_not_shaken_hands(pipes: SplitPipes, pipe: ServerPipe, client: Client) -> None:
    right = parse(client.token(Kind.PACKET).encode(SECRET))
    assert right is not None
    assert pipes.find(right) is not None
    for key in (pipe.secret, bytes(32), os.urandom(32)):
        wrong = parse(client.token(Kind.PACKET).encode(key))
        assert wrong is not None
        assert pipes.find(wrong) is None


def test_the_first_key_fetches_nothing_once_the_client_has_used_that_of_the_handshake(
    pipes: SplitPipes, pipe: ServerPipe, client: Client
) -> None:
    right = parse(client.token(Kind.PACKET).encode(SECRET))
    assert right is not None
    pipes.find(right)
    early, request = Token(pipe.id, Kind.PACKET, 99, 0, 1000, 99, size=1000, wait=60_000, early=True), Request()
    pipe.send(framed(b"secret"))
    pipe.ask(early, request)
    assert request.segments[0].repeated
    assert not request.content
    body = PREFIX.pack(4) + b"evil"
    up = Token(pipe.id, Kind.UP, 100, 0, 1000, 99, size=len(body), digest=digest_of(body), early=True)
    assert pipe.take_up(up, bytearray(body)) is not None
    assert pipe.recv_within(0) is None


def test_a_request_that_comes_again_gets_no_bytes(pipe: ServerPipe, client: Client) -> None:
    token, first, second = client.token(Kind.PACKET), Request(), Request()
    pipe.ask(token, first)
    pipe.ask(token, second)
    assert second.segments[0].repeated
    pipe.send(framed(b"once"))
    assert first.content == PREFIX.pack(4) + b"once"


def test_a_client_that_is_never_done_with_a_request_costs_bounded_memory(pipe: ServerPipe, client: Client) -> None:
    first = client.token(Kind.PACKET)
    pipe.ask(first, Request())
    for _ in range(MAX_SERVED + MAX_ASKERS):
        client.ask()  # `oldest` stays where it is
    again = Request()
    pipe.ask(first, again)
    assert again.segments[0].repeated, "what is no longer remembered counts as served"
    for _ in range(MAX_GIVEN):
        pipe.send(framed(b"."))
    waits = client.ask(wait=0.05)
    pipe.send(framed(b"beyond"))
    assert waits.over.wait(DEADLINE)
    assert b"beyond" not in waits.content, "too many answers are not acknowledged"
    client.acknowledged += MAX_GIVEN * len(framed(b"."))
    assert client.ask().content.endswith(b"beyond")


def test_an_address_is_a_clients_as_long_as_one_of_its_pipes_is_served(pipes: SplitPipes, pipe: ServerPipe) -> None:
    other = pipes.create("peer:2", None)
    for each in (pipe, other, other):
        pipes.note_client_at("192.0.2.1", each)
    for each in (pipe, other):
        assert pipes.has_client_at("192.0.2.1")
        each.close("enough")
        each.let_go()
    assert not pipes.has_client_at("192.0.2.1")
    pipes.note_client_at("192.0.2.1", other)
    assert not pipes.has_client_at("192.0.2.1"), "its requests are served no more"


def test_bytes_that_come_again_or_are_not_what_was_sent_do_no_harm(pipe: ServerPipe, client: Client) -> None:
    token = client.post(b"one")
    for _ in range(3):
        assert pipe.take_up(token, bytearray(PREFIX.pack(3) + b"one")) is not None
    assert pipe.take_up(token, bytearray(PREFIX.pack(3) + b"two")) is None
    assert pipe.recv() == b"one"
    assert pipe.recv_within(0) is None


def test_bytes_of_requests_that_overtake_each_other_are_put_in_order(pipe: ServerPipe, client: Client) -> None:
    bodies = [PREFIX.pack(1) + bytes((number,)) for number in range(5)]
    for number in (3, 1, 4, 0, 2):
        token = client.token(Kind.UP, bodies[number], at=number * 5)
        pipe.take_up(token, bytearray(bodies[number]))
    assert [bytes(pipe.recv()) for _ in range(5)] == [bytes((number,)) for number in range(5)]


def test_what_a_lost_answer_had_is_sent_again_once_its_request_is_over_for_the_client(
    pipe: ServerPipe, client: Client
) -> None:
    lost, kept = client.ask(), client.ask()
    pipe.send(framed(b"one"))
    pipe.send(framed(b"two"))
    assert lost.over.is_set()
    assert kept.over.is_set()
    later = client.ask()
    assert not later.over.is_set(), "the first may still be on its way"
    client.oldest = client.number
    again = client.ask()
    found = sorted((segment.at, request.content) for request in (later, again) for segment in request.segments[:1])
    assert b"".join(content for _, content in found)[: 2 * 7] == PREFIX.pack(3) + b"one" + PREFIX.pack(3) + b"two"


@pytest.mark.parametrize("kind", [Kind.STREAM, Kind.PACKET])
def test_a_request_that_the_client_has_done_with_gets_no_bytes(pipe: ServerPipe, client: Client, kind: Kind) -> None:
    """Its connection was cut, which is not known here yet, and the POST made after the next request overtakes that."""
    pipe.take_up(Token(pipe.id, Kind.UP, 40, client.acknowledged, 1_000_000, 1, streams=True), bytearray())

    def token(kind: Kind, number: int, oldest: int) -> Token:
        wait = 0 if kind is Kind.UP else 8000
        size = 0 if kind is Kind.UP else 1 << 20
        return Token(pipe.id, kind, number, client.acknowledged, 1_000_000, oldest, size=size, wait=wait, streams=True)

    cut, following = Request(), Request()
    pipe.ask(token(kind, 50, 50), cut)
    pipe.take_up(token(Kind.UP, 52, 51), bytearray())
    pipe.send(framed(b"one"))
    assert cut.content == b""
    pipe.ask(token(Kind.STREAM, 51, 51), following)
    pipe.send(framed(b"two"))
    assert following.content == PREFIX.pack(3) + b"one" + PREFIX.pack(3) + b"two"


def test_a_request_waits_no_longer_than_it_asks_for_and_without_a_thread(pipe: ServerPipe, client: Client) -> None:
    before = threading.active_count()
    requests = [client.ask(wait=0.05) for _ in range(5)]
    assert threading.active_count() <= before + 1, "the watcher's, which all share"
    for request in requests:
        assert request.over.wait(DEADLINE)
        assert request.content == b""


def test_of_too_many_requests_that_wait_the_oldest_is_answered(pipe: ServerPipe, client: Client) -> None:
    requests = [client.ask() for _ in range(MAX_ASKERS + 1)]
    assert requests[0].over.is_set()
    assert not any(request.over.is_set() for request in requests[1:])


def test_a_streamed_answer_has_no_bytes_before_the_client_says_that_it_arrives(
    pipe: ServerPipe, client: Client
) -> None:
    stream = client.ask(Kind.STREAM)
    assert len(stream.segments) == 1
    pipe.send(framed(b"one"))
    assert stream.content == b""
    packet = client.ask()
    assert packet.content == PREFIX.pack(3) + b"one"
    token = Token(pipe.id, Kind.UP, 50, client.acknowledged, 1_000_000, 1, streams=True)
    pipe.take_up(token, bytearray())
    pipe.send(framed(b"two"))
    assert stream.content == PREFIX.pack(3) + b"two"
    stream.took = False
    pipe.send(framed(b"six"))
    pipe.send(framed(b"ten"))
    assert stream.content.count(b"ten") == 0, "its connection takes nothing"
    pipe.stream_free(stream)
    assert stream.content.endswith(PREFIX.pack(3) + b"ten")


def test_a_newer_stream_goes_on_where_the_one_before_ends(pipe: ServerPipe, client: Client) -> None:
    pipe.take_up(Token(pipe.id, Kind.UP, 40, client.acknowledged, 1_000_000, 1, streams=True), bytearray())
    first, second = Request(), Request()
    for number, request in ((50, first), (51, second)):
        token = Token(
            pipe.id, Kind.STREAM, number, client.acknowledged, 1_000_000, 1, size=1 << 20, wait=8000, streams=True
        )
        pipe.ask(token, request)
        pipe.send(framed(b"%d" % number))
    assert first.over.is_set()
    assert first.content == PREFIX.pack(2) + b"50"
    assert second.content == PREFIX.pack(2) + b"51"


def test_a_closed_pipe_is_kept_for_its_last_bytes_and_says_where_they_end(
    pipes: SplitPipes, pipe: ServerPipe, client: Client
) -> None:
    pipe.send(framed(b"last"))
    pipe.close("enough")
    with pytest.raises(PipeEnded, match="enough"):
        pipe.recv()
    request = client.ask()
    assert request.content == PREFIX.pack(4) + b"last"
    assert request.segments[0].ended
    assert request.segments[0].limit == client.acknowledged + 8
    assert len(pipes) == 1
    pipe.let_go()
    assert len(pipes) == 0


def test_the_end_of_the_client_ends_the_pipe_after_all_that_it_has_sent(pipe: ServerPipe, client: Client) -> None:
    client.post(b"last")
    token = Token(pipe.id, Kind.UP, 50, client.acknowledged, client.sent, 1, ended=True)
    pipe.take_up(token, bytearray())
    with pytest.raises(PipeEnded):
        pipe.send(framed(b"too late"))
    assert pipe.recv() == b"last"
    with pytest.raises(PipeEnded):
        pipe.recv()


def test_more_bytes_than_the_window_end_the_pipe(pipe: ServerPipe, client: Client) -> None:
    body = bytes(10)
    pipe.take_up(client.token(Kind.UP, body, at=1 << 40), bytearray(body))
    assert pipe.cause is not None
    assert "broke the split protocol" in pipe.cause


def test_a_pipe_whose_first_request_is_gone_is_over(pipes: SplitPipes) -> None:
    pipe, request = pipes.create("peer:1", None), Request()
    pipe.welcome(request, 0)
    pipe.give_up(request)
    assert pipe.cause is not None
    wait_until(lambda: len(pipes) == 0, "nobody can know it")
