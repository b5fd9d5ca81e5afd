"""Real proxies on the way out, as companies have them: Squid (HTTP CONNECT) and microsocks (SOCKS5).

Everything lives in a directory of its own and on ports above 1024.  `CrookedProxy` is for what no real
proxy does on demand.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from qanat.base.sockets import close_socket
from tests.support.harness import SECONDS, Program
from tests.support.machine.certificates import Authority
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program
from tests.support.machine.web import wait_until_listening

USER, PASSWORD = "office user", "s3cret/p@ss:w%41rd"
"""With every character that has a meaning in a URL."""
ENCODED = "office%20user:s3cret%2Fp%40ss%3Aw%2541rd"


class Squid(Program):
    """Squid with an open port, one that wants a login, and the same two over TLS; on 127.0.0.1 and ::1."""

    def __init__(self, authority: Authority) -> None:
        squid = require_program("squid")
        # It gives root up, and could then not use a directory that is only ours.
        directory = Path(tempfile.mkdtemp(prefix="qanat-squid-"))
        self._directory = directory
        if os.geteuid() == 0:
            shutil.chown(directory, "proxy", "proxy")
        issued = authority.issue("localhost")
        self.log = directory / "access.log"
        self.open_port, self.login_port, self.tls_port, self.tls_login_port = (unused_port() for _ in range(4))
        hashed = subprocess.run(
            ["openssl", "passwd", "-apr1", "-stdin"], input=PASSWORD, capture_output=True, text=True, check=True
        ).stdout.strip()
        (directory / "passwords").write_text(f"{USER}:{hashed}\n")
        (directory / "passwords").chmod(0o644)
        tls = f"tls-cert={issued.certificate} tls-key={issued.key}"
        (directory / "squid.conf").write_text(
            f"http_port 127.0.0.1:{self.open_port}\nhttp_port [::1]:{self.open_port}\n"
            f"http_port 127.0.0.1:{self.login_port}\n"
            f"https_port 127.0.0.1:{self.tls_port} {tls}\nhttps_port 127.0.0.1:{self.tls_login_port} {tls}\n"
            f"auth_param basic program /usr/lib/squid/basic_ncsa_auth {directory / 'passwords'}\n"
            "auth_param basic children 1 startup=1\n"
            f"acl login myportname 127.0.0.1:{self.login_port} 127.0.0.1:{self.tls_login_port}\n"
            "acl known proxy_auth REQUIRED\nacl forbidden port 9\n"
            "http_access deny forbidden\nhttp_access deny login !known\nhttp_access allow all\n"
            f"access_log stdio:{self.log}\ncache_log {directory}/cache.log\ncache deny all\npid_filename none\n"
            f"coredump_dir {directory}\nshutdown_lifetime 0 seconds\npinger_enable off\nnetdb_filename none\n"
            "connect_timeout 5 seconds\nconnect_retries 0\ndns_nameservers 127.0.0.1\n"
            "buffered_logs off\n"
        )
        # Two Squids of one name would share their memory.
        name = f"qanat{self.open_port}"
        super().__init__(squid, "-N", "-d1", "-n", name, "-f", directory / "squid.conf", cwd=directory)
        for port in (self.open_port, self.login_port, self.tls_port, self.tls_login_port):
            wait_until_listening(port, self)

    def close(self) -> None:
        """End it by itself, which ends its helpers."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(SECONDS)
        super().close()
        shutil.rmtree(self._directory)


class MicroSocks(Program):
    """microsocks on `host`, with a login when `login`."""

    def __init__(self, host: str = "127.0.0.1", *, login: bool = False) -> None:
        self.port = unused_port()
        options = ("-u", USER, "-P", PASSWORD) if login else ()
        super().__init__(require_program("microsocks"), "-i", host, "-p", self.port, *options)
        wait_until_listening(self.port, self, host)


class CrookedProxy:
    """Accepts connections one after the other and has `talk(sock)` answer each in a thread of its own."""

    def __init__(self, talk: Callable[[socket.socket], object]) -> None:
        self._talk = talk
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._socks: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, name="crooked proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        close_socket(self._listener)
        for sock in self._socks:
            close_socket(sock)
        self._thread.join(SECONDS)

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(SECONDS)
            self._socks.append(sock)
            with sock, contextlib.suppress(OSError):
                self._talk(sock)
