"""Joins one stream to one socket, and carries bytes both ways until both have ended.

While little moves, a stream has no thread of its own:

    uplink    socket -> stream    the watcher reads what is there and queues it on the lane
    downlink  stream -> socket    the lane's reader hands what came straight to the socket

Whichever direction has more than that gets a thread: an uplink that fills a whole read goes on in `_uplink_loop`,
which blocks for credit and for bytes, reads into the lane's buffers, and seals and sends them as well, where the pipe
takes them at once; a downlink whose socket does not take everything at once, or whose payload is large, goes on in
`_run_downlink`, which blocks for payload and for the socket.  Both give the direction back when it has been quiet for a
moment, and a downlink does when its socket has taken everything at once for a while: bulk goes through the lane's
reader then, until it does not.

Where a session is `crowded`, which it is from its second bulk stream on, bulk costs no thread either: an uplink is
*pulled*: the lane's writer reads its socket, in turn with the others', when it wants more to send
(`Stream.when_pulled`); and the reader delivers what is large as well.  Then only a socket that does not take everything
costs a thread.  Bytes count as consumed, which gives the peer credit, only when the socket has taken them.

A direction may have a rate (`qanat.endpoints.rate_limit`).  One that has to wait for its turn has no thread: until the
watcher's timer goes on with it the socket is not read, or the payload stays in the stream's inbox, and gives no credit.

Each direction ends by itself (half-close); anything abrupt on one side is abrupt on the other: a reset of the stream is
a RST of the socket, and the reverse.  (A RST is noticed by whoever uses the socket: while the uplink waits for credit
and the downlink for bytes, nobody does, and it shows when either goes on.)  Exactly one thread at a time acts for a
direction, and whoever ends the second one closes the socket: so nobody uses its descriptor afterwards.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable

from qanat.base.errors import NoThread, StreamReset
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Flushable, Watcher
from qanat.endpoints.application_socket import GONE, reason_for
from qanat.endpoints.rate_limit import RateLimit, RateShare
from qanat.endpoints.traffic_limits import UNLIMITED, IdleTimeout, TrafficLimits
from qanat.endpoints.wakeable import Aborted, WakeableSocket
from qanat.mux.buffer_pool import BUFFER_PAYLOAD, LARGE_PAYLOAD, Buffer
from qanat.mux.frames import Reason
from qanat.mux.sender import MAX_SMALL
from qanat.mux.stream import Idle, Stream

log = logging.getLogger("qanat.stream")

SMALL_READ = 16 * 1024
"""Bytes of a read that is copied; an uplink that fills one gets a thread and reads into buffers from then on."""
QUIET_SECONDS = 0.2
"""Seconds without a byte after which a direction gives its thread back."""
FEW_READS = 16
"""Reads in turn that were small, after which an uplink's thread gives the direction back, busy as it may be."""
QUICK_SENDS = 16
"""Payloads in turn that the socket took at once, after which a downlink's thread gives the direction back to the lane's
reader as soon as nothing waits: handing each record to another thread costs more than the record."""
_DELIVERS_NOW = hasattr(socket, "MSG_DONTWAIT")

StartThread = Callable[[str, Callable[[], object]], object]
"""Starts a named thread, or raises NoThread."""


