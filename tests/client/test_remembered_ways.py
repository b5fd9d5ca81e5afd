"""Promises about the file of ways that worked: it is small and private, and one that is damaged costs nothing."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from qanat.client import remembered_ways
from qanat.client.remembered_ways import MAX_LINES, UNKNOWN, RememberedWays, name_network
from qanat.client.ways import Candidate
from qanat.transports.dial.urls import TunnelUrl
from tests.support.background import Background

HOME, OFFICE = "gateway:192.0.2.1", "gateway:198.51.100.1"
WAYS = [
    Candidate(TunnelUrl.parse(url), transport)
    for url in ("wss://one.example/tunnel", "wss://two.example/tunnel")
    for transport in ("websocket", "http2")
]
ONE, ONE_H2, TWO, TWO_H2 = WAYS


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def memory(file: Path | None, clock: Clock | None = None) -> RememberedWays:
    return RememberedWays(file, network=lambda: HOME, now=clock or Clock())


def test_the_way_that_worked_last_is_found_by_network_and_one_for_each_url(tmp_path: Path) -> None:
    ways = memory(tmp_path / "new" / "ways")
    for network, way in ((HOME, ONE), (OFFICE, ONE), (HOME, ONE_H2), (HOME, TWO)):
        ways.remember(network, way)
    again = memory(tmp_path / "new" / "ways")
    assert again.find(HOME, WAYS) == [TWO, ONE_H2]
    assert again.find(OFFICE, WAYS) == [ONE]
    assert again.find("gateway:203.0.113.1", WAYS) == []
    assert again.find(HOME, [ONE, TWO_H2]) == []  # it is no way any more


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_the_file_is_nobody_else_s_and_what_works_still_is_not_written_again(tmp_path: Path) -> None:
    file, clock = tmp_path / "ways", Clock()
    ways = memory(file, clock)
    ways.remember(HOME, ONE)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = file.read_bytes()
    ways.remember(HOME, ONE)
    assert file.read_bytes() == first
    clock.now += 86_400
    ways.remember(HOME, ONE)
    assert file.read_bytes() != first
    assert file.read_text().count("\n") == 2


def test_the_file_stays_small(tmp_path: Path) -> None:
    file = tmp_path / "ways"
    ways = memory(file)
    file.write_text("".join(f"gateway:10.0.{n // 256}.{n % 256} wss://a/b websocket {n}\n" for n in range(1000)))
    ways.remember(HOME, ONE)
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == MAX_LINES
    assert ways.find(HOME, WAYS) == [ONE]


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00", b"gateway:1 wss://a/b websocket\n", b"a b c d\n", b"{}", bytes(300_000), b"a b c d e\n" * 3],
    ids=["no text", "a word less", "no time", "another file", "too large", "a word more"],
)
def test_a_damaged_file_is_passed_over_with_a_word_and_written_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    file = tmp_path / "ways"
    file.write_bytes(content)
    ways = memory(file)
    assert ways.find(HOME, WAYS) == ways.find(HOME, WAYS) == []
    assert [record.message.count("is damaged") for record in caplog.records] == [1]
    ways.remember(HOME, ONE)
    assert memory(file).find(HOME, WAYS) == [ONE]


def test_a_place_that_cannot_be_written_costs_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    ways = memory(tmp_path / "file" / "ways")
    ways.remember(HOME, ONE)
    ways.remember(HOME, TWO)
    assert len(caplog.records) == 1
    memory(None).remember(HOME, ONE)
    assert memory(None).find(HOME, WAYS) == []


def test_processes_that_share_the_file_leave_it_whole(tmp_path: Path) -> None:
    file = tmp_path / "ways"

    def write(number: int) -> None:
        for turn in range(20):
            memory(file).remember(f"gateway:{number}.{turn}", ONE)

    for running in [Background(lambda number=number: write(number)) for number in range(4)]:  # type: ignore[misc]
        running.result()
    assert all(len(line.split()) == 4 for line in file.read_text().splitlines()[1:])


# --- which network this is


ROUTES = """\
Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
wlan0\t00000000\t{}\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t{}\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
ROUTES6 = f"{'0' * 32} 00 {'0' * 32} 00 fe80{'0' * 27}1 00000400 00000003 00000000 00000003 eth0\n"


def number_of(address: str) -> str:
    return f"{int.from_bytes(bytes(map(int, address.split('.'))), sys.byteorder):08X}"


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, file in (("_ROUTES", "route"), ("_ROUTES6", "ipv6_route"), ("_RESOLVER", "resolv.conf")):
        monkeypatch.setattr(remembered_ways, name, tmp_path / file)
    monkeypatch.setattr(remembered_ways, "ask_kernel", lambda remote: ("10.1.2.3", 0) if len(remote) == 2 else None)
    return tmp_path


def test_a_network_is_called_by_its_default_gateway(tables: Path) -> None:
    (tables / "route").write_text(ROUTES.format(number_of("198.51.100.1"), number_of("192.0.2.1")))
    (tables / "ipv6_route").write_text(ROUTES6)
    assert name_network() == "gateway:192.0.2.1"
    (tables / "route").write_text("Iface\n")
    assert name_network() == "gateway:fe80::1%eth0"


def test_a_network_without_a_gateway_is_called_by_our_address_and_the_search_domain(tables: Path) -> None:
    assert name_network() == "address:10.1.2.3"
    (tables / "resolv.conf").write_text("nameserver 10.0.0.1\nsearch office.example other.example\n")
    assert name_network() == "address:10.1.2.3,office.example"


def test_no_network_has_a_name_too(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tables / "route").write_text("Iface\nnothing of this kind\n")
    monkeypatch.setattr(remembered_ways, "ask_kernel", lambda remote: None)
    assert name_network() == UNKNOWN


def test_this_machine_s_network_has_a_name_of_one_word() -> None:
    assert len(name_network().split()) == 1
