"""The route of a connection changes, and its owner hears of it: with fakes, and in a network of the test's own."""

from __future__ import annotations

import contextlib
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from qanat.base.errors import LocalError
from qanat.client.network_watch import ASLEEP, BACK, NetworkWatch, Watched, ask_kernel, seconds_asleep
from qanat.transports.pipe import SockAddr
from tests.support.background import DEADLINE, wait_until
from tests.support.machine.networks import card, in_a_network_of_its_own, ip

HOME, CAFE, LTE = ("10.0.0.2", 40000), ("192.168.1.7", 0), ("100.64.0.9", 0)
SERVER = ("203.0.113.1", 443)
SOON = 0.01


class World:
    """A kernel and a clock that the test moves."""

    def __init__(self) -> None:
        self.source: SockAddr | OSError | None = HOME
        self.asleep = 1000.0
        self.looks = 0

    def source_for(self, remote: SockAddr) -> SockAddr | None:
        assert remote == SERVER
        self.looks += 1
        if isinstance(self.source, OSError):
            raise self.source
        return self.source

    def move(self, source: SockAddr | OSError | None) -> None:
        """Change the route, and wait until that was seen."""
        self.source = source
        self.pass_by()

    def pass_by(self) -> None:
        """Until a look that began after now has ended."""
        after = self.looks + 6  # of two connections, the one under way, a whole one, and the beginning of the next
        wait_until(lambda: self.looks >= after, "the watcher has looked")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def world() -> World:
    return World()


def watching(stack: ExitStack, world: World, interval: float = SOON, *, netlink: bool = False) -> NetworkWatch:
    watch = NetworkWatch(interval, source_for=world.source_for, slept=lambda: world.asleep, netlink=netlink)
    stack.callback(watch.close)
    watch.start()
    return watch


def test_another_way_is_told_once_and_each_time_it_changes_again(stack: ExitStack, world: World) -> None:
    watch = watching(stack, world)
    told: list[str] = []
    watch.add((HOME, SERVER), told.append)
    world.move(HOME)
    assert not told
    world.move(CAFE)
    world.pass_by()
    assert told == ["the route to 203.0.113.1 now starts at 192.168.1.7, not at 10.0.0.2"]
    world.move(LTE)
    assert len(told) == 2
    world.move(HOME)
    assert len(told) == 2, "this is the connection's own route"
    world.move(CAFE)
    assert len(told) == 3


def test_no_way_at_all_counts_once_there_is_one_again(stack: ExitStack, world: World) -> None:
    watch = watching(stack, world)
    told: list[str] = []
    watch.add((HOME, SERVER), told.append)
    world.move(None)
    assert not told
    world.move(HOME)
    assert told == [BACK]
    world.move(None)
    world.move(CAFE)
    assert len(told) == 2
    assert "192.168.1.7" in told[1]


def test_a_change_from_before_it_was_added_counts(stack: ExitStack, world: World) -> None:
    world.source = CAFE
    watch = watching(stack, world)
    told: list[str] = []
    watch.add((HOME, SERVER), told.append)
    world.pass_by()
    world.pass_by()
    assert len(told) == 1


@pytest.mark.parametrize("before", [None, OSError("no sockets left"), HOME])
def test_a_way_without_a_connection_counts_once_there_is_another_one(
    stack: ExitStack, world: World, before: SockAddr | OSError | None
) -> None:
    watch = watching(stack, world)
    told: list[str] = []
    world.source = before
    watch.add_way(SERVER, told.append)
    world.pass_by()
    assert not told
    world.move(CAFE)
    assert len(told) == 1
    world.pass_by()
    assert len(told) == 1
    world.move(None)
    assert len(told) == 1
    world.move(LTE)
    assert len(told) == 2
    world.asleep += 60
    world.pass_by()
    assert told[2:] == [ASLEEP]


