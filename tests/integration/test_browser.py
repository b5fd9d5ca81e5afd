"""A real browser whose proxy is a dynamic forward: a page of many parts, from two servers, and a WebSocket."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection, serve

from tests.support.harness import SECONDS, Tunnel
from tests.support.machine.browser import open_page
from tests.support.machine.ports import unused_port
from tests.support.machine.web import Nginx

PARTS = 100
PART = os.urandom(3000).hex()

PAGE = """<!doctype html><title>parts</title><body>loading<script>
const parts = [...Array(%(parts)d).keys()].map(n =>
  fetch(`http://127.0.0.1:${n %% 2 ? %(one)d : %(two)d}/part?${n}`).then(answer => answer.text()));
const socket = new WebSocket("ws://127.0.0.1:%(chat)d/chat");
const said = new Promise((done, failed) => {
  socket.onopen = () => socket.send("hello");
  socket.onmessage = event => done(event.data);
  socket.onerror = () => failed("no WebSocket");
});
Promise.all([said, ...parts]).then(
  ([word, ...texts]) => socket.send(`${word} ${texts.length} ${texts.every(t => t === texts[0])}`),
  error => socket.send(`failed: ${error}`));
</script>"""


class Chat:
    """Answers what a page says in a WebSocket, and keeps it."""

    def __init__(self) -> None:
        self.said: queue.SimpleQueue[str | bytes] = queue.SimpleQueue()

    def __call__(self, connection: ServerConnection) -> None:
        for message in connection:
            self.said.put(message)
            connection.send(f"said {message!s}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Chat, int, int, str]]:
    directory = tmp_path_factory.mktemp("browser")
    one, two, local, remote = (unused_port() for _ in range(4))
    with ExitStack() as stack:
        chat = Chat()
        sockets = stack.enter_context(serve(chat, "127.0.0.1", 0))
        chat_port = sockets.socket.getsockname()[1]
        talking = threading.Thread(target=sockets.serve_forever, name="shared-chat", daemon=True)
        talking.start()
        stack.callback(talking.join)
        stack.callback(sockets.shutdown)
        files = directory / "files"
        files.mkdir()
        (files / "part").write_text(PART)
        (files / "index.html").write_text(PAGE % {"parts": PARTS, "one": one, "two": two, "chat": chat_port})
        blocks = [
            f"server {{ listen 127.0.0.1:{port}; root {files}; add_header Access-Control-Allow-Origin *; }}"
            for port in (one, two)
        ]
        stack.enter_context(Nginx(directory / "nginx", ["types { text/html html; }", *blocks], one))
        forwards = [{"dynamic": f"127.0.0.1:{local}"}, {"remote": f"127.0.0.1:{remote}", "to": "dynamic"}]
        client = {"allow_connect": ["127.0.0.1:*"]}
        tunnel = stack.enter_context(Tunnel(directory / "tunnel", forwards, client=client))
        tunnel.start()
        yield chat, local, remote, f"http://127.0.0.1:{one}/index.html"


@pytest.mark.parametrize(("side", "scheme"), [("local", "http"), ("remote", "socks5")])
def test_chromium_shows_a_page_and_talks_through_it(
    site: tuple[Chat, int, int, str], tmp_path: Path, side: str, scheme: str
) -> None:
    chat, local, remote, url = site
    port = local if side == "local" else remote
    proxy = f"--proxy-server={scheme}://127.0.0.1:{port}"
    with open_page(tmp_path / "browser", url, proxy, "--proxy-bypass-list=<-loopback>"):
        assert chat.said.get(timeout=3 * SECONDS) == "hello"
        assert chat.said.get(timeout=3 * SECONDS) == f"said hello {PARTS} true"
