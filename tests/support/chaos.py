"""A hostile network: a relay between client and server that ends every connection after a while, each in another way.

`ChaosRelay` accepts on one port or several and carries everything to the server.  A connection that has carried
enough both ways lives in peace for a moment, is perhaps held up or slowed down, and then meets its fault.  What
happens to which connection comes from the seed and the connection's number alone, so a seed tells the same story
again, as far as timing allows.
"""

from __future__ import annotations

import enum
import itertools
import random
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.support.chaos_link import Link, Loop
from tests.support.harness import SECONDS
from tests.support.spoken import Spoken

FORGOTTEN = 90.0
"""Seconds after a silent fault when both ends are reset: too late to help an end that did not notice by itself."""


class Fault(enum.Enum):
    """How a connection ends."""

    CUT = "cut"  # FIN to both
    RESET = "reset"  # RST to both
    TRUNCATED = "truncated"  # a chunk in part, then RST to both
    CLIENT_TOLD = "half-open, the client told"  # FIN or RST to one end, nothing to the other
    SERVER_TOLD = "half-open, the server told"
    STALLED = "stalled for ever"  # nobody is told anything
    UP_DEAD = "nothing gets up"  # and the other direction lives
    DOWN_DEAD = "nothing gets down"


class Hindrance(enum.Enum):
    """What a connection meets on its way to the end."""

    NONE = "none"
    PAUSE = "pause"  # no bytes for a while, then it goes on
    DELAY = "delay"  # every chunk later, for a while


QUICK = (Fault.CUT, Fault.RESET, Fault.TRUNCATED, Fault.CLIENT_TOLD)
"""What the client is told of at once."""
SILENT = (Fault.SERVER_TOLD, Fault.STALLED, Fault.UP_DEAD, Fault.DOWN_DEAD)
"""What only keepalive finds."""


def deck(quick: int, *silent: Fault) -> Mapping[Fault, int]:
    """`quick` of each fault in QUICK, and one of each in `silent`."""
    return {**dict.fromkeys(QUICK, quick), **dict.fromkeys(silent, 1)}


@dataclass(frozen=True, slots=True)
class Plan:
    """What one connection has before it.  Times are in seconds."""

    fault: Fault
    hindrance: Hindrance
    peace: float  # from the moment when it has carried enough
    hindered: float
    delay: float  # of each chunk meanwhile
    rest: float  # from then to the fault
    gently: bool  # FIN rather than RST, where one end is told
    upward: bool  # which way it is truncated
    part: float  # how much of the chunk arrives


class Plans:
    """The plan of each connection.

    Faults are dealt from a shuffled deck, so that any len(deck) connections in turn, from the first, have them all.
    """

    def __init__(self, seed: int, faults: Mapping[Fault, int], life: tuple[float, float]) -> None:
        self._seed, self._life = seed, life
        self._deck = [fault for fault, count in faults.items() for _ in range(count)]

    def plan(self, number: int) -> Plan:
        """For connection `number`, from 0; always the same."""
        deal, position = divmod(number, len(self._deck))
        faults = list(self._deck)
        random.Random(f"{self._seed}/deal/{deal}").shuffle(faults)
        chance = random.Random(f"{self._seed}/connection/{number}")
        return Plan(
            fault=faults[position],
            hindrance=chance.choices(list(Hindrance), (6, 2, 2))[0],
            peace=chance.uniform(*self._life),
            hindered=chance.uniform(0.05, 0.4),
            delay=chance.uniform(0.001, 0.03),
            rest=chance.uniform(0.0, 0.05),
            gently=chance.random() < 0.5,
            upward=chance.random() < 0.5,
            part=chance.random(),
        )


