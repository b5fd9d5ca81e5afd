"""A rule opens TCP or UDP, as it says, and never both: no rule that was written for TCP opens UDP."""

from __future__ import annotations

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import EndpointError, UsageError
from qanat.config.access_rules import parse_connect_rule, parse_listen_rule
from qanat.config.texts import check_shared_rule
from qanat.mux.frames import Reason
from qanat.server.access.rules import ListenRules
from qanat.session.connect_rules import ConnectRules


@pytest.mark.parametrize(
    "rule", ["10.0.0.1:53", "10.0.0.0/8:*", "0.0.0.0/0:1-65535", "10.0.0.1:53/udp", "10.0.0.0/8:*/udp"]
)
def test_a_rule_is_for_one_of_them(rule: str) -> None:
    rules = ConnectRules([rule])
    for udp in (False, True):
        if udp == rule.endswith("/udp"):
            assert rules.resolve("10.0.0.1", 53, Deadline(10), udp=udp)
            continue
        with pytest.raises(EndpointError) as caught:
            rules.resolve("10.0.0.1", 53, Deadline(10), udp=udp)
        assert caught.value.code == Reason.NOT_ALLOWED


def test_a_refusal_says_what_to_add() -> None:
    with pytest.raises(EndpointError, match=r"no rule allows 10\.0\.0\.1:53/udp \(add 10\.0\.0\.1:53/udp to "):
        ConnectRules(["10.0.0.1:53"]).resolve("10.0.0.1", 53, Deadline(10), udp=True)
    with pytest.raises(EndpointError, match=r"listening on 127\.0\.0\.1:53/udp is not allowed") as caught:
        ListenRules(["127.0.0.1:53"], ["127.0.0.1:53"]).check("127.0.0.1", 53, udp=True)
    assert "add 127.0.0.1:53/udp to this client's allow_listen" in str(caught.value)


def test_a_name_s_rule_is_for_one_of_them_and_looks_nothing_up_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_asks(*args: object) -> list[object]:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr("qanat.session.connect_rules.resolve", nobody_asks)
    for rule, udp in (("dns.example.com:53", True), ("*.example.com:53/udp", False)):
        with pytest.raises(EndpointError, match="no rule allows"):
            ConnectRules([rule]).resolve("dns.example.com", 53, Deadline(10), udp=udp)


def test_special_addresses_need_a_rule_inside_them_over_udp_too() -> None:
    with pytest.raises(EndpointError):
        ConnectRules(["0.0.0.0/0:*/udp", "127.0.0.1:*"]).resolve("127.0.0.1", 53, Deadline(10), udp=True)
    assert ConnectRules(["127.0.0.1:53/udp"]).resolve("127.0.0.1", 53, Deadline(10), udp=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "*"])
def test_listening_is_for_one_of_them(host: str) -> None:
    places = ["127.0.0.1:53", "0.0.0.0:53", "[::1]:53", "[::]:53"]
    over_tcp, over_udp = ListenRules(places), ListenRules([f"{place}/udp" for place in places])
    assert over_tcp.check(host, 53) == over_udp.check(host, 53, udp=True)
    for rules, udp in ((over_tcp, True), (over_udp, False)):
        with pytest.raises(EndpointError):
            rules.check(host, 53, udp=udp)


def test_both_families_are_bound_where_rules_for_udp_allow_it() -> None:
    rules = ListenRules(["127.0.0.1:53/udp", "[::1]:53"])
    assert [address.host for address in rules.check("localhost", 53, udp=True)] == ["127.0.0.1"]


@pytest.mark.parametrize("rule", ["10.0.0.1/udp", "10.0.0.1:53/UDP", "10.0.0.1:53/tcp", "10.0.0.1:0/udp", "*:53/udp"])
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(UsageError):
        parse_connect_rule(rule)


def test_ports_that_are_shared_are_for_tcp() -> None:
    assert parse_listen_rule("0.0.0.0:443/udp").udp
    with pytest.raises(UsageError, match="is for UDP"):
        check_shared_rule("0.0.0.0:443/udp")
