"""Forwards as people write them: an entry of `forwards:` in a file, and what -L, -R and -D take.

Every form of a forward is read here, whichever of the two it stands in.  `qanat.config.client` calls `read_forwards`,
`qanat.config.command_line` calls `parse_ssh_forwards`.  Nothing here looks up a name; of files,
that of passwords is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from qanat.base.addresses import (
    check_listen_host,
    check_target_host,
    check_unix_path,
    parse_port,
    split_host_port,
)
from qanat.base.endpoint_addresses import (
    ANYWHERE,
    Anywhere,
    PublishedName,
    TcpAddress,
    UdpAddress,
    UnixAddress,
)
from qanat.base.errors import UsageError
from qanat.base.proxy_protocol import VERSIONS
from qanat.config.forward_settings import Forward, ForwardLimits
from qanat.config.options import options_of
from qanat.config.published_names import parse_publish, parse_published_name
from qanat.config.reader import read_option
from qanat.config.secret_files import read_private_text
from qanat.config.section import Section
from qanat.config.texts import named
from qanat.endpoints.dynamic.passwords import Passwords
from qanat.endpoints.unix import OURS_ALONE, Permissions

MAX_PORTS = 1024
"""Ports of one range at most."""
DYNAMIC = "dynamic"
"""What `to` says where whoever connects says where to."""
_SIDES = ("local", "remote", "dynamic")
_FORM = (
    "write it as ssh does: [ADDRESS:]PORT:HOST:HOSTPORT, with IPv6 addresses in brackets, LOW-HIGH for several ports, "
    "and the absolute path of a Unix socket in place of either end"
)
_DYNAMIC_FORM = "for example 1080, or 127.0.0.1:1080, with IPv6 addresses in brackets"
_UDP = "/udp"
_FIELD = re.compile(r"\[([^\[\]]*)\]|([^:\[\]]*)")
_PORTS_ALONE = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?")
_MODE = re.compile(r"0?[0-7]{3}")
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?")

Place = TcpAddress | UdpAddress | UnixAddress
Several = tuple[Place, int]
Target = tuple[Place | Anywhere, int]
"""A place, and the number of ports that begin with it: 1 for a single one, and for a Unix socket."""


def read_forwards(s: Section) -> tuple[Forward, ...]:
    """Return the forwards of `forwards:` in a `client:` section; they mean nothing when a fault was noted."""
    forwards: list[Forward] = []
    lines: list[int] = []  # of each in `forwards`
    for f in s.sections("forwards"):
        keys = [key for key in (*_SIDES, "publish") if key in f]
        listens = {key: f.tuple_of(key, (), parse_listen, port_alone="127.0.0.1:{}") for key in _SIDES}
        name = f.text("publish", None, parse_published_name)
        to = f.text("to", None, parse_to, port_alone="HOST:{}")
        extras = _read_extras(f, keys, [place for key in keys for place, _ in listens.get(key, ())])
        limits = ForwardLimits(**{option.field: read_option(f, option) for option in options_of(ForwardLimits)})
        over_udp = f.switch("udp", False)
        if len(keys) > 1:
            f.refuse(keys[1], f"and `{keys[0]}` are both in one forward; make two of it")
        elif not keys:
            f.lacks(
                "a forward needs `local` or `remote`, or `dynamic`: on which side, and where, to listen; or `publish`: "
                "a name"
            )
        if "dynamic" in keys:
            extras["passwords"] = f.text("password_file", None, partial(read_passwords, f))
            if "to" in f:
                f.refuse("to", "is what whoever connects to a `dynamic` forward says; leave one of the two out")
            to = ANYWHERE, 0
        else:
            f.knows("password_file")
            f.require("to", "it is where to connect: HOST:PORT")
            if "password_file" in f:
                f.refuse(
                    "password_file",
                    "goes with `dynamic` alone: at other ports nobody is asked for a password; for a remote dynamic "
                    "port, set dynamic_password_file for this client on the server",
                )
        f.finish()
        if over_udp and to is not None and not isinstance(to[0], Anywhere):
            listens, to = _over_udp(f, keys, listens, to)
        for key in keys:
            f.not_empty(key, "is empty, so nothing would listen; give one address at least")
            if to is None:
                continue
            kind = "remote" if key in ("remote", "publish") else "local"
            anywhere = isinstance(to[0], Anywhere)
            if anywhere and key in ("local", "publish"):
                f.refuse(key, "and `to: dynamic` are written `dynamic: ADDRESS:PORT`")
            if anywhere and over_udp:
                f.refuse("udp", "is asked for by who uses the proxy (UDP ASSOCIATE); leave it out")
            if key == "publish" and over_udp:
                f.refuse("udp", "cannot be with `publish`: a web service is reached over TCP")
            if anywhere and extras["proxy_protocol"]:
                f.refuse("proxy_protocol", "is for a forward with a target")
            places: list[tuple[Place | PublishedName, int]] = [*listens.get(key, ())]
            if key == "publish" and name is not None:
                places.append((name, 1))
            for listen, ports in places:
                if not anywhere and ports != to[1]:
                    f.refuse(key, _mismatch(ports, to[1]))
                    continue
                forward = Forward(kind, listen, to[0], limits=limits, ports=ports, **extras)
                for known, line in zip(forwards, lines, strict=True):
                    if known.meets(forward):
                        f.refuse(key, f"is what the forward in line {line} listens on already")
                        break
                forwards.append(forward)
                lines.append(f.place_of(key).line)
    return tuple(forwards)


def read_passwords(f: Section, text: str) -> Passwords:
    """Return the users in the file that `text` names in the section `f`.  Raises UsageError."""
    path = f.resolve(text)
    content = read_private_text(path)
    return named(f"names {path}, which", Passwords.parse, content)


def _over_udp(
    f: Section, kinds: Sequence[str], listens: dict[str, tuple[Several, ...]], to: Target
) -> tuple[dict[str, tuple[Several, ...]], Target]:
    """Return the same places over UDP, which Unix sockets do not know."""
    places = [*(one for kind in kinds for one in listens.get(kind, ())), to]
    if any(isinstance(place, UnixAddress) for place, _ in places):
        f.refuse("udp", "is for ports, and this forward has a Unix socket")
        return dict.fromkeys(listens, ()), to
    for key in ("proxy_protocol", "accept_proxy_protocol"):
        if key in f:
            f.refuse(key, "is for TCP, and this forward is for `udp`")
    return {kind: tuple(map(_udp, several)) for kind, several in listens.items()}, _udp(to)


def _udp(several: Target) -> Several:
    place, ports = several
    assert isinstance(place, TcpAddress)
    return UdpAddress(place.host, place.port), ports


def _read_extras(f: Section, kinds: Sequence[str], listens: Sequence[Place]) -> dict[str, Any]:
    """Return what a forward may have beside its two ends, by the fields of Forward."""
    permissions = Permissions(
        mode=f.text("mode", OURS_ALONE.mode, _parse_mode),
        owner=f.text("owner", "", _parse_account),
        group=f.text("group", "", _parse_account),
    )
    has_file = any(isinstance(place, UnixAddress) and not place.is_abstract for place in listens)
    for key in ("mode", "owner", "group"):
        if key in f and listens and not has_file:
            f.refuse(key, "is for the file of a Unix socket that the forward listens on, and it listens on none")
        elif key in f and kinds == ["remote"] and not f"0{getattr(permissions, key)}".isdecimal():
            f.refuse(key, "must be a number for `remote`: names are those of the server's machine")
    expected = f.switch("accept_proxy_protocol", False)
    if expected and any(isinstance(place, UnixAddress) for place in listens):
        f.refuse("accept_proxy_protocol", "is for TCP: over a Unix socket nobody has an address to be trusted by")
    elif expected and kinds != ["remote"] and kinds:
        f.refuse("accept_proxy_protocol", "is for `remote`: it is the server that has `trusted_proxies`")
    return {
        "permissions": permissions,
        "proxy_protocol": f.text("proxy_protocol", "", _parse_version),
        "accept_proxy_protocol": expected,
    }


def parse_listen(text: str) -> Several:
    """Return where a forward in a file listens: ADDRESS:PORTS, PORTS, the path of a Unix socket or @NAME.

    PORTS are a port or LOW-HIGH; without an address they are those of `localhost`.  Raises UsageError.
    """
    if text.startswith(("/", "@")):
        return UnixAddress(check_unix_path(text)), 1
    host, ports = ("localhost", text) if _PORTS_ALONE.fullmatch(text) else split_host_port(text)
    return _listen(host, ports)


def parse_to(text: str) -> Target:
    """Return where a forward in a file leads: HOST:PORTS, a Unix socket's path, @NAME or `dynamic`.

    Raises UsageError.
    """
    if text == DYNAMIC:
        return ANYWHERE, 0
    if text.startswith(("/", "@")):
        return UnixAddress(check_unix_path(text)), 1
    return _to(*split_host_port(text))


def _listen(host: str, ports: str) -> Several:
    port, count = _parse_ports(ports, lowest=0)
    return TcpAddress(check_listen_host(host, port), port), count


def _to(host: str, ports: str) -> Several:
    port, count = _parse_ports(ports, lowest=1)
    return TcpAddress(check_target_host(host), port), count


def _parse_ports(text: str, *, lowest: int) -> tuple[int, int]:
    """Return the first of the ports in `PORT` or `LOW-HIGH`, and how many they are.  Raises UsageError."""
    if text.endswith(_UDP):
        raise UsageError("has /udp behind its port, as -L and -R take it", hint="write `udp: true` beside it instead")
    first, dash, last = text.partition("-")
    if not dash:
        return parse_port(first, lowest=lowest), 1
    low, high = parse_port(first), parse_port(last)
    if low > high:
        raise UsageError("has a range of ports that ends before it begins")
    if high - low >= MAX_PORTS:
        raise UsageError(f"has a range of {high - low + 1} ports", hint=f"one forward has {MAX_PORTS} at most")
    return low, high - low + 1


def _mismatch(listening: int, leading: int) -> str:
    return f"has {listening} ports, and `to` has {leading}: each port leads to one of its own"


def _parse_mode(text: str) -> int:
    if not _MODE.fullmatch(text):
        raise UsageError("is not a file's mode in octal digits", hint='for example "0660"')
    return int(text, 8)


def _parse_account(text: str) -> str:
    if not _ACCOUNT.fullmatch(text):
        raise UsageError("is neither a name nor a number of the system's accounts")
    return text


def _parse_version(text: str) -> str:
    if text not in VERSIONS:
        raise UsageError(f"must be {' or '.join(VERSIONS)}")
    return text


# --- as ssh has them


def parse_ssh_forwards(
    local: Sequence[str], remote: Sequence[str], udp: Sequence[str] = (), dynamic: Sequence[str] = ()
) -> tuple[Forward, ...]:
    """Return the forwards of every -L, --udp, -R and -D.  Raises UsageError for the first that is wrong."""
    forwards: list[Forward] = []
    for option, texts, parse, form in (
        ("-L", local, partial(parse_ssh_forward, "local"), _FORM),
        ("--udp", udp, _parse_ssh_udp, _FORM),
        ("-R", remote, partial(parse_ssh_forward, "remote"), _FORM),
        ("-D", dynamic, partial(parse_ssh_dynamic, "local"), _DYNAMIC_FORM),
    ):
        for text in texts:
            what = f"{option} {text}"
            try:
                forward = parse(text.strip())
            except UsageError as error:
                raise UsageError(f"{what} {error.message}", hint=error.hint or form) from error
            if any(f.meets(forward) for f in forwards):
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
    or empty, over IPv4 and IPv6 as ssh has it.  PORT 0 lets the system choose.  A Unix socket's path, or @NAME, may
    stand for [ADDRESS:]PORT and for HOST:HOSTPORT, and LOW-HIGH for both ports.
    """
    fields = _split_fields(text)
    to_path = len(fields) > 1 and fields[-1].startswith(("/", "@"))
    over_udp = fields[-1].endswith(_UDP) and not to_path
    if over_udp:
        fields[-1] = fields[-1].removesuffix(_UDP)
    listening = fields[: -1 if to_path else -2]
    if not listening or (len(fields) == 2 and not to_path):
        if kind == "remote" and text:
            return parse_ssh_dynamic(kind, text)
        raise UsageError("has no target", hint=f"{_FORM}; -D listens for whoever says where to")
    listen = _parse_ssh_listen(listening)
    if not to_path:
        _check_ssh_ports(fields[-1])
    to = (UnixAddress(check_unix_path(fields[-1])), 1) if to_path else _to(*fields[-2:])
    if listen[1] != to[1]:
        raise UsageError(f"has {listen[1]} ports, and its target {to[1]}", hint="each port leads to one of its own")
    if over_udp:
        if isinstance(listen[0], UnixAddress):
            raise UsageError("is for UDP, which Unix sockets do not know", hint=_FORM)
        listen, to = _udp(listen), _udp(to)
    return Forward(kind, listen[0], to[0], ports=listen[1])


