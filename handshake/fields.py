"""The fields that messages are made of: length prefixes, and a strict reader of them.

Pure.  Called by the codecs of this room (`messages`, `hello`).  The reader raises the error class
that its caller names, so that a malformed handshake message and a malformed record are told apart.
"""

from __future__ import annotations

from qanat.base.errors import ProtocolError


def lp8(data: bytes) -> bytes:
    """Return `data`, at most 255 bytes, with its length in front as u8."""
    return len(data).to_bytes(1, "big") + data


def lp16(data: bytes) -> bytes:
    """Return `data`, at most 65,535 bytes, with its length in front as u16."""
    return len(data).to_bytes(2, "big") + data


def lp(data: bytes) -> bytes:
    """Return `data` with its length in front as u32."""
    return len(data).to_bytes(4, "big") + data


class FieldReader:
    """Reads fields from the front of `data`; whatever is missing or left over raises `error`."""

    __slots__ = ("_data", "_error", "_offset", "_what")

    def __init__(self, data: bytes | memoryview, what: str, error: type[ProtocolError] = ProtocolError) -> None:
        self._data = bytes(data)
        self._offset = 0
        self._what = what
        self._error = error

    @property
    def offset(self) -> int:
        """Return how many bytes have been read."""
        return self._offset

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        end = self._offset + size
        if end > len(self._data):
            raise self._error(f"{self._what} is too short")
        taken = self._data[self._offset : end]
        self._offset = end
        return taken

    def u8(self) -> int:
        """Return the next byte as a number."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Return the next 2 bytes as a number, big-endian, as are all numbers."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """Return the next 4 bytes as a number."""
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        """Return the next 8 bytes as a number."""
        return int.from_bytes(self.take(8), "big")

    def lp8(self) -> bytes:
        """Return bytes whose length stands in front as u8."""
        return self.take(self.u8())

    def lp16(self) -> bytes:
        """Return bytes whose length stands in front as u16."""
        return self.take(self.u16())

    def lp(self) -> bytes:
        """Return bytes whose length stands in front as u32."""
        return self.take(self.u32())

    def end(self) -> None:
        """Raise the error if anything is left."""
        if self._offset != len(self._data):
            raise self._error(f"{self._what} has {len(self._data) - self._offset} bytes too many")
