"""Promises of the access rules, asked of the real resolver wherever a name or an odd spelling is involved."""

from __future__ import annotations

import socket
import threading
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qanat.base import resolve as names
from qanat.base.addresses import format_host_port
from qanat.base.deadline import Deadline
from qanat.base.errors import EndpointError, UsageError
from qanat.base.listen import bind
from qanat.base.resolve import Address, LookupShare
from qanat.config.access_rules import parse_connect_rule, parse_listen_rule
from qanat.config.address_ranges import NEVER, ONLY_BY_A_RULE_INSIDE
from qanat.endpoints.tcp import resolve
from qanat.mux.frames import Reason
from qanat.server.access.rules import ListenRules
from qanat.session.connect_rules import ConnectRules

ANY = ("0.0.0.0/0:*", "[::/0]:*")

LOOPBACK_SPELLINGS = [
    "127.0.0.1",
    "127.255.255.254",
    "127.1",
    "0x7f.1",
    "0x7f000001",
    "2130706433",
    "017700000001",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "::1",
    "0:0:0:0:0:0:0:1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::127.0.0.1",
    "0.0.0.0",
    "0",
    "0x0",
    "0.1.2.3",
    "::",
    "::ffff:0.0.0.0",
    "::1%lo",
    "::ffff:127.0.0.1%lo",
    "fe80::1%eth0",
    "fe80::1%lo",
    "fe80::1",
    "127.0.0.1\x00.example.com",
    "127.0.0.1%lo",
    "１２７.0.0.1",  # noqa: RUF001  IDNA makes ASCII digits of these
]


def within(seconds: float = 10.0) -> Deadline:
    return Deadline(seconds)


def addresses(found: list[Address]) -> list[str]:
    return [sockaddr[0] for _, sockaddr in found]


def refusal(rules: ConnectRules, host: str, port: int) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        rules.resolve(host, port, within())
    return caught.value


def allows(rule: str, address: str, port: int = 80, name: str | None = None) -> bool:
    return ConnectRules([rule]).allows(ip_address(address), port, name)


def test_nothing_is_allowed_unless_said() -> None:
    assert refusal(ConnectRules([]), "192.0.2.1", 80).code == Reason.NOT_ALLOWED
    with pytest.raises(EndpointError) as caught:
        ListenRules([]).check("127.0.0.1", 8080)
    assert caught.value.code == Reason.NOT_ALLOWED


@pytest.mark.parametrize("host", LOOPBACK_SPELLINGS)
def test_rules_for_every_address_do_not_open_this_machine(host: str) -> None:
    rules = ConnectRules([*ANY, "*.example.com:*"])
    error = refusal(rules, host, 80)
    assert error.code in (Reason.NOT_ALLOWED, Reason.UNREACHABLE)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "::ffff:127.0.0.1", "::ffff:7f00:1"])
def test_every_spelling_of_a_listed_loopback_address_leads_to_that_very_address(host: str) -> None:
    assert ConnectRules(["127.0.0.1:80"]).resolve(host, 80, within()) == [(socket.AF_INET, ("127.0.0.1", 80))]


def test_localhost_leads_only_to_those_of_its_addresses_that_are_listed() -> None:
    assert set(addresses(ConnectRules(["127.0.0.1:80"]).resolve("localhost", 80, within()))) == {"127.0.0.1"}


def test_what_is_handed_back_can_be_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        [(family, sockaddr)] = ConnectRules([f"127.0.0.0/8:{port}"]).resolve("::ffff:127.0.0.1", port, within())
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(20)
            sock.connect(sockaddr)


