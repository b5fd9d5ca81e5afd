"""The ways that worked, by URL and network, in a small file: what `transport: auto` starts with next time.

One `NETWORK URL TRANSPORT WHEN` a line, the latest last; WHEN is in seconds since 1970.  A network is called by its
default gateway, or by this machine's address there and the search domain where there is no gateway to be seen.  The
file is replaced whole, and only holds what a race finds out anew: one that is damaged is passed over, with a word.
Used by `qanat.client.ways`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from qanat.base.private_files import open_regular, replace_file
from qanat.client.network_watch import WAYS_OUT, ask_kernel

log = logging.getLogger("qanat.client")

MAX_LINES = 256
"""Ways that are remembered; the latest ones."""
_LARGEST_FILE = 262_144
"""Bytes."""
_REFRESH = 86_400.0
"""Seconds after which the time of a way that works still is written anew."""
_BANNER = b"# The ways that `transport: auto` found, by network; delete this file to have it look anew.\n"

_ROUTES, _ROUTES6, _RESOLVER = Path("/proc/net/route"), Path("/proc/net/ipv6_route"), Path("/etc/resolv.conf")
_UP, _GATEWAY = 0x1, 0x2  # RTF_UP, RTF_GATEWAY of linux/route.h
UNKNOWN = "none"
"""What a network is called that nothing is known of."""


class Way(Protocol):
    """As much of a candidate as the file has."""

    @property
    def url(self) -> object:
        """The URL, whose text is remembered."""

    @property
    def transport(self) -> str:
        """The transport's name."""


AnyWay = TypeVar("AnyWay", bound=Way)


@dataclass(frozen=True, slots=True)
class _Line:
    network: str
    url: str
    transport: str
    when: int

    def __str__(self) -> str:
        return f"{self.network} {self.url} {self.transport} {self.when}\n"


class RememberedWays:
    """One such file, or none.  Safe to use from any thread; blocks on the disk only, and raises nothing."""

    def __init__(
        self,
        path: Path | None,
        *,
        network: Callable[[], str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`path` need not exist yet; with None nothing outlives the process.  `network` names the present network."""
        self._path = path
        self._find_network = network or name_network
        self._now = now
        self._lock = threading.Lock()
        self._told = False  # that the file cannot be used

    def network(self) -> str:
        """Return what the present network is called: one word."""
        return self._find_network()

    def find(self, network: str, ways: Sequence[AnyWay]) -> list[AnyWay]:
        """Return those of `ways` that worked on `network`, the latest first, and of each URL the latest alone."""
        latest: dict[str, _Line] = {}
        for line in self._read():
            if line.network == network:
                latest.pop(line.url, None)
                latest[line.url] = line
        by_name = {(str(way.url), way.transport): way for way in ways}
        found = [by_name.get((line.url, line.transport)) for line in reversed(latest.values())]
        return [way for way in found if way is not None]

    def remember(self, network: str, way: Way) -> None:
        """Note that `way` works on `network`, unless the file says so already."""
        line = _Line(network, str(way.url), way.transport, int(self._now()))
        if self._path is None:
            return
        with self._lock:
            lines = self._read()
            same = [old for old in lines if (old.network, old.url) == (line.network, line.url)]
            others = [old for old in lines if old.network == network]
            known = bool(same) and others[-1] is same[-1] and same[-1].transport == line.transport
            if known and line.when - same[-1].when < _REFRESH:
                return
            kept = [old for old in lines if old not in same][-(MAX_LINES - 1) :]
            content = _BANNER + "".join(map(str, [*kept, line])).encode("utf-8", "replace")
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                replace_file(self._path, content)
            except OSError as error:
                self._tell(
                    f"cannot write {self._path}: {error.strerror}; the way that works is looked for at each start"
                )

    def _read(self) -> list[_Line]:
        """Return the file's lines; none when it is not there, or damaged."""
        if self._path is None:
            return []
        try:
            with open_regular(self._path) as file:
                content = file.read(_LARGEST_FILE + 1)
            if len(content) > _LARGEST_FILE:
                raise ValueError("it is too large")
            return [_parse(line) for line in content.decode().splitlines() if line and not line.startswith("#")]
        except FileNotFoundError:
            return []
        except OSError as error:
            self._tell(f"cannot read {self._path}: {error.strerror}; the way that works is looked for anew")
        except ValueError as error:  # UnicodeDecodeError is one
            self._tell(f"{self._path} is damaged and was passed over ({error}); it is written anew")
        return []

    def _tell(self, text: str) -> None:
        if not self._told:
            self._told = True
            log.warning("%s", text)


def _parse(line: str) -> _Line:
    """Return what a line says.  Raises ValueError."""
    words = line.split()
    if len(words) != 4:
        raise ValueError("a line of it has not four words")
    network, url, transport, when = words
    return _Line(network, url, transport, int(when))


# --- which network this is --------------------------------------------------------------------------


def name_network() -> str:
    """Return a word for the network that this machine is in.  Does not block, and sends nothing.

    The address of the default gateway where the kernel tells it (Linux), IPv4's if there is one; otherwise the address
    from which this machine would send, with the resolver's search domain.
    """
    with contextlib.suppress(ValueError, IndexError):  # a kernel that writes its tables in another way
        gateway = _gateway() or _gateway6()
        if gateway:
            return f"gateway:{gateway}"
    addresses = []
    for remote in WAYS_OUT:
        with contextlib.suppress(OSError):
            source = ask_kernel(remote)
            if source is not None:
                addresses.append(str(source[0]))
    if not addresses:
        return UNKNOWN
    return "address:" + ",".join([*addresses, *_search_domain()])


def _gateway() -> str:
    """Return IPv4's default gateway; /proc/net/route has it as a number in the machine's own byte order."""
    found = [
        (int(words[6]), words[2])
        for words in _table(_ROUTES)
        if words[1] == words[7] == "00000000" and int(words[3], 16) & (_UP | _GATEWAY) == _UP | _GATEWAY
    ]
    return str(ipaddress.IPv4Address(int(min(found)[1], 16).to_bytes(4, sys.byteorder))) if found else ""


def _gateway6() -> str:
    """Return IPv6's default gateway, which mostly is link-local, with the name of the interface."""
    found = [
        (int(words[5], 16), words[4], words[9])
        for words in _table(_ROUTES6)
        if words[0] == "0" * 32 and words[1] == "00" and int(words[8], 16) & _GATEWAY
    ]
    return f"{ipaddress.IPv6Address(int(min(found)[1], 16))}%{min(found)[2]}" if found else ""


def _table(path: Path) -> list[list[str]]:
    try:
        lines = path.read_text("ascii", "replace").splitlines()
    except OSError:
        return []
    return [words for line in lines if (words := line.split()) and words[0] != "Iface"]


def _search_domain() -> list[str]:
    """Return the first domain that names without one are looked up in, if there is any (resolv.conf(5))."""
    try:
        lines = _RESOLVER.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    found = [words[1] for line in lines if len(words := line.split()) > 1 and words[0] in ("search", "domain")]
    return found[-1:]
