"""A tunnel of real processes through a hostile network, with a workload in it that must not notice.

Used by tests/integration and `benchmarks.chaos`.  The network is `tests.support.chaos`, the applications are
`tests.support.workload`; here they meet, and here stands what must be true of the two processes meanwhile and
afterwards.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qanat.transports.http2.limits import IDLE
from tests.support.chaos import ChaosRelay, Fault
from tests.support.harness import ROOT, SECONDS, Program, Tunnel
from tests.support.machine.ports import unused_port
from tests.support.scenarios import LANE_BOUND, MEBI, SESSION_BOUND, SLACK, THREAD, WINDOW, Figures
from tests.support.troubles import trouble
from tests.support.workload import Workload

NEW_SESSION = r"^(?!.*\bresumed\b).*\bconnected to \S+ over"
RESUMED = r"\bresumed\b"
KEEPALIVE = {"interval": 1, "timeout": 2}
"""What finds the faults that nobody is told of."""
RECONNECT = {"first": 0.1, "min": 0.1, "max": 0.5}
PROMPT = 10.0
"""Seconds in which every request is answered, even where two faults in turn have to be found by keepalive."""
SOONER: dict[str, Any] = {"least": 4096, "life": (0.02, 0.1)}
TUNNEL, PACKETS = ROOT / "tunnel.py", Path(__file__).with_name("packets.py")
_SPARE = 4
"""Threads or sockets, for each lane, by which transports differ, or that may be between two states."""
_POOLED = 25
"""Connections to the server that a proxy keeps for later; keepalive goes over one of its workers' after the other."""


def chosen_seed(default: int) -> int:
    """QANAT_CHAOS_SEED from the environment, else `default`; printed, so that a failure can be run again."""
    seed = int(os.environ.get("QANAT_CHAOS_SEED", default))
    print(f"QANAT_CHAOS_SEED={seed}")
    return seed


