"""The live page in a real browser: what it shows, that it is strangers' words and never their code, and what it costs.

Its snapshots are made by hand; tests/integration/test_page.py has real tunnels in real trouble.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qanat.base.watcher import Watcher
from qanat.config.settings import MonitorSettings
from qanat.monitor.listener import MonitorListener
from qanat.monitor.page import page as page_module
from qanat.monitor.page.page import Page
from qanat.monitor.page.rows import SIZE
from qanat.monitor.snapshot import Failure, ForwardSnapshot, Snapshot
from tests.support.machine.browser import driven_browser
from tests.support.made_snapshots import crowd, lane, server, session, stream

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

SECONDS = 30.0
EVIL = "<img src=x onerror=alert(1)>\"'&amp;<script>alert(2)</script>"
TOKEN = "a password of the page"


class Rig:
    """A page over whatever `shown` says, on a listener on loopback."""

    def __init__(self, watcher: Watcher, token_file: Path | None = None) -> None:
        self.shown: Callable[[float], Snapshot] = lambda now: server(now, session("a", stream("a", 1)))
        self.looks = 0
        self.page = Page(self._take, watcher)
        settings = MonitorSettings(listen="127.0.0.1:0", token_file=token_file)
        self.listener = MonitorListener(settings, self.page.routes, watcher)
        self.page.start()
        self.listener.start()
        self.url = f"http://{self.listener.address}/"

    def _take(self) -> Snapshot:
        self.looks += 1
        now = time.time()
        return replace(self.shown(now), taken_at=now)

    def get(self, path: str) -> tuple[int, str, bytes]:
        """Status, head and body of an answer."""
        with self.connect() as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {self.listener.address}\r\n\r\n".encode())
            with sock.makefile("rb") as file:
                head, _, body = file.read().partition(b"\r\n\r\n")
        return int(head.split()[1]), head.decode(), body

    def connect(self) -> socket.socket:
        host, _, port = self.listener.address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=SECONDS)

    def watch(self) -> Events:
        return Events(self)

    def close(self) -> None:
        assert not self.page.close(SECONDS)
        assert not self.listener.close(SECONDS)


class Events:
    """Somebody who reads the events without a browser."""

    def __init__(self, rig: Rig) -> None:
        self._sock = rig.connect()
        self._sock.sendall(f"GET /events HTTP/1.1\r\nHost: {rig.listener.address}\r\n\r\n".encode())
        self._file = self._sock.makefile("rb")
        self.head = self._file.readline()

    def next(self) -> dict[str, Any]:
        """Block until the next state has come."""
        while line := self._file.readline():
            if line.startswith(b"data: "):
                state: dict[str, Any] = json.loads(line[6:])
                return state
        raise AssertionError("the events ended")

    def close(self) -> None:
        self._file.close()
        self._sock.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with driven_browser() as found:
        yield found


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    made = Watcher()
    yield made
    made.close()


@pytest.fixture
def rig(watcher: Watcher) -> Iterator[Rig]:
    made = Rig(watcher)
    yield made
    made.close()


@contextlib.contextmanager
def tab(browser: Browser, rig: Rig, *, complains: bool = False, **options: Any) -> Iterator[Tab]:
    """The page, live, in a tab that notes in `asked` and `said` what it asks for and complains of."""
    context = browser.new_context(**options)
    opened = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    opened.set_default_timeout(1000 * SECONDS)
    opened.goto(rig.url)
    opened.wait_for_selector("#live.live")
    try:
        yield opened
        assert said == [] or complains
        assert [url for url in asked if not url.startswith(rig.url)] == []
    finally:
        context.close()


def until(page: Tab, condition: str) -> None:
    """Block until `condition` holds.  The page's policy forbids playwright's own way, which is `eval`."""
    deadline = time.monotonic() + SECONDS
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


# --- in a browser -------------------------------------------------------------------------------------


def test_strangers_words_are_shown_and_never_obeyed(browser: Browser, rig: Rig) -> None:
    level = logging.getLogger("qanat").level
    logging.getLogger("qanat").setLevel(logging.INFO)

    def hostile(now: float) -> Snapshot:
        evil = session(
            EVIL,
            stream(EVIL, 1, to=EVIL, from_=EVIL, forward=EVIL, kind=EVIL),
            agent=EVIL,
            address=EVIL,
            via=EVIL,
            transport=EVIL,
            lanes=(lane(outbox_bytes=8 << 20),),
            last_failure=Failure(now, EVIL),
        )
        return server(0, evil, node=EVIL, config=EVIL, forwards=(ForwardSnapshot(EVIL, EVIL, EVIL, EVIL, EVIL, EVIL),))

    rig.shown = hostile
    try:
        with tab(browser, rig) as page:
            logging.getLogger("qanat.test").info("%s logs a qanat1-secretsecretsecret", EVIL)
            page.wait_for_selector("#finding-list .finding.error")
            page.wait_for_selector(f"#log li:has-text({json.dumps(EVIL)})")
            assert EVIL in page.inner_text("#session-table")
            assert EVIL in page.inner_text("#stream-table")
            assert EVIL in page.inner_text("#title")
            assert EVIL in page.inner_text("#forward-table")
            assert "qanat1-[hidden]" in page.inner_text("#log")
            assert "secretsecret" not in page.content()
            page.click("#session-table td button")
            until(page, "document.getElementById('plot-of').value !== ''")
            assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
    finally:
        logging.getLogger("qanat").setLevel(level)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_system_s_colors(browser: Browser, rig: Rig, scheme: Any) -> None:
    rig.shown = lambda now: server(
        0, *(session(f"client-{n}", stream(f"client-{n}", 1, to="a" * 200)) for n in range(30))
    )
    with tab(browser, rig, viewport={"width": 360, "height": 740}, color_scheme=scheme) as page:
        page.wait_for_selector("#plot-throughput canvas")
        page.wait_for_selector("#session-table tbody tr")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        lightness = sum(int(part) for part in re.findall(r"\d+", ground)) / 3
        assert (lightness < 60) == (scheme == "dark")
        widths = page.evaluate("[...document.querySelectorAll('.plot canvas')].map(c => c.clientWidth)")
        assert len(widths) == 4
        assert all(200 < width <= 360 for width in widths)


def test_a_thousand_sessions_and_five_thousand_streams_stay_usable(browser: Browser, rig: Rig) -> None:
    full = crowd(0, 1000, 5000)
    rig.shown = lambda now: full
    with tab(browser, rig) as page:
        page.wait_for_selector("#session-table tbody tr")
        assert "1,000 sessions" in page.inner_text("#session-table caption")
        assert "5,000 streams" in page.inner_text("#stream-table caption")
        assert page.locator(".scroll tbody tr").count() == 2 * SIZE
        page.fill("#stream-filter", "client-777/")
        page.wait_for_selector("#stream-table td:has-text('client-777/0/9')")
        assert page.locator("#stream-table tbody tr").count() == 5
        page.click("#session-pages button:has-text('Next')")
        page.wait_for_selector("#session-pages:has-text('of 1,000'):has-text('26')")
        until(page, f"document.querySelectorAll('#session-table tbody tr').length === {SIZE}")


def test_tables_are_sorted_with_the_keyboard_and_say_so(browser: Browser, rig: Rig) -> None:
    rig.shown = lambda now: server(0, *(session(name, round_trip_s=trip) for name, trip in (("a", 0.3), ("b", 0.1))))
    with tab(browser, rig) as page:
        page.focus("#session-table th button:has-text('Round trip')")
        page.keyboard.press("Enter")
        page.wait_for_selector("#session-table th[aria-sort=descending]:has-text('Round trip')")
        until(page, "document.querySelector('#session-table tbody td').textContent === 'a'")
        page.keyboard.press("Enter")
        page.wait_for_selector("#session-table th[aria-sort=ascending]:has-text('Round trip')")
        until(page, "document.querySelector('#session-table tbody td').textContent === 'b'")
        focused = page.evaluate("document.activeElement.textContent")
        assert focused == "Round trip"
        unnamed = page.evaluate(
            "[...document.querySelectorAll('input, select, button, section, nav')].filter(each => !(each.labels?.length"
            " || each.textContent.trim() || each.getAttribute('aria-label'))).length"
        )
        assert unnamed == 0


def test_it_says_when_nothing_comes_any_more_and_goes_on_by_itself(browser: Browser, watcher: Watcher) -> None:
    first = Rig(watcher)
    with tab(browser, first, complains=True) as page:
        page.wait_for_selector("#session-table td:has-text('a')")
        first.listener.close(SECONDS)
        page.wait_for_selector("#live.stale")
        settings = MonitorSettings(listen=first.listener.address)
        first.listener = MonitorListener(settings, first.page.routes, watcher)
        first.listener.start()
        page.wait_for_selector("#live.live")
    first.close()


def test_a_password_opens_it(browser: Browser, watcher: Watcher) -> None:
    with tempfile.TemporaryDirectory() as directory:
        token_file = Path(directory) / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(TOKEN)
        rig = Rig(watcher, token_file)
        try:
            assert rig.get("/")[0] == rig.get("/events")[0] == rig.get("/rows?of=streams")[0] == 401
            with tab(browser, rig, http_credentials={"username": "anyone", "password": TOKEN}) as page:
                page.wait_for_selector("#session-table td:has-text('a')")
        finally:
            rig.close()


# --- what it asks of this end ---------------------------------------------------------------------------


def test_every_file_comes_with_a_strict_policy_and_nothing_is_fetched_from_elsewhere(rig: Rig) -> None:
    for path in rig.page.routes:
        if path == "/" or path.startswith("/assets/"):
            status, head, body = rig.get(path)
            assert status == 200
            assert body
            assert "script-src 'self'" in head
            assert "unsafe" not in head
            if "uplot" not in path:
                assert set(re.findall(rb"https?://[^\s\"']+", body)) <= {b"http://www.w3.org/2000/svg"}
    index = rig.get("/")[2].decode()
    assert not re.findall(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|<style", index)


def test_nothing_can_be_changed(rig: Rig) -> None:
    for path in rig.page.routes:
        with rig.connect() as sock:
            sock.sendall(f"POST {path} HTTP/1.1\r\nHost: {rig.listener.address}\r\nContent-Length: 0\r\n\r\n".encode())
            assert sock.recv(64).startswith(b"HTTP/1.1 405")


def test_the_first_state_is_whole_and_later_ones_bring_what_is_new(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "WATCHED", 0.05)
    logging.getLogger("qanat.test").error("before")
    events = rig.watch()
    try:
        first = events.next()
        assert first["first"] is True
        lines = [text for _, text in first["log"]]
        assert first["title"] == "the-server (server)"
        logging.getLogger("qanat.test").error("after")
        deadline = time.monotonic() + SECONDS
        while not any("after" in line for line in lines):
            assert time.monotonic() < deadline
            state = events.next()
            assert state["first"] is False
            lines += [text for _, text in state["log"]]
        assert sum("before" in line for line in lines) == 1
        assert json.loads(rig.get("/history?of=")[2])["at"]
        assert json.loads(rig.get("/history?of=nobody")[2])["at"] == []
    finally:
        events.close()


def test_only_so_many_watch_and_whoever_leaves_makes_room(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "WATCHERS", 2)
    watching = [rig.watch(), rig.watch()]
    try:
        for events in watching:
            events.next()
        refused = rig.watch()
        assert b"503" in refused.head
        refused.close()
    finally:
        for events in watching:
            events.close()
    deadline = time.monotonic() + SECONDS
    while True:
        again = rig.watch()
        again.close()
        if b"200" in again.head:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_watcher_that_does_not_read_is_cut_off_and_holds_up_nobody(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "WATCHED", 0.01)
    long = "x" * 20000
    rig.shown = lambda now: server(0, *(session(f"c{n}", agent=long) for n in range(25)))
    stuck = rig.watch()
    reading = rig.watch()
    try:
        deadline = time.monotonic() + SECONDS
        while len(rig.page._watchers) < 2:
            assert time.monotonic() < deadline
        while len(rig.page._watchers) > 1:
            assert time.monotonic() < deadline
            reading.next()
        reading.next()
        assert reading.next()["first"] is False
    finally:
        stuck.close()
        reading.close()


def test_a_look_that_fails_or_takes_long_is_not_the_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "WATCHED", 0.02)
    monkeypatch.setattr(page_module, "log_unexpected", lambda what: None)
    fails = threading.Event()

    def now_and_then(now: float) -> Snapshot:
        if fails.is_set():
            fails.clear()
            raise RuntimeError("a bug")
        return server(0, session("a"))

    rig.shown = now_and_then
    events = rig.watch()
    try:
        events.next()
        fails.set()
        deadline = time.monotonic() + SECONDS
        while fails.is_set():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert events.next()["sessions"]["total"] == 1
    finally:
        events.close()


def test_what_makes_no_sense_is_refused(rig: Rig) -> None:
    events = rig.watch()
    events.next()
    events.close()
    assert rig.get("/rows?of=secrets")[0] == 400
    assert rig.get("/history?of=a&of=b&x=y")[0] == 400
    assert rig.get("/assets/../page.py")[0] == 404
    assert rig.get("/assets/")[0] == 404
    assert rig.get("/rows?of=streams&offset=99999999999999999999&limit=x")[0] == 200
