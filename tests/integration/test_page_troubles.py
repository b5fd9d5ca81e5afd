"""Whoever sees only the page names what is wrong: five real troubles at once, of five clients of one server.

`QANAT_PAGE_PICTURES=DIRECTORY` keeps what the browser has seen.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from qanat.handshake.tokens import generate_token
from tests.support.harness import SECONDS, Program, Relay, Tunnel, qanat
from tests.support.machine.browser import driven_browser
from tests.support.machine.ports import unused_port
from tests.support.troubles.catalog import RELAYS

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

PATIENCE = 120.0
"""Seconds: the two minutes in which whoever looks at the page must know."""
CUT_EVERY = 5.0
OUTBOX = 1 << 20
STREAMS = 20
"""Their windows together are larger than that."""
CLIENTS = ("slow", "held", "full", "cut", "flood", "well")


class Troubles:
    """A server with a page, and a client for each trouble, besides one that is well."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._over = threading.Event()
        stack.callback(self._over.set)
        self._ports = {name: unused_port() for name in CLIENTS}
        self._page_port = unused_port()
        self.url = f"http://127.0.0.1:{self._page_port}/"
        self._tokens = {name: generate_token() for name in CLIENTS}
        for name, token in self._tokens.items():
            path = directory / f"{name}.token"
            path.touch(mode=0o600)
            path.write_text(token + "\n")
        accounts = [{"name": name, "token_file": f"{name}.token", "allow_connect": ["127.0.0.1:*"]} for name in CLIENTS]
        self._tunnel = stack.enter_context(
            Tunnel(
                directory,
                server={
                    "clients": accounts,
                    "monitor": {"listen": f"127.0.0.1:{self._page_port}"},
                    "flow": {"outbox": OUTBOX},
                },
            )
        )
        self._tunnel.start_server()

    def client(self, name: str, target: int, *, url: str | None = None, **settings: Any) -> Program:
        """Start the client `name`, whose forward leads to `target`."""
        config = {
            "name": name,
            "url": url or self._tunnel.client_settings["url"],
            "token_file": f"{name}.token",
            "server_fingerprint": self._tunnel.fingerprint,
            "reconnect": {"min": 0.2, "max": 1},
            "state_dir": f"state-{name}",
            "forwards": [{"local": f"127.0.0.1:{self._ports[name]}", "to": f"127.0.0.1:{target}"}],
            **settings,
        }
        (self._directory / f"state-{name}").mkdir()
        file = self._directory / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"client": config}))
        program = qanat("client", "-c", file)
        self._stack.callback(program.close)
        return program

    def connect(self, name: str) -> socket.socket:
        """A connection to the forward of the client `name`, once that listens."""
        deadline = time.monotonic() + 2 * SECONDS
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self._ports[name]), timeout=2 * SECONDS)
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def keep(self, what: str, often: Callable[[], object], pause: float) -> None:
        """Do it again and again, in a thread, until the end."""

        def loop() -> None:
            while not self._over.wait(pause):
                with contextlib.suppress(OSError):
                    often()

        thread = threading.Thread(target=loop, name=f"shared-{what}", daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(self._over.set)

    def relay(self) -> Relay:
        return self._stack.enter_context(Relay(self._tunnel.port))

    def listener(self, serve: Callable[[socket.socket], object]) -> int:
        """A target whose connections `serve` has, each in a thread; its port."""
        listening = self._stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        kept: list[socket.socket] = []

        def loop() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    kept.append(connection)
                    serving = partial(_quietly, serve, connection)
                    threading.Thread(target=serving, name="shared-target", daemon=True).start()

        threading.Thread(target=loop, name="shared-target", daemon=True).start()
        self._stack.callback(lambda: [each.close() for each in kept])
        self._stack.callback(lambda: listening.shutdown(socket.SHUT_RDWR))
        return int(listening.getsockname()[1])

    # --- the five -------------------------------------------------------------------------------------

    def slow(self) -> str:
        """A target that reads nothing; its name."""
        target = self.listener(lambda connection: self._over.wait())
        self.client("slow", target)
        sock = self._stack.enter_context(self.connect("slow"))
        sock.settimeout(0.05)
        self.keep("slow", lambda: sock.send(bytes(65536)), 0.1)
        return f"127.0.0.1:{target}"

    def held(self, directory: Path) -> None:
        """A proxy that holds back requests and answers."""
        trouble = next(each for each in RELAYS if each.name == "both-held")
        path = self._stack.enter_context(trouble.start(self._tunnel.port, directory / "held"))
        self.client("held", 1, url=path.url.replace("localhost", "127.0.0.1"))

    def full(self) -> None:
        """A path on which nothing gets through any more, while a target sends."""
        relay = self.relay()
        target = self.listener(_send_for_ever)
        self.client("full", target, url=f"ws://127.0.0.1:{relay.port}/tunnel", transport="websocket")
        for _ in range(STREAMS):
            assert self._stack.enter_context(self.connect("full")).recv(1)
        relay.refusing = True
        relay.fall_silent()

    def cut(self) -> None:
        """A path that is cut every five seconds."""
        relay = self.relay()
        self.client("cut", 1, url=f"ws://127.0.0.1:{relay.port}/tunnel", transport="websocket")
        self.keep("cut", relay.cut, CUT_EVERY)

    def flood(self) -> None:
        """A client that opens one stream after another."""
        target = self.listener(lambda connection: connection.close())
        self.client("flood", target, transport="websocket")

        def often() -> None:
            with self.connect("flood") as sock:
                sock.recv(1)

        for _ in range(3):
            self.keep("flood", often, 0.1)

    def well(self) -> None:
        """Nothing is wrong with this one."""
        target = self.listener(_echo)
        self.client("well", target, transport="websocket")
        sock = self._stack.enter_context(self.connect("well"))

        def often() -> None:
            sock.sendall(b"ping")
            assert sock.recv(4)

        self.keep("well", often, 0.5)


def _quietly(serve: Callable[[socket.socket], object], connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        serve(connection)


def _send_for_ever(connection: socket.socket) -> None:
    while True:
        connection.sendall(bytes(65536))


def _echo(connection: socket.socket) -> None:
    while data := connection.recv(4096):
        connection.sendall(data)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with driven_browser() as found:
        yield found


def test_whoever_sees_only_the_page_names_each_of_five_troubles_within_two_minutes(
    browser: Browser, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        troubles = Troubles(tmp_path, stack)
        troubles.held(tmp_path)
        troubles.cut()
        slow = troubles.slow()
        troubles.well()
        troubles.flood()
        troubles.full()
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        stack.callback(context.close)
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(troubles.url)
        try:
            assert "slow/0/" in found(page, "Slow target", slow)
            found(page, "held", "holds back")
            found(page, "Full outbox", "full (lane 0)")
            found(page, "flood floods", "new streams a second")
            found(page, "cut is cut again and again", "every")
            titles = page.locator("#finding-list .finding strong").all_inner_texts()
            assert not [title for title in titles if "well" in title.split()]
        finally:
            pictures = os.environ.get("QANAT_PAGE_PICTURES")
            if pictures:
                (Path(pictures) / "troubles.png").write_bytes(page.screenshot(full_page=True))
                (Path(pictures) / "troubles.txt").write_text(page.inner_text("body"))


def found(page: Tab, *words: str) -> str:
    """Block until a finding holds all `words`; its text."""
    selector = "#finding-list .finding" + "".join(f':has-text("{word}")' for word in words)
    page.wait_for_selector(selector)
    return str(page.inner_text(selector))
