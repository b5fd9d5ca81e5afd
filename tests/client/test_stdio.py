"""What `-W` says when it cannot go through the running client.  That it can is in tests/integration/test_stdio.py."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.errors import EndpointError
from qanat.client.stdio import run_stdio
from qanat.config.client_settings import ClientSettings, RemoteServer
from tests.support.background import wait_until
from tests.support.server.raw_sessions import QUICK, TOKEN, client_to, real_server


def test_a_client_that_was_started_in_another_way_is_named_as_the_cause(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "qanat.client")
    stop = threading.Event()
    with real_server(tmp_path) as server:
        url, key = f"ws://127.0.0.1:{server.addresses[0][1]}/tunnel", server.identity.fingerprint
        with client_to((url,), key, tmp_path / "flags") as running:
            wait_until(lambda: running.servers[0].state[0] == "connected", "it is connected")
            there = RemoteServer((url,), TOKEN, key)
            settings = ClientSettings("a", (there,), state_dir=tmp_path / "file", connect_timeout=0.6, reconnect=QUICK)
            with pytest.raises(EndpointError, match="session ended") as refused:
                run_stdio(settings, TcpAddress("127.0.0.1", 1), stop)
            stop.set()
    assert "started with the same -c FILE, or with the same URL and --name" in refused.value.hint
    (line,) = [record.message for record in caplog.records if "refused by" in record.message]
    assert "refuses this client's name: a is connected from" in line
