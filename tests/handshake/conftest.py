"""Keys for all tests of this room, made once: primes are slow."""

from __future__ import annotations

import pytest

from qanat.handshake.keys import ClientKey, ServerIdentity


@pytest.fixture(scope="session")
def identity() -> ServerIdentity:
    return ServerIdentity.generate()


@pytest.fixture(scope="session")
def other_identity() -> ServerIdentity:
    """A sound key that is not the server's: the attacker's."""
    return ServerIdentity.generate()


@pytest.fixture(scope="session")
def client_key() -> ClientKey:
    return ClientKey.generate()


@pytest.fixture(scope="session")
def other_client_key() -> ClientKey:
    """A sound key that is not the client's: the attacker's."""
    return ClientKey.generate()
