"""From addresses to one connected socket: Happy Eyeballs (RFC 8305).

    try the first address; after 250 ms, or as soon as one fails, the next; the first that answers wins

The calling thread does it all, with non-blocking sockets and one `poll`.  The order is the caller's (that of
`getaddrinfo`, RFC 6724), with families alternating.  An address that was tried in vain while another one answered is
tried last from then on, so that a dead IPv6 address, or the dead one of two records, costs its 250 ms once; and so is
one that connects and is of no use then (`demote`), which only the caller can know.  It is the losers and not the winner
that are remembered, since names with several good addresses spread their load by order.

Used by `qanat.transports.dial.tcp` for servers and proxies, and by `qanat.endpoints.tcp` for targets, whose addresses
have been checked against rules: nothing here looks a name up.
"""

from __future__ import annotations

import errno
import math
import os
import selectors
import socket
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from itertools import zip_longest

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import Canceled, ConnectError
from qanat.base.resolve import Address, SockAddr
from qanat.base.sockets import close_socket, set_no_pacing_within_machine

ATTEMPT_DELAY = 0.25
"""Seconds after which the next address is tried although the last one may still answer (RFC 8305 §5)."""
MAX_PENDING = 6
"""Addresses tried at once; each further one takes the place of the oldest."""
REMEMBERED_FOR = 3600.0
"""Seconds for which an address that was tried in vain is tried last."""
_MAX_REMEMBERED = 1024

_NON_BLOCKING = getattr(socket, "SOCK_NONBLOCK", 0)
_UNDER_WAY = (errno.EINPROGRESS, errno.EWOULDBLOCK)
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)  # neither needs a descriptor of its own


def connect(
    addresses: Sequence[Address],
    deadline: Deadline,
    cancel: Cancel | None = None,
    *,
    configure: Callable[[socket.socket], None] | None = None,
) -> tuple[socket.socket, SockAddr]:
    """Connect to the first of `addresses` that answers; return the socket, which blocks, and its address.

    Blocks until `deadline`, or until `cancel` is canceled.  `configure` sets options on each socket before it
    connects.  Raises ConnectError, which has what each address failed with, and Canceled.
    """
    connecting = Connecting(addresses, configure=configure)
    connected = None if deadline.passed or (cancel is not None and cancel.canceled) else connecting.at_once()
    return connected or connecting.wait(deadline, cancel)


def demote(address: SockAddr) -> None:
    """Try `address` after all others of its name from now on: it can be connected to, and nothing came of that.

    Does not block.
    """
    _slow.learn(None, [address])


class _Slow:
    """The addresses that were tried in vain while another one answered.  Bounded; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: OrderedDict[SockAddr, float] = OrderedDict()

    def order(self, addresses: Sequence[Address]) -> list[Address]:
        """Return `addresses` with those at their end, the last one to fail last: so all of them get their turn."""
        oldest = time.monotonic() - REMEMBERED_FOR

        def failed_at(address: Address) -> float:
            since = self._since.get(address[1], -math.inf)
            return since if since > oldest else -math.inf

        with self._lock:
            return sorted(addresses, key=failed_at)

    @property
    def known(self) -> bool:
        """Whether there are any."""
        return bool(self._since)

    def learn(self, winner: SockAddr | None, losers: Sequence[SockAddr]) -> None:
        """Remember `losers`, and `winner` no longer."""
        now = time.monotonic()
        with self._lock:
            if winner is not None:
                self._since.pop(winner, None)
            for loser in losers:
                self._since[loser] = now
                self._since.move_to_end(loser)
            while len(self._since) > _MAX_REMEMBERED:
                self._since.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._since.clear()


_slow = _Slow()


def _in_order(addresses: Sequence[Address]) -> list[Address]:
    """Return each address once: families alternate, beginning with the first one's (RFC 8305 §4)."""
    if len(addresses) == 1:
        return list(addresses)
    once = list(dict.fromkeys(addresses))
    first = [a for a in once if a[0] == once[0][0]]
    others = [a for a in once if a[0] != once[0][0]]
    alternating = [a for pair in zip_longest(first, others) for a in pair if a is not None]
    return _slow.order(alternating)


