"""A server's snapshot, made from its parts (`qanat.monitor.snapshot`)."""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from weakref import WeakSet

from qanat.base.sockets import format_address
from qanat.base.version import __version__
from qanat.config.server_settings import ServerSettings
from qanat.monitor.process import STARTED_AT, count_threads, resident_bytes
from qanat.monitor.sessions import EVERYTHING, Looks, Wanted, totals_of
from qanat.monitor.snapshot import ForwardSnapshot, HandshakesSnapshot, PeerTotals, ServerSnapshot
from qanat.monitor.sums import Sums
from qanat.server.admission.admission import Admission
from qanat.server.front_door.front_door import FrontDoor
from qanat.server.session import ServerSession
from qanat.server.sessions import Registry
from qanat.session.places import NOTHING, Tally


class ServerObservation:
    """Looks at one server.  Safe to use from any thread; nothing that carries bytes waits for it."""

    def __init__(
        self, node: str, fingerprint: str, registry: Registry, front_door: FrontDoor, names: Iterable[str] = ()
    ) -> None:
        """`names` are the clients that will mostly come: what counts them is made now, before they come.

        What is made when a session ends lies between what is freed then, and keeps all of that from the system.
        """
        self.config: Path | None = None
        """The configuration file, where there is one."""
        self._node = node
        self._fingerprint = fingerprint
        self._registry = registry
        self._front_door = front_door
        self._looks = Looks()
        self._counting = threading.Lock()  # guards the next three
        self._past = {name: _nothing() for name in names}  # of sessions that are over, by client
        self._begun: Counter[str] = Counter()  # likewise
        self._over: WeakSet[ServerSession] = WeakSet()  # which are counted in `_past`

    def begun(self, name: str) -> None:
        """Count a session of the client `name` that has begun."""
        with self._counting:
            self._begun[name] += 1

    def ended(self, session: ServerSession) -> None:
        """Count in what a session has carried that is over now."""
        tally = session.tally()
        with self._counting:
            past = self._past.get(session.name)
            if past is None:
                past = self._past[session.name] = _nothing()
            for place, count in enumerate(tally):
                past[place] += count
            self._over.add(session)

    def sample(self) -> bool:
        """Look at the streams' counts alone, as `Looks.sample`."""
        return self._looks.sample(self._registry.sessions)

    def sums(self, settings: ServerSettings, troubles: tuple[str, ...], label_of: Callable[[str], str]) -> Sums:
        """Return what there is of each client, by its label.  Does not block."""
        live = self._registry.sessions
        past, begun, over = self._counted()
        sums = Sums("server", self._node, label_of, troubles=len(troubles), sessions_begun=begun.total())
        for name in _names(settings, begun, past):
            sums.of(name)  # in this order they get labels
        for name, tally in past.items():
            sums.of(name).add_tally(tally)
        for session in live:
            sums.add_session(session, session.name, counted=session not in over)
            sums.forwards["listening"] += len(session.listening)
        sums.handshakes = _handshakes(self._front_door.admission, settings)
        return sums

    def snapshot(
        self, settings: ServerSettings, troubles: tuple[str, ...] = (), wanted: Wanted = EVERYTHING
    ) -> ServerSnapshot:
        """Return how the server is now.  Blocks only while another thread does the same."""
        live = self._registry.sessions
        taken = self._looks.take(live, wanted)
        past, begun, over = self._counted()
        carried = [(one.name, tally) for one, tally in zip(live, taken.tallies, strict=True) if one not in over]
        total = Tally(*map(sum, zip(NOTHING, *past.values(), *(tally for _, tally in carried), strict=True)))
        counts = wanted.rates and not (wanted.all or wanted.names)
        forwards = [
            (session.name, place)
            for session in live
            if not wanted.names or session.name in wanted.names
            for _, place in session.listening
        ]
        return ServerSnapshot(
            node=self._node,
            agent=f"qanat {__version__}",
            pid=os.getpid(),
            started_at=STARTED_AT,
            taken_at=time.time(),
            config=None if self.config is None else str(self.config),
            fingerprint=self._fingerprint,
            listening=tuple(map(format_address, self._front_door.addresses)),
            sessions=tuple(taken.shown),
            forwards=tuple(
                ForwardSnapshot("remote", place, "", name, "listening") for name, place in forwards[: wanted.sessions]
            ),
            handshakes=_handshakes(self._front_door.admission, settings),
            totals=totals_of(total, sessions=begun.total()),
            peers=_peers(settings, begun, past, carried) if wanted.all else (),
            threads=count_threads(),
            memory_bytes=resident_bytes(),
            troubles=troubles,
            counts=taken.counts._replace(forwards=len(forwards)) if counts else None,
        )

    def _counted(self) -> tuple[dict[str, Tally], Counter[str], set[ServerSession]]:
        """Return what sessions that are over have carried, how many began, and which are over since."""
        with self._counting:
            past = {name: Tally(*past) for name, past in self._past.items() if any(past)}
            return past, Counter(self._begun), set(self._over)


def _nothing() -> array[int]:
    """Return a place for a `Tally`, where counting makes no objects."""
    return array("Q", NOTHING)


def _names(settings: ServerSettings, begun: Mapping[str, int], past: Mapping[str, Tally]) -> dict[str, None]:
    """Return the clients of the configuration in its order, then former ones."""
    return dict.fromkeys([*(client.name for client in settings.clients), *begun, *past])


def _peers(
    settings: ServerSettings,
    begun: Mapping[str, int],
    past: Mapping[str, Tally],
    carried: Sequence[tuple[str, Tally]],
) -> tuple[PeerTotals, ...]:
    """Return what each client has carried."""
    tallies = dict(past)
    for name, tally in carried:
        tallies[name] = tallies.get(name, NOTHING).plus(tally)
    names = _names(settings, begun, tallies)
    return tuple(PeerTotals(name, totals_of(tallies.get(name, NOTHING), sessions=begun.get(name, 0))) for name in names)


def _handshakes(admission: Admission, settings: ServerSettings) -> HandshakesSnapshot:
    return HandshakesSnapshot(
        running=admission.handshakes,
        limit=settings.limits.handshakes,
        queued=admission.queued,
        unfinished=len(admission.unfinished),
        connections_limit=settings.limits.connections,
    )
