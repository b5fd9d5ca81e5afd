"""One connection to one server, as far as READY: dial, authenticate, exchange HELLO.  Every wait can be canceled.

`Connector` knows a server's candidates (each URL over each transport) and its key.  With `transport: auto` there is one
candidate, which stands for all ways to the server: `qanat.client.race` finds the one that works.
`qanat.client.server_connection` uses it for a session's first connection, `qanat.client.reconnector` for all others;
both handle failures themselves.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from qanat.base.addresses import parse_address
from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import NameLookupError, ProtocolError, QanatError, RefusedError, TransportError
from qanat.base.resolve import SockAddr, numeric_address
from qanat.base.text import printable
from qanat.base.threads import ThreadGroup
from qanat.client.backoff import MAX_SERVER_DELAYS
from qanat.client.known_hosts import KnownHosts
from qanat.client.long_try import LongTry
from qanat.client.race import PATIENCE, Attempt, Failure, Race, RaceLost, Step, describe_wait
from qanat.client.remembered_ways import RememberedWays
from qanat.client.ways import Candidate, Ways
from qanat.config.client_settings import ClientSettings, RemoteServer
from qanat.config.texts import AUTO
from qanat.handshake.exchange import SealedPipe, await_probe, client_handshake, closed_at, probe, send_probe
from qanat.handshake.hello import Close, CloseReason, Hello, Ready, RecordKind
from qanat.handshake.key_pool import ClientKeyPool
from qanat.handshake.keys import fingerprint_of
from qanat.handshake.machine import ClientHandshake
from qanat.transports.dial import tcp
from qanat.transports.dial.answer_fields import with_newer
from qanat.transports.dial.proxies import Proxy
from qanat.transports.dial.route import DialStep, Route
from qanat.transports.dial.tcp import learn_failure, learn_success
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2 import extended_connect, grpc
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.pipe import Pipe
from qanat.transports.split import connect as split
from qanat.transports.websocket import upgrade as websocket

log = logging.getLogger("qanat.client")


@dataclass(frozen=True, slots=True)
class _Transport:
    """How to make a pipe, and what goes out first for it, in words for the log."""

    connect: Callable[..., Pipe]
    sends: str


_CONNECT: dict[str, _Transport] = {
    "websocket": _Transport(websocket.connect, "a GET with Upgrade: websocket"),
    "websocket-h2": _Transport(extended_connect.connect, "an extended CONNECT (RFC 8441)"),
    "http2": _Transport(http2.connect, "a POST over HTTP/2 whose body stays open"),
    "grpc": _Transport(grpc.connect, "a gRPC call"),
    "split": _Transport(split.connect, "a GET for what comes down, and POSTs for what goes up"),
}
"""All transports, in the order in which `transport: auto` starts them (docs/DECISIONS.md)."""


PROOF_TIMEOUT = 3.0
"""Seconds for what probes a known way to come back; after that others are tried first.  READY may take longer: before
it the server may wait for the older session of the same name (`takeover_timeout`)."""


class SessionOver(QanatError):
    """The server answered HELLO with the end of the session."""


class NameInUse(RefusedError):
    """Another process is connected under our name.  Passes when that one ends."""


class Connector:
    """Makes connections to one server.  Safe to use from any thread."""

    def __init__(self, settings: ClientSettings, server: RemoteServer, keys: ClientKeyPool, known: KnownHosts) -> None:
        """Read URLs and TLS files.  Raises UsageError for one that cannot be used, or a file that could not be kept."""
        urls = [TunnelUrl.parse(url) for url in server.urls]
        self._urls = urls
        self.candidates = tuple(Candidate(url, transport) for transport in settings.transports for url in urls)
        self.ways: Ways | None = None
        """With `transport: auto`, what is known of the ways to the server, for which one candidate stands."""
        if AUTO in settings.transports:
            whichever = Candidate(urls[0], AUTO)
            self.candidates = tuple(c for c in self.candidates if c.transport != AUTO or c == whichever)
            directory = settings.state_dir
            remembered = RememberedWays(None if directory is None else directory / "ways")
            self.ways = Ways([Candidate(url, transport) for transport in _CONNECT for url in urls], remembered)
        self._settings = settings
        self._server = server
        self._keys = keys
        self._known_hosts = known
        self._route = route_of(settings)
        self._cookies: dict[str, Mapping[str, str]] = {}  # by host; a load balancer's, each replaced as a whole
        self._dialing = ThreadGroup("ways")
        self._told: dict[Candidate, Hashable] = {}  # what the log said last of a way that failed
        self._told_to_wait = Counter[Candidate]()  # how often in a row
        self._patience = PATIENCE
        self._dead: set[SockAddr] = set()  # where nothing was said, while there are others
        # Files that cannot be used end the start, not each try.
        if any(url.tls for url in urls):
            self._route.tls_context(())
        if server.fingerprint is None:
            known.check_usable([url.address for url in urls])

    def goes(self, settings: ClientSettings, server: RemoteServer) -> bool:
        """Return whether it goes the ways of these settings: by the same URLs, transports and route."""
        same = self._server.urls == server.urls and self._settings.transports == settings.transports
        return same and self._route == route_of(settings)

    def use(self, settings: ClientSettings, server: RemoteServer) -> None:
        """Take over from settings for which `goes` is true what else is in them: for the next connection."""
        self._settings, self._server = settings, server

    def follow(self, former: Connector) -> None:
        """Go on with what another one has learned of a server that is the same: the cookies of its load balancer."""
        self._cookies.update(former._cookies)

    def allows(self, way: Candidate, former: Connector) -> bool:
        """Return whether a connection that `former` has made over `way` is one that this could have made."""
        ways = self.candidates if self.ways is None else self.ways.candidates
        return way in ways and self._route == former._route

    @property
    def literal_addresses(self) -> tuple[SockAddr, ...]:
        """The addresses of servers and proxies that are written as such, and that this machine's networks have."""
        hosts = [self._route.target(url) for url in self._urls]
        if isinstance(self._route.proxy, Proxy):
            hosts.append((self._route.proxy.host, self._route.proxy.port))
        found: dict[SockAddr, None] = {}
        for host, port in hosts:
            if parse_address(host) is not None:
                with contextlib.suppress(NameLookupError):  # its interface may not be there now
                    found[numeric_address(host, port)[1]] = None
        return tuple(found)

    @property
    def proxy_text(self) -> str:
        """The proxy that leads to the first URL, without its login; "" where the way is straight or none is usable."""
        return self.proxy_of(self._urls[0])

    def proxy_of(self, url: TunnelUrl) -> str:
        """Return the proxy that leads to `url`, likewise."""
        try:
            proxy = self._route.proxy_for(url)
        except QanatError:
            return ""
        return "" if proxy is None else str(proxy)

    def reach(
        self, candidate: Candidate, cancel: Cancel, node: str | None = None, trying: LongTry | None = None
    ) -> tuple[Candidate, SealedPipe]:
        """Dial and authenticate; return the way that it went, which is `candidate` unless that is `auto`.

        Blocks and raises as `connect`; with `auto` for one race, which ends when nothing more can be expected of it.
        `trying` is told what it waits for.
        """
        if self.ways is None or candidate.transport != AUTO:
            return candidate, self.connect(candidate, cancel, node, trying=trying)
        return self._race(self.ways, cancel, node, trying)

    def connect(
        self,
        candidate: Candidate,
        cancel: Cancel,
        node: str | None = None,
        attempt: Attempt | None = None,
        *,
        known: bool = False,
        trying: LongTry | None = None,
    ) -> SealedPipe:
        """Dial and authenticate.  `node` names the server to reach, when several are behind one URL.

        With an `attempt`, one of a race, each step is noted there, and the path is probed at the end; on a `known` way,
        which worked here last, `exchange_hello` waits for that, so that it costs no round trip.  Blocks for
        `connect_timeout` and `handshake_timeout` at most, or until `cancel` is canceled.  Raises RefusedError,
        TransportError, ProtocolError, and UsageError for files that can no longer be used.
        """
        if candidate.transport == AUTO:
            return self.reach(candidate, cancel, node, trying)[1]
        settings = self._settings
        progress = _Progress(_CONNECT[candidate.transport].sends)
        if trying is not None:
            trying.waits_for = progress.describe
        note = progress.note if attempt is None else attempt.step
        route = replace(self._route, node=node)
        if node is not None:
            route = replace(route, cookies=tuple(self._cookies.get(candidate.url.host, {}).items()))
        route = replace(route, on_step=partial(_note_dialing, note), one_of_several=attempt is not None)
        pipe = _CONNECT[candidate.transport].connect(
            candidate.url, route=route, deadline=Deadline(settings.connect_timeout), cancel=cancel
        )
        deadline = Deadline(settings.handshake_timeout)

        def check_server(spki: bytes) -> None:
            note(Step.HEARD)
            self._check_server(candidate.url, spki)

        try:
            with cancel.waking(lambda: pipe.close("the client is stopping")):
                note(Step.ANSWERED)
                with contextlib.nullcontext() if attempt is None else attempt.waiting_for_us():
                    key = self._keys.take(deadline.remaining() or 0.0)
                handshake = ClientHandshake(settings.name, self._server.token, key, check_server)
                sealed = client_handshake(pipe, handshake, deadline)
                if attempt is not None:
                    note(Step.PROVEN)
                    if sealed.result.takes_probes and known:
                        with closed_at(deadline, sealed.pipe):
                            send_probe(sealed)
                    elif sealed.result.takes_probes:
                        probe(sealed, deadline, lambda came: note(Step.PROVEN))
                return sealed
        except BaseException as error:
            pipe.close("the handshake failed")
            self._learn_failure(pipe, error, deadline, cancel)
            raise

    def prove(self, way: Candidate, cancel: Cancel, node: str | None) -> SealedPipe:
        """Return a pipe over this one way, if it works as a race demands; blocks and raises as `connect`."""
        race = Race(
            (way,),
            lambda attempt: self.connect(way, attempt.cancel, node, attempt),
            lambda candidate: self._route.target(candidate.url),
            self._dialing,
            elsewhere=lambda address: False,
        )
        try:
            return race.run(cancel)[1]
        except RaceLost as lost:
            self._tell_failures(lost.failures)
            raise _no_way(way.url, lost.failures) from None

    def join(self, timeout: float) -> list[str]:
        """Block at most `timeout` seconds until nothing is dialed any more; return the names of threads that still do.

        What was canceled ends soon.
        """
        return self._dialing.join(timeout)

    def _race(
        self, ways: Ways, cancel: Cancel, node: str | None, trying: LongTry | None
    ) -> tuple[Candidate, SealedPipe]:
        """Return the way that works, and its pipe.

        What was not tried, since the server was reached too often, or an address did nothing though there are others,
        comes first the next time.
        """
        order = ways.order()
        known = ways.current if ways.current == order[0] else None  # else it has failed since
        race = Race(
            order,
            lambda attempt: self.connect(
                attempt.candidate, attempt.cancel, node, attempt, known=attempt.candidate == known
            ),
            lambda candidate: self._route.target(candidate.url),
            self._dialing,
            elsewhere=lambda address: tcp.has_others(address, self._dead),
            obeys=self._obeys,
            known=ways.current,
            patience=self._patience,
        )
        if trying is not None:
            trying.waits_for = partial(_describe_race, race)
        try:
            winner, sealed = race.run(cancel)
        except RaceLost as lost:
            if not _is_the_same_for_all(lost.failures):  # else the error says it
                self._tell_failures(lost.failures)
            if any(failure.silent for failure in lost.failures):
                self._patience = min(2 * self._patience, self._settings.connect_timeout)
            if not self._give_up_addresses(lost.failures):
                self._mark_failures(ways, lost.failures)
            raise _no_way(self._urls[0], lost.failures, lost.untried) from None
        self._patience = PATIENCE
        self._told_to_wait.clear()
        self._dead.clear()
        self._tell_failures(race.failures)
        self._mark_failures(ways, race.failures)
        self._told.pop(winner, None)
        return winner, sealed

    def _give_up_addresses(self, failures: Sequence[Failure]) -> bool:
        """Have other addresses tried first where nothing was said at one; return whether there are any.

        Then what failed there says nothing of the transports.
        """
        alive = {failure.address for failure in failures if not failure.silent or failure.step >= Step.ANSWERED}
        dead = {failure.address for failure in failures if failure.address is not None} - alive
        self._dead |= dead
        elsewhere = [address for address in dead if tcp.has_others(address, self._dead)]
        for address in elsewhere:
            tcp.learn_failure(address, stalled=True)
        if dead and not elsewhere:
            self._dead.clear()  # all of them: begin anew
        return bool(elsewhere)

    def _obeys(self, way: Candidate) -> bool:
        """Whether to come back when that is said on this way; not for ever, since it may be a proxy's word for it."""
        self._told_to_wait[way] += 1
        return self._told_to_wait[way] <= MAX_SERVER_DELAYS

    def _mark_failures(self, ways: Ways, failures: Sequence[Failure]) -> None:
        for failure in failures:
            if failure.step > Step.STARTED:  # else it is the address that does not answer, for all of them
                ways.failed(failure.candidate)

    def _tell_failures(self, failures: Sequence[Failure]) -> None:
        """Log each way that failed, unless that was the latest news of it already."""
        for failure in failures:
            known = self._told.get(failure.candidate) == failure.key
            self._told[failure.candidate] = failure.key
            text = failure.describe(_CONNECT[failure.candidate.transport].sends)
            extra = {"event": "way_failed", "url": str(failure.candidate.url)}
            log.log(logging.DEBUG if known else logging.INFO, "%s", text, extra=extra)

    def exchange_hello(
        self, candidate: Candidate, sealed: SealedPipe, hello: Hello, deadline: Deadline, cancel: Cancel
    ) -> Ready:
        """Send HELLO and return the server's READY.  Blocks until `deadline` at most, or until `cancel` is canceled.

        What was sent to probe the way comes back first, within PROOF_TIMEOUT seconds.  From then on it is the server
        that takes its time, and no READY says nothing of the way.

        Raises RefusedError (not final) when another process has our name, SessionOver, ProtocolError and
        TransportError; the pipe is closed then.
        """
        try:
            with cancel.waking(lambda: sealed.close("the client is stopping")):
                self._prove_known(candidate, sealed, hello, deadline, cancel)
                kind, content = self._await_ready(candidate, sealed, deadline, cancel)
            if sealed.pipe.addresses is not None:
                learn_success(sealed.pipe.addresses[1])
            host = candidate.url.host
            self._cookies[host] = with_newer(self._cookies.get(host, {}), sealed.pipe.cookies)
            if kind is RecordKind.CLOSE:
                raise _turned_away(Close.decode(content))
            if kind is not RecordKind.READY:
                raise ProtocolError(f"a {kind.name} record where READY was due")
            ready = Ready.decode(content)
            if self._server.fingerprint is None:
                self._known_hosts.remember(candidate.url.address, fingerprint_of(sealed.result.server_spki))
            if self.ways is not None:
                self.ways.worked(candidate)
        except BaseException:
            sealed.close("the session did not begin")
            raise
        return ready

    def _prove_known(
        self, candidate: Candidate, sealed: SealedPipe, hello: Hello, deadline: Deadline, cancel: Cancel
    ) -> None:
        """Send HELLO, and block until what probes a known way has come back.  Raises as `exchange_hello`."""
        probed, remaining = bool(sealed.probes_due), deadline.remaining()
        if probed:
            deadline = Deadline(PROOF_TIMEOUT if remaining is None else min(PROOF_TIMEOUT, remaining))
        began = time.monotonic()
        try:
            with closed_at(deadline, sealed.pipe):
                sealed.send_record(bytes((RecordKind.HELLO,)) + hello.encode())
                await_probe(sealed, lambda came: None)
        except BaseException as error:
            if probed and isinstance(error, TransportError | ProtocolError) and not cancel.canceled:
                seconds = time.monotonic() - began
                self._tell_failures([Failure(candidate, Step.PROVEN, error, seconds, silent=deadline.passed)])
            self._blame(candidate, sealed.pipe, error, deadline, cancel)
            raise

    def _await_ready(
        self, candidate: Candidate, sealed: SealedPipe, deadline: Deadline, cancel: Cancel
    ) -> tuple[RecordKind, memoryview]:
        """Block for the answer to HELLO.  Raises as `exchange_hello`."""
        try:
            with closed_at(deadline, sealed.pipe):
                return sealed.recv_record()
        except BaseException as error:
            late = isinstance(error, TransportError) and deadline.passed and not cancel.canceled
            if not late or self.ways is None or not sealed.result.takes_probes:  # else the way has proved itself
                self._blame(candidate, sealed.pipe, error, deadline, cancel)
            if late:
                raise _no_ready(candidate) from None
            raise

    def _blame(
        self, candidate: Candidate, pipe: Pipe, error: BaseException, deadline: Deadline, cancel: Cancel
    ) -> None:
        """Have the next connection prefer others to this way, where `error` may be the path's."""
        self._learn_failure(pipe, error, deadline, cancel)
        if self.ways is not None and isinstance(error, TransportError | ProtocolError) and not cancel.canceled:
            self.ways.failed(candidate)

    def _learn_failure(self, pipe: Pipe, error: BaseException, deadline: Deadline, cancel: Cancel) -> None:
        """Have the next connection profit from this one, which brought nothing but `error`."""
        if isinstance(error, TransportError | ProtocolError) and pipe.addresses is not None and not cancel.canceled:
            learn_failure(pipe.addresses[1], stalled=deadline.passed)

    def _check_server(self, url: TunnelUrl, spki: bytes) -> None:
        """Raise RefusedError unless this is the server's known key, or none is known yet."""
        fingerprint = fingerprint_of(spki)
        pinned = self._server.fingerprint
        if pinned is None:
            self._known_hosts.check(url.address, fingerprint)
        elif fingerprint != pinned:
            raise RefusedError(
                f"the server's key is {fingerprint}, but {pinned} is pinned",
                hint="someone may be in between; if the server's key was really changed, run `tunnel.py fingerprint` "
                "on the server and pin what it prints, with --fingerprint or as server_fingerprint in a file",
            )


