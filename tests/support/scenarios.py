"""What a whole tunnel must stand, with the counts left open: short in the suite, in full for `make soak`.

Every function runs one scenario against a running tunnel, asserts what must be true, and returns the
figures it measured, by name.  Callers: tests/integration and `benchmarks.soak`.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from qanat.base.sockets import set_reset_on_close
from tests.support.applications import (
    RESET,
    Conversation,
    Target,
    connection,
    exchange,
    receive_exactly,
    wait_until_echoes,
)
from tests.support.cuts import CUTS, Cuts
from tests.support.harness import SECONDS, Program, Relay, Tunnel
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program
from tests.support.machine.web import file_server

Figures = dict[str, float]

MEBI = 1 << 20
WINDOW = 128 * 1024
"""Bytes that every stream is guaranteed (docs/PROTOCOL.md §5)."""
LANE_BOUND = 16 * MEBI + 8 * MEBI
"""Bytes that each lane may hold: the outbox, and the blocks that wait for it."""
SESSION_BOUND = 64 * MEBI + LANE_BOUND
"""Bytes a session with one lane may hold besides: the windows' budget, and that."""
THREAD = 64 * 1024
"""Bytes that a thread occupies, with what the interpreter keeps for it."""
SLACK = 24 * MEBI
"""What the allocators may keep for later."""


# --- bulk -----------------------------------------------------------------------------------------


