"""The two threads that join one stream to one socket.

The *uplink* waits for credit, then for bytes, and queues them on the stream; the *downlink* writes what
the stream brings to the socket, and only then gives credit back.  Each direction ends by itself
(half-close); anything abrupt on one side is abrupt on the other: a reset of the stream is a RST of the
socket, and the reverse.  (A RST is noticed by whoever uses the socket: while the uplink waits for credit and
the downlink for bytes, nobody does, and it shows when either goes on.)
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable

from qanat.base.errors import NoThread, StreamReset
from qanat.endpoints.wakeable import Aborted, WakeableSocket
from qanat.mux.buffer_pool import BUFFER_PAYLOAD
from qanat.mux.frames import Reason
from qanat.mux.stream import Stream

log = logging.getLogger("qanat.stream")

SMALL_READ = 16 * 1024
"""Bytes of a read that is copied; a stream that fills one reads into the lane's buffers from then on."""


def join_stream(
    stream: Stream, sock: WakeableSocket, start_thread: Callable[[str, Callable[[], None]], object], name: str
) -> None:
    """Carry bytes both ways until both have ended; blocks.  The calling thread is the downlink.

    `start_thread` gets the uplink's name and function; when it raises NoThread, the stream is reset.  Closes the
    socket and releases the stream, whatever happens.
    """
    uplink = _Uplink()
    orderly = False
    try:
        stream.on_failure(sock.abort)
        try:
            start_thread(f"{name}-up", lambda: uplink.run(stream, sock))
        except NoThread as error:
            stream.reset(Reason.LIMIT, "no more threads at the other end")
            log.warning("%s: %s", name, error)
        else:
            orderly = _guarded(_downlink_loop, stream, sock)
            uplink.ended.wait()
            # A reset that came after both loops had ended took what was still queued.
            orderly = orderly and uplink.orderly and stream.failure is None
    finally:
        stream.release()
        sock.close(orderly=orderly)
    sent, received = stream.counts
    log.debug("%s: %s, %d bytes up, %d down", name, "ended" if orderly else "reset", sent, received)


class _Uplink:
    """The uplink's thread, as the downlink sees it."""

    def __init__(self) -> None:
        self.orderly = False
        self.ended = threading.Event()

    def run(self, stream: Stream, sock: WakeableSocket) -> None:
        try:
            self.orderly = _guarded(_uplink_loop, stream, sock)
        finally:
            self.ended.set()


def _guarded(loop: Callable[[Stream, WakeableSocket], bool], stream: Stream, sock: WakeableSocket) -> bool:
    """Run `loop`; a fault of this program in it must not leave the other loop waiting for ever."""
    try:
        return loop(stream, sock)
    except BaseException:
        stream.reset(Reason.INTERNAL, "a fault of the program at the other end")
        raise


def _uplink_loop(stream: Stream, sock: WakeableSocket) -> bool:
    """Socket to stream, until the socket's peer has finished (True) or anything failed (False)."""
    bulk = False
    try:
        while True:
            room = stream.wait_writable()
            if bulk:
                count = _read_bulk(stream, sock, room)
                if count:
                    bulk = count > SMALL_READ // 2
                    continue
                if count == 0:
                    break
            data = sock.recv(min(room, SMALL_READ))
            if not data:
                break
            stream.write(data)
            bulk = len(data) == SMALL_READ
    except (StreamReset, Aborted):
        sock.abort()
        return False
    except OSError as error:
        stream.reset(Reason.CANCELLED, _explain(error))
        return False
    stream.finish()
    return True


def _read_bulk(stream: Stream, sock: WakeableSocket, room: int) -> int | None:
    """Queue what is there now; return the number of bytes, 0 at the end, None when nothing is there."""
    buffer = stream.take_buffer()
    try:
        count = sock.recv_available_into(buffer.payload[: min(room, BUFFER_PAYLOAD)])
    except BlockingIOError:
        stream.return_buffer(buffer)
        return None
    except BaseException:
        stream.return_buffer(buffer)
        raise
    if count > SMALL_READ:
        buffer.length = count
        stream.write_buffer(buffer)
        return count
    data = bytes(buffer.payload[:count])
    stream.return_buffer(buffer)
    if data:
        stream.write(data)
    return count


def _downlink_loop(stream: Stream, sock: WakeableSocket) -> bool:
    """Stream to socket, until the stream's peer has finished (True) or anything failed (False)."""
    try:
        while True:
            payload = stream.receive()
            if payload is None:
                break
            sock.send_all(payload)
            stream.consumed(len(payload))
        sock.half_close()
    except (StreamReset, Aborted):
        sock.abort()
        return False
    except OSError as error:
        if error.errno == errno.ENOTCONN and stream.failure is None:
            # The socket's peer ended both ways at once; what it sent has been read by then.
            return True
        stream.reset(Reason.CANCELLED, _explain(error))
        sock.abort()
        return False
    return True


def _explain(error: OSError) -> str:
    return error.strerror or type(error).__name__