def route_of(settings: ClientSettings) -> Route:
    """Return how to reach each URL of each server."""
    return Route(
        ca_file=settings.tls.ca_file,
        certificate=settings.tls.certificate,
        key=settings.tls.key,
        server_name=settings.tls.server_name,
        connect_to=settings.connect_to,
        proxy=settings.proxy,
        host=settings.host,
        headers=settings.headers,
    )


_FAILURE_LABELS = (
    (RefusedError, "refused"),
    (ProtocolError, "protocol"),
    (TransportError, "not reached"),
)


def describe_failure(candidate: Candidate, error: QanatError) -> str:
    """Return what happened, for the log, with the server named once."""
    if candidate.url.host not in error.message:
        return f"cannot connect to {candidate.url}: {error}"
    return str(error) if error.message.startswith("cannot connect") else f"cannot connect: {error}"


def failure_label(error: Exception) -> str:
    """Return one of a few words for what kept a connection from being made, to count by."""
    return next((label for kind, label in _FAILURE_LABELS if isinstance(error, kind)), "other")


def describe_server(sealed: SealedPipe, ready: Ready) -> str:
    """Return the server's name, program and key, for the log."""
    node, agent = printable(ready.node), printable(ready.parameters.agent)
    return f"the server is {node}, {agent}, with key {fingerprint_of(sealed.result.server_spki)}"