@pytest.mark.parametrize(
    ("rule", "address", "port", "allowed"),
    [
        ("10.0.0.0/8:5432", "10.1.2.3", 5432, True),
        ("10.0.0.0/8:5432", "10.1.2.3", 5433, False),
        ("10.0.0.0/8:5432", "11.1.2.3", 5432, False),
        ("10.0.0.0/8:5432", "::ffff:10.1.2.3", 5432, True),
        ("[::ffff:10.0.0.0/104]:5432", "10.1.2.3", 5432, True),
        ("10.0.0.5:20-22", "10.0.0.5", 20, True),
        ("10.0.0.5:20-22", "10.0.0.5", 22, True),
        ("10.0.0.5:20-22", "10.0.0.5", 23, False),
        ("10.0.0.5:*", "10.0.0.5", 65535, True),
        ("[2001:db8::/32]:443", "2001:db8::1", 443, True),
        ("[2001:db8::1]:443", "2001:db8::1", 443, True),
        ("[2001:db8::1]:443", "2001:db8::2", 443, False),
        ("[::/0]:*", "10.0.0.5", 80, False),
        ("0.0.0.0/0:*", "2001:db8::1", 80, False),
        ("0.0.0.0/0:*", "240.0.0.1", 80, True),
        # Loopback, link-local and metadata: only by a rule inside the range.
        ("127.0.0.0/8:*", "127.0.0.1", 80, True),
        ("126.0.0.0/7:*", "127.0.0.1", 80, False),
        ("[::1]:*", "::1", 80, True),
        ("[::/8]:*", "::1", 80, False),
        ("[::/96]:*", "::1", 80, False),
        ("169.254.0.0/16:*", "169.254.7.7", 80, True),
        ("169.0.0.0/8:*", "169.254.7.7", 80, False),
        ("169.254.0.0/16:*", "169.254.169.254", 80, False),
        ("169.254.169.254:*", "169.254.169.254", 80, True),
        ("[fe80::/10]:*", "fe80::1", 80, True),
        ("[fe80::/10]:*", "fe80::1%eth0", 80, True),
        ("[fe80::/10]:*", "fe80::a9fe:a9fe", 80, False),
        ("[fd00::/8]:*", "fd00:ec2::254", 80, False),
        ("[fd00:ec2::254]:*", "fd00:ec2::254", 80, True),
        ("100.64.0.0/10:*", "100.100.100.200", 80, False),
        ("168.63.129.16:80", "168.63.129.16", 80, True),
        ("168.63.0.0/16:*", "168.63.129.16", 80, False),
        ("192.0.0.0/24:*", "192.0.0.192", 80, False),
        # IPv4 inside IPv6.
        ("[::/0]:*", "64:ff9b::7f00:1", 80, False),
        ("[64:ff9b::/96]:*", "64:ff9b::808:808", 80, True),
        ("[::/0]:*", "64:ff9b:1::1", 80, False),
        ("[64:ff9b:1::/48]:*", "64:ff9b:1::1", 80, True),
        ("[2000::/3]:*", "2002:7f00:1::", 80, False),
        ("[2002::/16]:*", "2002:a00:1::", 80, True),
        ("[2000::/3]:*", "2001:0:1::1", 80, False),
        ("[2001::/32]:*", "2001:0:1::1", 80, True),
        ("[2000::/3]:*", "2001:4860::1", 80, True),
        ("[::/0]:*", "::10.0.0.1", 80, False),
        ("[::/0]:*", "::ffff:0:10.0.0.1", 80, False),
        # Nothing opens these.
        ("0.0.0.0/0:*", "0.0.0.0", 80, False),
        ("0.0.0.0/0:*", "224.0.0.1", 80, False),
        ("0.0.0.0/0:*", "255.255.255.255", 80, False),
        ("[::/0]:*", "::", 80, False),
        ("[::/127]:*", "::", 80, False),
        ("[::/0]:*", "ff02::1", 80, False),
    ],
)
def test_a_rule_opens_what_it_says_and_no_more(rule: str, address: str, port: int, allowed: bool) -> None:
    assert allows(rule, address, port) is allowed


@pytest.mark.parametrize(
    ("rule", "name", "allowed"),
    [
        ("db.example.com:80", "db.example.com", True),
        ("DB.Example.com.:80", "db.example.com", True),
        ("db.example.com:80", "xdb.example.com", False),
        ("*.example.com:80", "db.example.com", True),
        ("*.example.com:80", "a.b.example.com", True),
        ("*.example.com:80", "example.com", False),
        ("*.example.com:80", "badexample.com", False),
        ("bücher.example:80", "xn--bcher-kva.example", True),
    ],
)
def test_a_name_rule_goes_by_the_name_that_was_asked_for(rule: str, name: str, allowed: bool) -> None:
    assert allows(rule, "192.0.2.1", 80, name) is allowed
    assert not allows(rule, "192.0.2.1", 80, None)
    assert not allows(rule, "192.0.2.1", 81, name)


@pytest.mark.parametrize("network", [*NEVER, *ONLY_BY_A_RULE_INSIDE], ids=str)
def test_a_name_rule_never_opens_a_special_address(network: IPv4Network | IPv6Network) -> None:
    rules = ConnectRules(["db.example.com:*"])
    for address in (network.network_address, network.broadcast_address):
        assert not rules.allows(address, 80, "db.example.com")


