"""A server's snapshot, made from its parts (`qanat.monitor.snapshot`)."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from weakref import WeakSet

from qanat.base.sockets import format_address
from qanat.base.version import __version__
from qanat.config.server_settings import ServerSettings
from qanat.monitor.process import STARTED_AT, count_threads, resident_bytes
from qanat.monitor.sessions import EVERYTHING, Looks, Wanted, sum_of, tally_of, totals_of
from qanat.monitor.snapshot import ForwardSnapshot, HandshakesSnapshot, PeerTotals, ServerSnapshot
from qanat.server.admission.admission import Admission
from qanat.server.front_door.front_door import FrontDoor
from qanat.server.session import ServerSession
from qanat.server.sessions import Registry
from qanat.session.places import Tally
from qanat.session.session import Session


class ServerObservation:
    """Looks at one server.  Safe to use from any thread; nothing that carries bytes waits for it."""

    def __init__(self, node: str, fingerprint: str, registry: Registry, front_door: FrontDoor) -> None:
        self.config: Path | None = None
        """The configuration file, where there is one."""
        self._node = node
        self._fingerprint = fingerprint
        self._registry = registry
        self._front_door = front_door
        self._looks = Looks()
        self._counting = threading.Lock()  # guards the next two
        self._past: dict[str, Tally] = {}  # of sessions that are over, by client
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
            self._past.setdefault(session.name, Tally()).add(tally)
            self._over.add(session)

    def sample(self) -> bool:
        """Look at the streams' counts alone, as `Looks.sample`."""
        return self._looks.sample(self._registry.sessions)

    def snapshot(
        self, settings: ServerSettings, troubles: tuple[str, ...] = (), wanted: Wanted = EVERYTHING
    ) -> ServerSnapshot:
        """Return how the server is now.  Blocks only while another thread does the same."""
        live = self._registry.sessions
        if wanted.sessions:
            unnamed: dict[Session, str] = dict.fromkeys(live, "")
            sessions = tuple(self._looks.take(unnamed, wanted))
            carried = {session: tally_of(shown) for session, shown in zip(live, sessions, strict=True)}
        else:
            sessions, carried = (), {session: session.tally() for session in live}
        peers = self._peers(carried, settings)
        listening = tuple(map(format_address, self._front_door.addresses))
        forwards = tuple(
            ForwardSnapshot("remote", place, "", session.name, "listening")
            for session in live
            for _, place in session.listening
        )
        return ServerSnapshot(
            node=self._node,
            agent=f"qanat {__version__}",
            pid=os.getpid(),
            started_at=STARTED_AT,
            taken_at=time.time(),
            config=None if self.config is None else str(self.config),
            fingerprint=self._fingerprint,
            listening=listening,
            sessions=sessions,
            forwards=forwards,
            handshakes=_handshakes(self._front_door.admission, settings),
            totals=sum_of(each.totals for each in peers),
            peers=peers,
            threads=count_threads(),
            memory_bytes=resident_bytes(),
            troubles=troubles,
        )

    def _peers(self, live: Mapping[ServerSession, Tally], settings: ServerSettings) -> tuple[PeerTotals, ...]:
        """Return what each client has carried: those of the configuration in its order, then former ones."""
        with self._counting:
            tallies = {name: replace(tally) for name, tally in self._past.items()}
            begun = dict(self._begun)
            counted = [(session.name, tally) for session, tally in live.items() if session not in self._over]
        for name, tally in counted:
            tallies.setdefault(name, Tally()).add(tally)
        names = dict.fromkeys([*(client.name for client in settings.clients), *begun, *tallies])
        return tuple(
            PeerTotals(name, totals_of(tallies.get(name, Tally()), sessions=begun.get(name, 0))) for name in names
        )


def _handshakes(admission: Admission, settings: ServerSettings) -> HandshakesSnapshot:
    return HandshakesSnapshot(
        running=admission.handshakes,
        limit=settings.limits.handshakes,
        queued=admission.queued,
        unfinished=len(admission.unfinished),
        connections_limit=settings.limits.connections,
    )