def test_a_question_that_cannot_be_asked_is_no_change(stack: ExitStack, world: World) -> None:
    watch = watching(stack, world)
    told: list[str] = []
    watch.add((HOME, SERVER), told.append)
    world.move(OSError(24, "Too many open files"))
    world.move(HOME)
    assert not told


def test_everybody_is_told_that_the_machine_was_asleep(stack: ExitStack, world: World) -> None:
    watch = watching(stack, world)
    told: list[str] = []
    other: list[str] = []
    watch.add((HOME, SERVER), told.append)
    watch.add((HOME, SERVER), other.append)
    world.asleep += 4.9
    world.pass_by()
    world.pass_by()
    assert not told
    world.source = CAFE
    world.asleep += 5.1
    world.pass_by()
    world.pass_by()
    assert told[-1] == ASLEEP, "which includes the other way, if both are seen at once"
    assert other == told
    assert told.count(ASLEEP) == 1


def test_who_was_removed_is_not_told(stack: ExitStack, world: World) -> None:
    watch = watching(stack, world)
    told: list[str] = []
    handle = watch.add((HOME, SERVER), told.append)
    other: list[str] = []
    watch.add((HOME, SERVER), other.append)
    watch.remove(handle)
    watch.remove(handle)
    world.move(CAFE)
    assert other
    assert not told


def test_it_is_told_by_the_watchers_thread_and_may_use_the_watch(stack: ExitStack, world: World) -> None:
    watch = watching(stack, world)
    names: queue.SimpleQueue[str] = queue.SimpleQueue()

    def on_change(why: str) -> None:
        watch.remove(handle)  # would wait for ever for a lock held around this
        names.put(threading.current_thread().name)

    handle = watch.add((HOME, SERVER), on_change)
    world.source = CAFE
    assert names.get(timeout=DEADLINE) == "network-watch"


