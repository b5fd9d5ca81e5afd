"""The ports of a client's local forwards: those that can be had are bound at once, the others as soon as they are free.

Forwards come and go while the client runs (`change`); one that stays is not touched by it.  A place is
`qanat.client.local_port`'s, what becomes of a connection `qanat.client.client`'s, which calls this.

Threads: the watcher accepts; while a forward is not bound, the *forwards* thread asks again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qanat.base.endpoint_addresses import Anywhere, TcpAddress, UdpAddress
from qanat.base.errors import EndpointError, NoThread
from qanat.base.threads import start_thread
from qanat.base.unexpected import log_unexpected
from qanat.base.watcher import Watcher
from qanat.client.forward_changes import Fate, ForwardChange, compare_forwards, match_ports
from qanat.client.forward_shares import ServedForward
from qanat.client.local_port import LocalPort, Service
from qanat.client.port_lists import describe_failures, describe_place
from qanat.config.forward_settings import Forward
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE, ApplicationKeepalive

log = logging.getLogger("qanat.client")

Serve = Callable[[Forward], tuple[ServedForward, ...]]
"""Returns the ports of a forward, and what the streams of each share."""


@dataclass(eq=False)
class _Range:
    """One as it was written, which may have many ports; messages are about all of them."""

    forward: Forward
    ports: tuple[LocalPort, ...]
    told: str = ""  # what was last said of those that failed

    @property
    def failed(self) -> dict[int, str]:
        """Why, by port, those failed that did in the last try."""
        return {_port_of(one.forward): one.failure.message for one in self.ports if one.failure is not None}

    @property
    def failure(self) -> EndpointError | None:
        """Return what to say of all that failed, None when none did."""
        errors = [one.failure for one in self.ports if one.failure is not None]
        if not errors:
            return None
        return EndpointError(describe_failures(self.forward, self.failed), code=errors[0].code, hint=errors[0].hint)

    def describe(self, ports: Sequence[LocalPort]) -> str:
        """Return where these of its ports, which are bound, listen."""
        if self.forward.ports == 1:
            return ports[0].address
        return describe_place(self.forward, [one.port for one in ports])


class LocalForwards:
    """The local ones of a client's forwards, from `bind` to `close`.  Its methods may be called from any thread."""

    def __init__(
        self,
        forwards: Sequence[Forward],
        serve: Serve,
        service: Service,
        watcher: Watcher,
        keepalive: ApplicationKeepalive = DEFAULT_KEEPALIVE,
    ) -> None:
        """`watcher` accepts, and gives `service` what comes; `serve` is asked for each local one of `forwards`."""
        self._service = service
        self._watcher = watcher
        self.keepalive = keepalive
        """How the connections of ports that are bound from now on are probed."""
        self._changed = threading.Condition()  # guards all below, and the ports
        self._ranges = [
            _Range(forward, tuple(map(self._port, serve(forward)))) for forward in forwards if forward.kind == "local"
        ]
        self._started = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def bind(self, *, all_or_nothing: bool) -> None:
        """Bind what can be bound; log what cannot.  Does not block, and does not accept before `start`.

        With `all_or_nothing` raises EndpointError, which names every forward that failed; nothing is left bound then.
        """
        with self._changed:
            try:
                for one in self._all_locked():
                    one.bind()
            except BaseException:
                self.close()
                raise
            failures = [error for each in self._ranges if (error := each.failure) is not None]
            if failures and all_or_nothing:
                self.close()
                raise EndpointError(
                    "; ".join(failure.message for failure in failures), code=failures[0].code, hint=failures[0].hint
                )
            for each in self._ranges:
                _tell(each, each.ports)

    def start(self) -> None:
        """Accept connections from now on, and ask again for what could not be bound.  Does not block."""
        with self._changed:
            self._started = True
            for each in self._ranges:
                for one in each.ports:
                    one.start()
                _tell(each)
            self._ask_again_locked()

    def change(self, forwards: Sequence[Forward], serve: Serve) -> list[ForwardChange]:
        """Have these forwards in place of the present ones, and return what came of each that differs.

        A port that stays is not bound anew, and one that cannot be bound is asked for again as at the start.  Blocks
        for a moment at most.
        """
        wanted = [forward for forward in forwards if forward.kind == "local"]
        with self._changed:
            if self._closed:
                return []
            fates = compare_forwards([each.forward for each in self._ranges], wanted)
            ports = self._all_locked()
            served = {id(forward): serve(forward) for forward in wanted}
            parts = [part for forward in wanted for part in served[id(forward)]]
            matches = match_ports([one.forward for one in ports], [part.forward for part in parts])
            for index in set(range(len(ports))).difference(match for match in matches if match is not None):
                ports[index].close()  # before another one takes its place
            told = {each.forward: each.told for each in self._ranges}
            now = iter(
                [self._continue(part, None if m is None else ports[m]) for part, m in zip(parts, matches, strict=True)]
            )
            self._ranges = [
                _Range(forward, tuple(next(now) for _ in range(forward.ports)), told.get(forward, ""))
                for forward in wanted
            ]
            changes = [ForwardChange(Fate.REMOVED, forward) for forward in fates.removed]
            for each in self._ranges:
                if each.forward in fates.changed or each.forward in fates.added:
                    changes.append(self._begin_locked(each, fates.changed.get(each.forward)))
            self._ask_again_locked()
            self._changed.notify_all()
        return changes

    def close(self) -> None:
        """Stop accepting, and free the ports.  Idempotent; joins the threads."""
        with self._changed:
            self._closed = True
            for one in self._all_locked():
                one.close()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    @property
    def states(self) -> list[tuple[str, str, str, str]]:
        """Of each forward, as it is written: its kind, where it listens, where it leads, and why it does not listen."""
        found = []
        with self._changed:
            for each in self._ranges:
                forward, bound = each.forward, [one for one in each.ports if one.is_bound]
                kind = "dynamic" if isinstance(forward.to, Anywhere) else "local"
                where = bound[0].address if len(bound) == 1 == forward.ports else str(forward).split(" ")[1]
                failure = each.failure
                missing = "" if len(bound) == len(each.ports) else "it is not bound yet"
                found.append((kind, where, forward.target, missing if failure is None else failure.message))
        return found

    def bound_ports(self, forward: Forward) -> list[int]:
        """Return the ports that are bound for one of them."""
        with self._changed:
            return [one.port for each in self._ranges if each.forward == forward for one in each.ports if one.is_bound]

    @property
    def ports(self) -> list[int]:
        """The ports that are bound, in the order of the forwards."""
        with self._changed:
            return [one.port for one in self._all_locked() if one.is_bound]

    def _all_locked(self) -> list[LocalPort]:
        return [one for each in self._ranges for one in each.ports]

    def _port(self, served: ServedForward) -> LocalPort:
        return LocalPort(served, self._service, self._watcher, self.keepalive)

    def _continue(self, served: ServedForward, port: LocalPort | None) -> LocalPort:
        """Return the port that serves a forward from now on: the one that is there, or a new one."""
        if port is None:
            return self._port(served)
        try:
            port.change(served)
        except EndpointError as error:
            log.error("%s: %s", served.forward, error)
        return port

    def _begin_locked(self, each: _Range, was: Forward | None) -> ForwardChange:
        """Bind what is not bound of a forward that is new, or is not what it was; return what came of it."""
        tried = [one for one in each.ports if not one.is_bound]
        for one in tried:
            one.bind()
            if self._started:
                one.start()
        _tell(each, tried)
        bound = [one for one in each.ports if one.is_bound]
        failure = each.failure
        return ForwardChange(
            Fate.ADDED if was is None else Fate.CHANGED,
            each.forward,
            (each.describe(bound),) if bound else (),
            "" if failure is None else str(failure),
            was=was,
            again="" if failure is None else f"{_wait(each):.0f} s",
        )

    def _ask_again_locked(self) -> None:
        """Have the forwards thread ask for what is not bound."""
        if self._started and self._thread is None and not all(one.is_bound for one in self._all_locked()):
            try:
                self._thread = start_thread("forwards", self._forwards_loop)
            except NoThread as error:
                log.error("what is not bound is not asked for again: %s", error)

    def _forwards_loop(self) -> None:
        with self._changed:
            while not self._closed:
                missing = [one for one in self._all_locked() if not one.is_bound]
                if not missing:
                    break
                wait = min(one.retry_at for one in missing) - time.monotonic()
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                for each in self._ranges:
                    self._try_again_locked(each)
            self._thread = None

    def _try_again_locked(self, each: _Range) -> None:
        """Try those of one range whose time has come, and say what came of it."""
        tried = [one for one in each.ports if not one.is_bound and one.retry_at <= time.monotonic()]
        for one in tried:
            try:
                one.bind()
                one.start()
            except Exception:
                log_unexpected(f"listening for {one.forward} failed")
                one.fail_unexpectedly()
        if tried:
            _tell(each, tried)


def _tell(each: _Range, tried: Sequence[LocalPort] = ()) -> None:
    """Say which of those that were just tried listen, and what has failed, unless that was said already."""
    bound = [one for one in tried if one.is_bound]
    if bound:
        log.info(
            "listening on %s for %s at the server's end",
            each.describe(bound),
            each.forward.target,
            extra={"event": "listening"},
        )
    error = each.failure
    if error is not None and error.message != each.told:
        log.error("%s: %s; asking again in %.0f s", each.forward, error, _wait(each))
    each.told = "" if error is None else error.message


def _wait(each: _Range) -> float:
    """Return the seconds until what has failed is tried again."""
    return max(0.0, min(one.retry_at for one in each.ports if one.failure is not None) - time.monotonic())


def _port_of(forward: Forward) -> int:
    return forward.listen.port if isinstance(forward.listen, TcpAddress | UdpAddress) else 0