class _Progress:
    """How far a connection over the one transport that counts has come."""

    def __init__(self, sends: str) -> None:
        self._sends = sends
        self._step, self._since = Step.STARTED, time.monotonic()

    def note(self, step: Step, address: SockAddr | None = None) -> None:
        """Note that it has come so far; some transports dial again later, which is no way back."""
        if step > self._step:
            self._step, self._since = step, time.monotonic()

    def describe(self) -> str:
        """Return what it waits for.  Does not block."""
        return describe_wait(self._step, time.monotonic() - self._since, self._sends)


def _note_dialing(note: Callable[[Step, SockAddr | None], None], step: DialStep, address: SockAddr | None) -> None:
    note(Step.CONNECTED if step is DialStep.CONNECTED else Step.OPEN, address)


def _describe_race(race: Race) -> str:
    """Return what each way of a race that goes on waits for.  Does not block."""
    said = []
    for candidate, step, seconds, waits_for_us in race.waiting():
        if waits_for_us:
            said.append(f"{candidate.transport}: waits for this program, or for its turn")
        else:
            said.append(f"{candidate.transport}: {describe_wait(step, seconds, _CONNECT[candidate.transport].sends)}")
    return "; ".join(said)


def _is_the_same_for_all(failures: Sequence[Failure]) -> bool:
    """Return whether nothing but the way to the server has failed, whatever the transport."""
    return len({failure.said for failure in failures}) == 1 and all(failure.step < Step.OPEN for failure in failures)


