"""Promises of a client's session about what it asks the server for."""

from __future__ import annotations

import pytest

from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.watcher import Watcher
from qanat.client import session as client_session
from qanat.client.required_forwards import RequiredForwards
from qanat.client.session import ClientSession
from qanat.config.settings import Forward
from qanat.mux.frames import Reason
from qanat.mux.parameters import LaneParameters
from qanat.session.messages import Listen, ListenFailed, decode_control
from tests.support.background import wait_until


@pytest.mark.parametrize(("early", "asked"), [(True, 2), (False, 3)], ids=["answered at once", "answered late"])
def test_a_forward_is_asked_for_once_at_a_time_however_often_the_session_returns_to_service(
    monkeypatch: pytest.MonkeyPatch, early: bool, asked: int
) -> None:
    """The server takes a second LISTEN for a port that it has for the end of the session."""
    monkeypatch.setattr(client_session, "RETRY_IN_USE", 0.2)
    sent: list[bytes] = []
    session = ClientSession(
        "a",
        LaneParameters(client=True),
        b"s" * 16,
        b"r" * 32,
        300,
        node="",
        connect_timeout=1.0,
        watcher=Watcher(),
        remotes={0: Forward("remote", TcpAddress("127.0.0.1", 80), TcpAddress("127.0.0.1", 1))},
        required=RequiredForwards((), pytest.fail),
    )
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