class Pump:
    """A stream and a socket that are joined.  `on_over` is called once, by some thread, when both ways have ended."""

    # As they begin; most streams change few of these.
    _directions = 2  # that have not ended
    _quiet = True  # until the uplink is taken from the watcher for the first time
    _orderly = True
    _pulled = False  # the uplink is read by the lane's writer
    _pull_size = BUFFER_PAYLOAD  # of the next buffer for that: large once one was full
    _quick = False  # whether the socket has taken bulk at once, and the lane's reader delivers that too
    _over_rate = False  # whether `deliver` has left something since its rate allows no more now
    _idle_seconds = 0.0
    _idle: IdleTimeout | None = None
    _all_over = False

    def __init__(
        self,
        stream: Stream,
        sock: WakeableSocket,
        watcher: Watcher,
        start_thread: StartThread,
        on_over: Callable[[], None] = lambda: None,
        limits: TrafficLimits = UNLIMITED,
        crowded: Callable[[], bool] = lambda: False,
        register: set[Pump] | None = None,
    ) -> None:
        """`register` has this from `start` until both ways have ended."""
        self._stream = stream
        self._lane = stream.lane
        self._sock = sock
        self._fd = sock.fd
        self._watcher = watcher
        self._start_thread = start_thread
        self._on_over = on_over
        self._crowded = crowded
        self._register = register
        self._limits = limits
        self._up = None if limits.reading is None else limits.reading.share()
        self._down = None if limits.writing is None else limits.writing.share()
        self._lock = threading.Lock()  # guards how many have ended and how, and the limits when they change

    def start(self, *, read_now: bool = False) -> None:
        """Begin to carry bytes.  Does not block.

        With `read_now` what is there already is queued on the stream, whose lane the caller flushes.  The socket is
        closed and the stream released when both directions have ended, whatever happens.
        """
        if self._register is not None:
            self._register.add(self)
        limits = self._limits
        if limits.reading is not None or limits.writing is not None or limits.idle_timeout:
            self.limits_changed()
        if _DELIVERS_NOW:
            self._stream.join(self, self._failed)
        else:
            self._stream.on_failure(self._failed)
            self.backlog()
        if read_now:
            self._ready(will_flush=True)
        if self._quiet:
            self._watcher.call_late(self._watch)  # what was read goes first

    def limits_changed(self) -> None:
        """Carry on within what its limits are now.  Idempotent, from any thread; does not block."""
        limits = self._limits
        with self._lock:
            if self._all_over:
                return
            before = self._up, self._down
            self._up, self._down = _share_of(self._up, limits.reading), _share_of(self._down, limits.writing)
            # The former ones stay open, so that whoever has just got one and is about to wait finds that it is called.
            stale = [share for share in before if share is not None and share not in (self._up, self._down)]
            if self._idle_seconds != limits.idle_timeout:
                self._idle_seconds = limits.idle_timeout
                self._time_idleness()
        for share in stale:
            share.wake()

    def _time_idleness(self) -> None:
        if self._idle is not None:
            self._idle.stop()
        self._idle = None
        if self._idle_seconds:
            self._idle = IdleTimeout(
                self._idle_seconds,
                self._watcher,
                count=lambda: self._stream.counts,
                excused=self._may_rest,
                expired=self._rested_too_long,
            )

    def look(self, limit: float) -> bool:
        """Reset the stream if nothing that was sent to the application was acknowledged for `limit` seconds.

        Returns whether there is reason to look again.  By the watcher; does not block.
        """
        silence = self._sock.silence()
        if silence is not None and silence >= limit:
            self._stream.reset(Reason.UNREACHABLE, GONE.format(f"nothing was acknowledged for {limit:g} s"))
            self._sock.abort()
        return silence is not None

    def _may_rest(self) -> bool:
        """Return whether the stream rests for a reason of ours: it waits for its turn, or for a pipe."""
        waits = any(share is not None and share.waits for share in (self._up, self._down))
        return waits or not self._stream.lane.attached

    def _rested_too_long(self) -> None:
        text = f"nothing came or went for {self._idle_seconds:g} s, its idle_timeout"
        self._stream.reset(Reason.LIMIT, text)
        self._sock.abort()

    def _over(self, orderly: bool) -> None:
        """One direction has ended, and nobody acts for it any more."""
        with self._lock:
            self._directions -= 1
            self._orderly = self._orderly and orderly
            if self._directions:
                return
            self._all_over = True
            for share in (self._up, self._down):
                if share is not None:
                    share.close()
            if self._idle is not None:
                self._idle.stop()
        self._watcher.call_late(self._close)

    def _close(self) -> None:
        """Leave stream and socket: both directions have ended."""
        if self._register is not None:
            self._register.discard(self)
        stream = self._stream
        # A reset that came after both had ended took what was still queued.
        orderly = self._orderly and stream.failure is None
        try:
            stream.release()
            self._sock.close(orderly=orderly)
            if log.isEnabledFor(logging.DEBUG):
                sent, received = stream.counts
                log.debug("%s: %s, %d bytes up, %d down", stream.label, "ended" if orderly else "reset", sent, received)
        finally:
            self._on_over()

    def _failed(self) -> None:
        """Wake whoever acts for a direction of a stream that was reset; end one for which nobody does."""
        self._sock.abort()
        for share in (self._up, self._down):
            if share is not None:
                share.wake()
        if self._stream.stop_direct():
            self.stopped()

    def _faulty(self, direction: str) -> None:
        """End one direction after a fault of this program, which must not leave the other waiting for ever."""
        self._report_fault(direction)
        self._over(False)

    def _report_fault(self, direction: str) -> None:
        log_unexpected(f"{self._stream.label}: its {direction} ended")
        self._stream.reset(Reason.INTERNAL, "a fault of the program at the other end")
        self._sock.abort()

    # --- the uplink: socket to stream -----------------------------------------------------------

    def _watch(self) -> None:
        """Have the watcher read what comes."""
        try:
            self._watcher.add(self._fd, self._ready)
        except (NoThread, OSError) as error:
            log.warning("%s: %s", self._stream.label, error)
            self._stream.reset(Reason.LIMIT, "no more threads or descriptors at the other end")
            self._over(False)

    def _unwatch(self) -> None:
        """Have the watcher leave the socket alone."""
        self._quiet = False
        self._watcher.remove(self._fd)

    def _ready(self, *, will_flush: bool = False) -> Flushable | None:
        """Read once and queue it, or send it at once where the round has nothing else and the caller will not flush.

        By the watcher, whose only call for this socket this is.
        """
        try:
            return self._read_now(alone=self._watcher.alone and not will_flush)
        except Exception:
            self._unwatch()
            self._faulty("uplink")
            return None

    def _read_now(self, *, alone: bool) -> Flushable | None:
        stream = self._stream
        if self._pulled:
            self._unwatch()
            stream.when_pulled(self._pull)
            return None
        try:
            room = stream.room()
            if not room:
                # First remove: the callback may come before `when_writable` returns.
                self._unwatch()
                stream.when_writable(self._watch)
                return None
            most, up = min(room, SMALL_READ), self._up
            if up is not None and not (most := up.take(most)):
                self._unwatch()
                self._wait_for_turn(up, self._watch)
                return None
            data = None
            try:
                data = self._sock.recv_now(most)
            except BlockingIOError:
                pass
            finally:
                if up is not None:
                    up.give_back(most - len(data or b""))
            if data:
                if alone and len(data) < SMALL_READ and stream.send_alone(data):
                    return None
                stream.queue(data)
                if len(data) >= SMALL_READ and (up is None or up.plenty):
                    self._begin_bulk()
                return self._lane
            if data is None:
                return None
            self._unwatch()
            stream.queue_finish()
            self._over(True)
            self._watcher.flush_soon(self._lane)
        except (StreamReset, Aborted, OSError) as error:
            self._unwatch()
            self._uplink_failed(error)
        return None

    def _uplink_failed(self, error: StreamReset | Aborted | OSError) -> None:
        """End the uplink of a stream that was reset, or whose socket failed."""
        if isinstance(error, OSError):
            self._stream.reset(*reason_for(error))
        else:
            self._sock.abort()
        self._over(False)

    def _begin_bulk(self) -> None:
        """Give the uplink a thread, or, when there are many, turns of the writer; else the watcher goes on."""
        if self._crowded() or self._stream.crowded:
            self._pulled = True
            return
        self._unwatch()
        try:
            self._start_thread(f"{self._stream.label}-up", self._run_uplink)
        except NoThread as error:
            log.warning("%s: %s", self._stream.label, error)
            self._watch()

    def _pull(self) -> None:
        """Read once, and wait to be pulled again.  By the lane's writer, or by whoever ends the stream."""
        try:
            if self._read_pulled():
                self._stream.when_pulled(self._pull)
        except Exception:
            self._faulty("uplink")

    def _read_pulled(self) -> bool:
        """Read once into a buffer; whether to be pulled again.

        If not, others act for the uplink, perhaps already: whoever pulls it again, or it is over.
        """
        stream = self._stream
        try:
            room, buffer = stream.begin_pull(self._pull_size)
            if not room:
                return True
            most, up = min(room, len(buffer.payload) if buffer is not None else MAX_SMALL), self._up
            if up is not None and not (most := up.take(most)):
                if buffer is not None:
                    stream.return_buffer(buffer)
                self._pulled = False
                self._wait_for_turn(up, self._watch)
                return False
            count = None
            try:
                count = self._fill(buffer, most) if buffer is not None else self._read_small(most)
            finally:
                if up is not None:
                    up.give_back(most - (count or 0))
            self._pull_size = LARGE_PAYLOAD if count is not None and count >= BUFFER_PAYLOAD else BUFFER_PAYLOAD
            if buffer is not None and count:
                if count > SMALL_READ:
                    stream.when_pulled(self._pull, filled=buffer)
                    return False  # whoever pulls again goes on
                self._write_filled(buffer)
            if count is None or 0 < count < min(most, SMALL_READ):
                self._pulled = count is None and stream.crowded
                self._watch()
                return False
            if count:
                return True
            stream.finish()
        except (StreamReset, Aborted, OSError) as error:
            self._uplink_failed(error)
        else:
            self._over(True)
        return False

    def _run_uplink(self) -> None:
        stream = self._stream
        try:
            if self._uplink_loop():
                self._watch()
                return
            stream.finish()
        except (StreamReset, Aborted, OSError) as error:
            self._uplink_failed(error)
        except Exception:
            self._faulty("uplink")
        else:
            self._over(True)

    def _uplink_loop(self) -> bool:
        """Carry bulk until it is quiet or over its rate (True), or the socket's peer has finished (False)."""
        try:
            return self._read_bulk()
        finally:
            self._lane.bulk_over()

    def _read_bulk(self) -> bool:
        stream, sock = self._stream, self._sock
        few, most = 0, BUFFER_PAYLOAD
        while few < FEW_READS:
            if stream.crowded:
                self._pulled = True
                return True
            room = min(stream.wait_writable(), most)
            up = self._up
            if up is not None and not (room := up.take(room)):
                return True
            count = None
            try:
                count = self._read_buffer(stream.take_buffer(room), room)
            finally:
                if up is not None:
                    up.give_back(room - (count or 0))
            if count == 0:
                return False
            if count is None:
                if not sock.wait_readable(QUIET_SECONDS):
                    return True
                continue
            most = LARGE_PAYLOAD if count >= BUFFER_PAYLOAD else BUFFER_PAYLOAD
            few = 0 if count > SMALL_READ // 2 else few + 1
        return True

    def _read_small(self, room: int) -> int | None:
        """As `_read_buffer`, where there is no buffer."""
        try:
            data = self._sock.recv_now(room)
        except BlockingIOError:
            return None
        if data:
            self._stream.write(data)
        return len(data)

    def _read_buffer(self, buffer: Buffer, room: int) -> int | None:
        """Queue what is there now; return the number of bytes, 0 at the end, None when nothing is there."""
        count = self._fill(buffer, room)
        if count:
            self._write_filled(buffer)
        return count

    def _fill(self, buffer: Buffer, room: int) -> int | None:
        """Read what is there now; otherwise as `_read_buffer`.  Without a byte the buffer goes back."""
        count = None
        try:
            count = self._sock.recv_available_into(buffer.payload[:room])
        except BlockingIOError:
            pass
        finally:
            if count:
                buffer.length = count
            else:
                self._stream.return_buffer(buffer)
        return count

    def _write_filled(self, buffer: Buffer) -> None:
        """Queue what `_fill` has read."""
        if buffer.length > SMALL_READ:
            self._stream.write_buffer(buffer)
        else:
            data = bytes(buffer.payload[: buffer.length])
            self._stream.return_buffer(buffer)
            self._stream.write(data)

    # --- the downlink: stream to socket, while little comes (`qanat.mux.stream.Sink`) --------------

    @property
    def takes_bulk(self) -> bool:
        """Whether `deliver` should be called for much as well."""
        return self._quick or self._crowded()

    def deliver(self, payload: memoryview) -> int:
        """Hand to the socket what it takes at once.  By the lane's reader; does not block."""
        if not self._watcher.stirred:
            self._watcher.stir()
        down = self._down
        if down is not None:
            allowed = self._allowed(down, len(payload))
            self._over_rate = allowed < len(payload)
            payload = payload[:allowed]
            if not payload:
                return 0
        try:
            sent = self._sock.send_now(payload)
            if down is not None and sent < len(payload):
                self._over_rate = False
                down.give_back(len(payload) - sent)
            return sent
        except OSError as error:
            # Nothing more can be handed on; the reset makes the stream stop, which `stopped` hears of.
            self._stream.reset(*reason_for(error))
            self._sock.abort()
            return 0
        except Exception:
            self._report_fault("downlink")
            return 0

    def backlog(self) -> None:
        """Give the downlink a thread, unless it has to wait for its turn.  Does not block."""
        down = self._down
        self._quick = False
        if self._over_rate and down is not None:
            self._over_rate = False
            self._wait_for_turn(down, self._deliver_again)
            return
        try:
            self._start_thread(f"{self._stream.label}-down", self._run_downlink)
        except NoThread as error:
            log.warning("%s: %s", self._stream.label, error)
            self._stream.reset(Reason.LIMIT, "no more threads at the other end")
            self._sock.abort()
            self._over(False)

    def ended(self) -> None:
        """Half-close the socket: the stream's peer has finished.  Does not block."""
        try:
            orderly = self._half_close()
        except Exception:
            self._faulty("downlink")
        else:
            self._over(orderly)

    def stopped(self) -> None:
        """End the downlink of a stream that was reset.  Does not block."""
        self._sock.abort()
        self._over(False)

    def _run_downlink(self) -> None:
        stream, sock = self._stream, self._sock
        at_once = 0
        try:
            while True:
                self._quick = at_once >= QUICK_SENDS
                payload = stream.receive_or_direct(0 if self._quick else QUIET_SECONDS)
                if payload is None:
                    break
                self._watcher.stir()
                down = self._down
                if down is None:
                    at_once = at_once + 1 if sock.send_all(payload) else 0
                    stream.consumed(len(payload))
                elif not self._send_within_rate(payload, down):
                    self._wait_for_turn(down, self._deliver_again)
                    return
            orderly = self._half_close()
        except Idle:
            return  # The lane's reader delivers again.
        except (StreamReset, Aborted):
            self.stopped()
        except OSError as error:
            stream.reset(*reason_for(error))
            self.stopped()
        except Exception:
            self._faulty("downlink")
        else:
            self._over(orderly)

    # --- a direction that has a rate ----------------------------------------------------------------

    def _wait_for_turn(self, share: RateShare, go_on: Callable[[], object]) -> None:
        """Have `go_on` called when this direction has its turn, or the stream is over.  Nobody acts for it before."""
        share.when_ready(go_on)
        if self._stream.failure is not None or share not in (self._up, self._down):
            share.wake()  # `_failed`, or other limits, may have come before it waited

    def _allowed(self, share: RateShare, wanted: int) -> int:
        """Return how much of what came may be sent now; all when no more will come, as little as that is."""
        return wanted if self._stream.failure is not None else share.take(wanted)

    def _deliver_again(self) -> None:
        if self._stream.failure is None:
            self._stream.deliver_to(self)
        else:
            self.backlog()  # A thread sends what came before the reset, however much that is.

    def _send_within_rate(self, payload: memoryview, share: RateShare) -> bool:
        """Send what the rate allows, and give the rest back to the stream; return whether that was all."""
        while payload:
            size = self._allowed(share, len(payload))
            if not size:
                self._stream.put_back(payload)
                return False
            self._sock.send_all(payload[:size])
            self._stream.consumed(size)
            payload = payload[size:]
        return True

    def _half_close(self) -> bool:
        """Tell the socket's peer that the stream's has finished; return whether that is an orderly end."""
        try:
            self._sock.half_close(closing=self._directions == 1 and self._orderly)
        except OSError as error:
            if error.errno == errno.ENOTCONN and self._stream.failure is None:
                # The socket's peer ended both ways at once; what it sent has been read by then.
                return True
            self._stream.reset(*reason_for(error))
            self._sock.abort()
            return False
        return True


def _share_of(share: RateShare | None, limit: RateLimit | None) -> RateShare | None:
    """Return a share of `limit`: the one there is, if it is of that."""
    if limit is None:
        return None
    return share if share is not None and share.limit is limit else limit.share()
