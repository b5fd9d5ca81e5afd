"""Notices that the route of a connection has changed: another Wi-Fi, a VPN that came up, a machine that slept.

TCP itself finds out only after minutes of silence.  Here the kernel is asked which local address it would now use
towards the connection's other end (a connected UDP socket: no packet is sent).  It is asked at regular intervals, and
on Linux at once when the kernel says, over netlink, that links, addresses or routes have changed.

What to do about it is up to the caller: the connection may still work, as it does when IPv6 has only begun to use
another temporary address (RFC 8981).  Where routing tells TCP from UDP, a connection looks changed from the beginning,
and that is reported once.  Used by `qanat.client.reconnector` for connections, and by
`qanat.client.server_connection` while there is none, so that it need not sit out its back-off once there is a network.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable

from qanat.base.errors import LocalError
from qanat.base.threads import start_thread
from qanat.base.unexpected import log_unexpected
from qanat.transports.pipe import SockAddr

log = logging.getLogger("qanat.network")

ASLEEP = "the machine was asleep"
BACK = "the network was gone and is back"

WAYS_OUT: tuple[SockAddr, ...] = (("192.0.2.1", 443), ("2001:db8::1", 443, 0, 0))
"""Addresses that nobody has (RFC 5737, RFC 3849): the way to them is that to the rest of the world."""

_MIN_SLEEP = 5.0
"""Seconds asleep between two checks that count; less may be a clock that was set."""
_QUIET = 0.2
"""Seconds without news from netlink after which a change is taken to be complete."""
_MAX_NEWS = 1.0
"""Seconds after the first news when all connections are checked, though more still come."""


class Watched:
    """One connection, or the way to a host; a handle for `NetworkWatch.remove`, and nothing else to anybody."""

    def __init__(self, local: SockAddr | None, remote: SockAddr, on_change: Callable[[str], None]) -> None:
        self.own = None if local is None else _host(local)
        self.remote = remote
        self.on_change = on_change
        self.source: tuple[str, int] | None = self.own  # as last seen; None while there is no route at all

    def compare(self, source: SockAddr | None) -> str | None:
        """Return why its owner should be told, now that the kernel would send from `source`; None if it should not."""
        if source is None:
            self.source = None
            return None
        before, self.source = self.source, _host(source)
        if before == self.source:
            return None
        if self.own is not None and self.source != self.own:
            remote, now, own = _text(_host(self.remote)), _text(self.source), _text(self.own)
            return f"the route to {remote} now starts at {now}, not at {own}"
        return BACK if before is None or self.own is None else None


class NetworkWatch:
    """Watches connections with one thread, `network-watch`.  Safe to use from any thread."""

    def __init__(
        self,
        interval: float = 5.0,
        *,
        source_for: Callable[[SockAddr], SockAddr | None] | None = None,
        slept: Callable[[], float] | None = None,
        netlink: bool = True,
    ) -> None:
        """Take the number of seconds between two checks, for when nothing announces a change.

        `source_for` returns the local address for a remote one, None without any route, and raises OSError when it
        cannot tell; `slept` returns how many seconds the machine has been asleep since some moment.  Without `netlink`
        nothing is announced.
        """
        self._interval = interval
        self._source_for = source_for or ask_kernel
        self._slept = slept or seconds_asleep
        self._use_netlink = netlink
        self._lock = threading.Lock()  # guards the next; never held while asking the kernel or calling back
        self._watched: dict[Watched, None] = {}  # used as an ordered set
        self._thread: threading.Thread | None = None
        self._stop: tuple[socket.socket, socket.socket] | None = None

    def start(self) -> None:
        """Begin to watch; to be called once.  Does not block."""
        if self._thread is not None:
            raise LocalError("the network is being watched already")
        # The baselines are from before this returns, and so is what netlink reports.
        news = _open_netlink() if self._use_netlink else None
        asleep = self._slept()
        stop, _ = self._stop = socket.socketpair()
        self._thread = start_thread("network-watch", lambda: self._watch_loop(stop, news, asleep))

    def close(self) -> None:
        """End the thread, and wait for it.  Idempotent; blocks while an `on_change` runs, so never called by one."""
        if self._thread is None or self._stop is None:
            return
        with contextlib.suppress(OSError):
            self._stop[1].shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for end in self._stop:
            end.close()

    def add(self, addresses: tuple[SockAddr, SockAddr], on_change: Callable[[str], None]) -> Watched:
        """Watch the connection with these (local, remote) addresses; returns what `remove` takes.  Does not block.

        At each change of its route `on_change` is called once with the reason, in words for a log, by the watcher's
        thread and without a lock; it must not block.  A change from before this call counts too.  When there is no
        route at all, it is called as soon as there is one again.
        """
        return self._add(Watched(*addresses, on_change))

    def add_way(self, remote: SockAddr, on_change: Callable[[str], None]) -> Watched:
        """Watch the way to `remote`, to which there is no connection, from this moment on.

        Otherwise as `add`.  Raises nothing: a way that cannot be asked for counts as none.
        """
        try:
            source = self._source_for(remote)
        except OSError:
            source = None
        return self._add(Watched(source, remote, on_change))

    def _add(self, watched: Watched) -> Watched:
        with self._lock:
            self._watched[watched] = None
        return watched

    def remove(self, handle: Watched) -> None:
        """Watch it no more.  Idempotent; does not block, so a call that has begun may still end after this."""
        with self._lock:
            self._watched.pop(handle, None)

    # --- the thread

    def _watch_loop(self, stop: socket.socket, news: socket.socket | None, asleep: float) -> None:
        with selectors.DefaultSelector() as selector, news or contextlib.nullcontext():
            selector.register(stop, selectors.EVENT_READ)
            if news is not None:
                selector.register(news, selectors.EVENT_READ)
            while self._wait(selector, stop):
                before = asleep
                try:
                    asleep = self._slept()
                    self._check_all(asleep - before > _MIN_SLEEP)
                except Exception:
                    log_unexpected("watching the network failed")

    def _wait(self, selector: selectors.BaseSelector, stop: socket.socket) -> bool:
        """Block until it is time to check; False when the watch is closed."""
        ready = selector.select(self._interval)
        latest = time.monotonic() + _MAX_NEWS
        while ready:
            for key, _ in ready:
                if key.fileobj is stop:
                    return False
                if isinstance(key.fileobj, socket.socket) and not _drain(key.fileobj):
                    selector.unregister(key.fileobj)  # from now on, only at intervals
            remaining = latest - time.monotonic()
            ready = selector.select(min(_QUIET, remaining)) if remaining > 0 else []
        return True

    def _check_all(self, slept: bool) -> None:
        with self._lock:
            watched = list(self._watched)
        for one in watched:
            try:
                self._check(one, slept)
            except Exception:
                log_unexpected(f"watching the network for {_text(_host(one.remote))} failed")

    def _check(self, one: Watched, slept: bool) -> None:
        try:
            why = one.compare(self._source_for(one.remote))
        except OSError as error:
            log.debug("cannot ask for the route to %s: %s", _text(_host(one.remote)), error)
            why = None
        if slept:
            why = ASLEEP
        with self._lock:
            wanted = one in self._watched
        if why is not None and wanted:
            log.debug("%s", why)
            one.on_change(why)


def ask_kernel(remote: SockAddr) -> SockAddr | None:
    """Return the local address from which the kernel would now send to `remote`; None when there is no route to it.

    Sends nothing and does not block.  Raises OSError when there is no socket to ask with.
    """
    with socket.socket(socket.AF_INET6 if len(remote) == 4 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(remote)
        except OSError:
            return None
        address: SockAddr = sock.getsockname()
        return address


def seconds_asleep() -> float:
    """Return for how long the machine has slept since some moment.  Does not block.

    Elsewhere than on Linux a wall clock that is set looks the same, and clocks that both count sleep show nothing.
    """
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.time() - time.monotonic()


def _open_netlink() -> socket.socket | None:
    """Open a socket that is readable when links, addresses or routes change (rtnetlink(7)); None elsewhere."""
    if sys.platform != "linux":
        return None
    sock = None
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        sock.setblocking(False)
        # RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE of linux/rtnetlink.h
        sock.bind((0, 0x1 | 0x10 | 0x40 | 0x100 | 0x400))
    except OSError as error:
        if sock is not None:
            sock.close()
        log.debug("changes of the network are not announced here: %s", error)
        return None
    return sock


def _drain(news: socket.socket) -> bool:
    """Discard what has come, whatever it says; False when nothing more can come."""
    while True:
        try:
            news.recv(65536)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # which is news too: more came than there was room for
                log.debug("changes of the network are no longer announced: %s", error)
                return False


def _host(address: SockAddr) -> tuple[str, int]:
    """Return the address without the port.  IPv6's link-local addresses differ by their scope, too."""
    return str(address[0]).partition("%")[0], int(address[3]) if len(address) == 4 else 0


def _text(host: tuple[str, int]) -> str:
    return f"{host[0]}%{host[1]}" if host[1] else host[0]
