"""Promises of a declared option: the one field is enough for file, flag, help and schema."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qanat.base.errors import UsageError
from qanat.cli.flags import add_flags, flags_of, given_flags
from qanat.config import schema
from qanat.config.client_settings import ClientSettings
from qanat.config.command_line import with_flags
from qanat.config.document import Document, Place
from qanat.config.options import Conflict, Flag, Kind, declared, keys_below, option, option_of, options_of
from qanat.config.reader import read_options
from qanat.config.section import Section
from qanat.config.server_settings import ServerSettings
from tests.support.json_schemas import validator


@dataclass(frozen=True, slots=True)
class Rates:
    """Something that a later version may have."""

    upload: float = option(1.5, low=0.5, high=10, unit="MB a second", doc="How fast. And more.", flag=Flag("--upload"))
    burst: int = option(4, low=0, high=8, unit="MB", doc="How much at once.", flag=Flag("--burst", metavar="N"))

    def conflicts(self) -> Iterator[Conflict]:
        """Yield what does not go together."""
        if self.burst < self.upload:
            yield Conflict(("burst", "upload"), "is less than `upload`")


@dataclass(frozen=True, slots=True)
class Made:
    """Settings with one option of each kind."""

    name: str = field(metadata=declared(doc="Its name.", required="it has one"))
    watch: bool = option(True, doc="Watch the file.", flag=Flag("--no-watch", dest="watch", const=False))
    loud: bool = option(False, doc="Be loud.", flag=Flag("--loud"))
    color: str = option("red", choices=("red", "green"), doc="Its color.", flag=Flag("--color", beside_file=True))
    ports: tuple[int, ...] = option((), parse=int, doc="Ports.", flag=Flag("--ports", repeated=True))
    place: Path | None = option(None, doc="Where.", unset="nowhere", flag=Flag("--place", metavar="FILE"))
    rates: Rates = option(Rates(), doc="How fast.")


def read(tmp_path: Path, text: str) -> tuple[Made, list[str]]:
    (tmp_path / "file").write_text(text)
    document = Document(tmp_path / "file", {})
    root = document.read()
    assert root is not None
    made = read_options(Section(document, root, "made", Place(1, 1)), Made)
    return made, [fault.text for fault in document.faults.found()]


def parse(*arguments: str) -> Made:
    parser = argparse.ArgumentParser()
    for beside_file in (False, True):
        add_flags(parser, Made, beside_file=beside_file)
    return with_flags(Made("a"), given_flags(parser.parse_args(arguments), Made))


def test_a_field_is_enough_for_the_file(tmp_path: Path) -> None:
    made, faults = read(
        tmp_path, "{name: a, watch: false, color: green, ports: ['1', '2'], place: p, rates: {burst: 8}}"
    )
    assert not faults
    assert made == Made("a", False, False, "green", (1, 2), tmp_path / "p", Rates(1.5, 8))
    assert read(tmp_path, "{name: a}") == (Made("a"), [])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{}", "`made` has no `name`; it has one"),
        ("{name: a, watch: yes}", "`watch` must be true or false"),
        ("{name: a, watch: 'true'}", "`watch` must be true or false"),
        ("{name: a, color: blue}", "`color` must be red or green"),
        ("{name: a, rates: {upload: 11}}", "`upload` must be a number from 0.5 to 10"),
        ("{name: a, rates: {burst: 1}}", "`burst` is less than `upload`"),
        ("{name: a, burst: 1}", "unknown key `burst` in `made`; it belongs in `rates:`"),
        ("{name: a, watsh: 1}", "unknown key `watsh` in `made`; did you mean `watch`?"),
    ],
)
def test_a_field_is_enough_for_the_faults(tmp_path: Path, text: str, fault: str) -> None:
    assert read(tmp_path, text)[1] == [fault]


def test_a_field_is_enough_for_the_command_line() -> None:
    assert parse() == Made("a")
    assert parse("--no-watch", "--loud", "--color", "green", "--ports", "1,2", "--ports", "3") == Made(
        "a", False, True, "green", (1, 2, 3)
    )
    assert parse("--place", "p", "--upload", "2").rates == Rates(2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--upload", "11"), "--upload must be a number from 0.5 to 10"),
        (("--burst", "9"), "--burst must be a whole number from 0 to 8"),
        (("--burst", "1"), "--burst is less than `upload`"),
    ],
)
def test_a_field_is_enough_for_the_refusals_of_the_command_line(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*arguments)
    assert caught.value.message == message


def test_a_field_is_enough_for_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    parser = argparse.ArgumentParser()
    add_flags(parser, Made, beside_file=False)
    text = parser.format_help()
    assert "--upload UPLOAD  how fast (0.5 to 10 MB a second; default: 1.5)" in text
    assert "--burst N        how much at once (0 to 8 MB; default: 4)" in text
    assert "--place FILE     where (default: nowhere)" in text
    assert "--no-watch       watch the file\n" in text
    assert "--color" not in text  # it goes with a file as well


def test_a_field_is_enough_for_the_schema() -> None:
    made = schema._section(Made)
    accepted = validator(made).is_valid
    assert accepted({"name": "a", "watch": False, "color": "${COLOR}", "ports": "1", "rates": {"burst": 8}})
    for wrong in (
        {},
        {"name": "a", "watch": "no"},
        {"name": "a", "color": "blue"},
        {"name": "a", "rates": {"burst": 9}},
    ):
        assert not accepted(wrong)
    assert made["properties"]["rates"]["properties"]["upload"] == {
        "description": "How fast. And more. In MB a second.",
        "type": "number",
        "minimum": 0.5,
        "maximum": 10,
        "default": 1.5,
    }
    assert made["properties"]["place"]["description"] == "Where. Default: nowhere."


def test_every_option_of_the_program_says_what_it_is() -> None:
    def look(settings: type) -> None:
        for found in options_of(settings):
            assert found.declared.doc.endswith("."), found.field
            if found.kind in (Kind.WHOLE, Kind.NUMBER):
                assert found.declared.unit, found.field
                assert found.declared.low is not None, found.field
                assert found.declared.high is not None, found.field
                assert found.default is None or found.allows(found.default), found.field
            for below in (found.settings, found.declared.entries):
                if below is not None:
                    look(below)

    look(ServerSettings)
    look(ClientSettings)


def test_no_two_options_have_the_same_flag() -> None:
    for settings in (ServerSettings, ClientSettings):
        names = [name for _, flag in flags_of(settings) for name in flag.names]
        dests = [flag.dest for _, flag in flags_of(settings)]
        assert len(names) == len(set(names))
        assert len(dests) == len(set(dests))


def test_a_key_that_stands_in_the_wrong_section_is_known() -> None:
    assert keys_below(ServerSettings)["sessions"] == "`limits:`"
    assert keys_below(ServerSettings)["allow_listen"] == "an entry of `clients:`"
    assert option_of(ServerSettings, "drain").key == "drain"