class Storm:
    """The tunnel, the network and `workloads` sets of applications, from `with` to its end.

    With several `transports` each has a URL and a port of its own, and no two connections in turn use the same one.
    `path` is a trouble's name: the network leads to its proxy, and that to the server.  With `packets` a split pipe's
    answers all end, on paths that would let them go on, too.  There connections meet their faults sooner: a request for
    bytes, or an answer that goes on, carries little in one direction.
    """

    def __init__(
        self,
        directory: Path,
        *,
        seed: int,
        transports: Sequence[str] = ("websocket",),
        lanes: int = 1,
        faults: Mapping[Fault, int] | None = None,
        slots: int = 50,
        workloads: int = 1,
        path: str = "",
        packets: bool = False,
    ) -> None:
        self.seed = seed
        self._path, self._packets = path, packets
        self._directory, self._transports, self._lanes = directory, tuple(transports), lanes
        self._faults, self._slots = faults, slots
        self._stack = ExitStack()
        self._works = [Workload(seed=seed + number, slots=slots) for number in range(workloads)]
        self._ports = [(unused_port(), unused_port()) for _ in self._works]
        self._used = 0
        self._idle: dict[str, tuple[int, int]] = {}
        self._before: dict[str, int] = {}

    def __enter__(self) -> Self:
        with self._stack as stack:
            for work in self._works:
                stack.enter_context(work)
            self.tunnel = stack.enter_context(self._tunnel())
            several = len(self._transports) > 1
            port = self.tunnel.port
            if self._path:
                port = stack.enter_context(trouble(self._path).start(port, self._directory / "path")).port
            self.relay = stack.enter_context(
                ChaosRelay(
                    port,
                    seed=self.seed,
                    ports=len(self._transports),
                    faults=self._faults,
                    alternate=several,
                    **(SOONER if self._path else {}),
                )
            )
            urls = [f"ws://127.0.0.1:{port}/tunnel" for port in self.relay.ports]
            self.tunnel.client_settings["url"] = urls if several else urls[0]
            self.tunnel.start()
            self._idle = {name: (program.threads, program.sockets) for name, program in self._programs.items()}
            self._before = self.memory
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            error.add_note(self.relay.report())
        self._stack.__exit__(kind, error, at)

    def run(
        self, cuts: int, *, patient: bool = True, progress: Callable[[int], object] = lambda faults: None
    ) -> Figures:
        """Run the next workload until `cuts` more connections have met their fault; then all must be well.

        No application noticed anything, the session is the first one still, both processes live within the bound on
        their memory, and their threads and sockets come back to what they were.  An HTTP/2 connection whose peer is
        gone in silence costs the server a minute; unless `patient`, the network tells it then.  `progress` hears every
        half second how many have met their fault.
        """
        number, self._used = self._used, self._used + 1
        faults = self.relay.faults
        resumed = self.tunnel.client.count(RESUMED)
        highest = dict.fromkeys(self._programs, 0)
        work = self._works[number].start(*self._ports[number])
        began = last = time.monotonic()
        reached = faults
        while not self.relay.wait_faults(faults + cuts, seconds=0.5):
            self._check_alive()
            work.check()
            progress(self.relay.faults - faults)
            for name, memory in self.memory.items():
                highest[name] = max(highest[name], memory - self._before[name])
            if self.relay.faults > reached:
                reached, last = self.relay.faults, time.monotonic()
            assert time.monotonic() - last < SECONDS, f"nothing gets through: {reached - faults} faults of {cuts}"
        seconds = time.monotonic() - began
        totals = work.stop()
        assert totals.slowest < PROMPT, f"an answer took {totals.slowest:.1f} s"
        self._check_alive()
        self._check_log(self.relay.faults - faults, self.tunnel.client.count(RESUMED) - resumed)
        bound = self._slots * (WINDOW + 2 * THREAD) + SESSION_BOUND + (self._lanes - 1) * LANE_BOUND + SLACK
        for name, most in highest.items():
            assert most < bound, f"{name} grew by {most / MEBI:.1f} MiB, above {bound / MEBI:.1f}"
        if not patient:
            self.relay.forget()
        self.wait_idle()
        return {
            "connections that met their end": self.relay.faults - faults,
            "seconds": seconds,
            "a second": (self.relay.faults - faults) / seconds,
            "streams, none of which noticed": totals.streams,
            "MB up": totals.up / 1e6,
            "MB down": totals.down / 1e6,
            "requests answered": totals.turns,
            "slowest answer, s": totals.slowest,
            "resets on purpose, all seen as resets": totals.resets,
            **{f"{name}: memory grew at most by, MiB": most / MEBI for name, most in highest.items()},
        }

    def wait_idle(self) -> None:
        """Block until threads and sockets of both processes are back to what they were before any stream."""
        deadline = time.monotonic() + IDLE + SECONDS
        while True:
            now = {name: (program.threads, program.sockets) for name, program in self._programs.items()}
            spare = _SPARE * self._lanes
            bounds = {name: [count + spare for count in counts] for name, counts in self._idle.items()}
            if self._path:
                bounds["server"][1] += _POOLED
            if all(a <= b for name in now for a, b in zip(now[name], bounds[name], strict=True)):
                return
            assert time.monotonic() < deadline, f"threads and sockets were {self._idle}, and stay at {now}"
            time.sleep(0.02)  # another process's threads end when they end

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that each process occupies."""
        return {name: program.memory for name, program in self._programs.items()}

    @property
    def _programs(self) -> dict[str, Program]:
        return {"server": self.tunnel.server, "client": self.tunnel.client}

    def _tunnel(self) -> Tunnel:
        forwards = [
            {kind: f"127.0.0.1:{port}", "to": work.address}
            for work, ports in zip(self._works, self._ports, strict=True)
            for kind, port in zip(("local", "remote"), ports, strict=True)
        ]
        several = len(self._transports) > 1
        client: dict[str, Any] = {
            "transport": list(self._transports) if several else self._transports[0],
            "keepalive": KEEPALIVE,
            "reconnect": RECONNECT,
        }
        if self._lanes > 1:
            client["lanes"] = self._lanes
        server: dict[str, Any] = {
            "keepalive": KEEPALIVE,
            "resume_for": 60,
            # Everybody comes from one address here, and often.
            "limits": {"per_address_rate": 1000, "per_address_burst": 10_000},
        }
        if self._path:
            server["trusted_proxies"] = ["127.0.0.1/32"]
        script = PACKETS if self._packets else TUNNEL
        return Tunnel(self._directory / "tunnel", forwards, server=server, client=client, client_script=script)

    def _check_alive(self) -> None:
        for name, program in self._programs.items():
            code = program.process.poll()
            assert code is None, f"the {name} ended with {code}"

    def _check_log(self, faults: int, resumed: int) -> None:
        """The client says that it came back each time, and never that it had to begin anew."""
        sessions = self.tunnel.client.count(NEW_SESSION)
        assert sessions <= self._lanes, f"{sessions} times the client began a session, rather than resume it"
        if self._transports == ("split",):
            return  # whose pipes outlive their connections
        # The last fault may have struck when nothing was left to carry; faults of two lanes may be mended together.
        assert resumed >= (faults - 1) * 0.8, f"{faults} faults, and {resumed} resumptions"
        if len(self._transports) > 1:
            spoken = self.relay.spoken
            assert len(spoken) > 1, f"all connections were of one transport: {spoken}"
