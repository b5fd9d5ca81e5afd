"""What tests of the client's end share."""

from __future__ import annotations

from functools import partial

import pytest

from qanat.client import client, reconnector, server_connection
from qanat.handshake.key_pool import ClientKeyPool
from tests.support.background import DEADLINE
from tests.support.identities import CLIENT_KEYS


@pytest.fixture(autouse=True)
def _keys_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client makes three keys ahead, and few tests here are about those."""
    monkeypatch.setattr(client, "ClientKeyPool", partial(ClientKeyPool, generate=CLIENT_KEYS.take))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds in which a client has stopped on the busiest machine; what holds it up is waited for much longer."""
    for module in (client, reconnector, server_connection):
        monkeypatch.setattr(module, "JOIN_TIMEOUT", 3 * DEADLINE)
    return DEADLINE