class ChaosRelay:
    """The relay, from its making until `close`.

    `port` is the server's.  A connection's `life` in peace begins when `least` bytes have gone through each way,
    which has to be more than a handshake takes.  With `alternate`, one that speaks the same transport as the last
    that carried anything is reset at its first request.  `delay` is the seconds each way between the client and the
    relay, always: for every chunk, for TCP's own handshake, and for a `cut`.  A relay that is `calm` does nothing to
    connections unless told.
    """

    def __init__(
        self,
        port: int,
        *,
        seed: int = 0,
        ports: int = 1,
        faults: Mapping[Fault, int] | None = None,
        life: tuple[float, float] = (0.05, 0.2),
        least: int = 16 * 1024,
        alternate: bool = False,
        delay: float = 0.0,
        calm: bool = False,
    ) -> None:
        self.seed = seed
        self._to = ("127.0.0.1", port)
        self._plans = Plans(seed, faults or deck(8, *SILENT), life)
        self._least, self._alternate, self._delay, self._calm = least, alternate, delay, calm
        self._numbers = itertools.count()
        self._links: set[Link] = set()
        self._last_spoken = ""
        self._changed = threading.Condition()
        self._counts: Counter[str] = Counter()
        self._spoken: Counter[str] = Counter()
        self._story: deque[str] = deque(maxlen=12)
        self._struck = self._accepted = 0
        self._began = time.monotonic()
        self._listeners = [socket.create_server(("127.0.0.1", 0), backlog=100) for _ in range(ports)]
        self.ports: list[int] = [listener.getsockname()[1] for listener in self._listeners]
        self._loop = Loop("chaos-relay")
        self._loop.call(self._listen)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Reset every connection and end the thread."""
        self._loop.call(self._end)
        self._loop.close()

    @property
    def port(self) -> int:
        """The first of `ports`."""
        return self.ports[0]

    # --- what it does ---------------------------------------------------------------------------

    def calm(self) -> None:
        """No more faults from now on, and no hindrance.  What a fault has struck stays as it is."""
        self._do(self._calm_down)

    def forget(self) -> None:
        """Reset what is left of connections that have met their fault: their ends may be waiting for each other."""
        self._do(self._reset_struck)

    def cut(self) -> float:
        """Reset every connection at both ends; when that was, on the monotonic clock."""
        moments: list[float] = []
        self._do(lambda: moments.append(self._reset_all()))
        return moments[0]

    def wait_faults(self, count: int, *, seconds: float = SECONDS) -> bool:
        """Block until `count` connections have met their fault; False when they have not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._struck >= count, seconds)

    def wait_accepted(self, count: int, *, seconds: float = SECONDS) -> None:
        """Block until `count` connections have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._accepted >= count, seconds), self.report()

    @property
    def faults(self) -> int:
        """How many connections have met their fault."""
        with self._changed:
            return self._struck

    @property
    def accepted(self) -> int:
        """How many connections have come."""
        with self._changed:
            return self._accepted

    @property
    def counts(self) -> dict[str, int]:
        """How often each thing happened, by its name."""
        with self._changed:
            return dict(sorted(self._counts.items()))

    @property
    def spoken(self) -> dict[str, int]:
        """How many connections of each transport carried anything, when it was told to `alternate`."""
        with self._changed:
            return dict(self._spoken)

    def report(self) -> str:
        """What it has done, for whoever looks for the reason of a failure."""
        counts = ", ".join(f"{name}: {count}" for name, count in self.counts.items())
        with self._changed:
            story = "".join(f"\n  {line}" for line in self._story)
            return f"chaos with seed {self.seed}: {self._accepted} connections; {counts}; the last were{story}"

    # --- in the loop's thread -------------------------------------------------------------------

    def _do(self, action: Callable[[], object]) -> None:
        """Have it done in the loop's thread, and wait."""
        done = threading.Event()

        def run() -> None:
            action()
            done.set()

        self._loop.call(run)
        assert done.wait(SECONDS), f"the relay's thread hangs: {self._loop.failure!r}"

    def _listen(self) -> None:
        for listener in self._listeners:
            listener.setblocking(False)
            self._loop.watch(listener, 1, lambda mask, listener=listener: self._accept(listener))  # type: ignore[misc]

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # who wanted to connect has gone
        number = next(self._numbers)
        try:
            server = socket.create_connection(self._to, timeout=SECONDS)  # loopback: at once, or refused
        except OSError:
            client.close()
            self._note("the server did not accept")
            return
        link = Link(
            self._loop,
            client,
            server,
            delay=self._delay,
            least=self._least,
            on_carried=lambda link: self._begin(link, number),
            on_over=lambda link: self._over(link, number),
        )
        self._links.add(link)
        if self._alternate:
            link.up.tap = Spoken(lambda transport: self._heard(link, number, transport)).feed
        with self._changed:
            self._accepted += 1
            self._changed.notify_all()

    def _heard(self, link: Link, number: int, transport: str) -> None:
        link.up.tap = None
        if transport == self._last_spoken and not self._calm:
            self._note("the same transport again", number, transport)
            # Not from within its own read.
            self._loop.later(0, link.reset)
            link.disturbed = True
            return

        def carried(link: Link) -> None:
            self._last_spoken = transport
            with self._changed:
                self._spoken[transport] += 1
            self._begin(link, number)

        link.on_carried = carried

    def _begin(self, link: Link, number: int) -> None:
        """It has carried enough: its plan begins."""
        if self._calm:
            return
        plan = self._plans.plan(number)

        def hinder() -> None:
            if link.over or link.disturbed or self._calm:
                return
            if plan.hindrance is Hindrance.NONE:
                strike()
                return
            if plan.hindrance is Hindrance.PAUSE:
                link.stall()
            else:
                link.slow_down(plan.delay)
            self._note(plan.hindrance.value)
            self._loop.later(plan.hindered, link.go_on)
            self._loop.later(plan.hindered + plan.rest, strike)

        def strike() -> None:
            if not (link.over or link.disturbed or self._calm):
                self._strike(link, plan, number)

        self._loop.later(plan.peace, hinder)

    def _strike(self, link: Link, plan: Plan, number: int) -> None:
        link.go_on()
        link.disturbed = True
        how = ""
        match plan.fault:
            case Fault.CUT:
                link.cut()
            case Fault.RESET:
                link.reset()
            case Fault.TRUNCATED:
                link.truncate(link.up if plan.upward else link.down, plan.part)
            case Fault.CLIENT_TOLD | Fault.SERVER_TOLD:
                how = "by FIN" if plan.gently else "by RST"
                told = link.client if plan.fault is Fault.CLIENT_TOLD else link.server
                link.half_open(told, gently=plan.gently)
            case Fault.STALLED:
                link.stall_for_ever()
            case Fault.UP_DEAD:
                link.kill(link.up)
            case Fault.DOWN_DEAD:
                link.kill(link.down)
        if not link.over:
            self._loop.later(FORGOTTEN, link.reset)
        with self._changed:
            self._struck += 1
            self._note(plan.fault.value, number, how)

    def _over(self, link: Link, number: int) -> None:
        self._links.discard(link)
        if not link.disturbed:
            self._note("ended by itself", number)

    def _note(self, what: str, number: int | None = None, how: str = "") -> None:
        with self._changed:
            self._counts[what] += 1
            if number is not None:
                moment = time.monotonic() - self._began
                self._story.append(f"{moment:8.3f} s: connection {number}: {what} {how}".rstrip())
            self._changed.notify_all()

    def _calm_down(self) -> None:
        self._calm = True
        for link in list(self._links):
            link.go_on()

    def _reset_struck(self) -> None:
        for link in list(self._links):
            if link.disturbed:
                link.reset()

    def _reset_all(self) -> float:
        for link in list(self._links):
            if self._delay:
                # It lies between us and the client, who hears of it so much later.
                link.half_open(link.server, gently=False)
                self._loop.later(self._delay, link.reset)
            else:
                link.disturbed = True
                link.reset()
        return time.monotonic()

    def _end(self) -> None:
        self._calm = True
        for listener in self._listeners:
            self._loop.watch(listener, 0, lambda mask: None)
            listener.close()
        for link in list(self._links):
            link.reset()
