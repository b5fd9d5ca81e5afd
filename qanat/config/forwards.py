"""Forwards as people write them: an entry of `forwards:` in a file, and what -L and -R take.

Every form of a forward is read here, whichever of the two it stands in.  `qanat.config.client` calls `read_forwards`,
`qanat.config.command_line` calls `parse_ssh_forwards`.  Nothing here looks up a name or opens a file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from qanat.base.addresses import (
    check_listen_host,
    check_target_host,
    parse_forward_listen,
    parse_port,
    parse_target,
)
from qanat.base.endpoint_addresses import TcpAddress, UdpAddress, listen_in_one_place
from qanat.base.errors import UsageError
from qanat.config.options import options_of
from qanat.config.reader import read_option
from qanat.config.section import Section
from qanat.config.settings import Forward, ForwardLimits
from qanat.config.texts import named

_FORM = "write it as ssh does: [ADDRESS:]PORT:HOST:HOSTPORT, with IPv6 addresses in brackets"
_UDP = "/udp"
_FIELD = re.compile(r"\[([^\[\]]*)\]|([^:\[\]]*)")


def read_forwards(s: Section) -> tuple[Forward, ...]:
    """Return the forwards of `forwards:` in a `client:` section; they mean nothing when a fault was noted."""
    forwards: list[Forward] = []
    lines: list[int] = []  # of each in `forwards`
    for f in s.sections("forwards"):
        later = f.unavailable("dynamic", "use `local` and `to` for each target")
        kinds = [kind for kind in ("local", "remote") if kind in f]
        listens = {
            kind: f.tuple_of(kind, (), parse_forward_listen, port_alone="127.0.0.1:{}") for kind in ("local", "remote")
        }
        to = f.text("to", None, parse_target, port_alone="HOST:{}")
        address: type[TcpAddress | UdpAddress] = UdpAddress if f.switch("udp", False) else TcpAddress
        limits = ForwardLimits(**{option.field: read_option(f, option) for option in options_of(ForwardLimits)})
        if len(kinds) > 1:
            f.refuse("remote", "and `local` are both in one forward; make two of it")
        elif not kinds and not later:
            f.lacks("a forward needs `local` or `remote`: on which side, and where, to listen")
        if not later:
            f.require("to", "it is where to connect: HOST:PORT")
        f.finish()
        for kind in kinds:
            f.not_empty(kind, "is empty, so nothing would listen; give one address at least")
            if to is None:
                continue
            for listen in (address(*where) for where in listens[kind]):
                for known, line in zip(forwards, lines, strict=True):
                    if known.kind == kind and listen_in_one_place(known.listen, listen):
                        f.refuse(kind, f"is what the forward in line {line} listens on already")
                        break
                forwards.append(Forward(kind, listen, address(*to), limits))
                lines.append(f.place_of(kind).line)
    return tuple(forwards)


def parse_ssh_forwards(local: Sequence[str], remote: Sequence[str], udp: Sequence[str] = ()) -> tuple[Forward, ...]:
    """Return the forwards of every -L, --udp and -R.  Raises UsageError for the first that is wrong."""
    forwards: list[Forward] = []
    for kind, option, texts in (("local", "-L", local), ("local", "--udp", udp), ("remote", "-R", remote)):
        for text in texts:
            what = f"{option} {text}"
            over = _UDP if option == "--udp" else ""
            forward = named(what, partial(parse_ssh_forward, kind), text.strip().removesuffix(over) + over)
            if any(f.kind == kind and listen_in_one_place(f.listen, forward.listen) for f in forwards):
                raise UsageError(f"{what} listens where another {option} does already", hint="choose another port")
            forwards.append(forward)
    return tuple(forwards)


def parse_ssh_forward(kind: str, text: str) -> Forward:
    """Return the forward in `[ADDRESS:]PORT:HOST:HOSTPORT` of -L (`kind` "local") or -R ("remote").  Raises UsageError.

    It is for TCP, or with `/udp` behind it for UDP.  ADDRESS is `localhost` when left out, and every address when `*`
    or empty, over IPv4 and IPv6 as ssh has it.  PORT 0 lets the system choose.
    """
    address = UdpAddress if text.endswith(_UDP) else TcpAddress
    text = text.removesuffix(_UDP)
    if "/" in text:
        raise UsageError("has a Unix socket, which is not available in this version", hint=_FORM)
    fields = _split_fields(text)
    if len(fields) in (1, 2):
        raise UsageError("has no target; a dynamic forward is not available in this version", hint=_FORM)
    if len(fields) == 3:
        fields = ["localhost", *fields]
    if len(fields) != 4:
        raise UsageError("has too many parts" if len(fields) > 4 else "is empty", hint=_FORM)
    bind, port_text, host, host_port = fields
    port = parse_port(port_text, lowest=0)
    listen = address(check_listen_host(bind, port), port)
    return Forward(kind, listen, address(check_target_host(host), parse_port(host_port)))


def _split_fields(text: str) -> list[str]:
    """Cut at the colons outside brackets, and take the brackets off."""
    fields: list[str] = []
    position = 0
    while True:
        match = _FIELD.match(text, position)
        assert match is not None  # the second form matches nothing, too
        fields.append(match[1] if match[1] is not None else match[2])
        position = match.end()
        if position == len(text):
            return fields
        if text[position] != ":":
            raise UsageError("has a bracket in the wrong place", hint=_FORM)
        position += 1
