"""The `server:` section of a configuration file: what has a form of its own in it.

All else is read as `qanat.config.server_settings.ServerSettings` declares it.  `qanat.config.load` calls `read_server`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from qanat.base.addresses import MAX_UNIX_PATH
from qanat.base.errors import UsageError
from qanat.config.forwards import read_passwords
from qanat.config.options import option_of
from qanat.config.reader import read_options
from qanat.config.secret_files import check_private
from qanat.config.section import Section
from qanat.config.server_settings import MAX_TOKENS, ClientAccount, ServerSettings
from qanat.config.state import read_state_dir
from qanat.config.tokens import read_tokens

_IDENTITY: Path = option_of(ServerSettings, "identity").default


def read_server(s: Section) -> ServerSettings:
    """Return the server's settings; they mean nothing when a fault was noted."""
    s.require("clients", option_of(ServerSettings, "clients").declared.required)
    settings = read_options(
        s, ServerSettings, clients=_read_accounts(s), identity=_read_identity(s), state_dir=read_state_dir(s)
    )
    if settings.publish_dir is not None:
        _check_publish_dir(s, settings.publish_dir, settings.clients)
    return settings


def _check_publish_dir(s: Section, directory: Path, clients: Sequence[ClientAccount]) -> None:
    """Refuse a directory in which the shortest names that may be published make a socket's path too long."""
    rules = [rule.replace("*", "a", 1) for client in clients for rule in client.allow_publish]
    longest = max(rules, key=len, default="")
    size = len(os.fsencode(directory / longest))
    if size > MAX_UNIX_PATH:
        s.refuse(
            "publish_dir",
            f"makes the path of a socket too long: {directory / longest} has {size} bytes, and {MAX_UNIX_PATH} are "
            "possible; choose a directory with a shorter name, as /run/qanat/published",
        )


def _read_accounts(s: Section) -> tuple[ClientAccount, ...]:
    accounts: list[ClientAccount] = []
    names: dict[str, int] = {}  # to their lines
    tokens: dict[bytes, tuple[int, int]] = {}  # to the client's number and the token's line
    s.not_empty("clients", "is empty, so nobody can connect")
    for number, c in enumerate(s.sections("clients")):
        secrets = read_tokens(c, most=MAX_TOKENS)
        passwords = c.text("dynamic_password_file", None, partial(read_passwords, c))
        account = read_options(
            c, ClientAccount, tokens=tuple(secret for secret, _ in secrets), dynamic_passwords=passwords
        )
        if account.name in names:
            c.refuse("name", f"is that of the client in line {names[account.name]} too; each needs a name of its own")
        elif account.name:
            names[account.name] = c.place_of("name").line
        for secret, place in secrets:
            owner, line = tokens.setdefault(secret, (number, -1))
            if line < 0:
                tokens[secret] = (number, place.line)
            elif owner != number:
                c.document.fault(place, f"this token is that of the client of line {line} too; each needs its own")
            else:
                c.document.fault(place, "this token is here twice; two are for an old one and a new one")
        accounts.append(account)
    return tuple(accounts)


def _read_identity(s: Section) -> Path:
    """Return the path of the server's key: one that is not there yet is made at the first start."""

    def check(path: Path) -> None:
        if os.path.lexists(path):
            check_private(path)

    named = s.path("identity", check)
    path = s.document.base / _IDENTITY
    if named is not None or "identity" in s:
        return named or path
    try:
        check(path)
    except UsageError as error:
        s.refuse("identity", str(error))
    return path
