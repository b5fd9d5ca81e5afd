"""A web service as people run them: pages, an upload, server-sent events and a WebSocket, with or without TLS.

Used by the tests of published names.  As a program (`python -m tests.support.web_service`) it says its port, and what
browsers say, and serves until it is killed, so that connections which a proxy keeps are not the test's.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import ssl
import sys
import threading
from types import TracebackType
from typing import Self

import simple_websocket

RESOURCES = 100
SECRET = b"a word that nobody on the way may read"


_BROWSER = f"""<!doctype html><title>working</title><pre id="said"></pre><script>
const say = (word) => document.getElementById("said").append(word + "\\n");
async function all() {{
  const sizes = await Promise.all([...Array({RESOURCES}).keys()].map(
    async (n) => (await (await fetch("/resource-" + n)).arrayBuffer()).byteLength));
  say("resources " + sizes.length + " " + sizes.reduce((a, b) => a + b));
  const size = Number(new URLSearchParams(location.search).get("upload")), part = new Uint8Array(1000000).fill(113);
  // In a file of the page's own, as who uploads has one: a gigabyte is more than Chromium keeps in memory for a Blob.
  const file = await (await navigator.storage.getDirectory()).getFileHandle("upload", {{create: true}});
  const writing = await file.createWritable();
  for (let written = 0; written < size; written += part.length) await writing.write(part);
  await writing.close();
  const answer = await fetch("/upload", {{method: "POST", body: await file.getFile()}});
  say("upload " + await answer.text());
  await new Promise((done, failed) => {{
    const chat = new WebSocket("wss://" + location.host + "/socket");
    chat.onopen = () => chat.send("hello");
    chat.onmessage = (message) => {{ say("chat " + message.data); chat.close(); done(); }};
    chat.onerror = failed;
  }});
  await new Promise((done, failed) => {{
    const events = new EventSource("/events"), seen = [];
    events.onmessage = (event) => {{
      seen.push(event.data);
      if (seen.length == 2) {{ say("events " + seen.join(" ")); events.close(); done(); }}
    }};
    events.onerror = failed;
  }});
}}
const tell = () => fetch("/said", {{method: "POST", body: document.getElementById("said").innerText}});
all().then(() => say("done"), (error) => say("failed " + error)).then(tell);
</script>"""
"""A page that does all a browser does here, and tells the service how that went; `?upload=` has the bytes to upload."""


def resource(number: int) -> bytes:
    """What `/resource-NUMBER` has."""
    return hashlib.sha256(str(number).encode()).digest() * (1 + 37 * number)


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


class WebService:
    """Serves in threads of its own, on loopback, until it is left.  `tls` has the certificate and the key."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self.port: int = self._server.server_address[1]
        self.address = f"127.0.0.1:{self.port}"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, name="shared-web service", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/":
            links = "".join(f'<img src="/resource-{n}">' for n in range(RESOURCES))
            self._answer(f"<!doctype html><title>published</title>{links}".encode() + SECRET, "text/html")
        elif self.path.startswith("/browser?"):
            self._answer(_BROWSER.encode(), "text/html")
        elif self.path.startswith("/resource-"):
            self._answer(resource(int(self.path.removeprefix("/resource-"))), "application/octet-stream")
        elif self.path == "/events":
            self._send_events()
        elif self.path == "/socket":
            self._chat()
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        """Answer with how much came, and its SHA-256; print what a browser said."""
        if self.path == "/said":
            said = self.rfile.read(int(self.headers["content-length"])).decode().splitlines()
            print("browser said", json.dumps(said), flush=True)
            self._answer(b"", "text/plain")
            return
        digest, left, size = hashlib.sha256(), int(self.headers["content-length"]), 0
        while left and (data := self.rfile.read(min(left, 1 << 16))):
            digest.update(data)
            size += len(data)
            left -= len(data)
        self._answer(f"{size} {digest.hexdigest()}".encode(), "text/plain")

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_events(self) -> None:
        """Send one event, and the next for each that the other end has said it saw, which is none: it is just open."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        self.wfile.write(b"data: first\n\n")
        self.wfile.flush()
        threading.Event().wait(1)
        self.wfile.write(b"data: second\n\n")

    def _chat(self) -> None:
        self.close_connection = True
        environ = {
            "werkzeug.socket": self.connection,
            **{f"HTTP_{key.upper().replace('-', '_')}": value for key, value in self.headers.items()},
        }
        socket = simple_websocket.Server(environ)
        try:
            while True:
                socket.send(socket.receive())
        except simple_websocket.ConnectionClosed:
            pass


def main() -> None:
    """Serve, with the certificate and the key whose files are given, if they are."""
    tls = None
    if len(sys.argv) > 1:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*sys.argv[1:])
    with WebService(tls) as service:
        print(f"serves on {service.port}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
