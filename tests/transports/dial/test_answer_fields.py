"""Header fields of answers, and the cookies that load balancers set in them."""

from __future__ import annotations

import pytest

from qanat.transports.dial.answer_fields import MAX_COOKIES, cookies, mapping, with_newer


def test_fields_that_come_twice() -> None:
    fields = [("connection", "close"), ("connection", "Upgrade"), ("date", "a"), ("date", "b"), ("x", "")]
    assert mapping(fields) == {"connection": "close, Upgrade", "date": "b", "x": ""}
    both = [("set-cookie", "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT"), ("set-cookie", "b=2")]
    assert cookies(mapping(both)) == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("SRV=one; path=/", {"SRV": "one"}),
        ("AWSALB=q+/x==; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Path=/", {"AWSALB": "q+/x=="}),
        (" a = b", {}),
        ("a=", {}),
        ("=b", {}),
        ("nothing", {}),
        ("a=b c", {}),
        ("a=\x00", {}),
        ("a=b; Max-Age=0", {}),
        ("a=b; max-age=-1; Path=/", {}),
        ("a=b; Max-Age=60", {"a": "b"}),
        ("a=" + "x" * 5000, {}),
        ("", {}),
    ],
)
def test_a_cookie_is_taken_if_it_has_the_form_that_it_must_have(line: str, taken: dict[str, str]) -> None:
    assert cookies({"set-cookie": line}) == taken


def test_cookies_are_few() -> None:
    many = cookies({"set-cookie": "\n".join(f"c{n}={n}" for n in range(100))})
    assert len(many) == MAX_COOKIES
    later = with_newer(many, {"c1": "x", "new": "y"})
    assert len(later) == MAX_COOKIES
    assert (later["c1"], later["new"]) == ("x", "y")
    assert "c0" not in later
