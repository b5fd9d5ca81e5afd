"""Who was thrown out is out within the same call, stays out, and the audit log says by whom."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qanat.base.deadline import Deadline
from qanat.base.endpoint_addresses import TcpAddress, UdpAddress
from qanat.base.errors import UsageError
from qanat.config.forward_settings import Forward
from qanat.config.moments import format_moment, parse_moment
from qanat.config.server_settings import AuditSettings
from qanat.control.commands import Request
from qanat.handshake.tokens import token_fingerprint
from qanat.server import enforcement
from qanat.server.revocations import FILE_NAME, Revocations
from qanat.server.server import Server
from qanat.server.session import ServerSession
from tests.server.test_reload import ANY, NEW, OLD, A, B, Site, is_reset, session_of_a
from tests.support.applications import RESET, Target, connection, ending_of, exchange, receive_exactly, source
from tests.support.background import DEADLINE, Background, wait_until
from tests.support.datagrams import UdpEcho, ask, udp_client
from tests.support.machine.ports import unused_port

OLDS, NEWS = token_fingerprint(OLD), token_fingerprint(NEW)


class AuditedSite(Site):
    """A site with an audit log."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        super().__init__(directory, stack)
        self.settings = replace(self.settings, audit=AuditSettings(directory / "audit.log"))
        self.apply()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of this name so far."""
        self.server.audit.flush()
        lines = (self.directory / "audit.log").read_text().splitlines()
        return [entry for line in lines if (entry := json.loads(line))["event"] == name]

    def revoke(self, **fields: object) -> dict[str, Any]:
        return self.server.commands.run(Request("revoke", {"client": "a", **fields}, "user tester (process 1)"))


@pytest.fixture(scope="module")
def whole_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditedSite]:
    with ExitStack() as stack:
        yield AuditedSite(tmp_path_factory.mktemp("site"), stack)


@pytest.fixture
def site(whole_site: AuditedSite) -> Iterator[AuditedSite]:
    """The site as it was at first; afterwards its bystander has noticed nothing."""
    before = whole_site.session_of("b")
    yield whole_site
    if whole_site.server._revocations.find(OLDS):
        whole_site.revoke(undo=True)
    whole_site.apply()
    assert exchange(whole_site._witness, b"still there?") == b"still there?"
    assert whole_site.session_of("b") == before


def test_a_revoked_client_is_cut_and_refused_until_it_has_another_token(site: AuditedSite) -> None:
    with site.client(A, site.local) as client, connection(client.local_ports[0]) as sock:
        assert exchange(sock, b"one") == b"one"
        answer = site.revoke()
        assert answer["ok"] is True
        assert answer["lasting"] is True
        assert answer["tokens"] == [OLDS]
        assert len(answer["ended"]) == 1
        assert is_reset(sock)
        (line,) = site.events("session revoked")
        assert line["client"] == "a"
        assert line["token"] == OLDS
        assert line["by"] == "user tester (process 1)"
        (line,) = site.events("revoked")
        assert line["tokens"] == [OLDS]
        wait_until(lambda: any(OLDS in each["why"] for each in site.events("refused")), "it was refused")
        assert site.events("refused")[-1]["client"] == "a"
        assert site.apply() == []  # a reload does not let it in again
        assert site.session_of("a") is None
        site.apply(replace(A, tokens=(OLD, NEW)), B)
        with site.client(replace(A, tokens=(NEW,))):
            session_of_a(site)


def test_what_is_revoked_stays_so_for_the_next_server(site: AuditedSite) -> None:
    site.revoke()
    again = Revocations(site.directory)
    found = again.find(OLDS)
    assert found is not None
    assert found.client == "a"
    assert "user tester (process 1)" in str(found)


def test_one_token_of_two_can_be_revoked(site: AuditedSite) -> None:
    site.apply(replace(A, tokens=(OLD, NEW)), B)
    with site.client(replace(A, tokens=(NEW,)), site.local) as client, connection(client.local_ports[0]) as sock:
        assert exchange(sock, b"one") == b"one"
        assert site.revoke(token=OLDS)["ended"] == []
        assert exchange(sock, b"two") == b"two"


def test_a_revocation_that_cannot_be_written_holds_and_says_that_it_will_not_last(
    site: AuditedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, content: bytes) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr("qanat.server.revocations.replace_file", fails)
        answer = site.revoke()
        assert answer["lasting"] is False
        assert "Read-only" in answer["problem"]
        assert site.server._accounts.why_not("a", OLDS)


@pytest.mark.parametrize("fields", [{"client": "nobody"}, {"token": "0" * 16}, {"undo": True}])
def test_what_there_is_not_cannot_be_revoked(site: AuditedSite, fields: dict[str, object]) -> None:
    answer = site.revoke(**fields)
    assert answer["ok"] is False
    assert answer["hint"]


def test_a_damaged_list_ends_the_start_and_fails_a_reload(site: AuditedSite) -> None:
    path = site.directory / FILE_NAME
    path.write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        site.apply(B)
    with pytest.raises(UsageError, match="is damaged"):
        Server(site.settings)
    path.unlink()
    assert site.apply() == []


def test_a_token_ends_at_its_moment_with_its_sessions(site: AuditedSite, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "qanat.server")
    with site.client(A, site.local) as client, connection(client.local_ports[0]) as sock:
        assert exchange(sock, b"one") == b"one"
        lines = site.apply(replace(A, not_after=(time.time() + 3.0,)), B)
        assert lines == ["client a: not_after"]
        assert exchange(sock, b"two") == b"two"
        assert f"the token {OLDS} of the client a ends at" in caplog.text
        assert is_reset(sock)
        wait_until(lambda: any("ended at" in each["why"] for each in site.events("refused")), "it was refused")
        assert [each["token"] for each in site.events("token ended")] == [OLDS]


def test_of_two_tokens_each_has_its_own_end(site: AuditedSite) -> None:
    site.apply(replace(A, tokens=(OLD, NEW), not_after=(time.time() - 1, float("inf"))), B)
    assert "ended at" in site.server._accounts.why_not("a", OLDS)
    assert site.server._accounts.why_not("a", NEWS) == ""


def test_a_clock_that_jumps_ends_a_token_too(site: AuditedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its end seemed an hour away; and one that is set back does not let a session go on that has ended."""
    monkeypatch.setattr(enforcement, "_LOOK_AGAIN", 0.1)
    ahead = 0.0

    def now() -> float:
        return time.time() + ahead

    for clock in site.server._enforcement, site.server._accounts:
        monkeypatch.setattr(clock, "_clock", now)
    with site.client(A, site.local) as client, connection(client.local_ports[0]) as sock:
        assert exchange(sock, b"one") == b"one"
        site.apply(replace(A, not_after=(time.time() + 3600.0,)), B)
        assert exchange(sock, b"two") == b"two"
        ahead = 7200.0
        assert is_reset(sock)
        wait_until(lambda: site.session_of("a") is None, "its session is over")
        ahead = 0.0


