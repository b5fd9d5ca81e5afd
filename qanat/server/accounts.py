"""The clients of the configuration as a running server knows them: their tokens, and what each may do.

`Accounts` is asked in every handshake, and replaced when the configuration is reloaded: a client that has not changed
keeps its `Account`, and one that has keeps what its sessions share.  Which sessions a change ends, and which streams,
is for `qanat.server.server` and `qanat.server.session` to see to.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from qanat.base.watcher import Watcher
from qanat.config.changes import changes_between
from qanat.config.moments import format_moment
from qanat.config.published_names import PublishRules
from qanat.config.server_settings import ClientAccount
from qanat.handshake.tokens import token_fingerprint
from qanat.server.access.rules import ListenRules
from qanat.session.connect_rules import ConnectRules
from qanat.session.forward_limits import change_traffic_of_client, traffic_of_client


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a client, by its fingerprint."""

    fingerprint: str
    not_after: float
    """When it ends, in seconds since 1970; infinity for never."""

    @property
    def ends(self) -> bool:
        """Whether it ever does."""
        return not math.isinf(self.not_after)

    def ends_within(self, seconds: float, now: float) -> bool:
        """Return whether it has ended, or will have in so many seconds."""
        return self.not_after - now <= seconds


class Account:
    """One client with its rules parsed, and what all its sessions share."""

    def __init__(
        self, settings: ClientAccount, max_streams: int, watcher: Watcher, before: Account | None = None
    ) -> None:
        """Read the rules; with `before`, keep what its sessions share, and the rules that are as they were."""
        self.settings = settings
        self.name = settings.name
        ends = itertools.chain(settings.not_after, itertools.repeat(math.inf))
        found = [Token(token_fingerprint(secret), end) for secret, end in zip(settings.tokens, ends, strict=False)]
        self.tokens = {token.fingerprint: token for token in found}
        """By their fingerprints."""
        self.publish_rules = PublishRules(settings.allow_publish)
        if before is None:
            self.connecting = threading.BoundedSemaphore(max_streams)
            """Bounds the targets that are being connected to for this client."""
            self.limits = traffic_of_client(settings, watcher)
            """The rates and the idle time of all its streams together."""
        else:
            self.connecting, self.limits = before.connecting, before.limits
        same = before is not None and before.settings.allow_connect == settings.allow_connect
        self.connect_rules: ConnectRules = (
            before.connect_rules if before is not None and same else ConnectRules(settings.allow_connect)
        )
        self.listen_rules = ListenRules(settings.allow_listen, settings.shared_listen)


class Accounts:
    """All clients, by name.  Safe to use from any thread; one at a time replaces them."""

    def __init__(
        self,
        clients: Sequence[ClientAccount],
        max_streams: int,
        watcher: Watcher,
        find_revoked: Callable[[str], object | None] = lambda token: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Know `clients`.

        `find_revoked` says of a token's fingerprint what is known of its revocation; `clock` is that of the calendar.
        Raises UsageError for a rule that cannot be understood.
        """
        self._find_revoked = find_revoked
        self._clock = clock
        self._max_streams = max_streams
        self._watcher = watcher
        self._by_name: Mapping[str, Account] = {}
        self._by_name = self.read(clients)

    def __iter__(self) -> Iterator[Account]:
        return iter(self._by_name.values())

    def find(self, name: str) -> Account | None:
        """Return the client of this name, or None."""
        return self._by_name.get(name)

    def secrets_of(self, name: str) -> tuple[bytes, ...] | None:
        """Return the secrets of a client's tokens, None for a name that is not known; for `ServerHandshake`."""
        account = self._by_name.get(name)
        return None if account is None else account.settings.tokens

    def why_not(self, name: str, token: str) -> str:
        """Return why a client with the token of this fingerprint may not be here (any more); "" where it may."""
        account = self._by_name.get(name)
        if account is None:
            return f"the client {name!r} was taken out of the configuration"
        known = account.tokens.get(token)
        if known is None:
            return f"the token {token} of the client {name!r} was taken out of the configuration"
        if known.not_after <= self._clock():
            return f"the token {token} of the client {name!r} ended at {format_moment(known.not_after)}"
        revoked = self._find_revoked(token)
        return "" if revoked is None else str(revoked)

    def reject(self, name: str, secret: bytes) -> str:
        """Do the same for a secret that was proven; for `ServerHandshake`."""
        return self.why_not(name, token_fingerprint(secret))

    def read(self, clients: Sequence[ClientAccount]) -> Mapping[str, Account]:
        """Return what `replace` takes: changes nothing.  Raises UsageError for a rule that cannot be understood."""
        found = {}
        for client in clients:
            before = self._by_name.get(client.name)
            if before is not None and before.settings == client:
                found[client.name] = before
            else:
                found[client.name] = Account(client, self._max_streams, self._watcher, before)
        return found

    def replace(self, accounts: Mapping[str, Account]) -> list[str]:
        """Know these clients from now on; return what is different, in words."""
        former, self._by_name = self._by_name, accounts
        lines = [f"client {name}: removed" for name in former if name not in accounts]
        for name, account in accounts.items():
            before = former.get(name)
            if before is None:
                lines.append(f"client {name}: added")
            elif before is not account:
                lines += [f"client {name}: {change}" for change in changes_between(before.settings, account.settings)]
                change_traffic_of_client(account.limits, before.settings, account.settings, self._watcher)
        return lines
