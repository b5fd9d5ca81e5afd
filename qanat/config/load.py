"""A configuration file as settings, or all its faults at once.

The file is YAML with a `server:` and a `client:` section, either or both.  Only the section that is
wanted is read, so that a server needs none of the client's variables and files; `check_config` reads
both.  What the sections may hold stands in `qanat.config.settings`; how a section is asked, and why by
hand, in `qanat.config.section`.  The command line calls this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, overload

from qanat.config.client import read_client
from qanat.config.client_settings import ClientSettings
from qanat.config.document import Document, place_of
from qanat.config.faults import ConfigError, Fault
from qanat.config.options import options_of
from qanat.config.section import Section
from qanat.config.server import read_server
from qanat.config.server_settings import ServerSettings

__all__ = ["ConfigError", "Fault", "check_config", "load_config", "named_files"]

_KEYS = {
    name: {key for option in options_of(settings) for key in option.keys}
    for name, settings in (("server", ServerSettings), ("client", ClientSettings))
}
_ELSEWHERE = {
    **dict.fromkeys(_KEYS["server"] - _KEYS["client"], "`server:`"),
    **dict.fromkeys(_KEYS["client"] - _KEYS["server"], "`client:`"),
    "url": "`client:`",
}


@overload
def load_config(path: Path, *, want: Literal["server"], environ: Mapping[str, str] | None = None) -> ServerSettings: ...
@overload
def load_config(path: Path, *, want: Literal["client"], environ: Mapping[str, str] | None = None) -> ClientSettings: ...
def load_config(
    path: Path, *, want: Literal["server", "client"], environ: Mapping[str, str] | None = None
) -> ServerSettings | ClientSettings:
    """Return the settings in the `want` section of `path`.  Blocks on the disk only.

    `environ` (the process's own when None) serves `${NAME}` and STATE_DIRECTORY.  Raises ConfigError
    with every fault of that section, of the files that it names, and of the file's outermost keys.
    """
    document = Document(path, os.environ if environ is None else environ)
    settings: ServerSettings | ClientSettings | None = None
    top = _read_top(document)
    if top is not None:
        top.require(want, f"this command needs a `{want}:` section")
        section = top.section(want)
        if want in top:
            settings = read_server(section) if want == "server" else read_client(section)
    document.faults.raise_if_any()
    assert settings is not None  # nothing to read was a fault
    return settings


def check_config(
    path: Path, environ: Mapping[str, str] | None = None
) -> tuple[ServerSettings | None, ClientSettings | None]:
    """Return what both sections of `path` set, None for one that it has not.

    Raises ConfigError with every fault of both.
    """
    server, client, _ = _check(Document(path, os.environ if environ is None else environ))
    return server, client


def named_files(path: Path, environ: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """Return the files that `path` names and that are there: keys, tokens, certificates.  Raises as `check_config`."""
    *_, named = _check(Document(path, os.environ if environ is None else environ))
    return tuple(sorted({file for file in named if file.is_file()}))


def _check(document: Document) -> tuple[ServerSettings | None, ClientSettings | None, list[Path]]:
    server: ServerSettings | None = None
    client: ClientSettings | None = None
    top = _read_top(document)
    if top is not None:
        if "server" in top:
            server = read_server(top.section("server"))
        if "client" in top:
            client = read_client(top.section("client"))
        if "server" not in top and "client" not in top:
            document.fault(top.place, "the file has neither a `server:` nor a `client:` section")
    document.faults.raise_if_any()
    return server, client, document.named


def _read_top(document: Document) -> Section | None:
    root = document.read()
    if root is None:
        return None
    top = Section(document, root, "the file", place_of(root))
    top.knows("server", "client")
    top.finish(_ELSEWHERE)
    return top
