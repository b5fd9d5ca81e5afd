"""A client's snapshot, made from its parts (`qanat.monitor.snapshot`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from qanat.base.version import __version__
from qanat.client.local_forwards import LocalForwards
from qanat.client.server_connection import ServerConnection
from qanat.monitor.process import STARTED_AT, count_threads, resident_bytes
from qanat.monitor.sessions import BRIEF, EVERYTHING, Looks, Wanted, totals_of
from qanat.monitor.snapshot import (
    ClientSnapshot,
    ConnectionSnapshot,
    Failure,
    ForwardSnapshot,
    PeerTotals,
    SessionSnapshot,
    Totals,
)
from qanat.monitor.sums import Sums
from qanat.session.session import Session


class ClientObservation:
    """Looks at one client.  Safe to use from any thread; nothing that carries bytes waits for it."""

    def __init__(self, name: str, servers: Sequence[ServerConnection], local: LocalForwards) -> None:
        self.config: Path | None = None
        """The configuration file, where there is one."""
        self._name = name
        self.servers = servers
        """The connections that are shown, which may be others later."""
        self._local = local
        self._looks = Looks()

    def sample(self) -> bool:
        """Look at the streams' counts alone, as `Looks.sample`."""
        return self._looks.sample([session for server in self.servers if (session := server.session) is not None])

    def sums(self, troubles: tuple[str, ...], label_of: Callable[[str], str]) -> Sums:
        """Return what there is of each server, by its label.  Does not block."""
        now = self.snapshot(troubles, BRIEF)
        sums = Sums("client", self._name, label_of, troubles=len(troubles), sessions_begun=now.totals.sessions)
        sums.servers = now.servers
        sums.forwards.update(each.state for each in now.forwards)
        for server in self.servers:
            session = server.session
            sums.of(server.url).add_tally(server.tally())
            if session is not None:
                sums.add_session(session, server.url, counted=False)
        return sums

    def snapshot(self, troubles: tuple[str, ...] = (), wanted: Wanted = EVERYTHING) -> ClientSnapshot:
        """Return how the client is now.  Blocks only while another thread does the same."""
        servers = [(server, server.session) for server in self.servers]
        live: dict[Session, str] = {session: server.url for server, session in servers if session is not None}
        taken = self._looks.take(list(live), replace(wanted, sessions=None, names=frozenset()), live)
        shown = dict(zip(live, taken.shown, strict=True))
        peers = tuple(
            PeerTotals(server.url, totals_of(server.tally(), sessions=server.sessions_begun)) for server, _ in servers
        )
        forwards = [_local(self._name, *each) for each in self._local.states]
        for _, session in servers:
            if session is not None:
                forwards += (
                    ForwardSnapshot("remote", place, to, self._name, state, failure)
                    for place, to, state, failure in session.forward_states
                )
        return ClientSnapshot(
            name=self._name,
            agent=f"qanat {__version__}",
            pid=os.getpid(),
            started_at=STARTED_AT,
            taken_at=time.time(),
            config=None if self.config is None else str(self.config),
            servers=tuple(
                _connection(server, None if session is None else shown[session]) for server, session in servers
            ),
            sessions=tuple(shown.values()),
            forwards=tuple(forwards),
            totals=Totals(*map(sum, zip(Totals(), *(each.totals for each in peers), strict=True))),
            peers=peers,
            threads=count_threads(),
            memory_bytes=resident_bytes(),
            troubles=troubles,
        )


def _local(client: str, kind: str, listen: str, to: str, failure: str) -> ForwardSnapshot:
    return ForwardSnapshot(kind, listen, to, client, "failed" if failure else "listening", failure)


def _connection(server: ServerConnection, session: SessionSnapshot | None) -> ConnectionSnapshot:
    state, since = server.state
    failure, again = server.news.failure, server.news.next_try_at
    lost = None if session is None else session.last_failure
    latest = max((each for each in (failure, lost) if each is not None), key=lambda each: each.at, default=None)
    return ConnectionSnapshot(
        url=server.url,
        state=state,
        transport="" if session is None else session.transport,
        since=since,
        last_failure=None if latest is None else Failure(latest.at, latest.text),
        next_try_at=None if state == "connected" else again,
        # While it is connected, the way that it goes; a reload may have changed what the next one will go.
        proxy=session.via if session is not None and state == "connected" else server.connector.proxy_text,
    )
