"""`demo`: a whole tunnel on loopback, proven by requests through it.

A real server and a real client run as processes of their own, as they would on two machines; the web
page behind the server lives in this process.  For each transport the page is fetched through the tunnel and
compared, then bulk is, and what it took is printed.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import json
import re
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from qanat.base.deadline import Deadline
from qanat.base.errors import QanatError
from qanat.base.private_files import write_new
from qanat.cli import called
from qanat.handshake.identity import load_or_create_identity
from qanat.handshake.tokens import generate_token

TRANSPORTS = ("websocket", "http2", "grpc", "websocket-h2", "split")
SHOWN = ("auto", *TRANSPORTS)
BULK = 256 * 1024 * 1024
"""Bytes of the download that is timed."""
REQUESTS = 50
"""Requests whose median time is printed."""
START = 60.0
"""Seconds that both processes get until the first request passes: a busy machine may take many to start them."""

_PAGE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Qanat</title></head>
<body style="font: 1.1rem/1.5 Georgia, serif; max-width: 34rem; margin: 4rem auto">
<h1>The water has arrived</h1>
<p>This page came through the tunnel: from a web server on this machine, through a Qanat server and a Qanat
client, sealed from one to the other, over what looks like an ordinary web connection.</p>
</body></html>
"""
_CHUNK = bytes(256 * 1024)


class _Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        bulk = self.path == "/bulk"
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream" if bulk else "text/html; charset=utf-8")
        self.send_header("Content-Length", str(BULK if bulk else len(_PAGE)))
        self.end_headers()
        if bulk:
            for _ in range(BULK // len(_CHUNK)):
                self.wfile.write(_CHUNK)
        else:
            self.wfile.write(_PAGE)

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent: the demo says what matters."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("--once", action="store_true", help="end after the proof")


def run(options: argparse.Namespace) -> int:
    """Show the tunnel.  See `run_demo`."""
    return run_demo(once=options.once)


def run_demo(once: bool) -> int:
    """Show the tunnel on loopback over each transport; blocks until Ctrl-C unless `once`.  Returns the exit code.

    Raises QanatError when a process does not start or what comes through is not what was sent.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qanat-demo-")))
        web = stack.enter_context(_web_server())
        _say(f"A small web page is served on http://127.0.0.1:{web}/, the service behind the tunnel.")
        port = _free_port()
        local = {transport: _free_port() for transport in SHOWN}
        _write_configuration(folder, port, web, local)
        stack.enter_context(_process("server", folder / "server.yaml"))
        _say(f"A server listens on ws://127.0.0.1:{port}/tunnel (plain here; put nginx or a certificate in front).")
        for transport in SHOWN:
            stack.enter_context(_process("client", folder / f"client-{transport}.yaml"))
            _show(transport, local[transport])
            if transport == "auto":
                _say(f"auto: it found that this path allows {_chosen(folder / 'client-auto.log')}, and took that.")
        if once:
            return 0
        _say("\nThe tunnel stays up. Try it, from another terminal or a browser:")
        for transport in SHOWN:
            _say(f"    curl http://127.0.0.1:{local[transport]}/     # over {transport}")
        _say(f"The configurations and logs are in {folder}.  Ctrl-C ends everything.")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            _say("\nStopping.")
    return 0


def _show(transport: str, port: int) -> None:
    started = time.monotonic()
    page = _first_page(port)
    if page != _PAGE:
        raise QanatError(f"the page that came over {transport} is not the page that was sent")
    _say(
        f"\n{transport}: a client connected, was authenticated, and fetched the page ({len(page)} bytes, equal to the "
        f"original) {time.monotonic() - started:.2f} s after its start."
    )
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        times = []
        for _ in range(REQUESTS):
            before = time.perf_counter()
            _get(connection, "/")
            times.append(time.perf_counter() - before)
        before = time.perf_counter()
        size = _get(connection, "/bulk")
        seconds = time.perf_counter() - before
    if size != BULK:
        raise QanatError(f"{size} of {BULK} bytes came over {transport}")
    _say(
        f"{transport}: {REQUESTS} requests, {statistics.median(times) * 1000:.2f} ms each (median); "
        f"{BULK / 1e6:.0f} MB in {seconds:.2f} s = {BULK * 8 / seconds / 1e9:.2f} Gbit/s, "
        "with both ends and both programs on this one machine."
    )


def _chosen(log: Path) -> str:
    """Return the transport over which the client whose log this is has connected."""
    found = re.search(r"connected to \S+ over (\S+) as ", log.read_text("utf-8", "replace"))
    return found[1] if found is not None else "a transport that its log does not name"


def _first_page(port: int) -> bytes:
    """Return the page, as soon as the client listens and has its session."""
    deadline = Deadline(START)
    retry = threading.Event()
    while True:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
                connection.request("GET", "/")
                return connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            if deadline.passed:
                raise QanatError(
                    f"no page came through within {START:.0f} s: {error}", hint="the log lines above say why"
                ) from error
            retry.wait(0.05)


def _get(connection: http.client.HTTPConnection, path: str) -> int:
    connection.request("GET", path)
    response = connection.getresponse()
    size = 0
    buffer = memoryview(bytearray(len(_CHUNK)))
    while count := response.readinto(buffer):
        size += count
    return size


@contextmanager
def _web_server() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever, name="demo-web", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _process(name: str, config: Path) -> Iterator[None]:
    """Run this very program as another process, with its log in the folder."""
    with subprocess.Popen([*called.command(), name, "-c", str(config)]) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def _write_configuration(folder: Path, port: int, web: int, local: dict[str, int]) -> None:
    """YAML is a superset of JSON, so the configuration is written as JSON."""
    fingerprint = load_or_create_identity(folder / "server.key").fingerprint
    clients = []
    for transport, local_port in local.items():
        token = generate_token()
        write_new(folder / f"{transport}.token", token.encode())
        clients.append({"name": transport, "token_file": f"{transport}.token", "allow_connect": [f"127.0.0.1:{web}"]})
        client = {
            "name": transport,
            "url": f"ws://127.0.0.1:{port}/tunnel",
            "transport": transport,
            "token_file": f"{transport}.token",
            "server_fingerprint": fingerprint,
            "proxy": "none",
            "forwards": [{"local": f"127.0.0.1:{local_port}", "to": f"127.0.0.1:{web}"}],
            "log": {"file": f"client-{transport}.log"},
        }
        (folder / f"client-{transport}.yaml").write_text(json.dumps({"client": client}, indent=2))
    server = {
        "listen": f"127.0.0.1:{port}",
        "identity": "server.key",
        "clients": clients,
        "log": {"file": "server.log"},
    }
    (folder / "server.yaml").write_text(json.dumps({"server": server}, indent=2))


def _free_port() -> int:
    """Return a port that is free now; the process that will listen there comes a moment later."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _say(text: str) -> None:
    print(text, flush=True)
