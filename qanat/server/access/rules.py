"""Where a client's remote forwards may listen: the rules of `allow_listen` and `shared_listen`, parsed and asked.

The server asks for every listener; `qanat.config.texts` uses the parsers to find faults.  What may be connected to is
`qanat.session.connect_rules`'s to say.  An empty set of rules allows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from qanat.base.addresses import ListenAddress, format_host_port, listen_addresses, parse_address, unmap
from qanat.base.deadline import Deadline
from qanat.base.errors import EndpointError
from qanat.base.resolve import LookupShare
from qanat.config.access_rules import UDP, ListenRule, parse_listen_rule, parse_unix_rule
from qanat.endpoints.tcp import resolve
from qanat.mux.frames import Reason
from qanat.session.unix_rules import UnixRules


class ListenRules:
    """Where one client's remote forwards may listen.  Immutable, and safe to use from any thread."""

    def __init__(self, rules: Sequence[str], shared: Sequence[str] = ()) -> None:
        """Read the rules of `allow_listen`; `shared` are those of `shared_listen`.

        Raises UsageError for one that cannot be understood.
        """
        self._shared = [parse_listen_rule(rule) for rule in shared]
        unix = {rule: parse_unix_rule(rule) for rule in rules}
        self._rules = [*(parse_listen_rule(rule) for rule in rules if unix[rule] is None), *self._shared]
        self.unix = UnixRules([rule for rule in unix.values() if rule is not None], "this client's allow_listen")
        """Which Unix sockets may be listened on."""

    def is_shared(self, host: str, port: int) -> bool:
        """Return whether what `check` allows for `host` is shared with other clients that ask for it."""
        return self._allowed_by(self._shared, listen_addresses(host, port)[0].host, port)

    def check(self, host: str, port: int, *, udp: bool = False) -> tuple[ListenAddress, ...]:
        """Return the addresses to bind for `host`, a literal, `localhost` or `*`, at least one.  Does not block.

        For TCP, or with `udp` for UDP: rules are for one of them.

        A rule must list the very address: `0.0.0.0` in a rule allows `0.0.0.0` and not `127.0.0.1`, and port 0 (any
        free one) is allowed only by a rule with port 0.  `localhost` needs a rule for 127.0.0.1, and `*` for 0.0.0.0;
        ::1 and :: are bound as well where a rule of the same kind (shared or not) allows them.  Raises EndpointError:
        NOT_ALLOWED, UNREACHABLE for an interface (`fe80::1%eth0`) that does not exist.
        """
        first, *others = listen_addresses(host, port)
        network = UDP if udp else ""
        what = format_host_port(host, port) + network
        if parse_address(first.host) is None:
            raise EndpointError(
                f"{what} cannot be listened on",
                code=Reason.NOT_ALLOWED,
                hint="it needs a literal address, localhost or *",
            )
        if not self._allowed_by(self._rules, first.host, port, udp=udp):
            raise EndpointError(
                f"listening on {what} is not allowed by any rule",
                code=Reason.NOT_ALLOWED,
                hint=f"add {format_host_port(first.host, port)}{network} to this client's allow_listen"
                + ("" if udp else ", or shared_listen"),
            )
        shared = self._allowed_by(self._shared, first.host, port, udp=udp)
        also = [
            address
            for address in others
            if self._allowed_by(self._rules, address.host, port, udp=udp)
            and self._allowed_by(self._shared, address.host, port, udp=udp) == shared
        ]
        return _bindable(first), *also

    @staticmethod
    def _allowed_by(rules: Sequence[ListenRule], host: str, port: int, *, udp: bool = False) -> bool:
        address = parse_address(host)
        return address is not None and any(
            rule.udp == udp and unmap(address) == rule.address and port in rule.ports for rule in rules
        )


def _bindable(address: ListenAddress) -> ListenAddress:
    """Return `address` in the form that can be bound: IPv4 mapped into IPv6 becomes IPv4."""
    parsed = parse_address(address.host)
    assert parsed is not None
    plain = unmap(parsed)
    if plain.version != parsed.version:
        return ListenAddress(str(plain), address.port)
    resolve(address.host, address.port, Deadline(0), _NO_SHARE)  # which says that an interface does not exist
    return address


_NO_SHARE = LookupShare(1)  # never taken: a literal is not looked up
