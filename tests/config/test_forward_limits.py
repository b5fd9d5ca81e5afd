"""What bounds a forward or a client is read from the file, and refused with its place where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from qanat.base.endpoint_addresses import TcpAddress
from qanat.config.forward_settings import Forward, ForwardLimits
from qanat.config.load import ConfigError
from qanat.session.forward_limits import listen_options, quota_of_forward, quota_of_options
from qanat.session.messages import ListenOption
from tests.support.config_rig import ConfigDirectory, client_with, server_with


@pytest.fixture
def directory(tmp_path: Path) -> ConfigDirectory:
    return ConfigDirectory(tmp_path)


ALL = ForwardLimits(100, 200, 3, 0.5, 2, 0.001, 1.5)
LINES = """\
forwards:
  - {local: "127.0.0.1:1", to: "a:1", rate_up: 100, rate_down: 200, max_streams: 3, streams_per_second: 0.5,
     max_streams_per_address: 2, streams_per_second_per_address: 0.001, idle_timeout: 1.5}
  - {remote: "127.0.0.1:1", to: "a:1"}"""


def test_a_forwards_limits_are_read(directory: ConfigDirectory) -> None:
    at, to = TcpAddress("127.0.0.1", 1), TcpAddress("a", 1)
    assert directory.client(client_with(LINES)).forwards == (
        Forward("local", at, to, ALL),
        Forward("remote", at, to, ForwardLimits()),
    )


def test_a_clients_limits_are_read(directory: ConfigDirectory) -> None:
    text = server_with("").replace(
        "token_file: office.token", "token_file: office.token\n      rate_up: 5\n      idle_timeout: 60"
    )
    (account,) = directory.server(text).clients
    assert (account.rate_up, account.rate_down, account.idle_timeout) == (5, 0, 60)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("rate_up: -1", "`rate_up` must be a whole number from 0 to 100000000000"),
        ("rate_down: 1.5", "`rate_down` must be a whole number"),
        ("max_streams: many", "`max_streams`"),
        ("idle_timeout: 1h", "`idle_timeout` must be a number of seconds"),
        ("max_strems: 1", "did you mean `max_streams`?"),
    ],
)
def test_what_cannot_be_is_refused(directory: ConfigDirectory, entry: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        directory.client(client_with('forwards: [{local: "127.0.0.1:1", to: "a:1", ' + entry + "}]"))
    assert said in "\n".join(map(str, error.value.faults))


def test_the_server_is_told_the_same_quota() -> None:
    assert quota_of_options(listen_options(ALL)) == quota_of_forward(ALL)
    assert listen_options(ForwardLimits(rate_up=1, idle_timeout=1)) == {}
    assert listen_options(ForwardLimits(idle_timeout=1.5), udp=True) == {ListenOption.UDP_IDLE: 2}
    assert listen_options(ForwardLimits(streams_per_second=1e-5)) == {ListenOption.STREAM_RATE: 1}
