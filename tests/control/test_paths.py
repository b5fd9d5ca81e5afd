"""Several processes have their control sockets in one directory."""

from __future__ import annotations

from pathlib import Path

from qanat.base.watcher import Watcher
from qanat.control.commands import Commands
from qanat.control.listener import ControlSocket
from tests.support.background import Background


def test_one_that_listens_keeps_no_other_from_the_directory(tmp_path: Path) -> None:
    watcher = Watcher()
    sockets = [ControlSocket(tmp_path / f"{name}-00000000.sock", watcher, Commands()) for name in ("a", "b")]
    for sock in sockets:
        assert Background(sock.start).result() is True
    for sock in sockets:
        sock.close()
    watcher.close()
