"""The least that two Python programs take to carry a connection sealed: `benchmarks.rig.bare END PORT HOST PORT`.

The near end accepts at the first port and connects to the far end's for each connection, the far end to the target.
A thread for each direction reads, seals or opens, and sends.  No handshake, no streams in one connection, no HTTP, no
credit, nothing that outlives a connection: what Qanat takes above this is the price of those, and what this takes is
the interpreter's, the cipher's and the kernel's.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
from itertools import count

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NEAR, FAR = "near", "far"
CHUNK = 128 * 1024
_LENGTH = struct.Struct("!I")


def _seal_loop(source: socket.socket, sink: socket.socket, cipher: AESGCM) -> None:
    with contextlib.suppress(OSError):
        for number in count():
            data = source.recv(CHUNK)
            if not data:
                break
            sealed = cipher.encrypt(number.to_bytes(12, "big"), data, None)
            sink.sendall(_LENGTH.pack(len(sealed)) + sealed)
        sink.shutdown(socket.SHUT_WR)


def _open_loop(source: socket.socket, sink: socket.socket, cipher: AESGCM) -> None:
    buffer = memoryview(bytearray(2 * CHUNK))
    have = 0
    with contextlib.suppress(OSError):
        for number in count():
            while have < _LENGTH.size or have < (end := _LENGTH.size + _LENGTH.unpack_from(buffer)[0]):
                got = source.recv_into(buffer[have:])
                if not got:
                    sink.shutdown(socket.SHUT_WR)
                    return
                have += got
            sink.sendall(cipher.decrypt(number.to_bytes(12, "big"), buffer[_LENGTH.size : end], None))
            buffer[: have - end] = bytes(buffer[end:have])
            have -= end


def _carry_loop(accepted: socket.socket, onward: tuple[str, int], end: str) -> None:
    with accepted, contextlib.suppress(OSError), socket.create_connection(onward) as connected:
        for sock in (accepted, connected):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain, sealed = (accepted, connected) if end == NEAR else (connected, accepted)
        up, down = AESGCM(bytes(32)), AESGCM(bytes(31) + b"\1")
        ours, theirs = (up, down) if end == NEAR else (down, up)
        opening = threading.Thread(target=_open_loop, args=(sealed, plain, theirs))
        opening.start()
        _seal_loop(plain, sealed, ours)
        opening.join()


def main(end: str, port: str, host: str, onward: str) -> None:
    with socket.create_server(("127.0.0.1" if end == NEAR else host, int(port)), backlog=512) as listener:
        while True:
            accepted, _ = listener.accept()
            threading.Thread(target=_carry_loop, args=(accepted, (host, int(onward)), end), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
