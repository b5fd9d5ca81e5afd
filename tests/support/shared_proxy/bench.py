"""Honest clients and strangers behind one proxy, what must be true of them, and how much room the honest had left.

`Bench` runs one proxy under load until everybody has done enough.  The server is in this process, so that its limits
can be asked how near they came (`used_most`); the limits are the defaults.  Used by tests/integration and
`benchmarks.soak`.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

from qanat.base.usage import UNUSED, Usage, worst
from qanat.config.server_settings import ServerSettings
from qanat.handshake.identity import load_or_create_identity
from qanat.handshake.key_pool import ClientKeyPool
from qanat.server.server import Server
from tests.support.applications import Target, echo
from tests.support.harness import Program
from tests.support.machine.ports import unused_port
from tests.support.machine.proxies import Place, TunnelProxy
from tests.support.machine.web import HOST
from tests.support.server.raw_peers import client_key
from tests.support.shared_proxy.honest import Flapping, Honest, Killed, Silent, Talkative, Way
from tests.support.shared_proxy.strangers import KINDS, Stranger

_PATIENCE = 120.0
"""Seconds until something has to have happened again, on a machine that does other things as well."""
_OFFICE = "127.0.0.20"
"""The address that four honest clients and one stranger share."""
_KINDS = ("RST_STREAM", "SETTINGS", "PING", "WINDOW_UPDATE", "PRIORITY", "DATA", "unauthenticated request")
_LIMITS = (
    "control frames",
    *(f"of these {kind}" for kind in _KINDS),
    "bytes of answers that wait",
    "streams open at once",
    "plain requests",
    "streams of one address that wait",
    "handshakes at once",
    "handshakes begun, less those refilled",
    "connections that are no pipes",
    "limits.per_address_burst, honest addresses",
    "budget of an honest address",
    "budget of an office with a stranger in it",
    "budget of a stranger's address",
)


@dataclass(frozen=True, slots=True)
class Enough:
    """How much everybody has to have done before a bench ends; `refusals` are those of all strangers together."""

    rounds: Mapping[type[Honest], int]
    attacks: int
    refusals: int


SHORT = Enough({Talkative: 2, Silent: 1, Flapping: 3, Killed: 3}, attacks=10, refusals=3)
LONG = Enough({Talkative: 40, Silent: 1, Flapping: 40, Killed: 30}, attacks=250, refusals=50)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How near each limit came, by its name; what strangers saw of it, and how often an office's newcomer got in."""

    used_most: Mapping[str, Usage]
    refusals: int
    newcomer: int


class _Events(logging.Handler):
    """What the server's log tells of each client's connections."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._seen: defaultdict[str, list[str]] = defaultdict(list)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line, if it is about a client."""
        if client := getattr(record, "client", None):
            self._seen[client].append(record.getMessage())

    def of(self, client: str) -> list[str]:
        """Return the lines about this client."""
        return list(self._seen[client])