class Bulk:
    """`size` bytes each way at once through one stream, made from two random blocks, compared by SHA-256.

    `handler` is for the Target; `run` is the application that connects.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._up, self._down = os.urandom(16 * MEBI), os.urandom(16 * MEBI)
        self._came_up = ""

    def handler(self, sock: socket.socket, target: Target) -> str:
        sender = threading.Thread(target=self._send, args=(sock, self._down), name="bulk-down")
        sender.start()
        self._came_up = self._receive(sock)
        sender.join()
        return "end"

    def run(self, port: int, target: Target) -> Figures:
        began = time.monotonic()
        with connection(port) as sock:
            sender = threading.Thread(target=self._send, args=(sock, self._up), name="bulk-up")
            sender.start()
            came_down = self._receive(sock)
            sender.join()
        target.wait_endings(1)
        seconds = time.monotonic() - began
        assert came_down == self._digest(self._down)
        assert self._came_up == self._digest(self._up)
        return {"bytes each way": self.size, "seconds": seconds, "Mbit/s each way": self.size * 8 / seconds / 1e6}

    def _send(self, sock: socket.socket, block: bytes) -> None:
        left = self.size
        view = memoryview(block)
        while left:
            part = view[: min(left, len(view))]
            sock.sendall(part)
            left -= len(part)
        sock.shutdown(socket.SHUT_WR)

    def _receive(self, sock: socket.socket) -> str:
        digest = hashlib.sha256()
        count = 0
        buffer = memoryview(bytearray(MEBI))
        while got := sock.recv_into(buffer):
            digest.update(buffer[:got])
            count += got
        assert count == self.size
        return digest.hexdigest()

    def _digest(self, block: bytes) -> str:
        digest = hashlib.sha256()
        for begin in range(0, self.size, len(block)):
            digest.update(memoryview(block)[: self.size - begin])
        return digest.hexdigest()


# --- many streams ---------------------------------------------------------------------------------


def streams_at_once(port: int, count: int) -> Figures:
    """Open `count` streams to an echo, and use each in turn while all are open."""
    began = time.monotonic()
    with ExitStack() as stack:
        socks = [stack.enter_context(connection(port)) for _ in range(count)]
        for turn in range(3):
            for number, sock in enumerate(socks):
                sock.sendall(f"stream {number}, turn {turn}".encode())
            for number, sock in enumerate(socks):
                expected = f"stream {number}, turn {turn}".encode()
                assert receive_exactly(sock, len(expected)) == expected
        for sock in socks:
            sock.shutdown(socket.SHUT_WR)
        for sock in socks:
            assert sock.recv(1) == b""
    return {"streams": count, "seconds": time.monotonic() - began}


def streams_in_turn(tunnel: Tunnel, port: int, count: int) -> Figures:
    """Open and close `count` streams one after the other: threads, sockets and memory come back.

    A first tenth lets both processes fill their caches.  Every third stream is reset, not finished.
    """

    def use(number: int) -> None:
        with connection(port) as sock:
            data = b"%d" % number * 100
            assert exchange(sock, data) == data
            if number % 3 == 0:
                set_reset_on_close(sock, True)
            elif number % 3 == 1:
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""

    programs = {"server": tunnel.server, "client": tunnel.client}
    idle = {name: (program.threads, program.sockets) for name, program in programs.items()}
    for number in range(max(100, count // 10)):
        use(number)
    _wait_until_idle(programs, idle)
    before = {name: program.memory for name, program in programs.items()}
    began = time.monotonic()
    for number in range(count):
        use(number)
    seconds = time.monotonic() - began
    _wait_until_idle(programs, idle)
    figures: Figures = {"streams": count, "seconds": seconds, "streams a second": count / seconds}
    for name, program in programs.items():
        grown = program.memory - before[name]
        figures[f"{name}: memory grew by, MiB"] = grown / MEBI
        assert grown < 4 * MEBI, f"{name} grew by {grown} bytes"
    return figures


def _wait_until_idle(programs: dict[str, Program], idle: dict[str, tuple[int, int]]) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        now = {name: (program.threads, program.sockets) for name, program in programs.items()}
        if all(mine <= before for name in now for mine, before in zip(now[name], idle[name], strict=True)):
            return
        assert time.monotonic() < deadline, f"threads and sockets were {idle}, and stay at {now}"
        time.sleep(0.02)  # another process's threads end when they end


# --- readers that stop ----------------------------------------------------------------------------


def stopped_readers(
    tunnel: Tunnel, port: int, target: Target, echo_port: int, *, streams: int, seconds: float
) -> Figures:
    """`streams` applications push at readers that have stopped, for `seconds`; all else goes on.

    Meanwhile an echo on a stream of its own answers at once, and both processes stay under the stated
    bound.  Afterwards the readers go on, and every byte has arrived.
    """
    programs = {"server": tunnel.server, "client": tunnel.client}
    before = {name: program.memory for name, program in programs.items()}
    bound = streams * (WINDOW + 2 * THREAD) + SESSION_BOUND + SLACK
    highest = dict.fromkeys(programs, 0)
    slowest = 0.0
    turns = 0
    stop = threading.Event()
    pushers = [_Pusher(port, stop) for _ in range(streams)]
    try:
        target.wait_accepted(streams)
        deadline = time.monotonic() + seconds
        with connection(echo_port) as sock:
            while time.monotonic() < deadline:
                began = time.monotonic()
                assert exchange(sock, b"x" * 100) == b"x" * 100
                slowest = max(slowest, time.monotonic() - began)
                turns += 1
                for name, program in programs.items():
                    highest[name] = max(highest[name], program.memory - before[name])
                stop.wait(0.01)  # the pace of somebody who types, and of the measurement
        pushed = sum(pusher.count for pusher in pushers)
    finally:
        stop.set()
        target.go.set()
        for pusher in pushers:
            pusher.join()
    for pusher in pushers:
        assert pusher.failure is None, pusher.failure
        assert pusher.arrived == pusher.count
    for name, most in highest.items():
        assert most < bound, f"{name} grew by {most / MEBI:.1f} MiB, above {bound / MEBI:.1f}"
    assert slowest < 6.0, f"an echo took {slowest:.2f} s"
    return {
        "streams": streams,
        "seconds": seconds,
        "pushed until all stood still, MiB": pushed / MEBI,
        "bound on memory, MiB": bound / MEBI,
        "server: memory grew by, MiB": highest["server"] / MEBI,
        "client: memory grew by, MiB": highest["client"] / MEBI,
        "echoes meanwhile": turns,
        "slowest echo, ms": slowest * 1000,
    }


def detached(tunnel: Tunnel, relay: Relay, port: int, target: Target, *, streams: int, seconds: float) -> Figures:
    """Push at `streams` streams through `port` while there is no way between the two ends for so long.

    `target` reads all, and says how much.  Both processes stay under the stated bound, all stand still, and when the
    way is free again every byte arrives.
    """
    target.go.set()
    programs = {"server": tunnel.server, "client": tunnel.client}
    before = {name: program.memory for name, program in programs.items()}
    bound = streams * (WINDOW + 2 * THREAD) + SESSION_BOUND + SLACK
    highest = dict.fromkeys(programs, 0)
    stop = threading.Event()
    pushers = [_Pusher(port, stop) for _ in range(streams)]
    resumed = tunnel.client.count("resumed by")
    try:
        target.wait_accepted(streams)
        relay.refusing = True
        relay.cut()
        deadline = time.monotonic() + seconds
        counted, still = -1, 0.0
        while (now := time.monotonic()) < deadline or now - still < seconds / 4:
            assert now < deadline + SECONDS, "they still push, and nobody holds them up"
            for name, program in programs.items():
                highest[name] = max(highest[name], program.memory - before[name])
            pushed = sum(pusher.count for pusher in pushers)
            if pushed != counted:
                counted, still = pushed, time.monotonic()
            stop.wait(0.02)  # the pace of the measurement
        relay.refusing = False
        tunnel.client.wait_for("resumed by", count=resumed + 1)
    finally:
        relay.refusing = False
        stop.set()
        for pusher in pushers:
            pusher.join()
    for pusher in pushers:
        assert pusher.failure is None, pusher.failure
        assert pusher.arrived == pusher.count
    for name, most in highest.items():
        assert most < bound, f"{name} grew by {most / MEBI:.1f} MiB, above {bound / MEBI:.1f}"
    return {
        "streams": streams,
        "seconds without a connection": seconds,
        "pushed until all stood still, MiB": counted / MEBI,
        "bound on memory, MiB": bound / MEBI,
        "server: memory grew by, MiB": highest["server"] / MEBI,
        "client: memory grew by, MiB": highest["client"] / MEBI,
    }


class _Pusher(threading.Thread):
    """Sends as fast as it can until `stop`, then finishes, and hears how many bytes arrived."""

    def __init__(self, port: int, stop: threading.Event) -> None:
        super().__init__(name="pusher", daemon=True)
        self._port, self._done = port, stop
        self.count = self.arrived = 0
        self.failure: Exception | None = None
        self.start()

    def run(self) -> None:
        block = memoryview(bytes(64 * 1024))
        try:
            with connection(self._port) as sock:
                sock.settimeout(None)  # standing still is what this is about
                while not self._done.is_set():
                    self.count += sock.send(block)
                sock.shutdown(socket.SHUT_WR)
                sock.settimeout(SECONDS)
                self.arrived = int.from_bytes(receive_exactly(sock, 8), "big")
        except (OSError, AssertionError) as error:
            self.failure = error


# --- kills ----------------------------------------------------------------------------------------


def kills(
    tunnel: Tunnel, which: str, local_port: int, remote_port: int, targets: tuple[Target, Target], times: int
) -> Figures:
    """Kill one process with SIGKILL while streams carry data, start it anew, `times` over.

    `targets` are echoes behind the local and the remote forward.  Applications at both ends see a reset, at the
    latest when the new process is there and nobody can go on any more; the other process recovers by itself; every
    port works again.
    """
    longest = 0.0
    for number in range(times):
        endings_before = [target.wait_idle() for target in targets]
        with ExitStack() as stack:
            streams = [stack.enter_context(connection(port)) for port in (local_port, remote_port) for _ in range(4)]
            for sock in streams:
                assert exchange(sock, b"before") == b"before"
            talks = [Conversation(sock) for sock in streams]
            for talk in talks:
                assert talk.flowing.wait(SECONDS), talk.ending
            (tunnel.server if which == "server" else tunnel.client).kill()
            began = time.monotonic()
            if which == "server":
                tunnel.start_server()
                tunnel.wait_connected(number + 2)
            else:
                tunnel.start_client()
            for talk in talks:
                talk.join(SECONDS)
                assert talk.ending == RESET, f"kill {number} of the {which}: {talk.ending!r}, not a reset"
            for target, seen in zip(targets, endings_before, strict=True):
                endings = target.wait_endings(seen + 4)[seen:]
                assert endings == [RESET] * len(endings), f"kill {number} of the {which}: {endings}"
        for port in (local_port, remote_port):
            wait_until_echoes(port)
        longest = max(longest, time.monotonic() - began)
    return {f"kills of the {which}": times, "longest until all worked again, s": longest}


# --- downloads ------------------------------------------------------------------------------------


def downloads(directory: Path, port: int, files: dict[str, bytes], *, count: int, parallel: int) -> Figures:
    """`count` downloads by curl, `parallel` at once, each of the next of `files` behind `port`; compared whole."""
    curl = require_program("curl")
    config = directory / "curl.conf"
    names = list(files)
    entries = []
    for number in range(count):
        name = names[number % len(names)]
        entries.append(f'url = "http://127.0.0.1:{port}/{name}"\noutput = "{directory}/got-{number}"\n')
    config.write_text("".join(entries))
    began = time.monotonic()
    done = subprocess.run(
        [
            curl,
            "--silent",
            "--show-error",
            "--fail",
            "--parallel",
            "--parallel-immediate",
            "--parallel-max",
            str(parallel),
            "--max-time",
            "120",
            "--config",
            config,
        ],
        capture_output=True,
        text=True,
        timeout=150,
    )
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    digests = {name: hashlib.sha256(content).digest() for name, content in files.items()}
    total = 0
    for number in range(count):
        path = directory / f"got-{number}"
        content = path.read_bytes()
        assert hashlib.sha256(content).digest() == digests[names[number % len(names)]], f"download {number}"
        total += len(content)
        path.unlink()
    return {"downloads": count, "at once": parallel, "MB": total / 1e6, "seconds": seconds}


def download_through_cuts(directory: Path, size: int) -> Figures:
    """One download of `size` bytes by curl, over websocket, whose connection is cut CUTS times; compared whole.

    In a tunnel of its own; `directory` holds the file while it runs.
    """
    curl = require_program("curl")
    original = directory / "files" / "large"
    original.parent.mkdir(parents=True)
    sent = hashlib.sha256()
    with original.open("wb") as file:
        for begin in range(0, size, 16 * MEBI):
            block = os.urandom(min(16 * MEBI, size - begin))
            sent.update(block)
            file.write(block)
    came = hashlib.sha256()
    count = 0
    rate = size / 12  # bytes a second while there are cuts, twice as many of which would have time
    with ExitStack() as stack:
        stack.callback(original.unlink)
        web, web_port = file_server(directory, {})
        stack.enter_context(web)
        port = unused_port()
        forwards = [{"local": f"127.0.0.1:{port}", "to": f"127.0.0.1:{web_port}"}]
        tunnel = stack.enter_context(Tunnel(directory / "tunnel", forwards))
        relay = stack.enter_context(Relay(tunnel.port))
        tunnel.client_settings["url"] = f"ws://127.0.0.1:{relay.port}/tunnel"
        tunnel.start()
        began = time.monotonic()
        process = stack.enter_context(
            subprocess.Popen(
                [
                    curl,
                    "--no-progress-meter",
                    "--fail",
                    "--retry",
                    "3",
                    "--retry-all-errors",
                    "--write-out",
                    "%{stderr}%{http_code} %{num_connects} %{size_download}",
                    f"http://127.0.0.1:{port}/large",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stderr is not None
        with Cuts(tunnel, relay, lambda: count, least=size // 500) as cuts:
            while block := process.stdout.read1(MEBI):
                came.update(block)
                count += len(block)
                if not cuts.over:
                    time.sleep(len(block) / rate)
            assert cuts.over, "the download was over before the last cut"
        said = process.stderr.read().decode()
        seconds = time.monotonic() - began
    assert said == f"200 1 {size}", said  # one connection, no warning, no retry
    assert came.digest() == sent.digest()
    return {"bytes": size, "cuts": CUTS, "seconds": seconds}


def seconds_of(action: Callable[[], object]) -> float:
    """How long `action` takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began