def test_a_name_that_no_rule_could_allow_is_not_even_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("looked up")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    rules = ConnectRules(["db.example.com:5432", "10.0.0.0/8:22"])
    assert refusal(rules, "secret.internal", 80).code == Reason.NOT_ALLOWED
    assert refusal(rules, "db.example.com", 80).code == Reason.NOT_ALLOWED


@pytest.mark.parametrize(
    ("host", "asked", "found"),
    [
        ("10.1.2.3", "10.1.2.3:80", "10.1.2.3:80"),
        ("0x7f.1", "", "127.0.0.1:80"),
        ("fe80::1%lo", "", "[fe80::1]:80"),
        ("224.0.0.1", "", ""),
    ],
)
def test_a_refusal_says_what_to_add_in_the_log_and_to_the_client(host: str, asked: str, found: str) -> None:
    """Not to a client: what a name resolves to."""
    rules = ConnectRules(["11.0.0.0/8:80"])

    def remedy(rule: str) -> str:
        return f"add {rule} to this client's allow_connect" if rule else "see this client's allow_connect"

    error = refusal(rules, host, 80)
    assert error.log_text.endswith(f"({remedy(found)})")
    assert str(error) == f"no rule allows {format_host_port(host, 80)} ({remedy(asked)} on the server)"


def test_a_refusal_does_not_tell_what_a_name_resolves_to() -> None:
    error = refusal(ConnectRules(["10.0.0.0/8:80"]), "localhost", 80)
    assert error.code == Reason.NOT_ALLOWED
    assert "127.0.0.1" not in str(error)
    assert "::1" not in str(error)


@pytest.mark.parametrize("host", ["", "a" * 254, "a b", "a\nb", "a/b", "[::1]", "user@host", "*"])
def test_what_is_no_host_is_refused_before_the_resolver_sees_it(host: str) -> None:
    assert refusal(ConnectRules(ANY), host, 80).code == Reason.NOT_ALLOWED


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_what_is_no_port_is_refused(port: int) -> None:
    assert refusal(ConnectRules(ANY), "192.0.2.1", port).code == Reason.NOT_ALLOWED


@pytest.mark.parametrize("host", ["a..b", "nosuchname.invalid", "x" * 64 + ".example", "fe80::1%nosuchinterface"])
def test_a_name_without_an_address_is_unreachable(host: str) -> None:
    rules = ConnectRules([*ANY, "[fe80::/10]:*"])
    assert refusal(rules, host, 80).code == Reason.UNREACHABLE


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "10.0.0.0/8",
        "10.0.0.0/33:80",
        "10.0.0.1/8:80",
        "10.0.0.0/8:",
        "10.0.0.0/8:0",
        "10.0.0.0/8:0-100",
        "10.0.0.0/8:65536",
        "10.0.0.0/8:100-10",
        "10.0.0.0/8:http",
        "10.0.0.0/8:-80",
        "10.0.0.0/8:80-",
        "10.0.0.0/8:+80",
        "10.0.0.0/8: 80",
        "::1:80",
        "[::1]",
        "[::1:80",
        "[::1]80",
        "[10.0.0.1]:80",
        "[fe80::1%eth0]:80",
        "*:80",
        ":80",
        "localhost:80",
        "www.localhost:80",
        "127.1:80",
        "0x7f.1:80",
        "2130706433:80",
        "010.0.0.1:80",
        "ex ample.com:80",
        "*.*.com:80",
        "db*.example.com:80",
        "-bad.com:80",
        "http://example.com:80",
        "0.0.0.0:80",
        "224.0.0.0/4:80",
        "[::]:80",
    ],
)
def test_a_rule_that_cannot_work_is_refused_when_it_is_read(rule: str) -> None:
    with pytest.raises(UsageError):
        parse_connect_rule(rule)


@pytest.mark.parametrize(
    "rule", ["*:80", ":80", "localhost:80", "10.0.0.0/8:80", "127.0.0.1", "127.0.0.1:0-5", "[fe80::1%lo]:80"]
)
def test_a_rule_for_listening_needs_a_literal_address(rule: str) -> None:
    with pytest.raises(UsageError):
        parse_listen_rule(rule)


