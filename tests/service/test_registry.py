"""Promises about who holds a client's name, tested without a network; with one in test_server."""

from __future__ import annotations

import threading
import time

import pytest

from base.deadline import Deadline
from mux.parameters import LaneParameters
from service.access import ConnectRules, ListenRules
from service.registry import Full, NameHeld, Registry
from service.server_session import ServerSession

SOON, NEVER = 0.05, 10.0


def session(name: str = "a", instance: bytes = b"i" * 16) -> ServerSession:
    return ServerSession(
        name,
        LaneParameters(client=False),
        instance=instance,
        holder=f"{name}'s place",
        connect_rules=ConnectRules(()),
        listen_rules=ListenRules(()),
        connect_timeout=1.0,
        connecting=threading.Semaphore(),
        max_forwards=1,
    )


def test_a_free_name_is_given_at_once_and_again_once_released() -> None:
    registry = Registry(limit=1, takeover_timeout=SOON)
    first, second = session(), session(instance=b"j" * 16)
    registry.claim(first, Deadline(NEVER))
    registry.release(first)
    registry.claim(second, Deadline(NEVER))
    assert registry.close() == [second]


def test_releasing_what_one_no_longer_holds_takes_nothing_from_the_new_holder() -> None:
    registry = Registry(limit=1, takeover_timeout=SOON)
    first, second = session(), session()
    first.ended.set()
    registry.claim(first, Deadline(NEVER))
    registry.claim(second, Deadline(NEVER))
    registry.release(first)
    assert registry.close() == [second]


def test_above_the_limit_only_a_new_name_is_refused() -> None:
    registry = Registry(limit=1, takeover_timeout=SOON)
    first = session()
    first.ended.set()
    registry.claim(first, Deadline(NEVER))
    with pytest.raises(Full, match="1 sessions are open"):
        registry.claim(session("b"), Deadline(NEVER))
    registry.claim(session(), Deadline(NEVER))


def test_a_claim_returns_when_the_holder_has_ended_and_not_before() -> None:
    registry = Registry(limit=9, takeover_timeout=SOON)
    holder, newcomer = session(), session()
    registry.claim(holder, Deadline(NEVER))
    claimed = threading.Event()

    def claim() -> None:
        registry.claim(newcomer, Deadline(NEVER))
        claimed.set()

    thread = threading.Thread(target=claim)
    thread.start()
    assert not claimed.wait(SOON)
    holder.ended.set()
    thread.join(NEVER)
    assert claimed.is_set()
    assert registry.close() == [newcomer]


def test_a_holder_that_does_not_end_in_time_keeps_its_name() -> None:
    registry = Registry(limit=9, takeover_timeout=SOON)
    registry.claim(session(), Deadline(NEVER))
    began = time.monotonic()
    with pytest.raises(NameHeld, match="a from a's place is still ending"):
        registry.claim(session(), Deadline(SOON))
    assert time.monotonic() - began < NEVER / 2


def test_of_many_claimants_at_once_one_holds_the_name() -> None:
    registry = Registry(limit=9, takeover_timeout=SOON)
    claimants = [session() for _ in range(16)]
    for claimant in claimants:
        claimant.ended.set()  # whoever is replaced has ended already
    threads = [threading.Thread(target=registry.claim, args=(each, Deadline(NEVER))) for each in claimants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(NEVER)
    assert len(registry.close()) == 1


def test_after_the_end_no_name_is_given_out() -> None:
    registry = Registry(limit=9, takeover_timeout=SOON)
    registry.close()
    with pytest.raises(Full, match="shutting down"):
        registry.claim(session(), Deadline(NEVER))
