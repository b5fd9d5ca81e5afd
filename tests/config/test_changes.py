"""What a reload finds changed: each option by its place in the file, and no secret."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qanat.config.changes import changes_between
from qanat.config.server_settings import ClientAccount, ServerSettings, ServerTls

SETTINGS = ServerSettings((ClientAccount("office", (b"1" * 32,)),))


def test_equal_settings_have_no_changes() -> None:
    assert changes_between(SETTINGS, replace(SETTINGS)) == []


def test_a_change_is_named_by_its_place_in_the_file() -> None:
    new = replace(SETTINGS, drain=7.5, limits=replace(SETTINGS.limits, streams=9))
    assert [str(change) for change in changes_between(SETTINGS, new)] == [
        "drain: 5 -> 7.5",
        "limits.streams: 4096 -> 9",
    ]


def test_what_may_hold_a_secret_is_named_and_not_shown() -> None:
    new = replace(SETTINGS, clients=(ClientAccount("office", (b"2" * 32,)),))
    assert [str(change) for change in changes_between(SETTINGS, new)] == ["clients"]


def test_a_section_that_was_not_there_is_one_change() -> None:
    new = replace(SETTINGS, tls=ServerTls(Path("a.pem"), Path("a.key")))
    assert [change.key for change in changes_between(SETTINGS, new)] == ["tls"]
