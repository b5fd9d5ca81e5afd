"""Real programs round a tunnel: nginx, and sshd as what a forward reaches.

Everything lives in a directory of the caller's and on ports above 1024.  Proxies in front of a tunnel are in
`tests.support.machine.proxies`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.harness import SECONDS, Program
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program

HOST = "localhost"


class Master(Program):
    """A program with children of its own, which it ends when it is told to; they outlive it when it is killed."""

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(SECONDS)
        super().close()


class Nginx(Master):
    """nginx with these `http`-level blocks and these lines above them; ready when it is made."""

    def __init__(self, directory: Path, blocks: Sequence[str], port: int, settings: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
            (directory / name).mkdir(exist_ok=True)
        # Its workers give root up, and could then not read files in a directory that is only ours.
        user = "user root;\n" if os.geteuid() == 0 else ""
        paths = "".join(f"{name}_temp_path {name};\n" for name in ("proxy", "fastcgi", "uwsgi", "scgi"))
        (directory / "nginx.conf").write_text(
            f"{user}worker_processes 1;\npid nginx.pid;\ndaemon off;\nerror_log stderr notice;\n{settings}\n"
            f"events {{ worker_connections 4096; }}\n"
            f"http {{\naccess_log off;\nclient_body_temp_path body;\n{paths}" + "\n".join(blocks) + "\n}\n"
        )
        self._command = [require_program("nginx"), "-p", directory, "-e", "stderr", "-c", directory / "nginx.conf"]
        super().__init__(*self._command)
        wait_until_listening(port, self)

    def reload(self) -> None:
        """`nginx -s reload`; returns when a new worker has taken over."""
        started = r"start worker process \d+"
        before = self.count(started)
        subprocess.run([*self._command, "-s", "reload"], check=True, timeout=SECONDS, capture_output=True)
        self.wait_for(started, count=before + 1)
        self.wait_for("gracefully shutting down", count=before)


def file_server(directory: Path, files: dict[str, bytes]) -> tuple[Nginx, int]:
    """nginx that serves these files; the program and its port."""
    root = directory / "files"
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    port = unused_port()
    block = f"server {{ listen 127.0.0.1:{port} backlog=1024; root {root}; sendfile on; }}"
    return Nginx(directory / "file-server", [block], port), port


class Sshd:
    """Debian's sshd on a port of its own, with keys made for it; `ssh` and `scp` give commands that reach it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        keygen = require_program("ssh-keygen")
        for name in ("host", "user"):
            command = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", directory / name]
            subprocess.run(command, check=True, timeout=SECONDS)
        (directory / "authorized").write_bytes((directory / "user.pub").read_bytes())
        self.port = unused_port()
        (directory / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {directory}/host\nPidFile none\n"
            f"AuthorizedKeysFile {directory}/authorized\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
            "PasswordAuthentication no\nSubsystem sftp internal-sftp\nPrintMotd no\n"
        )
        # Debian's sshd insists on this directory, which its init script makes.
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        self._program: Program | None = None

    def start(self) -> Program:
        program = Program(require_program("sshd"), "-D", "-e", "-f", self._directory / "sshd_config")
        wait_until_listening(self.port, program)
        return program

    def options(self, port: int) -> list[str]:
        """Options for ssh and scp to log in through `port` with the right keys, trusting no other host key."""
        host_key = " ".join((self._directory / "host.pub").read_text().split()[:2])
        known_hosts = self._directory / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{port} {host_key}\n")
        settings = {
            "Port": port,
            "IdentityFile": self._directory / "user",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        return ["-F", "/dev/null", *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]


def wait_until_listening(port: int, program: Program, host: str = "127.0.0.1") -> None:
    """Block until `program` accepts connections on `port`."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=SECONDS).close()
            return
        except OSError:
            code = program.process.poll()
            assert code is None, f"{program.name} ended with {code}:\n{program.output}"
            assert time.monotonic() < deadline, f"{program.name} does not listen on {port}:\n{program.output}"
        time.sleep(0.01)  # there is nothing to wait on: the program does not say when it is ready