def _parse_ssh_listen(fields: Sequence[str]) -> Several:
    if len(fields) == 1 and fields[0].startswith(("/", "@")):
        return UnixAddress(check_unix_path(fields[0])), 1
    if len(fields) > 2:
        raise UsageError("has too many parts", hint=_FORM)
    host, ports = ["localhost", *fields][-2:]
    _check_ssh_ports(ports)
    return _listen(host, ports)


def _check_ssh_ports(text: str) -> None:
    """Raise UsageError, which repeats the text, unless it is a number or LOW-HIGH; their range is checked later."""
    for port in text.split("-", 1):
        if not port.isdecimal():
            hint = "a service's name is not looked up: write its number" if port.isalpha() else ""
            raise UsageError(f"has a port that is not a number, {text!r}", hint=hint)


def parse_ssh_dynamic(kind: str, text: str) -> Forward:
    """Return the forward in `[ADDRESS:]PORT` of -D (`kind` "local") or -R ("remote"), whose users say where to.

    ADDRESS and PORT are as for `parse_ssh_forward`.  Raises UsageError.
    """
    fields = _split_fields(text)
    if len(fields) > 2 or not text:
        raise UsageError("is not [ADDRESS:]PORT", hint=_DYNAMIC_FORM)
    bind, port_text = ["localhost", *fields][-2:]
    _check_ssh_ports(port_text)
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
