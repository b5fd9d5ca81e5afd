"""Forwards as people write them: an entry of `forwards:` in a file, and what -L, -R and -D take.

Every form of a forward is read here, whichever of the two it stands in.  `qanat.config.client` calls `read_forwards`,
`qanat.config.command_line` calls `parse_ssh_forwards`.  Nothing here looks up a name; of files,
that of passwords is read.
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
from qanat.base.endpoint_addresses import (
    ANYWHERE,
    Anywhere,
    ListenPlace,
    TcpAddress,
    UdpAddress,
    listen_in_one_place,
)
from qanat.base.errors import UsageError
from qanat.config.options import options_of
from qanat.config.published_names import parse_publish, parse_published_name
from qanat.config.reader import read_option
from qanat.config.secret_files import read_private_text
from qanat.config.section import Section
from qanat.config.settings import Forward, ForwardLimits
from qanat.config.texts import named
from qanat.endpoints.dynamic.passwords import Passwords

DYNAMIC = "dynamic"
"""What `to` says where whoever connects says where to."""
_SIDES = ("local", "remote", "dynamic")
_FORM = "write it as ssh does: [ADDRESS:]PORT:HOST:HOSTPORT, with IPv6 addresses in brackets"
_UDP = "/udp"
_FIELD = re.compile(r"\[([^\[\]]*)\]|([^:\[\]]*)")


def read_forwards(s: Section) -> tuple[Forward, ...]:
    """Return the forwards of `forwards:` in a `client:` section; they mean nothing when a fault was noted."""
    forwards: list[Forward] = []
    lines: list[int] = []  # of each in `forwards`
    for f in s.sections("forwards"):
        keys = [key for key in (*_SIDES, "publish") if key in f]
        listens = {key: f.tuple_of(key, (), parse_forward_listen, port_alone="127.0.0.1:{}") for key in _SIDES}
        name = f.text("publish", None, parse_published_name)
        address: type[TcpAddress | UdpAddress] = UdpAddress if f.switch("udp", False) else TcpAddress
        limits = ForwardLimits(**{option.field: read_option(f, option) for option in options_of(ForwardLimits)})
        to = f.text("to", None, partial(_parse_to, address), port_alone="HOST:{}")
        if len(keys) > 1:
            f.refuse(keys[1], f"and `{keys[0]}` are both in one forward; make two of it")
        elif not keys:
            f.lacks(
                "a forward needs `local` or `remote`, or `dynamic`: on which side, and where, to listen; or `publish`: "
                "a name"
            )
        passwords = None
        if "dynamic" in keys:
            passwords = f.text("password_file", None, partial(_read_passwords, f))
            if "to" in f:
                f.refuse("to", "is what whoever connects to a `dynamic` forward says; leave one of the two out")
            to = ANYWHERE
        else:
            f.knows("password_file")
            f.require("to", "it is where to connect: HOST:PORT")
            if "password_file" in f:
                f.refuse("password_file", "goes with `dynamic` alone: at other ports nobody is asked for a password")
        f.finish()
        for key in keys:
            f.not_empty(key, "is empty, so nothing would listen; give one address at least")
            if to is None:
                continue
            kind = "remote" if key in ("remote", "publish") else "local"
            if to is ANYWHERE and key in ("local", "publish"):
                f.refuse(key, "and `to: dynamic` are written `dynamic: ADDRESS:PORT`")
            if to is ANYWHERE and address is UdpAddress:
                f.refuse("udp", "is asked for by who uses the proxy (UDP ASSOCIATE); leave it out")
            if key == "publish" and address is UdpAddress:
                f.refuse("udp", "cannot be with `publish`: a web service is reached over TCP")
            places: list[ListenPlace] = [address(*where) for where in listens.get(key, ())]
            if key == "publish" and name is not None:
                places.append(name)
            for listen in places:
                for known, line in zip(forwards, lines, strict=True):
                    if known.kind == kind and listen_in_one_place(known.listen, listen):
                        f.refuse(key, f"is what the forward in line {line} listens on already")
                        break
                forwards.append(Forward(kind, listen, to, limits, passwords))
                lines.append(f.place_of(key).line)
    return tuple(forwards)


def _parse_to(address: type[TcpAddress | UdpAddress], text: str) -> TcpAddress | UdpAddress | Anywhere:
    return ANYWHERE if text == DYNAMIC else address(*parse_target(text))


def _read_passwords(f: Section, text: str) -> Passwords:
    path = f.resolve(text)
    content = read_private_text(path)
    return named(f"names {path}, which", Passwords.parse, content)


def parse_ssh_forwards(
    local: Sequence[str], remote: Sequence[str], udp: Sequence[str] = (), dynamic: Sequence[str] = ()
) -> tuple[Forward, ...]:
    """Return the forwards of every -L, --udp, -R and -D.  Raises UsageError for the first that is wrong."""
    forwards: list[Forward] = []
    for kind, option, texts, parse in (
        ("local", "-L", local, partial(parse_ssh_forward, "local")),
        ("local", "--udp", udp, _parse_ssh_udp),
        ("remote", "-R", remote, partial(parse_ssh_forward, "remote")),
        ("local", "-D", dynamic, partial(parse_ssh_dynamic, "local")),
    ):
        for text in texts:
            what = f"{option} {text}"
            forward = named(what, parse, text.strip())
            if any(f.kind == kind and listen_in_one_place(f.listen, forward.listen) for f in forwards):
                raise UsageError(f"{what} listens where another {option} does already", hint="choose another port")
            forwards.append(forward)
    return tuple(forwards)


def _parse_ssh_udp(text: str) -> Forward:
    return parse_ssh_forward("local", text.removesuffix(_UDP) + _UDP)


def parse_publishes(texts: Sequence[str]) -> tuple[Forward, ...]:
    """Return the forwards of every --publish.  Raises UsageError for the first that is wrong."""
    forwards: list[Forward] = []
    for text in texts:
        name, to = named(f"--publish {text}", parse_publish, text.strip())
        if any(forward.listen == name for forward in forwards):
            raise UsageError(f"--publish {text} has a name that another --publish has", hint="choose another name")
        forwards.append(Forward("remote", name, to))
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
        if kind == "remote" and text:
            return parse_ssh_dynamic(kind, text)
        raise UsageError("has no target", hint=f"{_FORM}; -D listens for whoever says where to")
    if len(fields) == 3:
        fields = ["localhost", *fields]
    if len(fields) != 4:
        raise UsageError("has too many parts" if len(fields) > 4 else "is empty", hint=_FORM)
    bind, port_text, host, host_port = fields
    port = parse_port(port_text, lowest=0)
    listen = address(check_listen_host(bind, port), port)
    return Forward(kind, listen, address(check_target_host(host), parse_port(host_port)))


def parse_ssh_dynamic(kind: str, text: str) -> Forward:
    """Return the forward in `[ADDRESS:]PORT` of -D (`kind` "local") or -R ("remote"), whose users say where to.

    ADDRESS and PORT are as for `parse_ssh_forward`.  Raises UsageError.
    """
    fields = _split_fields(text)
    if len(fields) > 2 or not text:
        raise UsageError(
            "is not [ADDRESS:]PORT", hint="for example 1080, or 127.0.0.1:1080, with IPv6 addresses in brackets"
        )
    bind, port_text = ["localhost", *fields][-2:]
    port = parse_port(port_text, lowest=0)
    return Forward(kind, TcpAddress(check_listen_host(bind, port), port), ANYWHERE)


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
