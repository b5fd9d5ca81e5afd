"""A socket whose threads can be woken in silence, and whose ends are never taken for one another."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qanat.base.sockets import set_reset_on_close
from qanat.endpoints.wakeable import Aborted, WakeableSocket
from tests.support.background import Background, wait_until
from tests.support.sockets import SECONDS, connected, fill, nothing_has_come, read_to_end

ROOT = Path(__file__).resolve().parents[2]


def test_abort_wakes_a_blocked_recv_and_the_peer_sees_a_reset_only_when_we_close() -> None:
    with connected() as (ours, application):
        reading = Background(lambda: ours.recv(100))
        assert not reading.wait(0.01)
        ours.abort()
        assert isinstance(reading.error(), Aborted)
        assert nothing_has_come(application)
        ours.abort()
        ours.close(orderly=False)
        assert read_to_end(application) == (b"", "reset")


def test_abort_wakes_a_blocked_send_and_the_peer_never_sees_an_end() -> None:
    with connected() as (ours, application):
        writing = Background(lambda: fill(ours))
        wait_until(lambda: ours._wake is not None, "the writer waits for the kernel")
        ours.abort()
        assert isinstance(writing.error(), Aborted)
        ours.close(orderly=False)
        assert read_to_end(application)[1] == "reset"


def test_after_abort_what_the_kernel_takes_at_once_is_still_sent() -> None:
    with connected() as (ours, application):
        ours.abort()
        ours.send_all(memoryview(b"what came before the reset"))
        assert application.recv(100) == b"what came before the reset"
        assert nothing_has_come(application)


def test_abort_after_close_and_close_twice_do_nothing() -> None:
    with connected() as (ours, application):
        ours.close(orderly=True)
        ours.close(orderly=False)
        ours.abort()
        assert read_to_end(application) == (b"", "end")


def test_an_abort_from_many_threads_at_any_time_loses_no_wake_up() -> None:
    for _ in range(100):
        with connected() as (ours, _application):
            reading = Background(lambda ours=ours: ours.recv(100))
            writing = Background(lambda ours=ours: fill(ours))
            aborting = [Background(ours.abort) for _ in range(3)]
            for thread in aborting:
                thread.result()
            assert isinstance(reading.error(), Aborted)
            assert isinstance(writing.error(), Aborted)


def test_an_orderly_close_ends_what_was_sent_with_a_fin() -> None:
    with connected() as (ours, application):
        ours.send_all(memoryview(bytes(100_000)))
        ours.close(orderly=True)
        assert read_to_end(application) == (bytes(100_000), "end")


def test_each_direction_ends_by_itself() -> None:
    with connected() as (ours, application):
        ours.send_all(memoryview(b"question"))
        ours.half_close()
        assert read_to_end(application) == (b"question", "end")
        application.sendall(b"a reply after the end")
        assert ours.recv(100) == b"a reply after the end"
        application.shutdown(socket.SHUT_WR)
        assert ours.recv(100) == b""


def test_a_direction_that_has_ended_does_not_make_the_other_end_cleanly() -> None:
    with connected() as (ours, application):
        ours.half_close()
        assert read_to_end(application) == (b"", "end")
        ours.close(orderly=False)
        wait_until(lambda: application.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0, "the reset has come")


@pytest.mark.parametrize("buffer", [False, True])
def test_a_reset_that_a_send_was_told_of_is_not_taken_for_an_end_by_recv(buffer: bool) -> None:
    """The kernel reports a RST to one call only; after that, recv returns as if the peer had finished."""
    with connected() as (ours, application):
        set_reset_on_close(application, True)
        application.close()
        wait_until(lambda: _is_closed(ours), "the reset has come")
        with pytest.raises(ConnectionResetError):
            ours.send_all(memoryview(b"x"))
        with pytest.raises(ConnectionResetError):
            ours.recv_available_into(memoryview(bytearray(10))) if buffer else ours.recv(10)


def test_a_reader_and_a_writer_that_race_for_a_reset_are_both_told() -> None:
    for _ in range(200):
        with connected() as (ours, application):
            set_reset_on_close(application, True)
            begin = threading.Barrier(3)

            def send(ours: WakeableSocket = ours, begin: threading.Barrier = begin) -> None:
                begin.wait(SECONDS)
                while True:
                    ours.send_all(memoryview(b"x"))

            def receive(ours: WakeableSocket = ours, begin: threading.Barrier = begin) -> bytes:
                begin.wait(SECONDS)
                return ours.recv(10)

            writing, reading = Background(send), Background(receive)
            begin.wait(SECONDS)
            application.close()
            assert isinstance(writing.error(), OSError)
            assert isinstance(reading.error(), ConnectionResetError)


def test_an_end_that_came_before_the_reset_stays_an_end() -> None:
    """The application finished and closed; what we then send is refused, but what it sent was whole."""
    with connected() as (ours, application):
        application.sendall(b"whole")
        application.close()
        wait_until(lambda: _send_fails(ours), "our sending is refused")
        assert ours.recv(10) == b"whole"
        assert ours.recv(10) == b""


def test_a_process_that_is_killed_resets_what_it_held() -> None:
    """kill -9 while one end has even said its FIN: the other sees a reset, never a finished answer."""
    program = (
        "import socket, sys, time\n"
        "from qanat.endpoints.wakeable import WakeableSocket\n"
        "from qanat.base.addresses import listen_addresses\n"
        "from qanat.base.watcher import Watcher\n"
        "from qanat.endpoints.tcp import Listener\n"
        "held = []\n"
        "where = listen_addresses('127.0.0.1', 0)\n"
        "listener = Listener(where, lambda sock, peer: (held.append(sock), print('raw', flush=True)), 'l', Watcher())\n"
        "listener.start()\n"
        "print(listener.port, flush=True)\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    print(server.getsockname()[1], flush=True)\n"
        "    sock = WakeableSocket(server.accept()[0])\n"
        "sock.send_all(memoryview(b'half of an ans'))\n"
        "print('sent', flush=True)\n"
        "sock.recv(1)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        raw_port, port = int(process.stdout.readline()), int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), SECONDS) as application:
            assert process.stdout.readline() == "sent\n"
            with socket.create_connection(("127.0.0.1", raw_port), SECONDS) as waiting:
                assert process.stdout.readline() == "raw\n"  # Accepted, and nobody has taken charge of it yet.
                os.kill(process.pid, signal.SIGKILL)
                process.wait(SECONDS)
                assert read_to_end(application) == (b"half of an ans", "reset")
                assert read_to_end(waiting) == (b"", "reset")


def test_reading_without_waiting_says_when_nothing_is_there() -> None:
    with connected() as (ours, application):
        buffer = memoryview(bytearray(10))
        with pytest.raises(BlockingIOError):
            ours.recv_available_into(buffer)
        application.sendall(b"abc")
        wait_until(lambda: _available(ours, buffer) == 3, "it has come")
        application.shutdown(socket.SHUT_WR)
        wait_until(lambda: _available(ours, buffer) == 0, "the end has come")


def test_it_knows_its_peer() -> None:
    with connected() as (ours, application):
        assert ours.peer == f"127.0.0.1:{application.getsockname()[1]}"
    with connected(socket.AF_INET6) as (ours, application):
        assert ours.peer == f"[::1]:{application.getsockname()[1]}"
    left, right = socket.socketpair()
    with right:
        unix = WakeableSocket(left)
        assert unix.peer == "unknown"
        unix.close(orderly=True)


def _available(sock: WakeableSocket, buffer: memoryview) -> int:
    try:
        return sock.recv_available_into(buffer)
    except BlockingIOError:
        return -1


def _is_closed(sock: WakeableSocket) -> bool:
    try:
        sock._sock.getpeername()
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def _send_fails(sock: WakeableSocket) -> bool:
    try:
        sock.send_all(memoryview(b"x"))
    except OSError:
        return True
    return False