def test_who_revokes_is_told_what_that_ended_though_the_clock_is_looked_at_meanwhile(
    site: AuditedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    enforcement, revocations = site.server._enforcement, site.server._revocations
    add, looks = revocations.add, list[Background[None]]()

    def add_and_have_others_look(name: str, tokens: list[str], by: str) -> str:
        problem = add(name, tokens, by)
        looks.append(Background(enforcement._look))
        time.sleep(0.05)  # In which it would have ended the session.
        return problem

    monkeypatch.setattr(revocations, "add", add_and_have_others_look)
    with site.client(A, site.local):
        assert session_of_a(site)
        assert len(site.revoke()["ended"]) == 1
        looks[0].result()
    assert site.events("session revoked")[-1]["by"] == "user tester (process 1)"


def test_all_that_a_revoked_client_had_is_gone(site: AuditedSite) -> None:
    """Streams both ways, a UDP flow, and the ports that the server listened on for it."""
    port, udp_port = unused_port(), unused_port()
    with UdpEcho() as udp, ExitStack() as stack:
        to = UdpAddress("127.0.0.1", int(udp.address.rpartition(":")[2]))
        forwards = (
            site.local,
            Forward("local", UdpAddress("127.0.0.1", udp_port), to),
            Forward("remote", TcpAddress("127.0.0.1", port), site.to),
        )
        client = stack.enter_context(site.client(A, *forwards))
        session = session_of_a(site)
        wait_until(lambda: len(session.listening) == 1, "its port is listened on")
        here, there = (stack.enter_context(connection(each)) for each in (client.local_ports[0], port))
        assert exchange(here, b"here") == exchange(there, b"here") == b"here"
        flow = stack.enter_context(udp_client(udp_port))
        assert ask(flow, b"datagram") == b"datagram"
        assert session.open_streams == 3
        assert site.revoke()["ended"]
        assert session.open_streams == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        assert is_reset(here)
        assert is_reset(there)


@pytest.mark.parametrize("when", ["before its name is claimed", "after"])
def test_a_client_that_is_revoked_in_the_middle_of_its_handshake_does_not_get_in(
    site: AuditedSite, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    claim, revoked = site.server.registry.claim, threading.Event()

    def claim_and_be_revoked(session: ServerSession, deadline: Deadline) -> None:
        first = session.name == "a" and not revoked.is_set()
        if first and when != "after":
            site.revoke()
        claim(session, deadline)
        if first:
            if when == "after":
                site.revoke()
            revoked.set()

    monkeypatch.setattr(site.server.registry, "claim", claim_and_be_revoked)
    with site.client(A, site.local) as client:
        assert revoked.wait(DEADLINE)
        wait_until(lambda: client.servers[0].refused is not None, "it is refused")
        assert site.session_of("a") is None
        monkeypatch.undo()
        site.revoke(undo=True)
        session_of_a(site)


def test_a_client_hears_in_the_middle_of_bulk_that_it_was_revoked(site: AuditedSite) -> None:
    """Or it would try to come back for as long as sessions are kept, and its applications would wait for that."""
    with Target(source) as bulk, ExitStack() as stack:
        client = stack.enter_context(site.client(A, Forward("local", ANY, TcpAddress("127.0.0.1", bulk.port))))
        for _ in range(5):
            session_of_a(site)
            wait_until(lambda: client.servers[0].disconnected_since is None, "it is connected")
            with connection(client.local_ports[0]) as sock:
                receive_exactly(sock, 5_000_000)
                assert site.revoke()["ended"]
                assert ending_of(sock) == RESET
            wait_until(lambda: client.servers[0].session is None, "it does not try to resume")
            assert site.events("session ended")[-1]["why"].startswith(f"the token {OLDS} of the client 'a' was revoked")
            site.revoke(undo=True)
        site.revoke()


def test_who_was_away_when_it_was_revoked_cannot_resume(site: AuditedSite) -> None:
    """With the session's key, which it still has: the token comes first."""
    with site.client(A, site.local) as client, connection(client.local_ports[0]) as sock:
        assert exchange(sock, b"one") == b"one"
        session = session_of_a(site)
        session.lanes[0].cut("the network is gone")  # the client is on its way back by now
        site.revoke()
        assert session.ended.is_set()
        wait_until(lambda: site.session_of("a") is None, "there is no session of it")
        wait_until(lambda: any(OLDS in each["why"] for each in site.events("refused")[-3:]), "it was refused")


def test_what_a_session_did_is_told_with_its_bytes(site: AuditedSite) -> None:
    before = len(site.events("session ended"))
    with site.client(A, site.local, replace(site.local, kind="remote", listen=ANY)) as client:
        session = session_of_a(site)
        with connection(client.local_ports[0]) as sock:
            assert exchange(sock, b"x" * 1000) == b"x" * 1000
        wait_until(lambda: session.open_streams == 0, "the stream is over")
        wait_until(lambda: bool(site.events("stream closed")), "its end is told")
    wait_until(lambda: len(site.events("session ended")) > before, "the session is over")
    connected = site.events("connected")[-1]
    assert connected["token"] == OLDS
    assert connected["address"] == "127.0.0.1"
    assert connected["transport"] == "websocket"
    opened, closed = site.events("stream opened")[-1], site.events("stream closed")[-1]
    assert opened["to"] == opened["address"] == f"127.0.0.1:{site.target.port}"
    assert opened["session"] == connected["session"]
    assert (closed["bytes_received"], closed["bytes_sent"]) == (1000, 1000)
    assert closed["stream"] == opened["stream"]
    refused = site.events("listen refused")[-1]
    assert refused["reason"] == "not allowed"
    assert site.events("session ended")[-1]["bytes_received"] == 1000
    text = (site.directory / "audit.log").read_text()
    assert OLD.decode() not in text
    assert "qanat1-" not in text


def test_a_reload_is_told_with_who_asked(site: AuditedSite) -> None:
    site.server.audit_reload("user tester (process 1)", ["drain: 1 -> 2"], None)
    site.server.audit_reload("SIGHUP", (), UsageError("a fault"))
    assert site.events("reloaded")[-1]["changes"] == ["drain: 1 -> 2"]
    assert site.events("reload failed")[-1]["faults"] == ["a fault"]


def test_moments_are_written_as_they_are_read() -> None:
    assert format_moment(parse_moment("2027-01-31T01:00:00+01:00")) == "2027-01-31T00:00:00Z"
    assert parse_moment("never") == float("inf")
    for wrong in ("tomorrow", "2027-01-31", "2027-01-31T00:00:00", "2027-13-31T00:00:00Z"):
        with pytest.raises(UsageError):
            parse_moment(wrong)
