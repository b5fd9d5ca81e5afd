"""A PostgreSQL of a test's own, as what a forward reaches.

It refuses to run as root; where the tests do, it is nobody's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.harness import SECONDS
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program
from tests.support.machine.web import Master, wait_until_listening

_NOBODY = "nobody"


class Postgres(Master):
    """Accepts connections of the user `postgres` to the database `postgres`, on loopback; ready when it is made.

    With `sockets`, a directory with a short name that it makes, also on a Unix socket there, whose path is `socket`.
    """

    def __init__(self, directory: Path, *, sockets: Path | None = None) -> None:
        initdb, postgres = require_program("initdb"), require_program("postgres")
        as_user: list[object] = []
        directory.mkdir(mode=0o700, parents=True)
        if sockets is not None:
            sockets.mkdir()
        if os.geteuid() == 0:
            as_user = [require_program("setpriv"), f"--reuid={_NOBODY}", "--regid=nogroup", "--clear-groups"]
            shutil.chown(directory, _NOBODY)
            if sockets is not None:
                shutil.chown(sockets, _NOBODY)
                sockets.parent.chmod(0o711)
            for above in directory.parents:  # pytest's own are for root alone
                if above.stat().st_uid == 0 and not above.stat().st_mode & 0o001:
                    above.chmod(above.stat().st_mode | 0o011)
        data = directory / "data"
        subprocess.run(
            [*map(str, as_user), initdb, "-D", data, "-U", "postgres", "--auth=trust", "--no-locale", "--no-sync"],
            check=True,
            capture_output=True,
            timeout=SECONDS,
            cwd="/",
        )
        self.port = unused_port()
        self.socket = f"{sockets}/.s.PGSQL.{self.port}"
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "" if sockets is None else sockets,
            "fsync": "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        super().__init__(*as_user, postgres, "-D", data, *options, cwd=Path("/"))
        wait_until_listening(self.port, self)
