"""Promises about who holds a client's name, tested without a network; with one in test_server."""

from __future__ import annotations

import threading
import time
from typing import Any, TypeVar

import pytest

from qanat.base.deadline import Deadline
from qanat.base.watcher import Watcher
from qanat.config.server_settings import ClientAccount
from qanat.mux.parameters import LaneParameters
from qanat.server.accounts import Account
from qanat.server.session import ServerSession
from qanat.server.sessions import Busy, MeasuredAlready, NameInUse, Registry
from qanat.server.shared_ports import SharedPorts
from tests.support.background import Background, wait_until

SOON, NEVER = 0.05, 10.0

Session = TypeVar("Session", bound=ServerSession)


class Lingering(ServerSession):
    """A session that takes its time to end: its listeners' threads are busy."""

    def __init__(self, *arguments: Any, **values: Any) -> None:
        self.release = threading.Event()
        super().__init__(*arguments, **values)

    def _release(self) -> None:
        self.release.wait(NEVER)


def session(
    name: str = "a", instance: bytes = b"i" * 16, kind: type[Session] = ServerSession, *, measures: bool = False
) -> Session:
    watcher = Watcher()
    return kind(
        name,
        LaneParameters(client=False),
        secret=b"r" * 32,
        resume_for=0.0,
        instance=instance,
        origin=f"{name}'s place",
        account=Account(ClientAccount(name, (b"t" * 32,)), 1, watcher),
        connect_timeout=1.0,
        max_forwards=1,
        max_lanes=1,
        watcher=watcher,
        shared_ports=SharedPorts(watcher),
        measures=measures,
    )


def test_a_free_name_is_given_at_once_and_again_once_released() -> None:
    registry = Registry(limit=1, takeover_timeout=NEVER)
    first, second = session(), session(instance=b"j" * 16)
    registry.claim(first, Deadline(NEVER))
    registry.release(first)
    registry.claim(second, Deadline(NEVER))
    assert registry.close() == [second]
    assert not first.ended.is_set()


def test_a_process_that_starts_anew_ends_its_own_session_without_being_asked() -> None:
    registry = Registry(limit=1, takeover_timeout=NEVER)
    first, second = session(), session()
    registry.claim(first, Deadline(NEVER))
    began = time.monotonic()
    registry.claim(second, Deadline(NEVER))
    assert time.monotonic() - began < NEVER / 2
    assert first.why == "its client connected anew"
    assert first.ended.is_set()
    assert registry.close() == [second]


def test_another_process_takes_the_name_after_a_time_of_silence_and_not_before() -> None:
    registry = Registry(limit=1, takeover_timeout=SOON)
    first, second = session(), session(instance=b"j" * 16)
    registry.claim(first, Deadline(NEVER))
    began = time.monotonic()
    registry.claim(second, Deadline(NEVER))
    assert time.monotonic() - began >= SOON
    assert first.why == "its client no longer answers"
    assert registry.close() == [second]


def test_releasing_what_one_no_longer_holds_takes_nothing_from_the_new_holder() -> None:
    registry = Registry(limit=1, takeover_timeout=SOON)
    first, second = session(), session()
    registry.claim(first, Deadline(NEVER))
    registry.claim(second, Deadline(NEVER))
    registry.release(first)
    assert registry.close() == [second]


def test_above_the_limit_only_a_new_name_is_refused() -> None:
    registry = Registry(limit=1, takeover_timeout=SOON)
    registry.claim(session(), Deadline(NEVER))
    with pytest.raises(Busy, match="1 sessions are open"):
        registry.claim(session("b"), Deadline(NEVER))
    registry.claim(session(), Deadline(NEVER))


def test_a_claim_returns_when_the_holder_has_ended_and_not_before() -> None:
    registry = Registry(limit=9, takeover_timeout=SOON)
    holder, newcomer = session(kind=Lingering), session()
    registry.claim(holder, Deadline(NEVER))
    ending = Background(lambda: holder.end("its time has come"))
    claim = Background(lambda: registry.claim(newcomer, Deadline(NEVER)))
    assert not claim.wait(SOON)
    holder.release.set()
    claim.result()
    ending.result()
    assert registry.close() == [newcomer]


def test_a_holder_that_does_not_end_in_time_keeps_its_name() -> None:
    registry = Registry(limit=9, takeover_timeout=SOON)
    holder = session(kind=Lingering)
    registry.claim(holder, Deadline(NEVER))
    ending = Background(lambda: holder.end("its time has come"))
    wait_until(lambda: bool(holder.why), "it is ending")
    began = time.monotonic()
    with pytest.raises(NameInUse, match="a from a's place is still ending"):
        registry.claim(session(), Deadline(SOON))
    assert time.monotonic() - began < NEVER / 2
    assert registry.close() == [holder]
    holder.release.set()
    ending.result()


def test_of_many_claimants_at_once_one_holds_the_name() -> None:
    registry = Registry(limit=9, takeover_timeout=SOON)
    claimants = [session() for _ in range(16)]
    threads = [Background(lambda each=each: registry.claim(each, Deadline(NEVER))) for each in claimants]
    for thread in threads:
        thread.result()
    [holder] = registry.close()
    assert [each for each in claimants if not each.ended.is_set()] == [holder]


def test_a_session_is_found_by_its_name_and_id_together() -> None:
    registry = Registry(limit=9, takeover_timeout=SOON)
    mine, theirs = session(), session("b")
    registry.claim(mine, Deadline(NEVER))
    registry.claim(theirs, Deadline(NEVER))
    assert registry.find("a", mine.id) is mine
    assert registry.find("b", theirs.id) is theirs
    for name, session_id in (("a", theirs.id), ("b", mine.id), ("c", mine.id), ("a", bytes(16)), ("a", mine.id[:15])):
        assert registry.find(name, session_id) is None
    registry.release(mine)
    assert registry.find("a", mine.id) is None


def test_after_the_end_no_name_is_given_out() -> None:
    registry = Registry(limit=9, takeover_timeout=SOON)
    registry.close()
    with pytest.raises(Busy, match="shutting down"):
        registry.claim(session(), Deadline(NEVER))


class Answering(ServerSession):
    """A session whose client answers."""

    def answers(self, timeout: float) -> bool:
        return True


def test_a_session_that_measures_is_beside_the_one_that_has_the_name_and_one_at_a_time() -> None:
    registry = Registry(limit=2, takeover_timeout=SOON)
    holder, measuring = session(kind=Answering), session(instance=b"j" * 16, kind=Answering, measures=True)
    registry.claim(holder, Deadline(NEVER))
    registry.claim(measuring, Deadline(NEVER))
    assert not holder.ended.is_set()
    with pytest.raises(MeasuredAlready, match="a is being measured already, from a's place"):
        registry.claim(session(instance=b"k" * 16, measures=True), Deadline(NEVER))
    assert not measuring.ended.is_set()
    with pytest.raises(Busy, match="2 sessions are open"):
        registry.claim(session("b"), Deadline(NEVER))
    assert registry.find("a", holder.id) is holder
    assert registry.find("a", measuring.id) is None, "a session that measures cannot be resumed"
    registry.release(measuring)
    assert registry.sessions == [holder]
    registry.claim(session(instance=b"k" * 16, measures=True), Deadline(NEVER))


def test_a_session_that_measures_does_not_take_the_name_of_one_that_is_silent() -> None:
    registry = Registry(limit=2, takeover_timeout=SOON)
    holder = session()
    registry.claim(holder, Deadline(NEVER))
    registry.claim(session(instance=b"j" * 16, measures=True), Deadline(NEVER))
    assert not holder.ended.is_set()
