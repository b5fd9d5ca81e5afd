"""Keys that are ready: most tests need some key, whichever it is, and making one takes up to a fifth of a second."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from qanat.base.private_files import write_new
from qanat.handshake.identity import load_or_create_identity
from qanat.handshake.keys import ClientKey, ServerIdentity

Key = TypeVar("Key")


class Stock(Generic[Key]):
    """A few keys of this process, made when they are first needed and then given out in turn, from any thread.

    Keys that are taken one after the other are different ones.
    """

    SIZE = 4

    def __init__(self, generate: Callable[[], Key]) -> None:
        self._lock = threading.Lock()
        self._keys = self._in_turn(generate)

    def take(self) -> Key:
        with self._lock:
            return next(self._keys)

    def _in_turn(self, generate: Callable[[], Key]) -> Iterator[Key]:
        made: list[Key] = []
        for _ in range(self.SIZE):
            made.append(generate())
            yield made[-1]
        yield from itertools.cycle(made)


CLIENT_KEYS = Stock(ClientKey.generate)
_identities = Stock(ServerIdentity.generate)


def place_identity(path: Path) -> Path:
    """Put a server's key into `path`, unless there is one; return `path`."""
    if not path.exists():
        write_new(path, _identities.take().to_pem())
    return path


def placed_identity(path: Path) -> ServerIdentity:
    """Return the identity in `path`, where a key is put unless there is one."""
    return load_or_create_identity(place_identity(path))