@pytest.mark.parametrize(
    ("rule", "host", "port", "allowed"),
    [
        ("0.0.0.0:8000-8100", "0.0.0.0", 8000, True),
        ("0.0.0.0:8000-8100", "0.0.0.0", 8100, True),
        ("0.0.0.0:8000-8100", "0.0.0.0", 8101, False),
        ("0.0.0.0:8000-8100", "127.0.0.1", 8000, False),
        ("127.0.0.1:*", "127.0.0.1", 22, True),
        ("127.0.0.1:*", "127.0.0.1", 0, False),
        ("127.0.0.1:0", "127.0.0.1", 0, True),
        ("127.0.0.1:0", "127.0.0.1", 1, False),
        ("127.0.0.1:80", "::ffff:127.0.0.1", 80, True),
        ("127.0.0.1:80", "localhost", 80, True),
        ("[::1]:80", "localhost", 80, False),
        ("0.0.0.0:80", "*", 80, True),
        ("127.0.0.1:80", "*", 80, False),
        ("127.0.0.1:80", "localhost.", 80, False),
        ("127.0.0.1:80", "LOCALHOST", 80, False),
        ("127.0.0.1:80", "127.1", 80, False),
        ("127.0.0.1:80", "", 80, False),
        ("127.0.0.1:*", "127.0.0.1", 65536, False),
        ("[::1]:80", "0:0:0:0:0:0:0:1", 80, True),
        ("[::]:80", "::1", 80, False),
    ],
)
def test_listening_goes_by_the_very_address(rule: str, host: str, port: int, allowed: bool) -> None:
    rules = ListenRules([rule])
    if not allowed:
        with pytest.raises(EndpointError) as caught:
            rules.check(host, port)
        assert caught.value.code == Reason.NOT_ALLOWED
        return
    (address,) = rules.check(host, port)
    assert parse_listen_rule(rule).address == ip_address(address.host)
    assert address.port == port


def test_what_listen_rules_hand_back_can_be_bound() -> None:
    (sock,) = bind(ListenRules(["127.0.0.1:0"]).check("::ffff:127.0.0.1", 0), backlog=1)
    with sock:
        assert sock.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("rules", "shared", "host", "bound", "is_shared"),
    [
        (["127.0.0.1:80"], [], "localhost", ["127.0.0.1"], False),
        (["127.0.0.1:80", "[::1]:80"], [], "localhost", ["127.0.0.1", "::1"], False),
        (["127.0.0.1:80", "[::1]:81"], [], "localhost", ["127.0.0.1"], False),
        ([], ["127.0.0.1:80", "[::1]:80"], "localhost", ["127.0.0.1", "::1"], True),
        (["127.0.0.1:80"], ["[::1]:80"], "localhost", ["127.0.0.1"], False),
        (["[::1]:80"], ["127.0.0.1:80"], "localhost", ["127.0.0.1"], True),
        (["0.0.0.0:80", "[::]:80"], [], "*", ["0.0.0.0", "::"], False),
        (["0.0.0.0:80", "[::1]:80"], [], "*", ["0.0.0.0"], False),
    ],
)
def test_every_address_that_would_be_bound_is_judged(
    rules: list[str], shared: list[str], host: str, bound: list[str], is_shared: bool
) -> None:
    listen = ListenRules(rules, shared)
    assert [address.host for address in listen.check(host, 80)] == bound
    assert listen.is_shared(host, 80) == is_shared


