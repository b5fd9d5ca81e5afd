"""Which Unix sockets the rules allow: by their real path, and by rules for Unix sockets alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from qanat.base.errors import EndpointError, UsageError
from qanat.config.access_rules import parse_connect_rule, parse_unix_rule
from qanat.mux.frames import Reason
from qanat.server.access.rules import ListenRules
from qanat.session.connect_rules import ConnectRules


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("app", "other", "private"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "app")
    (tmp_path / "app" / "out").symlink_to(tmp_path / "private" / "socket")
    (tmp_path / "app" / "within").symlink_to(tmp_path / "app" / "socket")
    (tmp_path / "app" / "up").symlink_to(tmp_path / "private")
    return tmp_path


def allowed(root: Path, path: str, *rules: str) -> str | None:
    """The path below `root` that would be connected to; None when no rule allows it."""
    written = [rule.replace("unix:/", f"unix:{root}/", 1) for rule in rules]
    try:
        real = ConnectRules(written).unix.connectable(f"{root}{path}")
    except EndpointError as error:
        return None if error.code == Reason.NOT_ALLOWED else error.message
    return real.removeprefix(str(root.resolve()))


@pytest.mark.parametrize(
    ("path", "rule", "real"),
    [
        ("/app/socket", "unix:/app/*", "/app/socket"),
        ("/app/.s.PGSQL.5432", "unix:/app/*", "/app/.s.PGSQL.5432"),
        ("/app/.s.PGSQL.5432", "unix:/app/.s.PGSQL.*", "/app/.s.PGSQL.5432"),
        ("/app/socket", "unix:/app/socket", "/app/socket"),
        ("/app/socket", "unix:/app/sock", None),
        ("/app/socket2", "unix:/app/socket", None),
        ("/app/sub/socket", "unix:/app/*", None),
        ("/app/../private/socket", "unix:/app/*", None),
        ("/app//socket", "unix:/app/*", "/app/socket"),
        ("/other/socket", "unix:/app/*", None),
        ("/app/within", "unix:/app/*", "/app/socket"),
        ("/app/out", "unix:/app/*", None),
        ("/app/out", "unix:/app/out", None),
        ("/app/up/socket", "unix:/app/*", None),
        ("/link/socket", "unix:/link/*", "/app/socket"),
        ("/app/socket", "unix:/link/*", "/app/socket"),
        ("/link/socket", "unix:/app/*", None),
    ],
)
def test_the_real_path_is_judged(root: Path, path: str, rule: str, real: str | None) -> None:
    assert allowed(root, path, rule) == real


def test_a_link_out_of_a_directory_needs_a_rule_for_where_it_leads(root: Path) -> None:
    assert allowed(root, "/app/out", "unix:/app/*", "unix:/private/socket") == "/private/socket"


def test_a_directory_that_becomes_a_link_later_opens_nothing_new(root: Path) -> None:
    rules = ConnectRules([f"unix:{root}/other/*"])
    (root / "other").rmdir()
    (root / "other").symlink_to(root / "private")
    with pytest.raises(EndpointError) as caught:
        rules.unix.connectable(f"{root}/other/socket")
    assert "private" not in caught.value.message
    assert f"which is {root}/private/socket," in caught.value.log_text


def test_no_other_rule_opens_one_and_they_open_nothing_else(root: Path) -> None:
    assert allowed(root, "/app/socket", "0.0.0.0/0:*", "[::/0]:*", "*.example.com:*") is None
    rules = ConnectRules(["unix:/run/*"])
    for host in ("127.0.0.1", "10.0.0.1", "unix"):
        with pytest.raises(EndpointError):
            rules.resolve(host, 80, None)  # type: ignore[arg-type]
    with pytest.raises(EndpointError):
        ListenRules(["unix:/run/*"]).check("127.0.0.1", 80)
    with pytest.raises(EndpointError):
        ListenRules(["127.0.0.1:1-65535"]).unix.bindable("/run/socket")


def test_a_name_without_a_file_has_rules_of_its_own() -> None:
    rules = ConnectRules(["unix:@app-*", "unix:/*"])
    assert rules.unix.connectable("@app-1") == "@app-1"
    for path in ("@other", "@", "/@app-1/x"):
        with pytest.raises(EndpointError):
            rules.unix.connectable(path)


def test_where_one_listens_the_links_of_the_directory_are_followed_and_not_its_own(root: Path) -> None:
    rules = ListenRules([f"unix:{root}/link/*"])
    assert rules.unix.bindable(f"{root}/link/new") == f"{root.resolve()}/app/new"
    assert rules.unix.bindable(f"{root}/app/out") == f"{root.resolve()}/app/out"
    with pytest.raises(EndpointError, match="allow_listen"):
        rules.unix.bindable(f"{root}/private/new")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("unix:/run/*/socket", "has * in a directory"),
        ("unix:/run/../socket", "has .."),
        ("unix:/run/", "is a directory"),
        ("unix:@", "names no abstract socket"),
        ("unix:/" + "x" * 200, "has 107 at most"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(rule: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_connect_rule(rule)
    assert message in str(caught.value)


def test_a_host_that_is_called_unix_is_still_a_host() -> None:
    assert parse_unix_rule("unix:80") is None
    assert parse_unix_rule("unix.example.com:80") is None
