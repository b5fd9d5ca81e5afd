"""`--proxy-config FILE`: read it, tell whose it is, find what is wrong, and make the patch.

What was measured on the path is believed before the file: a fault that it refutes is none.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qanat.base.errors import UsageError
from qanat.doctor import products
from qanat.doctor.proxy_config import caddy, nginx, others
from qanat.doctor.proxy_config.fault import Fault, Tunnel, apply

_LARGEST = 4_194_304
"""Bytes."""
_ROUNDS = 4

Faults = Callable[[str, Tunnel], Iterator[Fault]]

_READERS: tuple[tuple[str, Callable[[str], bool], Faults], ...] = (
    (products.NGHTTPX, others.nghttpx_looks_like, others.nghttpx),
    (products.APACHE, others.apache_looks_like, others.apache),
    (products.NGINX, nginx.looks_like, nginx.faults),
    (products.CADDY, caddy.looks_like, caddy.faults),
    (products.HAPROXY, others.haproxy_looks_like, others.haproxy),
    (products.SQUID, others.squid_looks_like, others.squid),
)


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found in a file."""

    file: str
    product: str
    faults: tuple[Fault, ...]
    patch: str

    def to_text(self) -> str:
        """Return it for people, in lines that end."""
        if not self.faults:
            return f"{self.file}: {self.product}, and nothing in it keeps a transport out.\n"
        lines = [f"{self.file}:{one.line}: {one.code}: {one.text}" for one in self.faults]
        return "\n".join([*lines, "", self.patch])

    def to_json(self) -> str:
        """Return one JSON object, with a line end."""
        content = {
            "file": self.file,
            "product": self.product,
            "faults": [{"line": one.line, "code": one.code, "text": one.text} for one in self.faults],
            "patch": self.patch,
        }
        return json.dumps(content, indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class ProxyFile:
    """A proxy's configuration, and who reads it."""

    file: str
    text: str
    product: str
    faults: Faults

    def examine(self, tunnel: Tunnel) -> Examined:
        """Find what keeps the tunnel out, and make the patch.  Pure."""
        found = self._faults(self.text, tunnel)
        changed = self.text
        if self.product == products.NGINX and any(fault.edits for fault in found):
            changed = nginx.unfold(changed, tunnel)
        for _ in range(_ROUNDS):  # what could not be changed beside something else is found again
            again = [fault for fault in self._faults(changed, tunnel) if fault.edits]
            if not again:
                break
            changed = apply(changed, again)
        before, after = self.text.splitlines(keepends=True), changed.splitlines(keepends=True)
        patch = "".join(difflib.unified_diff(before, after, self.file, self.file))
        return Examined(self.file, self.product, tuple(sorted(found, key=lambda fault: fault.line)), patch)

    def _faults(self, text: str, tunnel: Tunnel) -> list[Fault]:
        return [fault for fault in self.faults(text, tunnel) if fault.code not in tunnel.refuted]


def read_file(path: Path) -> ProxyFile:
    """Read a proxy's configuration.  Blocks on the disk only.  Raises UsageError when it cannot be read or known."""
    try:
        content = path.read_bytes()[: _LARGEST + 1]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="check --proxy-config") from error
    if len(content) > _LARGEST:
        raise UsageError(f"{path} has more than {_LARGEST} bytes", hint="name the file that has the tunnel's path")
    text = content.decode("utf-8", "surrogateescape")
    for product, looks_like, faults in _READERS:
        if looks_like(text):
            return ProxyFile(str(path), text, product, faults)
    raise UsageError(
        f"{path} is not known as a configuration of {', '.join(products.ADVISED[:-1])}",
        hint="name the file that has the site or the virtual host of the tunnel",
    )
