"""The two interfaces of this room.

A `Wire` is a blocking byte stream that one thread may read while another writes: plain TCP, or TLS.
A `Pipe` is one live connection that carries whole messages (records), whatever HTTP transport is
below it.  Everything above this room knows only `Pipe`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from qanat.base.watcher import Watcher
from qanat.transports.readiness import DescriptorReadiness, Readiness

MAX_MESSAGE = 256 * 1024 + 64
"""The largest message any pipe must carry: one sealed record (docs/PROTOCOL.md, Limits)."""

MAX_UNAUTHENTICATED = 1024
"""The largest message that an unauthenticated pipe takes: the handshake's own limit (docs/PROTOCOL.md §1)."""


SockAddr = tuple[Any, ...]
"""An Internet socket's address as Python has it: (host, port), or (host, port, flow, scope) for IPv6."""


_SILENT = "nothing received for"
_STUCK = "nothing could be sent for"


def silent_for(seconds: float) -> str:
    """Return the cause of a connection's end when so long no byte came."""
    return f"{_SILENT} {seconds:g} s"


def stuck_for(seconds: float) -> str:
    """Return the cause of a connection's end when so long no byte could be sent."""
    return f"{_STUCK} {seconds:g} s"


def is_stall(cause: str | None) -> bool:
    """Return whether `cause` is one of these two: the path took or brought nothing, and nobody ended it."""
    return cause is not None and cause.startswith((_SILENT, _STUCK))


