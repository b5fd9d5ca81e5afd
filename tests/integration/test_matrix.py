"""What a tunnel promises, on every transport over every path: direct, and through five proxies as deploy/ has them.

Timeouts are the programs' own and Debian's, keepalive is Qanat's default.  All tunnels start together and stay up;
when the active promises are done, all fall silent together.  What became of that is asked at the very end of these
tests (`test_under_silence`), and others run meanwhile.
"""

from __future__ import annotations

import os
import socket

import pytest

from tests.support import scenarios
from tests.support.applications import connection, exchange, receive_all, receive_exactly
from tests.support.background import Background
from tests.support.matrix import DIRECT_PLAIN, DIRECT_TLS, PATHS, PROMISES, Cell, Matrix
from tests.support.silence import Silence

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize(
    "cell",
    [(transport, path) for path in PATHS for transport in ("http2", "grpc") if path not in (DIRECT_PLAIN, DIRECT_TLS)],
    indirect=True,
    ids="-".join,
)
def test_what_a_proxy_settles_for_bulk_is_no_flood(cell: Cell) -> None:
    """HAProxy and Caddy send a WINDOW_UPDATE or two for each piece that they read, and there are many pieces."""
    block, count = os.urandom(1 << 20), 80
    with connection(cell.ports["echo"]) as sock:
        sending = Background(lambda: [sock.sendall(block) for _ in range(count)])
        assert all(receive_exactly(sock, len(block)) == block for _ in range(count))
        sending.result()
    assert cell.connections == 1


def test_they_all_fall_silent_together(silence: Silence) -> None:
    """Asked for here so that it begins now."""
    assert silence.streams
