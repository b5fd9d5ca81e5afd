"""The commands that a running process takes on its control socket: a registry, and what a command gets and gives.

A module that has something to offer registers it: `commands.register("reload", reload)`.  What a command raises as
QanatError is its answer, with the hint; anything else is a fault of this program and logged as such.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qanat.base.errors import QanatError, UsageError
from qanat.base.text import printable
from qanat.base.unexpected import log_unexpected

log = logging.getLogger("qanat.control")

Answer = Mapping[str, Any]
"""What `json.dumps` takes, without `version` and `ok`."""

QUIET = frozenset({"status", "commands"})
"""What changes nothing, and is asked so often that the log need not say it."""
WHILE_STOPPING = QUIET | {"kick", "log-level"}
"""What a process still does while its streams have `drain` to finish."""


@dataclass(frozen=True, slots=True)
class Request:
    """One command, as it came: by who may open the socket, which is the process's own user, or root."""

    command: str
    fields: Mapping[str, Any]
    """The whole JSON object."""
    by: str = "somebody"
    """Who asks, for logs: a user's name and a process."""

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text.  Raises UsageError where it is missing, without a default, or is something else."""
        value = self.fields.get(key, default)
        if not isinstance(value, str):
            raise UsageError(f"{self.command}: `{key}` must be a text", hint=f'write "{key}": "..."')
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts, empty where it is missing.  Raises UsageError for something else."""
        value = self.fields.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise UsageError(f"{self.command}: `{key}` must be a list of texts", hint=f'write "{key}": ["..."]')
        return tuple(value)

    def count(self, key: str) -> int | None:
        """Return a whole number from 0 on, None where it is missing.  Raises UsageError for something else."""
        value = self.fields.get(key)
        if value is not None and (type(value) is not int or value < 0):
            raise UsageError(f"{self.command}: `{key}` must be a whole number from 0 on", hint=f'write "{key}": 50')
        return value

    def flag(self, key: str) -> bool:
        """Return whether a switch is on; off where it is missing.  Raises UsageError for something else."""
        value = self.fields.get(key, False)
        if not isinstance(value, bool):
            raise UsageError(f"{self.command}: `{key}` must be true or false", hint=f'write "{key}": true')
        return value


Command = Callable[[Request], Answer]
"""Called in a thread of its own, and may block.  Raises QanatError."""


class Commands:
    """The commands of one process, by name.  Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next
        self._commands: dict[str, Command] = {}
        self.stopping = False
        """Whether the process stops, so that nothing may be changed any more."""
        self.register("commands", lambda request: {"commands": self.names})

    def register(self, name: str, command: Command) -> None:
        """Have `command` called for `name` from now on."""
        with self._lock:
            self._commands[name] = command

    @property
    def names(self) -> list[str]:
        """What can be asked for."""
        with self._lock:
            return sorted(self._commands)

    def __contains__(self, name: object) -> bool:
        with self._lock:
            return name in self._commands

    def run(self, request: Request) -> dict[str, Any]:
        """Run a command; return the whole answer but its version.  Blocks as the command does; raises nothing."""
        with self._lock:
            command = self._commands.get(request.command)
        if command is None:
            known = f"known are: {', '.join(self.names)}; `revoke` is a server's, `add` and `remove` are a client's"
            return failure(UsageError("that command is not known here", hint=known))
        level = logging.DEBUG if request.command in QUIET else logging.INFO
        log.log(level, "control: %s", printable(request.command), extra={"event": "control"})
        if self.stopping and request.command not in WHILE_STOPPING:
            return failure(
                QanatError("this process is stopping", hint="start it again first; `status` shows its streams")
            )
        try:
            return {"ok": True, **command(request)}
        except QanatError as error:
            log.log(level, "control: %s failed: %s", printable(request.command), error)
            return failure(error)
        except Exception:
            log_unexpected(f"the control command {request.command} failed")
            return failure(QanatError("a fault of this program", hint="its log has more; please report it"))


def failure(error: QanatError) -> dict[str, Any]:
    """Return the answer that says what went wrong, what to do, and all faults where there are several."""
    answer: dict[str, Any] = {"ok": False, "error": error.message, "hint": error.hint or ""}
    faults = [str(each) for each in getattr(error, "faults", ())]
    if isinstance(error, UsageError):
        answer["usage"] = True
    return {**answer, "faults": faults} if faults else answer
