"""The order of a run: every contender once a round in each group, beginning with another one each time.

What differs between two rounds (a neighbor on the machine, heat) is then the same for all in a round, and ratios are
taken within it.  Each round starts all contenders anew.  One that fails costs its own figures of that round, and is
started anew for the next group.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import LOOPBACK, Contender, Running, Site
from benchmarks.figures import (
    FULL,
    GROUPS,
    QUICK,
    Figure,
    Group,
    Lengths,
    LoadCost,
    Values,
    client_figures,
    measure_clients,
)
from benchmarks.paths import lines, measure_path, path_figures
from benchmarks.report.results import Failure, Results
from benchmarks.report.summary import rotated
from benchmarks.rig.namespaces import FAR, Line, Machines, impossible
from benchmarks.rig.processes import Started, python

CLIENTS, PATHS = "clients", "paths"
ALL_GROUPS = (*(group.name for group in GROUPS), CLIENTS, PATHS)
ONCE = ("memory", CLIENTS)
"""Groups that only the first round has: what they find hardly varies, and they take long."""

REST_SECONDS = 5.0
"""Seconds that a contender gets after each measurement to come to rest, before it is started anew."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is asked to do."""

    contenders: tuple[Contender, ...]
    groups: tuple[str, ...]
    rounds: int
    quick: bool

    @property
    def lengths(self) -> Lengths:
        """How long each measurement takes."""
        return QUICK if self.quick else FULL

    @property
    def figures(self) -> list[Figure]:
        """All figures of its groups, in the order of the groups."""
        found = [figure for group in GROUPS if group.name in self.groups for figure in group.figures(self.lengths)]
        found += client_figures(self.lengths) if CLIENTS in self.groups else []
        return found + (path_figures(self.lengths) if PATHS in self.groups else [])


class Run:
    """One run of a plan.  `results` grows while it goes on, so that an interrupted one has what it found."""

    def __init__(self, plan: Plan, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._began = time.monotonic()
        self._running: dict[str, Running] = {}
        self._folders = 0
        self.results = Results(list(plan.contenders), plan.figures, plan.rounds, plan.quick)

    def measure(self) -> None:
        """Measure everything.  Blocks; what it started is stopped when it returns or raises."""
        plan, results = self._plan, self.results
        results.skipped.update({one.name: one.missing for one in plan.contenders if one.missing is not None})
        here = [one for one in plan.contenders if one.name not in results.skipped]
        with ExitStack() as stack:
            self._root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qanat-bench-")))
            self._target, self._target_port = self._start_target(LOOPBACK, stack)
            self._cost = LoadCost(self._target.pid, results.load_cores)
            stack.callback(self._stop_all)
            machines = self._machines(stack, here)
            for number in range(plan.rounds):
                self._stop_all()  # two pairs of the same processes differ by a tenth, for as long as they live
                for turn, name in enumerate(plan.groups):
                    if name in ONCE and number:
                        continue
                    order = rotated(here, number + turn)
                    if name == PATHS:
                        self._paths(machines, number, [one for one in order if one.on_paths])
                    elif name == CLIENTS:
                        self._clients(number, [one for one in order if one.start_clients])
                    else:
                        self._group(next(group for group in GROUPS if group.name == name), number, order)

    # --- the three kinds of groups --------------------------------------------------------------

    def _group(self, group: Group, number: int, order: Sequence[Contender]) -> None:
        if group.fresh:
            self._stop_all()
        for step in group.steps(self._plan.lengths):
            for one in order:
                with self._attempt(one, group.name, number):
                    running = self._started(one)
                    with self._cost.watched(group.name):
                        values = step(running, one, self._plan.lengths)
                    self._keep(one, group.name, number, values)
                    if not running.await_rest(REST_SECONDS):
                        self._stop(one.name)  # what it still has to do would be at the cost of the next one
                if group.fresh:
                    self._stop(one.name)

    def _clients(self, number: int, order: Sequence[Contender]) -> None:
        self._stop_all()
        for one in order:
            start = one.start_clients
            assert start is not None
            with self._attempt(one, CLIENTS, number):
                values = measure_clients(
                    lambda count, start=start: start(self._site(), count), one.clients, self._plan.lengths
                )
                self._keep(one, CLIENTS, number, values)

    def _paths(self, machines: tuple[Machines, int] | None, number: int, order: Sequence[Contender]) -> None:
        if machines is None:
            return
        self._stop_all()
        between, target = machines
        for line in lines(self._plan.lengths):
            for one in order:
                with self._attempt(one, f"{PATHS} {line.name}", number), between.joined(line):
                    self._keep(one, f"{PATHS} {line.name}", number, self._over(between, target, line, one))

    def _over(self, between: Machines, target: int, line: Line, one: Contender) -> Values:
        site = Site(self._folder(), target, FAR, lambda: between.near, lambda: between.far)
        running = one.start(site)
        try:
            with between.near:
                return measure_path(running, one, self._plan.lengths, line)
        finally:
            running.stop()

    # --- starting and stopping ------------------------------------------------------------------

    @contextlib.contextmanager
    def _attempt(self, one: Contender, group: str, number: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            running = self._running.get(one.name)
            why = (running and running.why_dead()) or f"{type(error).__name__}: {error}"
            why = " ".join(str(why).split())
            self.results.failures.append(Failure(one.name, group, number, why))
            self._say(number, group, one, f"failed: {why}")
            self._stop(one.name)

    def _keep(self, one: Contender, group: str, number: int, values: Values) -> None:
        self.results.add(one.name, number, values)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._say(number, group, one, shown or "nothing to measure here")

    def _say(self, number: int, group: str, one: Contender, text: str) -> None:
        seconds = time.monotonic() - self._began
        self._tell(f"{seconds:5.0f} s  round {number + 1}/{self._plan.rounds}  {group:<12} {one.name:<18} {text}")

    def _started(self, one: Contender) -> Running:
        running = self._running.get(one.name)
        if running is not None and running.why_dead() is not None:
            self._stop(one.name)
            running = None
        if running is None:
            running = self._running[one.name] = one.start(self._site())
        return running

    def _stop(self, name: str) -> None:
        running = self._running.pop(name, None)
        if running is not None:
            running.stop()

    def _stop_all(self) -> None:
        for name in list(self._running):
            self._stop(name)

    def _site(self) -> Site:
        return Site(self._folder(), self._target_port)

    def _folder(self) -> Path:
        self._folders += 1
        folder = self._root / str(self._folders)
        folder.mkdir(mode=0o700)
        return folder

    def _machines(self, stack: ExitStack, here: Sequence[Contender]) -> tuple[Machines, int] | None:
        if PATHS not in self._plan.groups or not any(one.on_paths for one in here):
            return None
        why = impossible()
        if why is not None:
            self.results.skipped[PATHS] = why
            self._tell(f"{PATHS}: {why}")
            return None
        machines = stack.enter_context(Machines())
        with machines.far:
            _, port = self._start_target(FAR, stack)
        return machines, port

    def _start_target(self, host: str, stack: ExitStack) -> tuple[Started, int]:
        file = self._root / f"target-{host}"
        target = Started(*python("-m", "benchmarks.rig.target", host, file))
        stack.callback(target.stop)
        target.wait_until(file.exists, "listening")
        return target, int(file.read_text())