class Wire(ABC):
    """A blocking byte stream, full duplex: one reading thread and one writing thread at a time."""

    peer: str
    """`host:port` of the other end, for logs."""
    addresses: tuple[SockAddr, SockAddr] | None = None
    """Ours and the other end's when the wire was made; None for what is no Internet socket, or was gone already."""
    headroom: int = 0
    """How many bytes at the beginning of what is sent are scratch space, and do not go out."""

    @abstractmethod
    def recv_into(self, buffer: memoryview) -> int:
        """Block for at least one byte; return how many were written to `buffer`, 0 at an orderly end.

        Never writes to the network.  Raises TransportError when the path fails or the wire is closed,
        or when the time set by `set_read_timeout` passes.
        """

    def watch(self) -> int | None:
        """Return the descriptor that says when there is something to read; None for a wire that has none.

        It stays open until `unwatch`, whatever happens; after `close` there is something to read: the end.  Raises
        TransportError when it is closed already.
        """
        return None

    def unwatch(self) -> None:
        """Undo `watch`: nobody waits for the descriptor any more, nor calls `recv_within`."""
        raise NotImplementedError

    def readiness(self, watcher: Watcher) -> Readiness | None:
        """Return what tells `watcher` that there is something to read; None for a wire that cannot be watched.

        Does as `watch`, and its `close` as `unwatch`.  Raises TransportError when it is closed already.
        """
        fd = self.watch()
        return None if fd is None else DescriptorReadiness(watcher, fd, self.unwatch)

    def recv_within(self, buffer: memoryview, seconds: float) -> int | None:
        """Read as `recv_into` does, but return None when nothing has come within `seconds`; 0 does not block.

        With 0 it may also return None when much has come that was no data; the descriptor says so if there is more.
        Between `watch` (or `readiness`) and its end only, in turn with `recv_into`; the time replaces
        `set_read_timeout`'s.
        """
        raise NotImplementedError

    def trim(self) -> None:  # noqa: B027 - a wire without buffers has nothing to give
        """Give memory back that much reading has needed.  By the thread that reads; does not block."""

    def acknowledge_now(self) -> None:  # noqa: B027 - not every wire has a say in that
        """Have the other end hear at once that what was read has come: it may hold the rest back.  Does not block.

        By the thread that reads.
        """

    @property
    def buffered(self) -> bool:
        """Whether bytes have been taken from the descriptor that no call has returned yet."""
        return False

    @abstractmethod
    def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Block until the kernel has taken all of `data[headroom:]`.  Raises TransportError.

        `data` can be written to where there is headroom.
        """

    def send_now(self, data: bytes | bytearray | memoryview) -> bool:
        """Take all of `data[headroom:]` without blocking; False when the kernel could not take all of it at once.

        The rest is kept in a copy, and goes out before anything else with the next `send_all` or `flush`.  By the
        thread that may call `send_all`, and only where `can_send_now`.  Raises TransportError.
        """
        raise NotImplementedError

    @property
    def can_send_now(self) -> bool:
        """Whether `send_now` may be called: this wire has it, and nothing of an earlier call is left."""
        return False

    @property
    def unsent(self) -> int:
        """How many bytes the kernel has taken, or `send_now` has left, that are not sent yet; 0 where nobody can tell.

        Does not block.
        """
        return 0

    @abstractmethod
    def set_read_timeout(self, seconds: float | None) -> None:
        """Make the next reads raise TransportError after `seconds` of silence; None blocks for ever."""

    @abstractmethod
    def set_write_timeout(self, seconds: float | None) -> None:
        """Give up once sending has got no further at all for `seconds`, or up to a quarter more; None never does.

        Slowness alone is no reason: any byte that the path takes begins the time anew.  Then sending and, after what
        has come, reading raise TransportError.  Does not block; heeded from the next write on.  Raises TransportError.
        """

    @abstractmethod
    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """Have `wakeup` called, by the reading thread, when reading made this wire owe bytes; see `flush`."""

    def set_unauthenticated(self, unauthenticated: bool) -> None:  # noqa: B027 - a connection has no limits of its own
        """Take in little while the peer is unauthenticated.  By the thread that reads; does not block."""

    def set_on_leaving(self, callback: Callable[[], None]) -> None:  # noqa: B027 - a connection does not announce it
        """Do as `Pipe.set_on_leaving`."""

    @abstractmethod
    def flush(self) -> None:
        """Send what reading made this wire owe (TLS KeyUpdate).  By the writing thread; blocks as `send_all`."""

    @abstractmethod
    def close(self, final: bytes = b"") -> None:
        """Shut down and close; wakes a blocked reader and writer.  Idempotent, from any thread, never blocks.

        `final` is sent first if, and only if, that is possible at once.
        """


class Pipe(ABC):
    """One live connection that carries messages in order; it dies with the network.

    One thread calls `recv`, one thread calls `send`, any thread calls `close`.
    """

    transport: str
    """Its name in configs and logs, for example "websocket"."""
    peer: str
    """The other end as people know it: `host:port`."""
    addresses: tuple[SockAddr, SockAddr] | None = None
    """Those of the connection below, see `Wire.addresses`; the remote one is a proxy's when there is one."""
    cookies: Mapping[str, str] = MappingProxyType({})
    """What the answer to a client's request set, mostly a load balancer's."""
    headroom: int
    """How many bytes before the message `send` may overwrite with its own header."""
    max_message: int = MAX_MESSAGE

    @abstractmethod
    def send(self, buffer: memoryview) -> None:
        """Block until the message `buffer[headroom:]` has been handed to the kernel.

        The first `headroom` bytes are scratch space.  The contents of the whole of `buffer` are
        undefined afterwards (it may be masked in place); the buffer itself is the caller's again.
        Raises PipeEnded with the first cause; when the path alone failed, `recv` still returns what the
        peer had sent before that, and then raises promptly.
        """

    def send_now(self, buffer: memoryview) -> bool:
        """Take the message `buffer[headroom:]` without blocking; False when a part of it could not be sent at once.

        What is left is kept in a copy, and goes out before anything else with the next `send` or `flush`, one of which
        must follow soon.  Everything else is as for `send`; to be called only where `can_send_now`.
        """
        raise NotImplementedError

    @property
    def can_send_now(self) -> bool:
        """Whether `send_now` may be called: this pipe has it, and owes nothing that must go out before."""
        return False

    @property
    def held_up(self) -> bool:
        """Whether what is sent now waits in this program, since the path takes nothing.  Does not block.

        A connection cannot tell: the kernel takes what fits into its buffers.
        """
        return False

    @property
    def in_requests(self) -> bool:
        """Whether messages wait for requests that carry them: how long they were on their way says nothing of a queue.

        A connection sends what it is given at once, or waits because the path does.
        """
        return False

    @property
    def unsent(self) -> int:
        """How many bytes of this pipe this end has yet to send, since the path takes no more; 0 where nobody can tell.

        Does not block.  Nobody can for a connection that several pipes share, nor where requests have connections of
        their own.
        """
        return 0

    @abstractmethod
    def recv(self) -> memoryview:
        """Block for the next message; the view is valid, and may be written to, until the next call.

        Never writes to the network, but for a close frame that cannot block once the pipe is over.  Raises
        PipeEnded with the first cause, also when the peer has ended in an orderly way, and ProtocolError
        for what the transport's own protocol forbids.  Either ends the pipe.
        """

    def watch(self) -> int | None:
        """Return the descriptor that says when there is something to receive; None for a pipe that has none.

        It stays open until `unwatch`; once the pipe has ended there is something: the end.  Raises PipeEnded when it
        has ended already.  By the thread that calls `recv`.
        """
        return None

    def unwatch(self) -> None:
        """Undo `watch`: nobody waits for the descriptor any more, nor calls `recv_within`."""
        raise NotImplementedError

    def readiness(self, watcher: Watcher) -> Readiness | None:
        """Return what tells `watcher` that there is something to receive; None for a pipe that cannot be watched.

        Does as `watch`, and its `close` as `unwatch`.  Raises PipeEnded when it has ended already.
        """
        fd = self.watch()
        return None if fd is None else DescriptorReadiness(watcher, fd, self.unwatch)

    def recv_within(self, seconds: float) -> memoryview | None:
        """Receive as `recv` does, but return None when nothing has come for `seconds`; 0 does not block.

        With 0 it also returns None, and `flooded` is set, when much has come and no message yet.  Between `watch` (or
        `readiness`) and its end only, in turn with `recv`; the time replaces `set_read_timeout`'s.
        """
        raise NotImplementedError

    def trim(self) -> None:  # noqa: B027 - not every transport has something to give
        """Give memory back that bulk has needed: little comes now.  By the thread that calls `recv`; does not block.

        What `recv` returned last is gone after this.
        """

    @property
    def flooded(self) -> bool:
        """Whether `recv_within` has returned None before it had looked at all that came, for the sake of others."""
        return False

    @property
    def buffered(self) -> bool:
        """Whether `recv_within` may have something although the descriptor says no more."""
        return False

    @property
    def holds_message(self) -> bool:
        """Whether a further message has come whole, so that `recv` does not wait.  False where nobody knows that."""
        return False

    @abstractmethod
    def set_read_timeout(self, seconds: float | None) -> None:
        """Make `recv` end the pipe after `seconds` without one raw byte received; None never does."""

    @abstractmethod
    def set_write_timeout(self, seconds: float | None) -> None:
        """End the pipe once sending has got no further at all for `seconds`, or up to a quarter more; None never does.

        A peer or a path that is slow is not punished: whatever it takes begins the time anew.  Both `send` and `recv`
        raise PipeEnded then.  From any thread; does not block; heeded from the next `send` on.
        """

    def set_unauthenticated(self, unauthenticated: bool) -> None:  # noqa: B027 - not every transport has limits of its own
        """While the peer is unauthenticated, `recv` takes no more than a handshake needs.

        A message above MAX_UNAUTHENTICATED ends the pipe before its bytes are waited for, and so do more of the
        transport's own frames (pings, fragments) than honest proxies make.  By the thread that calls `recv`.
        """

    def bind(self, secret: bytes) -> None:  # noqa: B027 - only a transport of many requests has something to bind
        """Tie the pipe to the handshake: from now on its requests are authenticated with `secret`.

        By the server before its last handshake message is sent, by the client after that has come.
        """

    @abstractmethod
    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """Have `wakeup` called when the pipe owes the peer control bytes and `flush` should be called.

        It is called by the reading thread, inside `recv`, so it must neither block nor call the pipe.
        """

    def set_on_leaving(self, callback: Callable[[], None]) -> None:  # noqa: B027 - not every transport announces it
        """Have `callback` called once, when the other end or a proxy says that the connection will not last.

        The pipe still carries what it is given: it is time to make the next one.  Called by the thread that reads, or
        by this one if that was said before; it must neither block nor call the pipe.  WebSocket has no such word.
        """

    @abstractmethod
    def flush(self) -> None:
        """Send the control bytes that reading made this pipe owe (pongs, KeyUpdate), if any.

        Called by the thread that calls `send`, which also sends them; blocks and raises as `send` does.
        What is pending is bounded: of many pings only the last is answered.
        """

    @abstractmethod
    def close(self, cause: str) -> None:
        """End the pipe and wake both threads.  Idempotent; the first cause is kept.  Does not block.

        What the peer sent and `recv` has not yet returned is lost.  So may be what we sent last, while the
        peer is still sending (TCP answers that with a reset): where the last word matters, wait for the peer's end
        first.
        """

    @property
    @abstractmethod
    def cause(self) -> str | None:
        """Why the pipe has ended, or None while it lives."""
