"""WebSocket's mask (RFC 6455 §5.3): the keys, and the XOR itself.

CPython has no vector XOR: long integers, the fastest that the standard library offers, give 0.7 to 1 GB/s while
they hold the interpreter lock, and that was what an upload cost most.  The C function of the package
`websockets` gives 20 GB/s; nothing else of that package is used, and where it has no binary for a platform the
integers still serve.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable


def _find_apply_mask() -> Callable[[memoryview, bytes], bytes] | None:
    try:
        apply_mask: Callable[[memoryview, bytes], bytes] = importlib.import_module("websockets.speedups").apply_mask
    except (ImportError, AttributeError):
        return None
    return apply_mask


_apply_mask = _find_apply_mask()

_BLOCK = 8192
"""Bytes of one long integer: its digits stay in the processor's first cache, worth 1.8 times one big number."""
_REPEAT = int.from_bytes(b"\x01\x00\x00\x00" * (_BLOCK // 4), "little")
"""Times a 32-bit key, this is the key repeated over a whole block."""

_PIECE = 32 * 1024
"""Bytes that the C function masks at once: what it returns is copied back while it is still in the second cache."""

_BATCH = 4096


def xor_mask(data: memoryview, key: bytes) -> None:
    """XOR `data` in place with the 4-byte `key`, repeated.  Applied twice, it changes nothing."""
    if key == b"\0\0\0\0":
        return  # some peers do not really mask
    if _apply_mask is None:
        xor_mask_with_integers(data, key)
    elif len(data) <= _PIECE:
        data[:] = _apply_mask(data, key)
    else:
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            piece[:] = _apply_mask(piece, key)


def xor_mask_with_integers(data: memoryview, key: bytes) -> None:
    """Do the same with nothing but the standard library."""
    number = int.from_bytes(key, "little")
    length = len(data)
    whole = length - length % _BLOCK
    if whole:
        mask = number * _REPEAT
        for start in range(0, whole, _BLOCK):
            block = data[start : start + _BLOCK]
            block[:] = (int.from_bytes(block, "little") ^ mask).to_bytes(_BLOCK, "little")
    rest = length - whole
    if rest:
        block = data[whole:]
        mask = int.from_bytes((key * (rest // 4 + 1))[:rest], "little")
        block[:] = (int.from_bytes(block, "little") ^ mask).to_bytes(rest, "little")


class MaskKeys:
    """Fresh, unpredictable keys from the system's generator, drawn in batches.  For one thread."""

    def __init__(self) -> None:
        self._batch = b""
        self._used = 0

    def next(self) -> bytes:
        """Four bytes that were never given out before.  Does not block."""
        if self._used >= len(self._batch):
            self._batch = os.urandom(_BATCH)
            self._used = 0
        self._used += 4
        return self._batch[self._used - 4 : self._used]
