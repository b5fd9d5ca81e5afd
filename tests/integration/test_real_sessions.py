"""Real programs whose connection is cut again and again in the middle of their work, and who do not notice."""

from __future__ import annotations

import getpass
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import scenarios
from tests.support.cuts import Cuts
from tests.support.harness import SECONDS, Relay, Tunnel
from tests.support.machine.ports import unused_port
from tests.support.machine.postgres import Postgres
from tests.support.machine.programs import require_program
from tests.support.machine.terminal import Terminal
from tests.support.machine.web import Sshd

PROMPT = "ready> "


@dataclass(frozen=True, slots=True)
class Line:
    """A tunnel through a relay, and the port of its one forward."""

    tunnel: Tunnel
    relay: Relay
    port: int


@contextmanager
def line(directory: Path, kind: str, target_port: int, transport: str = "websocket") -> Iterator[Line]:
    port = unused_port()
    forward = {kind: f"127.0.0.1:{port}", "to": f"127.0.0.1:{target_port}"}
    with ExitStack() as stack:
        tunnel = stack.enter_context(Tunnel(directory, [forward], client={"transport": transport}))
        relay = stack.enter_context(Relay(tunnel.port))
        tunnel.client_settings["url"] = f"ws://127.0.0.1:{relay.port}/tunnel"
        yield Line(tunnel.start(), relay, port)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    sshd = Sshd(tmp_path_factory.mktemp("sshd"))
    with sshd.start():
        yield sshd


def ask(terminal: Terminal, text: str) -> list[str]:
    """Type a line; the lines that are shown until the next prompt, the first being what was typed."""
    terminal.type(f"{text}\n")
    *lines, rest = terminal.wait_for(PROMPT).split("\r\n")
    assert rest == ""
    return lines


@pytest.mark.parametrize("transport", ["websocket", "http2", "grpc"])
def test_an_interactive_ssh_session_outlives_its_connections(sshd: Sshd, tmp_path: Path, transport: str) -> None:
    with ExitStack() as stack:
        path = stack.enter_context(line(tmp_path / "tunnel", "remote", sshd.port, transport))
        command = (require_program("ssh"), "-tt", *sshd.options(path.port), f"{getpass.getuser()}@127.0.0.1")
        terminal = stack.enter_context(Terminal(*command, "exec sh -i"))
        terminal.type(f"PS1='{PROMPT[0]}''{PROMPT[1:]}'\n")  # so that what is echoed is not yet the prompt
        terminal.wait_for(PROMPT)
        asked = 0
        with Cuts(path.tunnel, path.relay, lambda: asked, least=2) as cuts:
            while not cuts.over:
                count = f"seq {asked} {asked + 300}"
                assert ask(terminal, count) == [count, *map(str, range(asked, asked + 301))]
                asked += 1
        terminal.type("exit 7\n")
        assert terminal.process.wait(SECONDS) == 7


def test_files_copied_by_scp_both_ways_outlive_their_connections(sshd: Sshd, tmp_path: Path) -> None:
    scp = require_program("scp")
    size, kbits = 16_000_000, 10_000  # so they take longer than all cuts: thirteen seconds
    sent, there, kept, back = (tmp_path / name for name in ("sent", "there", "kept", "back"))
    for original in (sent, kept):
        original.write_bytes(os.urandom(size))
    with ExitStack() as stack:
        path = stack.enter_context(line(tmp_path / "tunnel", "remote", sshd.port))
        command = [scp, "-q", "-l", str(kbits), *sshd.options(path.port)]
        remote = f"{getpass.getuser()}@127.0.0.1:"
        copies = [
            subprocess.Popen([*command, *ends], stderr=subprocess.PIPE)
            for ends in ((sent, f"{remote}{there}"), (f"{remote}{kept}", back))
        ]
        try:
            with Cuts(path.tunnel, path.relay, lambda: min(size_of(there), size_of(back)), least=100_000):
                pass
            assert [copy.poll() for copy in copies] == [None, None]  # both were still at it
            assert [copy.communicate(timeout=SECONDS)[1] for copy in copies] == [b"", b""]
            assert [copy.returncode for copy in copies] == [0, 0]
        finally:
            for copy in copies:
                copy.kill()
                copy.communicate()
    assert digest(there) == digest(sent)
    assert digest(back) == digest(kept)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_transaction_in_psql_outlives_its_connections(tmp_path: Path) -> None:
    psql = require_program("psql")
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres(tmp_path / "postgres"))
        path = stack.enter_context(line(tmp_path / "tunnel", "local", postgres.port))
        settings = ("-v", f"PROMPT1={PROMPT}", "-P", "pager=off", "-P", "format=unaligned", "-P", "tuples_only=on")
        command = (psql, "--no-psqlrc", "--quiet", "--no-readline", *settings)
        place = f"postgresql://postgres@127.0.0.1:{path.port}/postgres"
        terminal = stack.enter_context(Terminal(*command, place))
        terminal.wait_for(PROMPT)

        def sql(text: str) -> list[str]:
            echoed, *answer = ask(terminal, text)
            assert echoed == text
            return answer

        assert sql("\\set QUIET off") == []
        assert sql("CREATE TABLE cuts (n integer);") == ["CREATE TABLE"]
        assert sql("BEGIN;") == ["BEGIN"]
        (before,) = sql("SELECT pg_backend_pid(), txid_current();")
        rows = 0
        with Cuts(path.tunnel, path.relay, lambda: rows, least=2) as cuts:
            while not cuts.over:
                assert sql(f"INSERT INTO cuts VALUES ({rows});") == ["INSERT 0 1"]
                rows += 1
        assert sql("SELECT pg_backend_pid(), txid_current();") == [before]
        assert sql("COMMIT;") == ["COMMIT"]
        assert sql("SELECT count(*), count(DISTINCT n), max(n) FROM cuts;") == [f"{rows}|{rows}|{rows - 1}"]


def test_a_large_download_by_curl_outlives_its_connections(tmp_path: Path) -> None:
    """`make soak` does it with a gigabyte."""
    print(scenarios.download_through_cuts(tmp_path, 200_000_000))
