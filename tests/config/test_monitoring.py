"""Promises of `monitor:` in a configuration: what is open to others needs a token, and a token is long and private."""

from __future__ import annotations

from pathlib import Path

import pytest

from qanat.config.load import check_config, load_config
from tests.support.config_rig import ConfigDirectory, client_with, server_with


@pytest.fixture
def directory(tmp_path: Path) -> ConfigDirectory:
    found = ConfigDirectory(tmp_path)
    found.write("short.token", "15 characters..", 0o600)
    found.write("open.token", "long enough for anybody", 0o644)
    found.write("empty.token", "\n", 0o600)
    return found


@pytest.mark.parametrize("listen", ["127.0.0.1:9480", "127.8.8.8:0", "'[::1]:9480'", "/run/qanat/metrics.sock"])
def test_loopback_and_unix_sockets_need_no_token(directory: ConfigDirectory, listen: str) -> None:
    for rig in (server_with, client_with):
        directory.config(rig(f"monitor: {{listen: {listen}}}"))
        check_config(directory.file, {})


def test_without_the_section_nothing_is_served(directory: ConfigDirectory) -> None:
    directory.config(server_with("drain: 1"))
    assert load_config(directory.file, want="server", environ={}).monitor is None


@pytest.mark.parametrize("listen", ["0.0.0.0:9480", "'[::]:9480'", "192.0.2.1:9480"])
def test_what_other_machines_reach_needs_a_token(directory: ConfigDirectory, listen: str) -> None:
    (fault,) = directory.faults(server_with(f"monitor: {{listen: {listen}}}"))
    assert "is open to other machines, so it needs `token_file`" in fault
    directory.config(server_with(f"monitor: {{listen: {listen}, token_file: office.token}}"))
    check_config(directory.file, {})


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("monitor: {token_file: office.token}", "`monitor` has no `listen`; for example 127.0.0.1:9480"),
        ("monitor: {listen: localhost:9480}", "write 127.0.0.1:9480"),
        ("monitor: {listen: 9480}", "`listen` must be text"),
        ("monitor: {listen: /run/}", "is a directory, not a Unix socket"),
        (
            "monitor: {listen: 127.0.0.1:1, token_file: short.token}",
            "shorter than 16 characters (`tunnel.py token >",
        ),
        ("monitor: {listen: 127.0.0.1:1, token_file: open.token}", "chmod"),
        ("monitor: {listen: 127.0.0.1:1, token_file: empty.token}", "which is empty"),
        ("monitor: {listen: 127.0.0.1:1, token_file: nowhere}", "cannot be read"),
        ("monitor: {listen: /run/m, mode: 660}", "put it in quotes"),
        ("monitor: {listen: 127.0.0.1:1, token: abc}", "unknown key `token`"),
        ("monitor: {listen: 127.0.0.1:1, max_clients: -1}", "must be a whole number from 0 to 10000"),
    ],
)
def test_what_is_wrong_is_told(directory: ConfigDirectory, lines: str, fault: str) -> None:
    found = directory.faults(server_with(lines))
    assert any(fault in each for each in found), found
