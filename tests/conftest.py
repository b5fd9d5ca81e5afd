"""What holds for every test: it leaves no thread and no open file or socket behind.

And what several processes that share the tests have to agree on (`make test` runs four): which tests stay together,
and what is printed at the end (`SECTIONS`).

How to keep the check below satisfied:

- Close what you open and join what you start: `FrontDoor.close()` then `.join()`, `pool.close()`, `sock.close()`.
  Things that end by themselves within `GRACE` seconds (a peer's thread that notices the close) are waited for.
- A fixture of function scope may own threads and sockets when it ends them after its `yield`; it is torn down
  before the check runs.
- A fixture of module or session scope may own threads and sockets as long as it lives: what it made before the
  test started is in the snapshot.  Take it as an argument (`request.getfixturevalue` would make it too late).
  When such a fixture starts further long-lived threads *during* tests, name them with the prefix "shared-".
- Regular files count too: use `with`.

A test that failed is not checked, since its traceback keeps its sockets alive.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.machine.programs import describe_skips

GRACE = 20.0
"""Seconds that what is ending anyway may take."""

_IGNORED_THREADS = ("shared-", "pytest_timeout", "pydevd")
_IGNORED_FILES = ("/proc/", "/dev/null", "/dev/urandom", "/dev/random")
_DESCRIPTORS = "/proc/self/fd"

# Of an example Hypothesis expects a fifth of a second, which a busy machine may take for anything.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Compiled code is kept whatever the environment says: the tests start some hundred programs from these sources.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_failed = pytest.StashKey[bool]()

SECTIONS = pytest.StashKey[dict[str, str]]()
"""In a session's configuration: what is printed at the end of the run, by title."""
_SILENCE = ("at_rest", "chaos", "matrix", "real_sessions", "reconnecting", "under_silence")
"""The files of tests/integration that one process runs in this order: the tunnels of the matrix are left alone for a
minute and a half before `matrix` and after it, and the others fill that time."""
_LONGEST_FIRST = (
    "the matrix",
    "tests/integration/test_shared_proxy.py",
    "tests/integration/test_kinds.py",
    "tests/integration/test_alerts.py",
    "tests/integration/test_page_troubles.py",
    "tests/integration/test_reload.py",
    "tests/deploy/test_cron.py",
    "tests/cli/test_command_line_running.py",
    "tests/cli/test_command_line.py",
    "tests/integration/test_proxy_reload.py",
    "tests/integration/test_http2_strangers.py",
    "tests/integration/test_faults.py",
    "tests/integration/test_two_servers.py",
    "tests/integration/test_recovery.py",
    "tests/integration/test_dynamic.py",
    "tests/integration/test_stdio.py",
    "tests/integration/test_browser.py",
    "tests/integration/test_many_streams.py",
    "tests/integration/test_few_threads.py",
    "tests/packaging/test_bundles.py",
    "tests/monitor/test_page.py",
    "tests/packaging/test_pyz.py",
    "tests/packaging/test_distributions.py",
    "tests/integration/test_transports.py",
    "tests/integration/test_stopping.py",
    "tests/client/test_failover.py",
    "tests/config/test_extremes.py",
    "tests/doctor/test_seeded_faults.py",
    "tests/doctor/test_cures.py",
    "tests/client/test_auto.py",
    "tests/transports/test_pipe_promises.py",
    "tests/session/test_nothing_stays.py",
    "tests/mux/test_exactly_once.py",
    "tests/endpoints/test_vanished.py",
    "tests/server/test_resume.py",
    "tests/client/test_reconnector.py",
    "tests/integration/test_network_change.py",
    "tests/transports/http2/test_server.py",
    "tests/client/test_resume.py",
    "tests/endpoints/test_application_socket.py",
    "tests/server/front_door/test_http2.py",
    "tests/client/test_client.py",
    "tests/server/test_server.py",
    "tests/session/test_isolation.py",
)
"""What takes more than about ten seconds is not left to the end, when the other processes have nothing to do."""


def open_descriptors() -> frozenset[str]:
    """What the process holds open, each with its number: "7 socket:[4711]"; empty where there is no /proc."""
    found = set()
    try:
        numbers = os.listdir(_DESCRIPTORS)
    except OSError:
        return frozenset()
    for number in numbers:
        try:
            target = os.readlink(f"{_DESCRIPTORS}/{number}")
        except OSError:
            continue  # closed since listdir: the descriptor of the listing itself
        if not target.startswith(_IGNORED_FILES):
            found.add(f"{number} {target}")
    return frozenset(found)


def running_threads() -> frozenset[threading.Thread]:
    return frozenset(t for t in threading.enumerate() if not t.name.startswith(_IGNORED_THREADS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare threads and descriptors before and after the test, with `GRACE` seconds to settle."""
    threads_before = running_threads()
    files_before = open_descriptors()
    yield
    if request.node.stash.get(_failed, False):
        return
    deadline = time.monotonic() + GRACE
    pause = 0.001
    while True:
        threads = running_threads() - threads_before
        files = open_descriptors() - files_before
        if not threads and not files:
            return
        if time.monotonic() >= deadline:
            break
        if pause > 0.05 and files:
            gc.collect()  # what only a cycle holds is not a leak
        time.sleep(pause)  # there is no condition to wait on: anything may be ending
        pause = min(0.1, pause * 2)
    names = sorted(t.name for t in threads)
    pytest.fail(f"left behind: threads {names}, descriptors {sorted(files)}", pytrace=False)


# --- several processes ------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SECTIONS] = {}
    # Under nohup, or in the background of a script: what tests start has to have signals as a shell would give them.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """A file's tests stay in one process, with what they share.  The longest come first."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            folder, _, name = path.rpartition("/")
            if folder == "tests/integration" and name.removeprefix("test_").removesuffix(".py") in _SILENCE:
                return _LONGEST_FIRST[0]
            return path

        def _assign_work_unit(self, node: Any) -> None:
            order = {scope: number for number, scope in enumerate(_LONGEST_FIRST)}
            self.workqueue.move_to_end(min(self.workqueue, key=lambda scope: order.get(scope, len(order))), last=False)
            super()._assign_work_unit(node)

        # What follows is for a process that died, which otherwise ends the run or leaves it waiting: its finished
        # files come back as work without a test, and one that takes its place has no tests before it has collected
        # them, and begins none until it knows two.

        def remove_node(self, node: Any) -> str | None:
            units = self.assigned_work[node]
            for scope in [scope for scope, unit in units.items() if all(unit.values())]:
                del units[scope]
            return super().remove_node(node)

        def _reschedule(self, node: Any) -> None:
            before = None
            while node in self.registered_collections and len(self.workqueue) != before:
                before = len(self.workqueue)
                super()._reschedule(node)

    return Scheduling(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["sections"] = session.config.stash[SECTIONS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[SECTIONS].update(getattr(node, "workeroutput", {}).get("sections", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for title, text in config.stash[SECTIONS].items():
        terminalreporter.section(title)
        terminalreporter.write_line(text)
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in skipped if isinstance(report.longrepr, tuple)]
    if line := describe_skips(reasons):
        terminalreporter.write_line(line)
