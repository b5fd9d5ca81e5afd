"""The control command `reload`, for a server and a client alike (docs/CONTROL.md)."""

from __future__ import annotations

from typing import TypeVar

from qanat.control.commands import Answer, Command, Request
from qanat.process.reloading import Reloadable, Reloader

S = TypeVar("S", bound=Reloadable)


def reload_command(reloader: Reloader[S]) -> Command:
    """Return the command: its answer has the file as `config`, and as `changes` what the reload did, line by line."""

    def reload(request: Request) -> Answer:
        return {"config": str(reloader.path or ""), "changes": reloader.reload(request.by)}

    return reload
