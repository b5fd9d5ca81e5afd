"""What a tunnel promises, on every transport over every path: direct, and through five proxies as deploy/ has them.

Timeouts are the programs' own and Debian's, keepalive is Qanat's default.  All tunnels start together, are left alone
at first, and stay up.  `test_at_rest` begins that, so that others run meanwhile; the same goes for the silence at the
end, which `test_under_silence` ends.  What is promised is asked for in two orders, since what has passed through a
proxy may hide what it would have cut: Apache grants a second for each 500 bytes that have come.
"""

from __future__ import annotations

import os

import pytest

from tests.support.applications import connection, receive_exactly
from tests.support.background import Background
from tests.support.long import LONG
from tests.support.matrix import CELLS, DIRECT_PLAIN, DIRECT_TLS, PROMISES, Cell, Matrix
from tests.support.silence import Silence

pytestmark = pytest.mark.slow


def test_a_tunnel_that_nobody_has_used_yet_stays_up_too(cell: Cell, matrix: Matrix) -> None:
    matrix.wait_unused()
    assert cell.connections == 1, cell.client.output


def test_the_server_speaks_first(cell: Cell) -> None:
    cell.check_server_speaks_first()
    cell.kept.append(PROMISES[0])


def test_twenty_turns_of_ping_pong(cell: Cell) -> None:
    cell.check_ping_pong()
    cell.kept.append(PROMISES[1])


def test_megabytes_both_ways_at_once_arrive_unchanged(cell: Cell) -> None:
    cell.check_bulk()
    cell.kept.append(PROMISES[2])


def test_a_reply_after_the_end_of_the_request_arrives_whole(cell: Cell) -> None:
    cell.check_reply_after_end()
    cell.kept.append(PROMISES[3])


def test_twenty_streams_at_once(cell: Cell) -> None:
    cell.check_streams_at_once()
    cell.kept.append(PROMISES[4])


def test_all_that_holds_in_the_reverse_order_too(cell: Cell) -> None:
    cell.check_streams_at_once()
    cell.check_reply_after_end()
    cell.check_bulk()
    cell.check_ping_pong()
    cell.check_server_speaks_first()
    assert cell.connections == 1, cell.client.output


@pytest.mark.parametrize(
    "cell",
    [
        (transport, path)
        for transport, path in CELLS
        if transport != "websocket"
        and path not in (DIRECT_PLAIN, DIRECT_TLS)
        and (LONG or transport == "http2" or path == "HAProxy")
    ],
    indirect=True,
    ids="-".join,
)
def test_what_a_proxy_settles_for_bulk_is_no_flood(cell: Cell) -> None:
    """HAProxy and Caddy send a WINDOW_UPDATE or two for each piece that they read, and there are many pieces.

    Over HTTP/2 through each proxy, and over each transport through HAProxy; `make soak` has all of them.
    """
    block, count = os.urandom(1 << 20), 80
    with connection(cell.ports["echo"]) as sock:
        sending = Background(lambda: [sock.sendall(block) for _ in range(count)])
        assert all(receive_exactly(sock, len(block)) == block for _ in range(count))
        sending.result()
    assert cell.connections == 1


def test_they_all_fall_silent_together(silence: Silence) -> None:
    """Asked for here so that it begins now."""
    assert silence.streams
