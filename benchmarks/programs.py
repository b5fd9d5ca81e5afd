"""The programs at the two ends of a measurement, plain sockets and large buffers.

`serve NAME` runs one as a process of its own; the functions below are its counterparts.
"""

from __future__ import annotations

import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable

_BLOCK = bytes(256 * 1024)


def _sink(sock: socket.socket) -> None:
    """Reads to the end, then says so."""
    buffer = bytearray(len(_BLOCK))
    while sock.recv_into(buffer):
        pass
    sock.sendall(b"!")


def _source(sock: socket.socket) -> None:
    """Sends as many bytes as the request asks for, a decimal number."""
    left = int(sock.recv(32))
    while left > 0:
        sock.sendall(memoryview(_BLOCK)[: min(left, len(_BLOCK))])
        left -= len(_BLOCK)


def _echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


PROGRAMS: dict[str, Callable[[socket.socket], None]] = {"sink": _sink, "source": _source, "echo": _echo}


def upload(port: int, size: int) -> float:
    """Gbit/s from here to a sink, counted until it has read all."""
    with _connect(port) as sock:
        started = time.perf_counter()
        left = size
        while left > 0:
            sock.sendall(memoryview(_BLOCK)[: min(left, len(_BLOCK))])
            left -= len(_BLOCK)
        sock.shutdown(socket.SHUT_WR)
        if sock.recv(1) != b"!":
            raise ConnectionError("the sink did not read to the end")
        return size * 8 / (time.perf_counter() - started) / 1e9


def download(port: int, size: int) -> float:
    """Gbit/s from a source to here."""
    buffer = bytearray(len(_BLOCK))
    with _connect(port) as sock:
        started = time.perf_counter()
        sock.sendall(str(size).encode())
        came = 0
        while count := sock.recv_into(buffer):
            came += count
        if came != size:
            raise ConnectionError(f"{came} of {size} bytes came")
        return size * 8 / (time.perf_counter() - started) / 1e9


def ping_pong(port: int, turns: int) -> float:
    """Median microseconds for 32 bytes to come back from an echo."""
    times = []
    with _connect(port) as sock:
        for _ in range(turns):
            started = time.perf_counter()
            sock.sendall(bytes(32))
            sock.recv(32)
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def connections(port: int, count: int) -> float:
    """Connections a second, one after the other, each with one byte there and back."""
    started = time.perf_counter()
    for _ in range(count):
        with _connect(port) as sock:
            sock.sendall(b"x")
            sock.recv(1)
    return count / (time.perf_counter() - started)


def _connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=120)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def serve(name: str) -> None:
    """Serve one program on a free port, which is printed, until killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listener.getsockname()[1], flush=True)
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_serve_one, args=(PROGRAMS[name], sock), daemon=True).start()


def _serve_one(program: Callable[[socket.socket], None], sock: socket.socket) -> None:
    with sock:
        program(sock)


if __name__ == "__main__":
    serve(sys.argv[1])
