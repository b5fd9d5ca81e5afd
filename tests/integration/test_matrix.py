"""What a tunnel promises, on every transport over every path: direct, and through five proxies as deploy/ has them.

Timeouts are the programs' own and Debian's, keepalive is Qanat's default.  All tunnels start together and stay up for
all tests here; when the active promises are done, all are silent together, once.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import scenarios
from tests.applications import Target, connection, echo, exchange, receive_all, receive_exactly
from tests.harness import ROOT, Tunnel, unused_port
from tests.matrix import BEGIN, END, PATHS, PROMISES, RUN, TRANSPORTS, Cell, Matrix
from tests.proxies import TunnelProxy, start_haproxy

SILENCE = 90.0
"""Seconds; more than nginx (60), HAProxy (50) and nghttpx (60) let a silent connection live."""
NEVER = {"interval": 3600, "timeout": 7200}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Matrix]:
    directory = tmp_path_factory.mktemp("matrix")
    for place in (directory, *directory.parents[:2]):
        place.chmod(0o755)  # Apache's children are nobody in particular
    with ExitStack() as stack:
        pytestconfig.stash[RUN] = matrix = Matrix(directory, stack)
        yield matrix
        matrix.check_output()


@pytest.fixture(params=[(transport, path) for path in PATHS for transport in TRANSPORTS], ids="-".join)
def cell(request: pytest.FixtureRequest, matrix: Matrix) -> Cell:
    return matrix.cells[request.param]


def test_the_server_speaks_first(cell: Cell) -> None:
    """An application's server; the tunnel's own has done so before, or there were no tunnel."""
    with connection(cell.ports["greeting"]) as sock:
        assert receive_exactly(sock, 11) == b"220 hello\r\n"
    cell.kept.append(PROMISES[0])


def test_twenty_turns_of_ping_pong(cell: Cell) -> None:
    with connection(cell.ports["echo"]) as sock:
        for turn in range(20):
            ping = f"turn {turn}".encode()
            assert exchange(sock, ping) == ping
    cell.kept.append(PROMISES[1])


def test_megabytes_both_ways_at_once_arrive_unchanged(cell: Cell, matrix: Matrix) -> None:
    matrix.bulk.run(cell.ports["bulk"], cell.bulk)
    cell.kept.append(PROMISES[2])


def test_a_reply_after_the_end_of_the_request_arrives_whole(cell: Cell) -> None:
    with connection(cell.ports["reply"]) as sock:
        sock.sendall(b"all that there is to say")
        sock.shutdown(socket.SHUT_WR)
        assert len(receive_all(sock)) == 32 + (1 << 20)
    cell.kept.append(PROMISES[3])


def test_twenty_streams_at_once(cell: Cell) -> None:
    scenarios.streams_at_once(cell.ports["echo"], 20)
    scenarios.streams_at_once(cell.ports["remote echo"], 20)
    cell.kept.append(PROMISES[4])


class Silence:
    """A stream in each direction on every cell, used, and then all silent for SILENCE seconds.

    `unkept` is a tunnel through HAProxy whose ends send no keepalive, `unkept_stream` a stream in it.
    """

    def __init__(self, matrix: Matrix, directory: Path, stack: ExitStack) -> None:
        self.streams = {
            (transport, path): [stack.enter_context(connection(cell.ports[name])) for name in ("echo", "remote echo")]
            for (transport, path), cell in matrix.cells.items()
        }
        port = unused_port()
        target = stack.enter_context(Target(echo))
        self.unkept = stack.enter_context(
            Tunnel(
                directory,
                [{"local": f"127.0.0.1:{port}", "to": target.address}],
                server={"keepalive": NEVER},
                client={"keepalive": NEVER, "transport": "http2"},
            )
        )
        front = TunnelProxy(directory / "front", self.unkept.port, start_haproxy)
        self.unkept.client_settings |= {"url": front.url, "tls": {"ca_file": str(front.ca_file)}}
        stack.enter_context(front.start())
        self.unkept.start()
        self.unkept_stream = stack.enter_context(connection(port))
        for sock in (self.unkept_stream, *(sock for pair in self.streams.values() for sock in pair)):
            assert exchange(sock, b"before") == b"before"
        threading.Event().wait(SILENCE)  # the silence is what is tested


@pytest.fixture(scope="module")
def silence(matrix: Matrix, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Silence]:
    with ExitStack() as stack:
        yield Silence(matrix, tmp_path_factory.mktemp("unkept"), stack)


def test_after_ninety_seconds_of_silence_the_same_streams_go_on(cell: Cell, silence: Silence) -> None:
    for sock in silence.streams[cell.transport, cell.path]:
        assert exchange(sock, b"after") == b"after"
    assert cell.connections == 1
    cell.kept.append(PROMISES[5])


def test_without_keepalive_a_proxy_cuts_that_very_silence(silence: Silence) -> None:
    """So what keeps the others alive is ours."""
    silence.unkept.client.wait_for("was lost after .*; 1 streams wait for the next one")
    silence.unkept.wait_resumed()
    assert exchange(silence.unkept_stream, b"after") == b"after"


def test_the_readme_has_the_table_of_this_run(matrix: Matrix) -> None:
    """Of a run of all tests here; fewer give another table."""
    _, _, rest = (ROOT / "README.md").read_text().partition(BEGIN)
    table, _, _ = rest.partition(END)
    assert table == matrix.table(), f"put into README.md:\n{BEGIN}{matrix.table()}{END}"
