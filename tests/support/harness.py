"""A whole tunnel for a test: both programs as processes of their own, with configurations made for it.

`Tunnel` writes the two files and starts, kills and restarts either end; `Program` is any process whose
output is waited for line by line; `Relay` is the network in between, which can be cut or fall silent.
The applications at the ends are in `tests.support.applications`.  Used by tests/integration and
`benchmarks.soak`.  `tests.support.machine.processes` is for tests of the command line itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from qanat.base.sockets import close_socket, set_reset_on_close
from qanat.handshake.tokens import generate_token
from tests.support.identities import placed_identity
from tests.support.machine.ports import unused_port

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
"""How long anything may take before a test fails."""

_CONNECTED = r"connected to \S+ over"
_RESUMED = r" (resumed by|moved to a fresh connection to) "


class Program:
    """A process, and the lines that it has written to stdout and stderr.  Killed and reaped by `close`."""

    def __init__(self, *command: object, cwd: Path | None = None, **environment: object) -> None:
        self.name = Path(str(command[0])).name
        # A proxy that this machine has to use is none for a tunnel on loopback.
        ours = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("QANAT_", "NOTIFY_")) and not key.lower().endswith("_proxy")
        }
        self.process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env={**ours, **{key: str(value) for key, value in environment.items()}},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        self.pid = self.process.pid
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._over = False
        self._reader = threading.Thread(target=self._reader_loop, name=f"shared-output of {self.name}", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def output(self) -> str:
        """All that it has written so far."""
        with self._changed:
            return "\n".join(self._lines)

    def wait_for(self, pattern: str, *, count: int = 1, seconds: float = SECONDS) -> re.Match[str]:
        """Block until `count` lines match; the match in the last of them.  Fails when it ends before that."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                found = [match for line in self._lines if (match := re.search(pattern, line))]
                if len(found) >= count:
                    return found[count - 1]
                remaining = deadline - time.monotonic()
                if self._over or remaining <= 0:
                    why = "ended" if self._over else f"ran for {seconds:g} s"
                    raise AssertionError(f"{self.name} {why} without {count} lines {pattern!r}:\n" + self._text())
                self._changed.wait(remaining)

    def count(self, pattern: str) -> int:
        """How many lines match so far."""
        with self._changed:
            return sum(1 for line in self._lines if re.search(pattern, line))

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self.process.kill()
        self.process.wait(SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = SECONDS) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.end(seconds)

    def end(self, seconds: float = SECONDS) -> int:
        """Wait until it has ended and all its output has been read; the exit code."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {seconds:g} s:\n{self.output}") from None
        self._reader.join(SECONDS)
        return code

    def close(self) -> None:
        self.kill()
        self._reader.join(SECONDS)

    # --- what the system says about it ----------------------------------------------------------

    @property
    def memory(self) -> int:
        """Bytes of memory it occupies now (RSS)."""
        return self._status("VmRSS") * 1024

    @property
    def threads(self) -> int:
        return self._status("Threads")

    @property
    def sockets(self) -> int:
        """How many sockets it has open."""
        names = []
        for number in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):  # closed since
                names.append(os.readlink(f"/proc/{self.pid}/fd/{number}"))
        return sum(1 for name in names if name.startswith("socket:"))

    def _status(self, key: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{key}:\s+(\d+)", text, re.MULTILINE)
        assert found is not None, text
        return int(found[1])

    def _text(self) -> str:
        return "\n".join(self._lines)

    def _reader_loop(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                with self._changed:
                    self._lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()


def qanat(
    *arguments: object,
    cwd: Path | None = None,
    files: int | None = None,
    before: Sequence[object] = (),
    script: Path = ROOT / "tunnel.py",
) -> Program:
    """`tunnel.py` with these arguments, which may have `files` open files if that is given, run by `before`.

    `script` is another one that does the same.
    """
    limited = () if files is None else ("/bin/sh", "-c", f'ulimit -n {files} && exec "$0" "$@"')
    return Program(*before, *limited, sys.executable, script, *arguments, cwd=cwd)


class Tunnel:
    """A server and a client that fit together, in `directory`.

    `forwards` is the client's list as in its YAML.  `server`, `client` and `account` are further keys of
    those sections.  The client dials `url`, by default the server itself.  `server_files` are the open files that the
    server may have, by default as many as this process.  `server_before` is a command that runs the server's,
    `client_script` what the client is started by.
    """

    def __init__(
        self,
        directory: Path,
        forwards: Sequence[Mapping[str, Any]] = (),
        *,
        url: str | None = None,
        server: Mapping[str, Any] | None = None,
        client: Mapping[str, Any] | None = None,
        account: Mapping[str, Any] | None = None,
        server_files: int | None = None,
        server_before: Sequence[object] = (),
        client_script: Path = ROOT / "tunnel.py",
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = unused_port()
        self.token = generate_token()
        self._files = {"server": server_files}
        self._before = {"server": server_before}
        self._script = {"client": client_script}
        self.fingerprint = placed_identity(directory / "server.key").fingerprint
        self._programs: list[Program] = []
        self._server: Program | None = None
        self._client: Program | None = None
        (directory / "a.token").touch(mode=0o600)
        (directory / "a.token").write_text(self.token + "\n")
        self.server_settings: dict[str, Any] = {
            "listen": f"127.0.0.1:{self.port}",
            "node": "the-server",
            "identity": "server.key",
            "drain": 1,
            "clients": [
                {
                    "name": "a",
                    "token_file": "a.token",
                    "allow_connect": ["127.0.0.1:*", "[::1]:*"],
                    "allow_listen": ["127.0.0.1:1-65535", "[::1]:1-65535"],
                    **(account or {}),
                }
            ],
            **(server or {}),
        }
        self.client_settings: dict[str, Any] = {
            "name": "a",
            "url": url or f"ws://127.0.0.1:{self.port}/tunnel",
            "transport": "websocket",
            "token_file": "a.token",
            "server_fingerprint": self.fingerprint,
            "drain": 1,
            "reconnect": {"min": 0.2, "max": 1},
            "state_dir": "state",
            "forwards": [dict(forward) for forward in forwards],
            **(client or {}),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        outputs = self.server_and_client_output() if kind is not None else ""
        for program in self._programs:
            program.close()
        if outputs:
            print(outputs)
        for program in self._programs:
            if kind is None:
                self.check_output(program.output)

    def check_output(self, output: str) -> None:
        """No log of ours may ever hold a traceback, or any part of the token that tells something."""
        assert "Traceback" not in output, output
        assert self.token[7:30] not in output

    def server_and_client_output(self) -> str:
        return "\n".join(
            f"--- {which}\n{program.output}"
            for which, program in (("server", self._server), ("client", self._client))
            if program is not None
        )

    @property
    def server(self) -> Program:
        assert self._server is not None
        return self._server

    @property
    def client(self) -> Program:
        assert self._client is not None
        return self._client

    def start(self) -> Self:
        """Start both; returns when the client is connected and every remote forward listens."""
        self.start_server()
        self.start_client()
        return self

    def start_server(self) -> Program:
        """Start the server, anew if need be; returns when it accepts connections."""
        self._write("server.yaml", {"server": self.server_settings})
        self._server = self._start("server")
        self._server.wait_for("server key fingerprint")
        return self._server

    def start_client(self, *, wait: bool = True) -> Program:
        """Start the client, anew if need be; with `wait` it returns when it has all that it asked for."""
        self.write_client()
        self._client = self._start("client")
        if wait:
            self.wait_connected()
        return self._client

    def write_client(self) -> None:
        """Write the client's file, for a client that the test starts in its own way."""
        (self.directory / "state").mkdir(exist_ok=True)
        self._write("client.yaml", {"client": self.client_settings})

    def wait_connected(self, count: int = 1, *, seconds: float = SECONDS) -> None:
        """Block until the client has connected `count` times, and its remote forwards listened as often."""
        self.client.wait_for(_CONNECTED, count=count, seconds=seconds)
        remotes = sum(1 for forward in self.client_settings["forwards"] if "remote" in forward)
        if remotes:
            self.client.wait_for("the server listens on", count=count * remotes, seconds=seconds)

    def wait_resumed(self, count: int = 1, *, seconds: float = SECONDS) -> None:
        """Block until the client has gone on with its session, over another connection, `count` times."""
        self.client.wait_for(_RESUMED, count=count, seconds=seconds)

    def _start(self, which: str) -> Program:
        # From another directory than its files', as cron and supervisor do.
        program = qanat(
            which,
            "-c",
            self.directory / f"{which}.yaml",
            cwd=ROOT,
            files=self._files.get(which),
            before=self._before.get(which, ()),
            script=self._script.get(which, ROOT / "tunnel.py"),
        )
        self._programs.append(program)
        return program

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        (self.directory / name).write_text(yaml.safe_dump(content, sort_keys=False))