class Connecting:
    """What `connect` does, in two steps: what can be had without blocking, and what has to be waited for.

    One thread at a time.  What raises or returns a socket was the last step; whoever takes no other one calls `close`.
    """

    def __init__(
        self, addresses: Sequence[Address], *, configure: Callable[[socket.socket], None] | None = None
    ) -> None:
        """`addresses` and `configure` are as for `connect`.  Begins nothing."""
        self._left = deque(_in_order(addresses))
        self._configure = configure
        self._pending: dict[socket.socket, SockAddr] = {}  # in the order in which they began
        self._waited_for: list[SockAddr] = []  # all that ever were pending, in that order
        self._failures: dict[SockAddr, OSError] = {}
        self._next_at = 0.0  # when the next address's turn comes, though others are pending

    def at_once(self) -> tuple[socket.socket, SockAddr] | None:
        """Return what is connected already; None when it has to be waited for.  Does not block.

        What is on this machine mostly is.  Raises ConnectError when every address has failed already.
        """
        try:
            while self._left and not self._pending:
                sock = self._begin()
                if sock is not None and self._ended_at_once(sock):
                    return self._won(sock)
            if self._pending:
                return None
        except BaseException:
            self.close()
            raise
        raise ConnectError(list(self._failures.items()))

    def wait(self, deadline: Deadline, cancel: Cancel | None = None) -> tuple[socket.socket, SockAddr]:
        """Return the first that answers.  Blocks and raises as `connect` does."""
        cancel = cancel or Cancel()
        try:
            winner = None if cancel.canceled else self._wait_for_winner(deadline, cancel)
            if winner is not None:
                return self._won(winner)
        finally:
            self.close()
        if cancel.canceled:
            raise Canceled
        raise ConnectError(list(self._failures.items()))

    def _wait_for_winner(self, deadline: Deadline, cancel: Cancel) -> socket.socket | None:
        """Return the first that is connected; None when all have failed, time is up or it was canceled.  Blocks."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            for address in (*self._pending.values(), *(a for _, a in self._left)):
                self._failures[address] = _error(error.errno or errno.EINVAL)
            return None
        with ours, theirs, _Selector() as selector:
            selector.register(ours, selectors.EVENT_READ)
            for sock in self._pending:
                selector.register(sock, selectors.EVENT_WRITE)
            with cancel.waking(lambda: theirs.send(b"x")):
                while not cancel.canceled:
                    if deadline.passed:
                        self._give_up()
                        return None
                    self._begin_due(selector)
                    if not self._pending:
                        return None
                    winner = self._wait(selector, deadline)
                    if winner is not None:
                        return winner
        return None

    def close(self) -> None:
        """Close every socket that has not won.  Idempotent; does not block."""
        for sock in self._pending:
            close_socket(sock)
        self._pending.clear()

    def _begin_due(self, selector: selectors.BaseSelector) -> None:
        """Begin with each address whose turn has come."""
        while self._left and (not self._pending or time.monotonic() >= self._next_at):
            sock = self._begin()
            if sock is None:
                continue
            selector.register(sock, selectors.EVENT_WRITE)
            if len(self._pending) > MAX_PENDING:
                oldest = next(iter(self._pending))
                selector.unregister(oldest)
                self._fail(oldest, errno.ETIMEDOUT)

    def _wait(self, selector: selectors.BaseSelector, deadline: Deadline) -> socket.socket | None:
        """Wait until one is connected, which is returned, one has failed, or the next one's turn has come."""
        waits = [deadline.remaining(), self._next_at - time.monotonic() if self._left else None]
        for key, _ in selector.select(min((wait for wait in waits if wait is not None), default=None)):
            sock = key.fileobj
            if not isinstance(sock, socket.socket) or sock not in self._pending:
                continue  # the one that wakes us
            selector.unregister(sock)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not number and not _is_connected_to_itself(sock, self._pending[sock]):
                return sock
            self._fail(sock, number or errno.ECONNREFUSED)
            self._next_at = time.monotonic()
        return None

    def _begin(self) -> socket.socket | None:
        """Begin to connect to the next address; return its socket, which is pending, or None when it failed at once."""
        self._next_at = 0.0
        family, address = self._left.popleft()
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | _NON_BLOCKING)
        except OSError as error:
            self._failures[address] = _error(error.errno or errno.EINVAL)
            return None
        self._pending[sock] = address
        try:
            if not _NON_BLOCKING:
                sock.setblocking(False)
            set_no_pacing_within_machine(sock, address[0])
            if self._configure is not None:
                self._configure(sock)
            number = sock.connect_ex(address)
        except OSError as error:
            number = error.errno or errno.EINVAL
        if number and number not in _UNDER_WAY:
            self._fail(sock, number)
            return None
        self._waited_for.append(address)
        self._next_at = time.monotonic() + ATTEMPT_DELAY
        return sock

    def _ended_at_once(self, sock: socket.socket) -> bool:
        """Return whether `sock` is connected already; one that has failed already is no longer pending.

        Linux tells whoever asks for the same again, and forgets the failure by that (connect(2)).
        """
        if sys.platform != "linux":
            return False
        address = self._pending[sock]
        number = sock.connect_ex(address)
        if number == errno.EALREADY:
            return False
        if number not in (0, errno.EISCONN):
            self._fail(sock, number)
        elif _is_connected_to_itself(sock, address):
            self._fail(sock, errno.ECONNREFUSED)
        else:
            return True
        return False

    def _fail(self, sock: socket.socket, number: int) -> None:
        self._failures[self._pending.pop(sock)] = _error(number)
        close_socket(sock)

    def _give_up(self) -> None:
        """Take the time being over for the failure of all that is pending, and of what was never tried."""
        for address in (*self._pending.values(), *(address for _, address in self._left)):
            self._failures[address] = _error(errno.ETIMEDOUT)

    def _won(self, sock: socket.socket) -> tuple[socket.socket, SockAddr]:
        address = self._pending.pop(sock)
        sock.setblocking(True)
        before = self._waited_for[: self._waited_for.index(address)]
        if before or _slow.known:
            _slow.learn(address, before)
        return sock, address


def _is_connected_to_itself(sock: socket.socket, address: SockAddr) -> bool:
    """Return whether this is TCP's simultaneous open of a local port with itself: nobody listens there."""
    return bool(sock.getsockname() == address)


def _error(number: int) -> OSError:
    # Made anew even where there is one: a race that kept an error with its traceback would be kept by that.
    return OSError(number, "no answer in time" if number == errno.ETIMEDOUT else os.strerror(number))