class Bench:
    """One proxy in front of one server, with everybody behind it."""

    def __init__(self, directory: Path, start: Callable[[Place], Program], stack: ExitStack) -> None:
        self._events = _Events()
        stack.enter_context(_listening_to_log(self._events))
        # One key for all: making them would cost more than all the rest.
        stack.enter_context(
            patch("qanat.client.client.ClientKeyPool", partial(ClientKeyPool, generate=client_key)),
        )
        identity, port = directory / "server.key", unused_port()
        front = TunnelProxy(directory / "front", port, start)
        self._way = Way(
            url=f"https://{HOST}:{front.place.port}/tunnel",
            port=front.place.port,
            ca_file=front.ca_file,
            fingerprint=load_or_create_identity(identity).fingerprint,
            echo=stack.enter_context(Target(echo)).port,
            directory=directory,
        )
        self._staying = [
            *(self._make(habit, transport) for habit in (Talkative, Silent) for transport in ("http2", "grpc")),
            *(Silent(f"office-{number}", "http2", _OFFICE, self._way) for number in range(3)),
        ]
        self._newcomer = Flapping("office-newcomer", "http2", _OFFICE, self._way)
        self._flapping = [
            *(self._make(habit, transport) for habit in (Flapping, Killed) for transport in ("http2", "grpc")),
            self._newcomer,
        ]
        self._strangers = [
            Stranger(name, front.place.port, _OFFICE if "office" in name else f"127.0.0.{number}")
            for number, name in enumerate(KINDS, 100)
        ]
        self._server = Server(
            ServerSettings(
                clients=tuple(honest.account for honest in self._honest),
                listen=(("127.0.0.1", port),),
                identity=identity,
                trusted_proxies=("127.0.0.1/32",),
                drain=0,
            )
        )
        self._server.start()
        stack.callback(self._server.stop)
        stack.enter_context(front.start())

    def run(self, enough: Enough) -> Outcome:
        """Let everybody do that much, and return how it went.  Fails when an honest client was cut or kept out."""
        with ExitStack() as stack:
            for honest in self._staying:
                honest.begin()
                stack.callback(honest.end)
            self._wait(lambda: all(honest.rounds for honest in self._staying))
            for one in (*self._strangers, *self._flapping):
                one.begin()
                stack.callback(one.end)
            self._wait(lambda: self._is_enough(enough))
            for honest in self._staying:
                seen = self._events.of(honest.name)
                assert len(seen) == 1, f"{honest.name} was cut: {seen}"
        self._server.stop()
        return Outcome(self._used_most(), self._refusals, self._newcomer.rounds)

    @property
    def _honest(self) -> list[Honest]:
        return [*self._staying, *self._flapping]

    @property
    def _refusals(self) -> int:
        return sum(stranger.answers["503"] for stranger in self._strangers)

    def _make(self, habit: type[Honest], transport: str) -> Honest:
        """Make a client with an address of its own."""
        place = (Talkative, Silent, Flapping, Killed).index(habit) * 2 + (transport == "grpc")
        return habit(f"{habit.__name__.lower()}-{transport}", transport, f"127.0.0.{2 + place}", self._way)

    def _is_enough(self, enough: Enough) -> bool:
        return (
            all(honest.rounds >= enough.rounds[type(honest)] for honest in self._honest)
            and all(stranger.attacks >= enough.attacks for stranger in self._strangers)
            and self._refusals >= enough.refusals
        )

    def _used_most(self) -> dict[str, Usage]:
        door = self._server.front_door
        used = door.used_most
        budgets, rates = door.used_most_by_address
        honest = {honest.address for honest in self._honest} - {_OFFICE}
        used["limits.per_address_burst, honest addresses"] = _worst_of(rates, honest)
        used["budget of an honest address"] = _worst_of(budgets, honest)
        used["budget of an office with a stranger in it"] = _worst_of(budgets, {_OFFICE})
        used["budget of a stranger's address"] = _worst_of(budgets, {one.address for one in self._strangers})
        return used

    def _wait(self, true: Callable[[], bool]) -> None:
        """Block until it is true, as long as somebody gets on; at once when somebody honest has failed."""
        before, deadline = self._progress, time.monotonic() + _PATIENCE
        while not true():
            for honest in self._honest:
                honest.check()
            if (now := self._progress) != before:
                before, deadline = now, time.monotonic() + _PATIENCE
            assert time.monotonic() < deadline, self._describe()
            time.sleep(0.05)  # many things are waited for, each of which comes about in its own way

    @property
    def _progress(self) -> list[int]:
        """How far those are who have the most left to do; what goes on for ever does not count."""
        return [*sorted(honest.rounds for honest in self._honest)[:3], min(one.attacks for one in self._strangers)]

    def _describe(self) -> str:
        honest = ", ".join(f"{honest.name} {honest.rounds}" for honest in self._honest)
        strangers = ", ".join(f"{one.name} {one.attacks} {dict(one.answers)}" for one in self._strangers)
        return f"rounds: {honest}; strangers' attacks and answers: {strangers}"


def margins(outcomes: Mapping[str, Outcome]) -> str:
    """Return a table in Markdown: how much of each limit was used at worst, behind each proxy."""
    rows = [["used at worst, of the limit", *outcomes], ["---", *("---:" for _ in outcomes)]]
    rows += [[name, *(_shown(one.used_most.get(name, UNUSED)) for one in outcomes.values())] for name in _LIMITS]
    rows.append(["times that strangers were told 503", *(str(one.refusals) for one in outcomes.values())])
    rows.append(["times that an office's newcomer got in", *(str(one.newcomer) for one in outcomes.values())])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _shown(usage: Usage) -> str:
    return f"{usage.used:,.0f} of {usage.limit:,.0f}, {usage.share:.0%}" if usage.used else "nothing"


def _worst_of(usages: Mapping[str, Usage], addresses: set[str]) -> Usage:
    return worst(UNUSED, *(usage for address, usage in usages.items() if address in addresses))


@contextmanager
def _listening_to_log(events: _Events) -> Iterator[None]:
    logger = logging.getLogger("qanat")
    before = logger.level
    logger.addHandler(events)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(events)
        logger.setLevel(before)
