"""The pool of ephemeral keys: fresh ones first, one again only for a while, none for ever."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from qanat.base.errors import TransportError
from qanat.handshake.key_pool import ClientKeyPool
from qanat.handshake.keys import ClientKey

WAIT = 20.0


class SlowMaker:
    """Makes the real keys that it was given, one for each permission, and then waits for more."""

    def __init__(self, *keys: ClientKey) -> None:
        self._keys = list(keys)
        self._allowed = threading.Semaphore(0)
        self.made = 0

    def allow(self, count: int) -> None:
        for _ in range(count):
            self._allowed.release()

    def __call__(self) -> ClientKey:
        self._allowed.acquire()
        self.made += 1
        return self._keys[(self.made - 1) % len(self._keys)]


@pytest.fixture
def maker(client_key: ClientKey, other_client_key: ClientKey) -> SlowMaker:
    return SlowMaker(client_key, other_client_key)


@pytest.fixture
def pool(maker: SlowMaker) -> Iterator[ClientKeyPool]:
    pool = ClientKeyPool(generate=maker).start()
    yield pool
    maker.allow(1)
    pool.close()


def test_real_keys_are_made_ahead_on_a_named_thread_and_closing_joins_it() -> None:
    pool = ClientKeyPool().start()
    assert any(thread.name == "client-keys" for thread in threading.enumerate())
    first, second = pool.take(WAIT), pool.take(WAIT)
    pool.close()
    pool.close()
    assert len(first.spki) == 294
    assert isinstance(second, ClientKey)
    assert not any(thread.name == "client-keys" for thread in threading.enumerate())


def test_each_fresh_key_is_given_out_once(pool: ClientKeyPool, maker: SlowMaker) -> None:
    maker.allow(1)
    first = pool.take(WAIT)
    assert pool.take(WAIT) is first  # nothing is ready: the same again
    maker.allow(1)
    deadline = time.monotonic() + WAIT
    while (second := pool.take(WAIT)) is first:
        assert time.monotonic() < deadline
    assert second.spki != first.spki


def test_a_key_is_forgotten_when_its_time_is_up_though_nobody_asks(client_key: ClientKey) -> None:
    key = ClientKey.generate()
    forgotten = threading.Event()
    weakref.finalize(key, forgotten.set)
    keys = [client_key, client_key, key]  # taken from the end
    del key
    pool = ClientKeyPool(reuse=0.1, generate=keys.pop).start()
    try:
        pool.take(WAIT)
        assert forgotten.wait(WAIT)
    finally:
        pool.close()


def test_a_key_is_not_reused_after_its_time(maker: SlowMaker) -> None:
    pool = ClientKeyPool(reuse=0.0, generate=maker).start()
    try:
        maker.allow(1)
        pool.take(WAIT)
        with pytest.raises(TransportError, match="no key"):
            pool.take(0.01)
    finally:
        maker.allow(1)
        pool.close()


def test_taking_waits_for_the_first_key_no_longer_than_asked(pool: ClientKeyPool) -> None:
    with pytest.raises(TransportError, match="no key"):
        pool.take(0.01)


def test_closing_wakes_who_waits_for_a_key(maker: SlowMaker) -> None:
    pool = ClientKeyPool(generate=maker).start()
    refused = threading.Event()

    def take() -> None:
        try:
            pool.take(WAIT)
        except TransportError:
            refused.set()

    waiting = threading.Thread(target=take)
    closing = threading.Thread(target=pool.close)
    waiting.start()
    closing.start()
    assert refused.wait(WAIT)
    maker.allow(1)
    waiting.join(WAIT)
    closing.join(WAIT)


def test_no_key_shows_when_one_is_printed(client_key: ClientKey) -> None:
    assert "PRIVATE" not in repr(client_key)
