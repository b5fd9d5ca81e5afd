"""Promises of qanat.base.sockets: a path within one machine is not paced, and every other has the system's choice."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from qanat.base import sockets
from qanat.base.addresses import ListenAddress
from qanat.base.connect import connect
from qanat.base.deadline import Deadline
from qanat.base.listen import Acceptor, bind
from qanat.base.resolve import numeric_address

pytestmark = pytest.mark.skipif(not hasattr(socket, "TCP_CONGESTION"), reason="this system has one congestion control")


def control_of(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


@pytest.fixture
def usual() -> bytes:
    with socket.socket() as probe:
        return control_of(probe)


@pytest.fixture
def paces(usual: bytes, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Have the system's own choice count as one that paces, whatever it is."""
    if usual == b"reno":
        pytest.skip("this system's choice is the only one that every system has")
    monkeypatch.setattr(sockets, "PACING", (usual,))
    if usual == b"cubic":
        monkeypatch.setattr(sockets, "_WITHOUT_PACING", (b"reno",))
    return usual


def both_ends(stack: ExitStack, listen_on: str, host: str) -> tuple[bytes, bytes]:
    """Return the congestion control of a connection to `host`: of who has connected, and of who has accepted."""
    acceptor = Acceptor(bind([ListenAddress(listen_on, 0)], backlog=4))
    stack.callback(acceptor.close)
    near, _ = connect([numeric_address(host, acceptor.addresses[0][1])], Deadline(20.0))
    stack.enter_context(near)
    accepted = acceptor.accept()
    assert accepted is not None
    with accepted[0] as far:
        near.sendall(b"a few bytes")
        assert far.recv(100) == b"a few bytes"
        return control_of(near), control_of(far)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1"])
def test_nothing_is_paced_within_this_machine(stack: ExitStack, paces: bytes, host: str) -> None:
    near, far = both_ends(stack, host, host)
    assert near == far != paces


def test_who_listens_for_others_too_leaves_the_system_s_choice(stack: ExitStack, paces: bytes) -> None:
    near, far = both_ends(stack, "0.0.0.0", "127.0.0.1")
    assert near != far == paces


def test_a_choice_that_does_not_pace_stays(stack: ExitStack, usual: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "PACING", (b"no such",))
    assert both_ends(stack, "127.0.0.1", "127.0.0.1") == (usual, usual)


def test_where_no_other_can_be_had_all_goes_on(stack: ExitStack, paces: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_WITHOUT_PACING", (b"no such",))
    assert both_ends(stack, "127.0.0.1", "127.0.0.1") == (paces, paces)