def _no_way(url: TunnelUrl, failures: Sequence[Failure], untried: Sequence[Candidate] = ()) -> QanatError:
    """Return one error for a race in which nothing worked."""
    first = failures[0].error
    if _is_the_same_for_all(failures):
        return first
    refused = next((failure.error for failure in failures if isinstance(failure.error, RefusedError)), None)
    if refused is not None:
        return refused
    said: dict[str, list[str]] = {}
    for failure in failures:
        said.setdefault(failure.said, []).append(failure.candidate.transport)
    tried = "; ".join(f"{', '.join(transports)}: {text}" for text, transports in said.items())
    if not untried:
        return TransportError(f"no transport gets through to {url}: {tried}", hint=first.hint)
    others = ", ".join(dict.fromkeys(candidate.transport for candidate in untried))
    return TransportError(f"none of these gets through to {url}: {tried}", hint=f"{others} will be tried next")


def _no_ready(candidate: Candidate) -> TransportError:
    """Return the error for a server that is authenticated, and has not answered HELLO in time."""
    return TransportError(
        f"{candidate.url}: the handshake went well, but the server has not answered in time",
        hint="it may be busy, or wait for an earlier client of this name (its takeover_timeout): its log says more",
    )


def _turned_away(close: Close) -> QanatError:
    text = printable(close.text)
    if close.reason is CloseReason.NAME_IN_USE:
        return NameInUse(
            f"the server refuses this client's name: {text}",
            hint="stop the other process, or give this one a name and token of its own",
            final=False,
        )
    if close.reason in (CloseReason.PROTOCOL, CloseReason.REVOKED, CloseReason.REPLACED):
        return SessionOver(f"the server ended the session: {text}")
    return TransportError(f"the server turned us away: {text}")
