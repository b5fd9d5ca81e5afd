"""What many streams needed at once goes back to the system when they are over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import ROOT, SECONDS

STREAMS = 400
PROGRAM = """
import resource, socket, sys, tempfile, time
from pathlib import Path
from qanat.base.endpoint_addresses import TcpAddress
from qanat.client.client import Client
from qanat.config.client_settings import ClientSettings, RemoteServer
from qanat.config.forward_settings import Forward
from qanat.config.server_settings import ClientAccount, ServerSettings
from qanat.base import watcher
from qanat.endpoints.application_socket import ApplicationKeepalive
from qanat.process import allocator
from qanat.server.server import Server

streams, seconds, directory = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
watcher.TICK = 0.25
allocator.limit_arenas()

def wait_for(what):
    until = time.monotonic() + seconds
    while not what() and time.monotonic() < until:
        time.sleep(0.02)
    return what()

# Small kernel buffers in front of the target: what it has not read is held by the server.
configure = ApplicationKeepalive.configure

def configure_small(keepalive, sock):
    configure(keepalive, sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

ApplicationKeepalive.configure = configure_small
target = socket.socket()
target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
target.bind(("127.0.0.1", 0))
target.listen(2 * streams)
where = TcpAddress("127.0.0.1", target.getsockname()[1])
account = ClientAccount("a", (b"a" * 32,), (), ("127.0.0.1:*",))
server = Server(ServerSettings(clients=(account,), listen=(("127.0.0.1", 0),), identity=directory / "key", drain=0.1))
server.start()
url = f"ws://127.0.0.1:{server.addresses[0][1]}/tunnel"
remote = RemoteServer((url,), b"a" * 32, server.identity.fingerprint)
forwards = (Forward("local", TcpAddress("127.0.0.1", 0), where),)
client = Client(ClientSettings("a", (remote,), forwards, transports=("websocket",), drain=0.1, state_dir=directory))
client.start()

def session():
    return client.servers[0].session

def carry(count):
    apps = [socket.create_connection(("127.0.0.1", client.local_ports[0])) for _ in range(count)]
    accepted = [target.accept()[0] for _ in apps]
    for app in apps:
        app.sendall(bytes(65536))
    assert wait_for(lambda: session().open_streams == count)
    (theirs,) = server.registry.sessions
    assert wait_for(lambda: all(each.window.received == 65536 for each in tuple(theirs.lanes[0].core.streams)))
    grown = allocator.resident_bytes()
    for sock in accepted:
        left = 65536
        while left:
            left -= len(sock.recv(left))
    for sock in (*apps, *accepted):
        sock.close()
    assert wait_for(lambda: not session().open_streams and not len(session().joined))
    return grown

assert wait_for(lambda: session() is not None and session().attached)
carry(2)
before = allocator.resident_bytes()
most = carry(streams)
wait_for(lambda: allocator.resident_bytes() - before < (most - before) / 4)
print((allocator.resident_bytes() - before) / (most - before))
client.stop()
server.stop()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much is resident in /proc")
def test_most_of_the_memory_of_many_streams_goes_back_when_they_are_over(tmp_path: Path) -> None:
    """With client and server in one process: without that about half of it stays, with it less than a quarter."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(STREAMS), str(SECONDS), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=4 * SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.4, done.stdout