class Relay:
    """A TCP relay: the network between client and server, which can be cut or fall silent.

    It leads to `port`, and listens on `at`, or where the system chooses.  Its connections come from the address
    `source`.
    """

    def __init__(self, port: int, *, at: int = 0, source: str = "127.0.0.1") -> None:
        self._to, self._from = ("127.0.0.1", port), (source, 0)
        self._listener = socket.create_server(("127.0.0.1", at), backlog=100)
        self.port: int = self._listener.getsockname()[1]
        self._changed = threading.Condition()
        self._closed = False
        self._links: list[_Link] = []
        self.refusing = False
        """While set, whoever connects is turned away: there is no way to the server."""
        self.accepted: list[float] = []
        """When each connection came, on the monotonic clock."""
        self._thread = threading.Thread(target=self._accept_loop, name="relay", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed = True
        close_socket(self._listener)
        self._thread.join()
        with self._changed:
            links = list(self._links)
        for link in links:
            link.close()

    def cut(self) -> None:
        """Reset every connection at both ends."""
        for link in self._take_links():
            link.cut_client()
            link.cut_server()

    def fall_silent(self, only: int | None = None) -> None:
        """From now on nothing gets through the connections there are, and neither end is told.

        `only` is the number, in the order of coming, of the one connection that this is about.
        """
        with self._changed:
            for link in self._links if only is None else [self._links[only]]:
                link.silent.set()

    def cut_client_side(self) -> None:
        """The client's connections are reset; the server hears nothing of it (a half-open link)."""
        self.fall_silent()
        with self._changed:
            links = list(self._links)
        for link in links:
            link.cut_client()

    def wait_accepted(self, count: int) -> float:
        """Block until `count` connections have come; when the last of them did."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.accepted) >= count, SECONDS), "nobody connected"
            return self.accepted[count - 1]

    def _take_links(self) -> list[_Link]:
        with self._changed:
            links, self._links = self._links, []
        return links

    def _accept_loop(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                raise
            now = time.monotonic()
            if self.refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(self._to, timeout=SECONDS, source_address=self._from)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._changed:
                self._links.append(_Link(client, server))
                self.accepted.append(now)
                self._changed.notify_all()


class _Link:
    """One relayed connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.silent = threading.Event()
        self._client, self._server = client, server
        self._lock = threading.Lock()
        self._running = 2
        self._threads = [
            threading.Thread(target=self._copy_loop, args=ends, name="relay-link", daemon=True)
            for ends in ((client, server), (server, client))
        ]
        for thread in self._threads:
            thread.start()

    def cut_client(self) -> None:
        _reset(self._client)

    def cut_server(self) -> None:
        _reset(self._server)

    def close(self) -> None:
        self.cut_client()
        self.cut_server()
        for thread in self._threads:
            thread.join(SECONDS)

    def _copy_loop(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 17):
                if not self.silent.is_set():
                    target.sendall(data)
            if not self.silent.is_set():
                target.shutdown(socket.SHUT_WR)
                self._ended()

    def _ended(self) -> None:
        """Close both sockets once both ends have said that they are done."""
        with self._lock:
            self._running -= 1
            if self._running:
                return
        self._client.close()
        self._server.close()


def _reset(sock: socket.socket) -> None:
    set_reset_on_close(sock, True)
    close_socket(sock)
