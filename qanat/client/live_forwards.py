"""Forwards that are added to a running client, and taken out, until it reloads or restarts (docs/CONTROL.md).

They come as texts, written as on a command line: `tunnel.py add -L 8080:web:80`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from qanat.base.endpoint_addresses import ListenPlace, TcpAddress, UdpAddress, listen_in_one_place
from qanat.base.errors import QanatError, UsageError
from qanat.client.forward_changes import Fate, ForwardChange
from qanat.config.client_settings import ClientSettings
from qanat.config.command_line import forwards_from_options
from qanat.config.forward_settings import Forward
from qanat.config.forwards import parse_listen
from qanat.config.published_names import parse_published_name
from qanat.config.texts import named
from qanat.control.commands import Answer, Command, Request

FLAGS = {"local": "-L", "udp": "--udp", "remote": "-R", "dynamic": "-D", "publish": "--publish"}
"""The fields of a request, each a list of texts, and the flags that they are."""
LASTS = "until it reloads or restarts"


class Changing(Protocol):
    """The client, as far as its forwards are concerned."""

    @property
    def applying(self) -> AbstractContextManager[object]:
        """What is held for a change of the settings."""

    @property
    def settings(self) -> ClientSettings:
        """What it runs with."""

    def change_forwards(self, forwards: Sequence[Forward]) -> list[ForwardChange]:
        """Have these in place of the present ones; return what came of each that differs."""

    def bound_ports(self, forward: Forward) -> tuple[int, ...]:
        """Return the ports that really are bound for a forward."""


def add_command(client: Changing) -> Command:
    """Return the command `add`: all of the forwards are had, or none of them."""

    def add(request: Request) -> Answer:
        given = {field: request.texts(field) for field in FLAGS}
        wanted = _some(forwards_from_options(given))
        with client.applying:
            before = client.settings.forwards
            for forward in wanted:
                there = next((one for one in before if one.meets(forward)), None)
                if there is not None:
                    raise UsageError(f"{there} listens there already", hint="remove that first, or choose another port")
            changes = client.change_forwards((*before, *wanted))
            failed = [change for change in changes if change.failure]
            if failed:
                client.change_forwards(before)
                why = "; ".join(
                    change.failure if str(change.forward) in change.failure else f"{change.forward}: {change.failure}"
                    for change in failed
                )
                raise QanatError(why, hint="nothing was added; choose another port, or free or allow that one")
            return _answer(changes)

    return add


def remove_command(client: Changing) -> Command:
    """Return the command `remove`: a forward is known by where it listens, a port of the system's choice included."""

    def remove(request: Request) -> Answer:
        with client.applying:
            before = client.settings.forwards
            going: list[Forward] = []
            for field, flag in FLAGS.items():
                for text in request.texts(field):
                    going.append(_found(client, before, field, flag, text.strip()))
            left = list(before)
            for forward in dict.fromkeys(_some(going)):
                left.remove(forward)
            return _answer(client.change_forwards(tuple(left)))

    return remove


def _some(forwards: Sequence[Forward]) -> Sequence[Forward]:
    if not forwards:
        raise UsageError("which forward?", hint="give one at least: -L, -R, -D, --udp or --publish")
    return forwards


def _answer(changes: Sequence[ForwardChange]) -> Answer:
    return {
        "changes": [
            {
                "change": change.fate.value,
                "forward": str(change.forward),
                "listening": list(change.listening),
                "pending": change.pending,
                "text": str(change),
            }
            for change in changes
            if change.fate is not Fate.CHANGED
        ],
        "lasts": LASTS,
    }


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a forward listens that is meant."""

    kind: str
    listen: ListenPlace
    ports: int = 1


def _found(client: Changing, forwards: Sequence[Forward], field: str, flag: str, text: str) -> Forward:
    """Return the forward that is meant by a flag's value: the whole one, or where it listens alone."""
    place = _place(field, text)
    alike = [one for one in forwards if one.kind == place.kind and one.ports == place.ports]
    exact = [one for one in alike if one.listen == place.listen]
    found = exact or [one for one in alike if _is_met(client, one, place.listen)]
    if not found:
        raise UsageError(f"{flag} {text}: no such forward", hint="see `status` for those that there are")
    if len(set(found)) > 1:
        names = ", ".join(str(one.listen) for one in found)
        raise UsageError(f"{flag} {text}: there are several", hint=f"say which with its address: {names}")
    return found[0]


def _is_met(client: Changing, forward: Forward, place: ListenPlace) -> bool:
    """Return whether a forward listens in that place, `localhost` and a port of the system's choice included."""
    at, ports = forward.listen, TcpAddress | UdpAddress
    if isinstance(at, ports) and isinstance(place, ports) and not at.port and place.port in client.bound_ports(forward):
        at = replace(at, port=place.port)
    return listen_in_one_place(at, place)


def _place(field: str, text: str) -> _Place:
    if field == "publish":
        name = text.partition(":")[0]
        return _Place("remote", named(f"--publish {text}", parse_published_name, name))
    try:
        (forward,) = forwards_from_options({field: (text,)})
    except UsageError as error:
        try:
            listen, ports = parse_listen(text.removesuffix("/udp"))
        except UsageError:
            raise error from None
        if field == "udp" or text.endswith("/udp"):
            (forward,) = forwards_from_options({field: (f"{text.removesuffix('/udp')}:x:1/udp",)})
            return _Place(forward.kind, forward.listen)
        return _Place("remote" if field == "remote" else "local", listen, ports)
    return _Place(forward.kind, forward.listen, forward.ports)