class StuckResolver:
    """Stands in for a name server that failed for now, which cannot be had for real within a test's time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = threading.Semaphore(0)
        self.release = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, *args: object, **kwargs: object) -> list[object]:
        self.asked.release()
        assert self.release.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "try again")


def test_a_name_server_that_does_not_answer_costs_no_more_than_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = StuckResolver(monkeypatch)
    try:
        with pytest.raises(EndpointError, match="took too long") as caught:
            ConnectRules(ANY).resolve("slow.example", 80, within(0.05))
        assert caught.value.code == Reason.UNREACHABLE
    finally:
        stuck.release.set()


def test_one_users_dead_names_leave_room_for_anothers_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = StuckResolver(monkeypatch)
    greedy, other = LookupShare(limit=2), LookupShare(limit=2)
    try:
        for _ in range(2):
            with pytest.raises(EndpointError, match="took too long"):
                resolve("dead.example", 80, within(0.01), greedy)
            assert stuck.asked.acquire(timeout=20)
        with pytest.raises(EndpointError, match="too many names") as caught:
            resolve("dead.example", 80, within(0.01), greedy)
        assert caught.value.code == Reason.LIMIT
        with pytest.raises(EndpointError, match="took too long"):
            resolve("live.example", 80, within(0.01), other)
    finally:
        stuck.release.set()
    # As the stuck ones end, their slots come back.
    with pytest.raises(EndpointError, match="failed for now"):
        resolve("dead.example", 80, within(), greedy)


def test_lookups_of_all_users_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_LOOKUPS", 3)
    stuck = StuckResolver(monkeypatch)
    try:
        for _ in range(3):
            with pytest.raises(EndpointError, match="took too long"):
                resolve("dead.example", 80, within(0.01), LookupShare())
        share = LookupShare(limit=1)
        for _ in range(2):  # a wait for the common slots gives one's own back
            with pytest.raises(EndpointError, match="too many names"):
                resolve("dead.example", 80, within(0.01), share)
    finally:
        stuck.release.set()


# ---- properties ----

_LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
_ports = st.sampled_from(["*", "80", "1-65535"])


@st.composite
def rules_without_loopback(draw: st.DrawFn) -> str:
    """A rule whose network is not inside loopback, or a name."""
    kind = draw(st.sampled_from(["v4", "v6", "name"]))
    if kind == "name":
        return f"{draw(st.sampled_from(['db.example.com', '*.example.com', '*.lan', 'printer']))}:{draw(_ports)}"
    if kind == "v4":
        # Wide networks, and ones close to 127/8, are where a mistake would show.
        first = draw(st.sampled_from([0, 10, 64, 96, 112, 120, 124, 126, 128, 169, 192]))
        length = draw(st.integers(0, 32))
        v4 = IPv4Network(((first << 24) | draw(st.integers(0, 2**24 - 1)), length), strict=False)
        if v4.subnet_of(_LOOPBACK[0]) or any(v4.subnet_of(n) for n in NEVER if isinstance(n, IPv4Network)):
            return "10.0.0.0/8:*"
        return f"{v4}:{draw(_ports)}"
    prefix = draw(st.sampled_from(["::", "64:ff9b::", "2002:7f00:1::", "2001::", "fe80::", "fd00::", "::ffff:0:0:0"]))
    v6 = IPv6Network((int(IPv6Address(prefix)), draw(st.integers(0, 95))), strict=False)
    return f"[{v6}]:{draw(_ports)}"


_spellings = st.one_of(
    st.sampled_from(LOOPBACK_SPELLINGS),
    st.integers(0, 2**24 - 1).map(lambda n: str(IPv4Address((127 << 24) | n))),
    st.integers(0, 2**24 - 1).map(lambda n: f"::ffff:{IPv4Address((127 << 24) | n)}"),
    st.integers(0, 2**24 - 1).map(lambda n: str((127 << 24) | n)),
    st.integers(0, 2**24 - 1).map(lambda n: f"0x7f.{n}"),
    st.integers(0, 2**24 - 1).map(lambda n: f"0{(127 << 24) | n:o}"),
    st.integers(0, 2**24 - 1).map(lambda n: str(IPv4Address(n))),
)


@settings(max_examples=300)
@given(st.lists(rules_without_loopback(), max_size=4), _spellings)
def test_no_rules_without_one_inside_loopback_ever_yield_a_loopback_address(rules: list[str], host: str) -> None:
    try:
        found = ConnectRules(rules).resolve(host, 80, within())
    except EndpointError:
        return
    for text in addresses(found):
        address = ip_address(text.partition("%")[0])
        plain = getattr(address, "ipv4_mapped", None) or address
        assert not plain.is_loopback
        assert not plain.is_unspecified
        assert not any(plain in network for network in NEVER)


@settings(max_examples=300)
@given(st.lists(rules_without_loopback(), max_size=4), st.ip_addresses())
def test_what_is_allowed_is_in_a_rules_network_and_special_ranges_need_one_inside(
    rules: list[str], address: IPv4Address | IPv6Address
) -> None:
    assert not any(address in network and ConnectRules(rules).allows(address, 80) for network in (*NEVER, *_LOOPBACK))
    mapped = IPv6Address((0xFFFF << 32) | int(address)) if isinstance(address, IPv4Address) else address
    assert ConnectRules(rules).allows(mapped, 80) == ConnectRules(rules).allows(address, 80)