def test_one_who_fails_does_not_take_the_news_from_the_others(
    stack: ExitStack, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    watch = watching(stack, world)
    told: list[str] = []

    def fail(why: str) -> None:
        raise ZeroDivisionError(why)

    watch.add((HOME, SERVER), fail)
    watch.add((HOME, SERVER), told.append)
    world.move(CAFE)
    assert len(told) == 1
    world.move(LTE)
    assert len(told) == 2
    assert "please report it" in caplog.text


def test_an_unexpected_error_about_one_connection_does_not_end_the_watch(
    stack: ExitStack, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch = watching(stack, world)
    told: list[str] = []
    real, broken = Watched.compare, watch.add((HOME, SERVER), lambda why: None)
    watch.add((HOME, SERVER), told.append)

    def compare(one: Watched, source: SockAddr | None) -> str | None:
        if one is broken:
            raise ZeroDivisionError
        return real(one, source)

    monkeypatch.setattr(Watched, "compare", compare)
    world.move(CAFE)
    world.move(LTE)
    assert len(told) == 2
    assert caplog.text.count("please report it") == 1


def test_close_wakes_the_thread_and_joins_it(world: World) -> None:
    watch = NetworkWatch(3600, source_for=world.source_for)
    watch.start()
    with pytest.raises(LocalError):
        watch.start()
    watch.close()  # which joins a thread that would look again in an hour
    watch.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "network-watch"]
    NetworkWatch().close()  # never started


# --- what announces a change


@pytest.fixture
def kernel(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """What stands for the other end of netlink."""
    ours, theirs = socket.socketpair(type=socket.SOCK_DGRAM)
    ours.setblocking(False)
    monkeypatch.setattr("qanat.client.network_watch._open_netlink", lambda: ours)
    stack.enter_context(ours)
    return stack.enter_context(theirs)


def test_an_announcement_makes_it_look_at_once(stack: ExitStack, world: World, kernel: socket.socket) -> None:
    watch = watching(stack, world, 3600, netlink=True)
    watch.add((HOME, SERVER), lambda why: None)

    def has_looked(times: int) -> bool:
        return world.looks == times

    for number in range(1, 4):
        kernel.send(b"news")
        wait_until(partial(has_looked, number), "it has looked")


def test_a_burst_of_announcements_is_one_look_and_an_endless_one_does_not_put_it_off(
    stack: ExitStack, world: World, kernel: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qanat.client.network_watch._QUIET", DEADLINE)  # never quiet for long enough
    watch = watching(stack, world, 3600, netlink=True)
    watch.add((HOME, SERVER), lambda why: None)
    started = time.monotonic()
    while not world.looks:
        kernel.send(b"news")
        assert time.monotonic() - started < DEADLINE
        threading.Event().wait(0.02)
    assert time.monotonic() - started > 0.9
    assert world.looks == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a closed datagram socket pair behaves otherwise there")
def test_announcements_that_fail_leave_the_intervals(
    stack: ExitStack, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(socket.socket):
        def recv(self, size: int, flags: int = 0) -> bytes:
            raise OSError(5, "Input/output error")

    ours, theirs = socket.socketpair(type=socket.SOCK_DGRAM)
    broken = stack.enter_context(Broken(ours.family, ours.type, 0, ours.detach()))
    stack.enter_context(theirs)
    monkeypatch.setattr("qanat.client.network_watch._open_netlink", lambda: broken)
    watch = watching(stack, world, netlink=True)
    told: list[str] = []
    watch.add((HOME, SERVER), told.append)
    theirs.send(b"news")
    world.move(CAFE)
    assert told


# --- the real thing


def test_the_kernel_is_asked_for_the_way_to_every_kind_of_address() -> None:
    assert ask_kernel(("127.0.0.1", 9))[0] == "127.0.0.1"  # type: ignore[index]
    assert ask_kernel(("0.0.0.0", 9))[0] == "127.0.0.1"  # type: ignore[index]
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert ask_kernel(server.getsockname())[0] == "::1"  # type: ignore[index]


def test_the_clock_of_sleep_does_not_run_while_we_are_awake() -> None:
    before = seconds_asleep()
    assert abs(seconds_asleep() - before) < 1


@pytest.mark.parametrize(
    ("remote", "addresses"),
    [
        (("203.0.113.1", 443), ("10.1.0.2/24", "10.2.0.2/24")),
        (("2001:db8:f::1", 443, 0, 0), ("2001:db8:1::2/64", "2001:db8:2::2/64")),
    ],
)
def test_a_new_card_with_the_better_route_is_noticed_within_a_second(
    remote: SockAddr, addresses: tuple[str, str]
) -> None:
    first, second = (address.partition("/")[0] for address in addresses)
    family = "-6" if ":" in first else "-4"

    def scenario() -> None:
        ip("link", "set", "lo", "up")
        card("one", addresses[0])
        ip(family, "route", "add", "default", "dev", "one", "metric", "200")
        own = ask_kernel(remote)
        assert own is not None
        assert own[0] == first
        told: queue.SimpleQueue[str] = queue.SimpleQueue()
        watch = NetworkWatch(3600)  # so it is the kernel's announcement that is heard
        watch.start()
        try:
            watch.add((own, remote), told.put)
            card("two", addresses[1])
            ip(family, "route", "add", "default", "dev", "two", "metric", "100")
            started = time.monotonic()
            assert told.get(timeout=DEADLINE) == f"the route to {remote[0]} now starts at {second}, not at {first}"
            assert time.monotonic() - started < 1.0 + 3.5  # as promised, and what a busy machine takes
            ip("link", "delete", "two")
            ip(family, "route", "delete", "default")
            with pytest.raises(queue.Empty):
                told.get(timeout=0.5)
            ip(family, "route", "add", "default", "dev", "one")
            assert told.get(timeout=DEADLINE) == BACK
        finally:
            watch.close()
        assert told.empty()

    in_a_network_of_its_own(scenario)
