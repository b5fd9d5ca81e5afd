"""Thirty reloads a second for a minute under 200 streams: `python -m benchmarks.reloads`; exits with 1 for a fault.

Client and server run in this process.  Each reload of the client changes forwards, limits, a token or a time; the
streams are TCP both ways, a Unix socket's, SOCKS' and UDP flows, each of which checks every byte that comes back.  The
smaller form is in tests/client/test_reload.py.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from qanat.base.endpoint_addresses import ANYWHERE, TcpAddress, UdpAddress, UnixAddress
from qanat.client.client import Client
from qanat.config.settings import ClientAccount, ClientSettings, Forward, ForwardLimits, RemoteServer, ServerSettings
from qanat.monitor.process import resident_bytes
from qanat.server.server import Server
from tests.support.applications import Target, connection, echo, exchange
from tests.support.background import Background, wait_until
from tests.support.datagrams import UdpEcho, ask, udp_client
from tests.support.harness import SECONDS
from tests.support.machine.ports import unused_port

TOKENS = os.urandom(32), os.urandom(32)
RATE = 30


def main() -> int:
    """Run it, and print what came of it."""
    parser = argparse.ArgumentParser(description="Reloads under many streams.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--streams", type=int, default=200)
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="q")))
        target, udp = stack.enter_context(Target(echo)), stack.enter_context(UdpEcho())
        rules = "127.0.0.1:*", "127.0.0.1:*/udp"
        server = Server(
            ServerSettings(
                clients=(ClientAccount("a", TOKENS, rules, rules),),
                listen=(("127.0.0.1", 0),),
                identity=directory / "key",
            )
        )
        server.start()
        stack.callback(server.stop)
        url = f"ws://127.0.0.1:{server.addresses[0][1]}/tunnel"
        remote = RemoteServer((url,), TOKENS[0], server.identity.fingerprint)
        to, path = TcpAddress("127.0.0.1", target.port), str(directory / "u")
        local, back, dynamic, flow = (TcpAddress("127.0.0.1", unused_port()) for _ in range(4))
        kept = (
            Forward("local", local, to),
            Forward("remote", back, to),
            Forward("local", dynamic, ANYWHERE),
            Forward("local", UnixAddress(path), to),
            Forward(
                "local", UdpAddress("127.0.0.1", flow.port), UdpAddress("127.0.0.1", int(udp.address.split(":")[1]))
            ),
        )
        client = Client(ClientSettings("a", (remote,), kept, state_dir=directory))
        client.start()
        stack.callback(client.stop)
        wait_until(lambda: bool(client.bound_ports(kept[1])), "the server listens")
        stop = threading.Event()

        def talk(number: int) -> int:
            rounds, kind = 0, number % 5
            if kind == 4:
                with udp_client(flow.port) as sock:
                    while not stop.wait(0.2):
                        payload = os.urandom(500)
                        assert ask(sock, payload) == payload
                        rounds += 1
                return rounds
            with socket.socket(socket.AF_UNIX) if kind == 3 else connection((local, back, dynamic)[kind].port) as sock:
                if kind == 3:
                    sock.settimeout(SECONDS)
                    sock.connect(path)
                if kind == 2:
                    sock.sendall(b"\x04\x01" + to.port.to_bytes(2, "big") + b"\x7f\0\0\x01\0")  # SOCKS4
                    assert sock.recv(8)[1] == 90
                while not stop.wait(0.05):
                    exchange(sock, os.urandom(5000))
                    rounds += 1
            return rounds

        talks = [Background(lambda number=number: talk(number)) for number in range(options.streams)]
        more = Forward("local", TcpAddress("127.0.0.1", unused_port()), to)
        begun, reloads, memory = time.monotonic(), 0, 0
        while time.monotonic() < begun + options.seconds:
            extra = replace(more, limits=ForwardLimits(max_streams=1 + reloads % 7))
            server_now = replace(remote, token=TOKENS[reloads % 2])
            forwards = (*kept, extra) if reloads % 2 else kept
            client.apply(replace(client.settings, forwards=forwards, servers=(server_now,), drain=5.0 + reloads % 3))
            reloads += 1
            if reloads == RATE * 10:
                memory = resident_bytes()
            time.sleep(max(0.0, begun + reloads / RATE - time.monotonic()))
        grown = resident_bytes() - memory if memory else 0
        stop.set()
        rounds = sum(each.result(60.0) for each in talks)
    print(
        f"{reloads} reloads under {options.streams} streams: {rounds} exchanges, 0 bytes lost; memory {grown:+,} bytes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
