"""UDP through a whole tunnel, over every transport: real programs, cuts, floods, and who may have it."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from qanat.config.texts import AUTO, TRANSPORTS
from qanat.mux.datagrams import LATE
from tests.support.applications import Target, connection, discard, echo, exchange
from tests.support.background import Background
from tests.support.datagrams import LARGEST, Numbered, UdpEcho, ask, dig, name_server, quic_echo, udp_client
from tests.support.harness import SECONDS, Program, Relay, Tunnel
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program
from tests.support.machine.wireguard import WireGuard

CARRIERS = [name for name in TRANSPORTS if name != AUTO]
RULES = ["127.0.0.1:*/udp", "127.0.0.1:*"]
LISTEN = ["127.0.0.1:1-65535/udp", "127.0.0.1:1-65535"]
CUTS = 6


@dataclass(frozen=True)
class Carried:
    """A tunnel over one transport, with what the tests of this file need behind it."""

    directory: Path
    ports: dict[str, int]
    quic: str
    wireguard: int


@pytest.fixture(scope="module", params=CARRIERS)
def carried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Carried]:
    directory = tmp_path_factory.mktemp("udp")
    with ExitStack() as stack:
        names = stack.enter_context(name_server())
        echoing = stack.enter_context(UdpEcho())
        bulk, small = stack.enter_context(Target(discard)), stack.enter_context(Target(echo))
        iperf = f"127.0.0.1:{unused_port()}"
        measuring = stack.enter_context(
            Program(
                require_program("iperf3"),
                "--server",
                "--forceflush",
                "--bind",
                "127.0.0.1",
                "--port",
                iperf.rpartition(":")[2],
            )
        )
        measuring.wait_for("Server listening")
        quic = f"127.0.0.1:{unused_port()}"
        wireguard = unused_port()
        udp = {
            "local": echoing.address,
            "remote": echoing.address,
            "names": names,
            "quic": quic,
            "iperf": iperf,
            "wireguard": f"127.0.0.1:{wireguard}",
        }
        tcp = {"bulk": bulk.address, "small": small.address, "iperf": iperf}
        ports = {name: unused_port() for name in (*udp, *tcp)}
        forwards = [
            {"remote" if name == "remote" else "local": f"127.0.0.1:{ports[name]}", "to": to, **kind}
            for targets, kind in ((udp, {"udp": True}), (tcp, {}))
            for name, to in targets.items()
        ]
        account = {"allow_connect": RULES, "allow_listen": LISTEN}
        tunnel = stack.enter_context(
            Tunnel(directory / "tunnel", forwards, client={"transport": request.param}, account=account)
        )
        tunnel.start()
        yield Carried(directory, ports, quic, wireguard)


@pytest.mark.parametrize("side", ["local", "remote"])
@pytest.mark.parametrize("size", [0, 1, 1472, 20_000, LARGEST])
def test_datagrams_of_every_size_go_there_and_back(carried: Carried, side: str, size: int) -> None:
    with udp_client(carried.ports[side]) as sock:
        payload = os.urandom(size)
        assert ask(sock, payload) == payload


def test_a_name_server_is_asked(carried: Carried) -> None:
    assert dig(carried.ports["names"], "www.qanat.example", "A") == "192.0.2.80"
    assert dig(carried.ports["names"], "+bufsize=4096", "large.qanat.example", "TXT").count("x") == 3000


@pytest.mark.parametrize("way", [(), ("--reverse",)])
def test_iperf3_measures_it(carried: Carried, way: tuple[str, ...]) -> None:
    with Program(
        require_program("iperf3"),
        *("--client", "127.0.0.1", "--port", carried.ports["iperf"], "--udp", "--bitrate", "4M", "--time", "1"),
        *("--length", "1200", "--json", *way),
    ) as program:
        assert program.end() == 0, program.output
        result = json.loads(program.output)["end"]["sum"]
    assert result["packets"] > 100
    assert result["lost_percent"] < 50  # a machine that is busy loses some


@pytest.mark.parametrize("side", ["local", "remote"])
def test_bursts_of_fixed_size_both_ways_come_in_order_and_once(carried: Carried, side: str) -> None:
    """As WireGuard sends under load."""
    with udp_client(carried.ports[side]) as sock, Numbered(sock, burst=10, pause=0.01) as numbered:
        numbered.wait_for(400)
    numbered.check()
    assert len(numbered.came) > numbered.sent / 2


def test_quic_goes_through(carried: Carried) -> None:
    quic_echo(carried.quic, carried.ports["quic"], carried.directory / "quic", 200_000)


def test_wireguard_joins_two_networks_through_it(carried: Carried, tmp_path: Path) -> None:
    with ExitStack() as stack:
        wireguard = WireGuard(tmp_path, stack, carried.wireguard)
        wireguard.join(carried.ports["wireguard"])
        assert wireguard.transfer() > 100_000


def test_many_flows_at_once_get_their_own_answers(carried: Carried) -> None:
    with ExitStack() as stack:
        socks = [stack.enter_context(udp_client(carried.ports["local"])) for _ in range(20)]
        for number, sock in enumerate(socks):
            sock.send(b"flow %d" % number)
        for number, sock in enumerate(socks):
            assert ask(sock, b"again %d" % number) == b"again %d" % number


def test_a_flood_of_datagrams_does_not_hold_up_a_stream_nor_bulk_a_datagram(carried: Carried) -> None:
    with udp_client(carried.ports["local"]) as sock, udp_client(carried.ports["local"]) as quiet:
        data = os.urandom(4_000_000)

        def upload() -> None:
            with connection(carried.ports["bulk"]) as stream:
                stream.sendall(data)
                stream.shutdown(socket.SHUT_WR)
                assert stream.recv(1) == b""

        with Numbered(sock, size=8000, burst=20, pause=0.001) as numbered:
            uploading = Background(upload)
            with connection(carried.ports["small"]) as stream:
                for _ in range(20):
                    assert exchange(stream, b"keystroke") == b"keystroke"
            assert ask(quiet, b"query") == b"query"
            uploading.result()
            numbered.wait_for(1)
        numbered.check()


@pytest.mark.parametrize("transport", CARRIERS)
def test_cuts_lose_datagrams_and_repeat_and_delay_none(directory: Path, transport: str) -> None:
    """Also on flows that the server opened.  None that was sent before a cut comes once a fresh one has come."""
    with UdpEcho() as target, ExitStack() as stack:
        ports = {side: unused_port() for side in ("local", "remote")}
        forwards = [{side: f"127.0.0.1:{port}", "to": target.address, "udp": True} for side, port in ports.items()]
        account = {"allow_connect": RULES, "allow_listen": LISTEN}
        tunnel = stack.enter_context(Tunnel(directory, forwards, client={"transport": transport}, account=account))
        relay = stack.enter_context(Relay(tunnel.port))
        tunnel.client_settings["url"] = f"ws://127.0.0.1:{relay.port}/tunnel"
        tunnel.start()
        socks = [stack.enter_context(udp_client(port)) for port in ports.values()]
        flows = [stack.enter_context(Numbered(sock, burst=1, pause=0.01)) for sock in socks]
        for number in range(1, CUTS + 1):
            relay.cut()
            for flow in flows:
                flow.mark = number
            for flow in flows:
                flow.wait_for_mark(number)
        # Nobody is there for a while: nothing that is sent then may come later.
        relay.refusing = True
        relay.cut()
        if transport != "split":  # which goes on as if nothing had been, for a while
            tunnel.client.wait_for("trying again")
        for flow in flows:
            flow.mark = CUTS + 1
        time.sleep(0.3)
        for flow in flows:
            flow.mark = CUTS + 2
        time.sleep(LATE + 0.1 if transport == "split" else 0.3)
        relay.refusing = False
        if transport != "split":
            tunnel.wait_resumed(CUTS + 1)
        for flow in flows:
            flow.wait_for_mark(CUTS + 2)
            assert CUTS + 1 not in {mark for _, mark in flow.came}, "a stale datagram came after the cut"
        for flow in flows:
            flow.check()
        assert tunnel.client.count("connected to ") == 1


def test_rules_for_tcp_open_no_udp(directory: Path) -> None:
    with UdpEcho() as target:
        local, remote = unused_port(), unused_port()
        forwards = [
            {"local": f"127.0.0.1:{local}", "to": target.address, "udp": True},
            {"remote": f"127.0.0.1:{remote}", "to": target.address, "udp": True},
        ]
        with Tunnel(directory, forwards) as tunnel:
            tunnel.start_server()
            tunnel.start_client(wait=False)
            tunnel.client.wait_for("connected to ")
            tunnel.client.wait_for(
                rf"cannot listen for remote 127.0.0.1:{remote}/udp .* not allowed by any rule.*allow_listen"
            )
            with udp_client(local) as sock:
                said = rf"not allowed: no rule allows {target.address}/udp \(add {target.address}/udp"
                send_until(tunnel.client, said, sock, b"hello")
                tunnel.server.wait_for(f"no rule allows {target.address}/udp")


def send_until(program: Program, said: str, sock: socket.socket, payload: bytes) -> None:
    """Send until the program's log says so: a datagram that comes before the session can be used is dropped."""
    deadline = time.monotonic() + SECONDS
    while not program.count(said):
        assert time.monotonic() < deadline, program.output
        sock.send(payload)
        time.sleep(0.1)


