"""Promises of a client's session about what it asks the server for."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.watcher import Watcher
from qanat.client import remote_forwards
from qanat.client.remote_forwards import NumberedForward
from qanat.client.required_forwards import RequiredForwards
from qanat.client.session import ClientSession
from qanat.config.forward_settings import Forward
from qanat.handshake.exchange import SealedPipe
from qanat.mux.frames import Reason
from qanat.mux.parameters import FIRST_PIPE, LaneParameters
from qanat.mux.pipe_result import PipeResult
from qanat.session.messages import Listen, ListenAgain, ListenEnded, ListenFailed, Listening, decode_control
from tests.support.background import wait_until


def a_session(watcher: Watcher, *remotes: Forward) -> ClientSession:
    return ClientSession(
        "a",
        LaneParameters(client=True),
        b"s" * 16,
        b"r" * 32,
        300,
        node="",
        connect_timeout=1.0,
        watcher=watcher,
        remotes=[NumberedForward(forward, (number,)) for number, forward in enumerate(remotes)],
        required=RequiredForwards((), pytest.fail),
    )


@pytest.mark.parametrize(("early", "asked"), [(True, 2), (False, 3)], ids=["answered at once", "answered late"])
def test_a_forward_is_asked_for_once_at_a_time_however_often_the_session_returns_to_service(
    monkeypatch: pytest.MonkeyPatch, early: bool, asked: int
) -> None:
    """The server takes a second LISTEN for a port that it has for the end of the session."""
    monkeypatch.setattr(remote_forwards, "RETRY_IN_USE", 0.2)
    sent: list[bytes] = []
    session = a_session(Watcher(), Forward("remote", TcpAddress("127.0.0.1", 80), TcpAddress("127.0.0.1", 1)))
    monkeypatch.setattr(session, "send_control", sent.append)
    monkeypatch.setattr(session, "stop", lambda reason, text: None)  # as while a stream is open
    failed = ListenFailed(0, Reason.LIMIT, "in use").encode()
    session.request_forwards()
    if early:
        session._on_control(failed)
    session.retire()
    session.return_to_service()
    if not early:
        session._on_control(failed)
        session._on_control(failed)
    wait_until(lambda: not len(session.joined.threads), "the time to ask again has passed")
    assert sum(isinstance(decode_control(message), Listen) for message in sent) == asked
    session.end("the test is over")


def test_a_range_whose_ports_end_is_told_and_asked_for_as_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And what the server makes up, of ports that it does not listen on or that nobody wants, costs nothing."""
    sent: list[bytes] = []
    at, to = TcpAddress("127.0.0.1", 8000), TcpAddress("127.0.0.1", 1)
    session = a_session(Watcher())
    session.remotes.change([NumberedForward(Forward("remote", at, to, ports=50), tuple(range(50)))])
    monkeypatch.setattr(session, "send_control", sent.append)
    session.request_forwards()
    assert len(sent) == 50
    for number in range(50):
        session._on_control(Listening(number, 8000 + number).encode())
    for number in (*range(10, 60), *range(10, 30), 1 << 30):
        session._on_control(ListenEnded(number, Reason.NOT_ALLOWED, "no rule").encode())
    assert len(session.joined.threads) == 1
    wait_until(lambda: "listens no more" in caplog.text, "it is told")
    assert caplog.text.count("listens no more") == 1
    for again in range(5):
        session._on_control(ListenAgain().encode())
        assert len(sent) == 90, f"asked once, and not before an answer, though told so {again + 1} times"
    for number in range(10, 50):
        session._on_control(Listening(number, 8000 + number).encode())
    assert {state for _, _, state, _ in session.forward_states} == {"listening"}
    session._on_control(ListenAgain().encode())
    assert len(sent) == 90
    session.end("the test is over")
    wait_until(lambda: not len(session.joined.threads), "nobody waits any more")


def test_whoever_hears_of_a_pipes_end_hears_of_it_once_even_when_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher()
    session = a_session(watcher)
    lane = session.find_lane(0)
    assert lane is not None

    def over_at_once(sealed: object, on_over: Callable[[PipeResult], None], *args: object, **more: object) -> None:
        on_over(PipeResult("cut"))

    monkeypatch.setattr(lane, "start", over_at_once)
    heard: list[PipeResult] = []

    def fail(result: PipeResult) -> None:
        heard.append(result)
        raise ValueError("nobody expected this")

    sealed = cast(SealedPipe, None)  # never used: the lane's start is replaced
    session.start(0, lane, sealed, FIRST_PIPE, fail, silence=1)
    assert heard == [PipeResult("cut")]
    assert not session.carried
    assert not session.ended.is_set()
    session.end("the test is over")
    watcher.close()
