"""Promises to the applications at both ends: an end, a reset and a refusal look as they would without a tunnel."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qanat.base.sockets import set_reset_on_close
from tests.integration.conftest import Shared
from tests.support.applications import (
    END,
    RESET,
    Target,
    connection,
    echo,
    echoes,
    ending_at,
    ending_of,
    exchange,
    receive_all,
    receive_exactly,
)
from tests.support.harness import Tunnel
from tests.support.machine.ports import unused_port

both_kinds = pytest.mark.parametrize("kind", ["local", "remote"])


@both_kinds
def test_a_reply_that_comes_after_the_requests_end_arrives_whole(shared: Shared, kind: str) -> None:
    request = os.urandom(3_000_000)
    with connection(shared.ports[kind, "reply"]) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        answer = receive_all(sock)
    assert answer == hashlib.sha256(request).digest() + bytes(1 << 20)


@both_kinds
def test_an_orderly_end_is_an_orderly_end_at_both_ends(shared: Shared, kind: str) -> None:
    target = shared.targets[kind, "discard"]
    before = target.wait_idle()
    with connection(shared.ports[kind, "discard"]) as sock:
        sock.sendall(b"all of it")
        sock.shutdown(socket.SHUT_WR)
        assert ending_of(sock) == END
    assert target.wait_endings(before + 1)[before:] == [END]


@both_kinds
def test_a_close_without_half_close_reaches_the_target_as_an_end(shared: Shared, kind: str) -> None:
    target = shared.targets[kind, "discard"]
    before = target.wait_idle()
    with connection(shared.ports[kind, "discard"]) as sock:
        sock.sendall(b"and off")
    assert target.wait_endings(before + 1)[before:] == [END]


@both_kinds
def test_a_target_that_speaks_first_is_heard(shared: Shared, kind: str) -> None:
    with connection(shared.ports[kind, "greeting"]) as sock:
        assert receive_exactly(sock, 11) == b"220 hello\r\n"
        assert exchange(sock, b"HELO") == b"HELO"


@both_kinds
def test_the_applications_reset_reaches_the_target_as_a_reset(shared: Shared, kind: str) -> None:
    target = shared.targets[kind, "echo"]
    before = target.wait_idle()
    with connection(shared.ports[kind, "echo"]) as sock:
        assert exchange(sock, b"here") == b"here"
        set_reset_on_close(sock, True)
    assert target.wait_endings(before + 1)[before:] == [RESET]


@both_kinds
def test_the_targets_reset_reaches_the_application_as_a_reset(shared: Shared, kind: str) -> None:
    with connection(shared.ports[kind, "reset"]) as sock:
        sock.sendall(b"x")
        assert ending_of(sock) == RESET


@both_kinds
def test_an_application_that_leaves_a_source_that_never_reads_ends_it(shared: Shared, kind: str) -> None:
    target = shared.targets[kind, "source"]
    before = target.wait_idle()
    with connection(shared.ports[kind, "source"]) as sock:
        receive_exactly(sock, 1_000_000)
    assert target.wait_endings(before + 1)[before:] == [RESET]


# --- targets that cannot be reached -----------------------------------------------------------------


@pytest.fixture(scope="module")
def unreachable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tunnel, dict[str, int]]]:
    """Forwards to targets that refuse, are unknown, or are not allowed."""
    closed = unused_port()
    to = {
        "refused": ("local", f"127.0.0.1:{closed}"),
        "unknown": ("local", f"no-such-host.invalid:{closed}"),
        "not allowed": ("local", f"127.0.0.2:{closed}"),
        "refused at the client": ("remote", f"127.0.0.1:{closed}"),
        "unknown at the client": ("remote", f"no-such-host.invalid:{closed}"),
    }
    ports = {name: unused_port() for name in to}
    forwards = [{kind: f"127.0.0.1:{ports[name]}", "to": target} for name, (kind, target) in to.items()]
    account = {"allow_connect": ["127.0.0.1:*", "*.invalid:*"]}
    with Tunnel(tmp_path_factory.mktemp("tunnel"), forwards, account=account, server={"connect_timeout": 3}) as tunnel:
        tunnel.start()
        yield tunnel, ports


@pytest.mark.parametrize(
    ("name", "by_client", "by_server"),
    [
        ("refused", r"to 127\.0\.0\.1:\d+ from .*: refused: ", r"a to 127\.0\.0\.1:\d+: Connection refused"),
        ("unknown", r"no-such-host.*: unreachable: ", r"a to no-such-host\.invalid:\d+: .*the name"),
        (
            "not allowed",
            r"to 127\.0\.0\.2:\d+ from .*: not allowed: .*add 127\.0\.0\.2:\d+ to this client's allow_connect",
            r"127\.0\.0\.2:\d+",
        ),
    ],
)
def test_a_target_that_cannot_be_reached_is_a_reset_with_its_reason_in_both_logs(
    unreachable: tuple[Tunnel, dict[str, int]], name: str, by_client: str, by_server: str
) -> None:
    tunnel, ports = unreachable
    assert ending_at(ports[name]) == RESET
    tunnel.client.wait_for(by_client)
    tunnel.server.wait_for(by_server)
    assert tunnel.client.count(by_client) == tunnel.server.count(by_server) == 1


@pytest.mark.parametrize(
    ("name", "by_client", "by_server"),
    [
        ("refused at the client", r"for remote .* to 127\.0\.0\.1:\d+: Connection refused", "refused: Connection"),
        ("unknown at the client", r"for remote .* to no-such-host.*: .*the name", "unreachable: no-such-host"),
    ],
)
def test_a_remote_forwards_target_that_cannot_be_reached_is_a_reset_too(
    unreachable: tuple[Tunnel, dict[str, int]], name: str, by_client: str, by_server: str
) -> None:
    """It is the client that connects, and so the client that looks the name up."""
    tunnel, ports = unreachable
    assert ending_at(ports[name]) == RESET
    tunnel.client.wait_for(f"from 127.* {by_client}")
    tunnel.server.wait_for(rf"remote forward \S+ from .*: {by_server}")


# --- addresses and names ----------------------------------------------------------------------------


@both_kinds
def test_ipv6_works_at_both_ends(directory: Path, kind: str) -> None:
    with Target(echo, "::1") as target:
        port = unused_port()
        with Tunnel(directory, [{kind: f"[::1]:{port}", "to": target.address}]) as tunnel:
            tunnel.start()
            assert echoes(port, host="::1")


def test_the_tunnel_itself_runs_over_ipv6(directory: Path) -> None:
    port, listen = unused_port(), unused_port()
    with ExitStack() as stack:
        target = stack.enter_context(Target(echo))
        forwards = [{"local": f"127.0.0.1:{port}", "to": target.address}]
        url = f"ws://[::1]:{listen}/tunnel"
        tunnel = stack.enter_context(Tunnel(directory, forwards, server={"listen": f"[::1]:{listen}"}, url=url))
        tunnel.start()
        assert echoes(port)


@both_kinds
def test_a_name_is_a_target_too(directory: Path, kind: str) -> None:
    port = unused_port()
    with Target(echo) as target:
        forwards = [{kind: f"127.0.0.1:{port}", "to": f"localhost:{target.port}"}]
        with Tunnel(directory, forwards) as tunnel:
            tunnel.start()
            assert echoes(port)