def test_an_end_that_is_too_old_for_udp_is_named_and_all_else_goes_on(directory: Path) -> None:
    """A server that sends no FEATURES, as the first version."""
    old = (
        "import sys; import qanat.session.limits as limits; from qanat.cli import main; "
        "limits.FEATURES = limits.Features.NONE; sys.argv = sys.argv[2:]; sys.exit(main())"
    )
    local, remote, tcp = (unused_port() for _ in range(3))
    with UdpEcho() as target, Target(echo) as stream:
        forwards = [
            {"local": f"127.0.0.1:{local}", "to": target.address, "udp": True},
            {"remote": f"127.0.0.1:{remote}", "to": target.address, "udp": True},
            {"local": f"127.0.0.1:{tcp}", "to": stream.address},
        ]
        account = {"allow_connect": RULES, "allow_listen": LISTEN}
        with Tunnel(directory, forwards, account=account, server_before=(sys.executable, "-c", old)) as tunnel:
            tunnel.start_server()
            tunnel.start_client(wait=False).wait_for("connected to ")
            tunnel.client.wait_for(rf"127\.0\.0\.1:{remote}/udp.*run the same version of Qanat at both ends")
            with udp_client(local) as sock:
                said = rf":{local}.*the other end carries no UDP.*run the same version of Qanat at both ends"
                send_until(tunnel.client, said, sock, b"hello")
            with connection(tcp) as sock:
                assert exchange(sock, b"hello") == b"hello"


def test_nobody_at_the_target_is_told_and_the_flow_comes_back(directory: Path) -> None:
    local, port = unused_port(), unused_port()
    forwards = [{"local": f"127.0.0.1:{local}", "to": f"127.0.0.1:{port}", "udp": True}]
    with Tunnel(directory, forwards, account={"allow_connect": RULES}) as tunnel:
        tunnel.start()
        with udp_client(local) as sock:
            send_until(tunnel.client, "refused: .*Connection refused", sock, b"anybody?")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
                target.bind(("127.0.0.1", port))
                target.settimeout(0.5)
                deadline = time.monotonic() + SECONDS
                while time.monotonic() < deadline:
                    sock.send(b"now?")
                    try:
                        assert target.recv(100) == b"now?"
                    except TimeoutError:
                        continue
                    return
    raise AssertionError("no flow was opened again")
