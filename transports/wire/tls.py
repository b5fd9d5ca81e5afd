"""TLS in two directions at once, over any other `Wire`.

OpenSSL does not allow one SSL object in two threads at the same time.  Here it works on memory buffers
under a short lock, and all raw input and output happens outside that lock, so a blocked writer never
stops the reader.  The order of the ciphertext is kept because whoever takes bytes out of OpenSSL holds
the send lock until the wire below has them.

The reading thread never writes.  What OpenSSL wants to send because of what was read (answers to
KeyUpdate, RFC 8446 §4.6.3) stays in its buffer, goes out in its place before the next thing sent, and
`wakeup` is called so that this happens soon.  (OpenSSL itself puts off the answer to a single KeyUpdate
until it next encrypts, which the RFC allows.)

Contexts are made in `tls_contexts`; words for what can go wrong are in `tls_errors`.  Used by the
dialer and the front door.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from typing import cast

from qanat.base.deadline import Deadline
from qanat.base.errors import TransportError
from qanat.base.paged_buffer import PagedBuffer
from qanat.transports.pipe import Wire
from qanat.transports.wire.tls_errors import explain_handshake_failure, hint_for_refusal, reason_of

READ_SIZE = 128 * 1024
"""Bytes of ciphertext asked for at once.  OpenSSL copies them twice more: they should still be in the cache then."""

_PAGE_OFFSET = 512
"""Where in a page the ciphertext is received.  OpenSSL's memory buffer for so much is its own mapping and begins 16
bytes behind a page's start; `rep movsb`, by which glibc 2.36 copies so much, takes ten times as long on AMD's Zen where
the target is that little behind the source within a page (glibc's bug 30994)."""

_WRITE_SIZE = 17 * 16 * 1024  # plaintext encrypted under one hold of the lock: a message, be it the largest
_READS_AT_ONCE = 4  # without a byte of data, by a thread that reads for others too: TLS has messages of its own
_MAX_PENDING = 64 * 1024  # bytes OpenSSL may want to send for having read; only a flood of KeyUpdates gets there


class TlsWire(Wire):
    """A finished TLS handshake over `wire`, which it owns from now on."""

    def __init__(
        self,
        wire: Wire,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        deadline: Deadline,
    ) -> None:
        """Do the handshake, blocking until `deadline`.

        `server_hostname` is what a client expects in the certificate.  On failure `wire` is closed and
        TransportError raised, with a hint when we are the client.
        """
        self.peer = wire.peer
        self.addresses = wire.addresses
        self._wire = wire
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        # With a buffer, read() returns a number, which typeshed does not know.
        self._read = cast(Callable[[int, memoryview], int], self._ssl.read)
        self._starved = False  # OpenSSL has nothing more to give before it is fed
        self._lock = threading.Lock()  # guards what is above; never held during raw I/O
        self._send_lock = threading.Lock()  # held from OpenSSL's output until the wire has it
        self._pages = PagedBuffer(READ_SIZE)
        self._raw = self._pages.view[_PAGE_OFFSET:]
        self._wakeup: Callable[[], None] | None = None
        self._ended = False  # the other end's close_notify has come
        self._read_failure: tuple[str, str] | None = None  # message and hint: an error's traceback would have this
        self._shake_hands(server_hostname, deadline)

    @property
    def alpn(self) -> str | None:
        """The application protocol that was negotiated (RFC 7301), if any."""
        return self._ssl.selected_alpn_protocol()

    @property
    def version(self) -> str:
        """For example "TLSv1.3"."""
        return self._ssl.version() or "unknown"

    @property
    def certificate(self) -> bytes | None:
        """The other end's certificate, verified or not, as DER; None when it showed none."""
        return self._ssl.getpeercert(binary_form=True)

    def recv_into(self, buffer: memoryview) -> int:
        """See `Wire.recv_into`."""
        count = self._recv(buffer, None)
        assert count is not None  # the end is 0, or raised
        return count

    def watch(self) -> int | None:
        """See `Wire.watch`."""
        return self._wire.watch()

    def unwatch(self) -> None:
        """See `Wire.unwatch`."""
        self._wire.unwatch()

    def recv_within(self, buffer: memoryview, seconds: float) -> int | None:
        """See `Wire.recv_within`."""
        return self._recv(buffer, seconds)

    def _recv(self, buffer: memoryview, seconds: float | None) -> int | None:
        reads = 0
        while True:
            if not self._starved:
                count = self._decrypt_into(buffer)
                if count is not None:
                    return count
            if seconds == 0 and reads == _READS_AT_ONCE:
                return None
            wire, raw = self._wire, self._raw
            received = wire.recv_into(raw) if seconds is None else wire.recv_within(raw, seconds)
            if received is None:
                return None
            self._feed(received)
            reads += 1

    def trim(self) -> None:
        """See `Wire.trim`."""
        self._pages.give_back()

    def acknowledge_now(self) -> None:
        """See `Wire.acknowledge_now`."""
        self._wire.acknowledge_now()

    @property
    def buffered(self) -> bool:
        """See `Wire.buffered`."""
        return bool(self._incoming.pending or self._ssl.pending())

    def _feed(self, received: int) -> None:
        """Give OpenSSL what has been received into `_raw`."""
        if received == 0:
            raise TransportError("the connection was cut without TLS's close_notify (truncated)")
        with self._lock:
            self._incoming.write(self._raw[:received])
        self._starved = False

    def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `Wire.send_all`."""
        with memoryview(data) as view, self._send_lock:
            position = 0
            while position < len(view):
                with self._lock:
                    part = view[position : position + _WRITE_SIZE]
                    position += len(part)
                    self._encrypt_locked(part)
                    ciphertext = self._outgoing.read()
                self._wire.send_all(ciphertext)

    @property
    def unsent(self) -> int:
        """See `Wire.unsent`."""
        return self._wire.unsent

    @property
    def can_send_now(self) -> bool:
        """See `Wire.can_send_now`."""
        return self._wire.can_send_now

    def send_now(self, data: bytes | bytearray | memoryview) -> bool:
        """See `Wire.send_now`."""
        with memoryview(data) as view, self._send_lock:
            with self._lock:
                self._encrypt_locked(view)
                ciphertext = self._outgoing.read()
            return self._wire.send_now(ciphertext)

    def set_read_timeout(self, seconds: float | None) -> None:
        """See `Wire.set_read_timeout`."""
        self._wire.set_read_timeout(seconds)

    def set_write_timeout(self, seconds: float | None) -> None:
        """See `Wire.set_write_timeout`."""
        self._wire.set_write_timeout(seconds)

    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """See `Wire.set_wakeup`."""
        self._wakeup = wakeup
        self._wire.set_wakeup(wakeup)

    def flush(self) -> None:
        """See `Wire.flush`."""
        with self._send_lock:
            with self._lock:
                ciphertext = self._outgoing.read()
            if ciphertext:
                self._wire.send_all(ciphertext)
            self._wire.flush()

    def close(self, final: bytes = b"") -> None:
        # With a writer inside, nothing can be added behind what it has half sent.
        """See `Wire.close`."""
        if not self._send_lock.acquire(blocking=False):
            self._wire.close()
            return
        try:
            with self._lock:
                ciphertext = self._close_notify_locked(final)
            self._wire.close(ciphertext)
        finally:
            self._send_lock.release()

    def _close_notify_locked(self, final: bytes) -> bytes:
        """Return the ciphertext of `final` and of close_notify (RFC 8446 §6.1)."""
        try:
            if final:
                self._ssl.write(final)
            self._ssl.unwrap()
        except ssl.SSLError:
            pass  # unwrap() says so when the peer's own close_notify is still to come: not waited for
        return self._outgoing.read()

    def _decrypt_into(self, buffer: memoryview) -> int | None:
        """Fill `buffer` with what is there already; None when nothing is, 0 at an orderly end."""
        self._check_readable()
        count, size = 0, len(buffer)
        read, incoming, in_openssl = self._read, self._incoming, self._ssl.pending
        with self._lock:
            try:
                # OpenSSL gives one record at a time.  To ask it once more for nothing costs as much as a small record.
                while count < size and (incoming.pending or in_openssl()) and not self._ended:
                    got = read(size - count, buffer[count:])
                    count += got
                    self._ended = got == 0
            except ssl.SSLWantReadError:
                pass  # what is left is a part of a record
            except ssl.SSLZeroReturnError:
                self._ended = True  # close_notify, after we sent ours
            except ssl.SSLError as error:
                hint = "" if self._ssl.server_side else hint_for_refusal(error)
                self._read_failure = f"TLS failed while receiving: {reason_of(error)}", hint
            pending = self._outgoing.pending
        if pending > _MAX_PENDING:
            self._read_failure = "the other end floods TLS with messages that demand answers", ""
        elif pending and self._wakeup is not None:
            self._wakeup()
        if count == 0:
            self._check_readable()
        self._starved = count < size and not self._ended and self._read_failure is None
        return count if count or self._ended else None

    def _check_readable(self) -> None:
        if self._read_failure is not None:
            message, hint = self._read_failure
            raise TransportError(message, hint=hint)

    def _encrypt_locked(self, part: memoryview) -> None:
        try:
            done = 0
            while done < len(part):  # OpenSSL takes one record at a time
                done += self._ssl.write(part[done:])
        except ssl.SSLError as error:
            self._wire.close()  # unlike a broken socket, this would not end the reader
            raise TransportError(f"TLS failed while sending: {reason_of(error)}") from error

    def _shake_hands(self, server_hostname: str | None, deadline: Deadline) -> None:
        try:
            while not self._step_of_handshake():
                self._wire.set_read_timeout(deadline.remaining())
                received = self._wire.recv_into(self._raw)
                if received == 0:
                    raise TransportError(
                        "the other end closed the connection during the TLS handshake",
                        hint="it may not know this host name, something on the path may forbid TLS to it, or, if the "
                        "port has no TLS: write ws:// instead of wss://",
                    )
                self._incoming.write(self._raw[:received])
            self._wire.set_read_timeout(None)
        except ssl.SSLError as error:
            self._wire.close(self._outgoing.read())  # the alert that says why
            if server_hostname is None:
                raise TransportError(f"the TLS handshake failed: {reason_of(error)}") from error
            raise explain_handshake_failure(error, server_hostname, self._ssl.context) from error
        except TransportError as error:
            self._wire.close()
            if deadline.passed:
                raise TransportError(
                    "the TLS handshake took too long", hint="check that the port speaks TLS, and the path to it"
                ) from error
            raise

    def _step_of_handshake(self) -> bool:
        """Whether the handshake is done.  One thread only, so no lock."""
        try:
            self._ssl.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        ciphertext = self._outgoing.read()
        if ciphertext:
            self._wire.send_all(ciphertext)
        return done
