"""Which names may be published, by whom, and how a client asks for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from qanat.base.endpoint_addresses import PublishedName, TcpAddress
from qanat.base.errors import UsageError
from qanat.config.forward_settings import Forward
from qanat.config.forwards import parse_publishes
from qanat.config.published_names import PublishRules, check_mode, is_published_name, parse_publish
from tests.support.config_rig import ConfigDirectory, client_with, server_with


@pytest.fixture
def directory(tmp_path: Path) -> ConfigDirectory:
    return ConfigDirectory(tmp_path)


@pytest.mark.parametrize("name", ["app", "app.example.com", "a-b.x1.example", "xn--strae-oqa.example", "1.example"])
def test_labels_of_letters_digits_and_hyphens_are_a_name(name: str) -> None:
    assert is_published_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "a.",
        "-a.b",
        "a-.b",
        "A.b",
        "a/b",
        "../a",
        "a\x00b",
        "a b",
        "a_b.example",
        "127.0.0.1",
        "0x7f.1",
        "*.example.com",
        "a" * 64 + ".b",
        ".".join(["a" * 60] * 5),
        "straße.example",
    ],
)
def test_nothing_else_is(name: str) -> None:
    assert not is_published_name(name)
    assert PublishRules(["*.example.com", "a.b"]).full_name(name) is None


def test_rules_are_for_names_and_for_all_below_one() -> None:
    rules = PublishRules(["Shop.example.com", "*.office.example.com", "*.lab.example.com", "bare"])
    allowed = ["shop.example.com", "a.office.example.com", "a.b.office.example.com", "x.lab.example.com", "bare"]
    assert [rules.full_name(name) for name in allowed] == allowed
    refused = ["example.com", "office.example.com", "xoffice.example.com", "shop.example.com.evil.net"]
    assert [rules.full_name(name) for name in refused] == [None] * 4
    assert rules.full_name("app") == "app.office.example.com"
    assert PublishRules(["shop.example.com"]).full_name("shop") is None


@pytest.mark.parametrize(
    ("text", "name", "to"),
    [
        ("app:3000", "app", TcpAddress("127.0.0.1", 3000)),
        ("App.Example.COM:10.0.0.5:80", "app.example.com", TcpAddress("10.0.0.5", 80)),
        ("app:[::1]:80", "app", TcpAddress("::1", 80)),
        ("straße.example:web.internal:80", "xn--strae-oqa.example", TcpAddress("web.internal", 80)),
    ],
)
def test_a_command_line_publishes(text: str, name: str, to: TcpAddress) -> None:
    assert parse_publish(text) == (PublishedName(name), to)
    assert parse_publishes([text]) == (Forward("remote", PublishedName(name), to),)


@pytest.mark.parametrize("text", ["app", "app:", "app::80", ":80", "a/b:80", "app:http", "app:70000", "app:[::1:80"])
def test_what_a_command_line_cannot_publish_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_publishes([text])


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="another --publish"):
        parse_publishes(["app:1", "APP:2"])


def test_a_file_publishes(directory: ConfigDirectory) -> None:
    client = directory.client(client_with('forwards: [{publish: App.example.com, to: "127.0.0.1:3000"}]'))
    (forward,) = client.forwards
    assert forward == Forward("remote", PublishedName("app.example.com"), TcpAddress("127.0.0.1", 3000))
    assert str(forward) == "publish app.example.com to 127.0.0.1:3000"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('publish: "a/b", to: "a:1"', "`publish` is not a name"),
        ('publish: app, remote: "127.0.0.1:1", to: "a:1"', "`publish` and `remote` are both in one forward"),
        ('publish: app, to: "a:1", udp: true', "`udp` cannot be with `publish`"),
        ("publish: app", "no `to`"),
    ],
)
def test_what_a_file_cannot_publish_is_refused(directory: ConfigDirectory, entry: str, said: str) -> None:
    assert said in directory.fault(client_with("forwards: [{" + entry + "}]"))


def test_a_servers_keys_for_it(directory: ConfigDirectory) -> None:
    server = directory.server(server_with('publish_dir: names\npublish_mode: "0666"\npublish_group: www-data'))
    assert (server.publish_dir, server.publish_mode) == (directory.path / "names", "0666")
    for mode in ("660", "0660", "777"):
        assert check_mode(mode) == mode
    for mode in ("rw", "0o660", "99", "06660"):
        with pytest.raises(UsageError):
            check_mode(mode)
