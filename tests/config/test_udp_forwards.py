"""A forward for UDP, as a file and a command line have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qanat.base.endpoint_addresses import TcpAddress, UdpAddress
from qanat.base.errors import UsageError
from qanat.config.forward_settings import Forward
from qanat.config.forwards import parse_ssh_forward, parse_ssh_forwards
from tests.support.config_rig import ConfigDirectory, client_with


@pytest.fixture
def config(tmp_path: Path) -> ConfigDirectory:
    return ConfigDirectory(tmp_path)


def forwards_of(config: ConfigDirectory, entries: str) -> tuple[Forward, ...]:
    return config.client(client_with(f"forwards: [{entries}]")).forwards


DNS = Forward("local", UdpAddress("localhost", 53), UdpAddress("10.0.0.1", 53))


def test_a_suffix_or_an_option_says_so_on_the_command_line() -> None:
    assert parse_ssh_forward("local", "53:10.0.0.1:53/udp") == DNS
    assert parse_ssh_forwards([], [], ["53:10.0.0.1:53"]) == (DNS,)
    assert parse_ssh_forwards([], [], ["53:10.0.0.1:53/udp"]) == (DNS,)
    assert parse_ssh_forwards(["53:10.0.0.1:53/udp"], []) == (DNS,)
    remote = parse_ssh_forward("remote", "[::1]:0:[fd00::1]:51820/udp")
    assert remote == Forward("remote", UdpAddress("::1", 0), UdpAddress("fd00::1", 51820))


def test_one_port_may_have_both() -> None:
    both = parse_ssh_forwards(["53:10.0.0.1:53/udp", "53:10.0.0.1:53"], [])
    assert [type(forward.listen) for forward in both] == [UdpAddress, TcpAddress]
    with pytest.raises(UsageError, match="listens where another"):
        parse_ssh_forwards(["53:10.0.0.1:53/udp"], [], ["127.0.0.1:53:10.0.0.2:53"])


@pytest.mark.parametrize("text", ["53/udp", "53:10.0.0.1/udp", "53:10.0.0.1:0/udp", "/udp"])
def test_what_is_no_forward_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ssh_forward("local", text)


def test_a_key_says_so_in_a_file(config: ConfigDirectory) -> None:
    assert forwards_of(config, '{local: "localhost:53", to: "10.0.0.1:53", udp: true}') == (DNS,)
    (plain,) = forwards_of(config, '{local: "localhost:53", to: "10.0.0.1:53", udp: false}')
    assert isinstance(plain.to, TcpAddress)
    both = '{local: "localhost:53", to: "10.0.0.1:53"}, {local: "localhost:53", to: "10.0.0.1:53", udp: true}'
    assert len(forwards_of(config, both)) == 2
    wrong = client_with('forwards: [{local: "localhost:53", to: "10.0.0.1:53", udp: maybe}]')
    assert "must be true or false" in config.fault(wrong)


def test_an_idle_time_belongs_to_it(config: ConfigDirectory) -> None:
    (forward,) = forwards_of(config, '{remote: "127.0.0.1:53", to: "10.0.0.1:53", udp: true, idle_timeout: 180}')
    assert forward.limits.idle_timeout == 180
