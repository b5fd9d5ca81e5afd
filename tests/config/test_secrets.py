"""Promises about secrets in configuration: where they may come from, who may read them, and that none is ever shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qanat.config.load import load_config
from qanat.handshake.identity import load_or_create_identity
from qanat.handshake.tokens import generate_token, parse_token
from tests.support.config_rig import ConfigDirectory

CLIENT = "client:\n  name: office\n  url: wss://tunnel.example.com/tunnel\n"

posix = pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")


@pytest.fixture
def directory(tmp_path: Path) -> ConfigDirectory:
    return ConfigDirectory(tmp_path)


def test_a_token_may_come_from_the_environment(directory: ConfigDirectory) -> None:
    directory.environ["OFFICE_TOKEN"] = directory.tokens["office"] + "\n"
    assert directory.client(CLIENT + "  token: ${OFFICE_TOKEN}\n").servers[0].token == directory.secrets["office"]


def test_a_variable_may_be_a_part_of_any_text(directory: ConfigDirectory) -> None:
    directory.environ.update(WHERE="office", HOST="h.example.com", PORT="8443")
    settings = directory.client(
        """\
        client:
          name: ${WHERE}
          url: wss://${HOST}:${PORT}/$${HOST}
          token_file: ${WHERE}.token
        """.replace("/$${HOST}", "/$$x")
    )
    assert settings.servers[0].urls == ("wss://h.example.com:8443/$$x",)
    assert settings.name == "office"


def test_a_doubled_dollar_stands_for_itself_before_a_brace(directory: ConfigDirectory) -> None:
    directory.write("${X}.token", directory.tokens["home"], 0o600)
    assert directory.client(CLIENT + "  token_file: $${X}.token\n").servers[0].token == directory.secrets["home"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("${NOT_SET}", "`token_file` needs the environment variable NOT_SET, which is not set"),
        ("${NOT_SET}/${NEITHER}", "variable NOT_SET, which is not set and needs the environment variable NEITHER"),
        ("${OPEN", "has a `${` that is not followed by a variable's name"),
        ("${}", "has a `${` that is not followed by a variable's name"),
        ("${NOT_SET:-x}", "has `${NAME:-…}`: defaults are not available here; set the variable, or write the value"),
        ("${NOT_SET:?x}", "has `${NAME:?…}`: defaults are not available here"),
        ("${A-B}", "has a `${` that is not followed by a variable's name"),
    ],
)
def test_a_variable_that_cannot_be_had_is_named(directory: ConfigDirectory, value: str, text: str) -> None:
    fault = directory.fault(CLIENT + f"  token_file: '{value}'\n")
    assert fault.startswith("4:15: ")
    assert text in fault


def test_what_a_variable_brings_in_is_not_yaml(directory: ConfigDirectory) -> None:
    directory.environ["NAME"] = "a\nforwards: []"
    assert "has a control character" in directory.fault(
        CLIENT.replace("office", "${NAME}") + "  token_file: office.token"
    )


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o660, 0o610])
def test_a_token_file_that_anyone_else_can_open_is_refused_with_the_cure(directory: ConfigDirectory, mode: int) -> None:
    path = directory.path / "office.token"
    path.chmod(mode)
    fault = directory.fault(CLIENT + "  token_file: office.token\n")
    assert fault == f"4:15: `token_file` names {path}, which others can read (mode {mode:04o}) (chmod 600 {path})"
    path.chmod(0o400)
    assert directory.client(CLIENT + "  token_file: office.token\n")


@posix
def test_the_cure_can_be_pasted_whatever_the_file_is_called(directory: ConfigDirectory) -> None:
    path = directory.write("my token's", directory.tokens["office"], 0o644)
    fault = directory.fault(CLIENT + '  token_file: "my token\'s"\n')
    os.system(fault[fault.rindex("(") + 1 : -1])
    assert path.stat().st_mode & 0o777 == 0o600


@posix
def test_a_file_with_a_token_in_it_must_be_closed_to_others(directory: ConfigDirectory) -> None:
    text = CLIENT + f"  token: {directory.tokens['office']}\n"
    fault = directory.fault(text, mode=0o644)
    assert fault.startswith(f"4:10: `token` is in a file that others can read (chmod 600 {directory.file}, or use")
    assert directory.client(text).servers[0].token == directory.secrets["office"]


@posix
def test_a_file_that_only_names_where_the_token_is_may_be_read_by_all(directory: ConfigDirectory) -> None:
    directory.environ["OFFICE_TOKEN"] = "x"
    fault = directory.fault(CLIENT + "  token: ${OFFICE_TOKEN}\n", mode=0o644)
    assert "`token` is no token" in fault  # and nothing about who can read the file


@pytest.mark.parametrize("content", [b"", b"\n", b"hello", b"\xff" * 60, b"qanat1-" + b"A" * 50, b"x" * 5000])
def test_a_file_without_a_token_is_refused(directory: ConfigDirectory, content: bytes) -> None:
    directory.write("bad.token", content, 0o600)
    fault = directory.fault(CLIENT + "  token_file: bad.token\n")
    assert "holds no token" in fault or "too long to hold one token" in fault
    assert "hello" not in fault
    assert "AAAA" not in fault


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no token: nothing is in it"),
        (b"\xef\xbb\xbf \r\n", "holds no token: nothing is in it"),
        ("@".encode("utf-16"), "holds no token: it is text in UTF-16, as Windows writes it"),
        (b"\xfe\xff" + "@".encode("utf-16-be"), "it is text in UTF-16"),
        ("@".encode("utf-16-le"), "it is text in UTF-16"),
        (b'"@"\n', "holds no token: it is in quotes"),
        (b"'@'", "it is in quotes"),
        ("\u201c@\u201d".encode(), "it is in quotes"),
        (b"QANAT_TOKEN=@\n", "a name is in front of it, as in NAME=TOKEN"),
        (b'export QANAT_TOKEN="@"\n', "it is in quotes"),
        (b"token: @\n", "a name is in front of it"),
        (b"@\n@\n", "it has more than one line"),
    ],
)
def test_what_is_in_a_token_file_instead_of_a_token_is_said(
    directory: ConfigDirectory, content: bytes, says: str
) -> None:
    token = directory.tokens["office"]
    wide = [token.encode("utf-16"), token.encode("utf-16-be"), token.encode("utf-16-le")]
    marks = ["@".encode("utf-16"), "@".encode("utf-16-be"), "@".encode("utf-16-le")]
    for mark, whole in (*zip(marks, wide, strict=True), (b"@", token.encode())):
        content = content.replace(mark, whole) if mark in content and b"qan" not in content else content
    directory.write("odd.token", content, 0o600)
    fault = directory.fault(CLIENT + "  token_file: odd.token\n")
    assert says in fault
    assert "(" in fault  # and what to do


def test_a_byte_order_mark_is_taken_off(directory: ConfigDirectory) -> None:
    directory.write("bom.token", b"\xef\xbb\xbf" + directory.tokens["office"].encode() + b"\r\n", 0o600)
    assert directory.client(CLIENT + "  token_file: bom.token\n").servers[0].token == directory.secrets["office"]


@posix
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can own what others read")
def test_every_secret_is_taken_as_a_manager_mounts_it(
    directory: ConfigDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = load_or_create_identity(directory.path / "server.key")
    directory.write("proxy.password", "secret", 0o440)
    for name in ("office.token", "server.key", "private.pem"):
        (directory.path / name).chmod(0o440)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    server = directory.server(
        """\
        server:
          clients: [{name: office, token_file: office.token}]
          identity: server.key
          tls: {certificate: full.pem, key: private.pem}
        """
    )
    assert load_or_create_identity(server.identity).fingerprint == identity.fingerprint
    client = directory.client(
        CLIENT
        + "  token_file: office.token\n  tls: {certificate: full.pem, key: private.pem}\n"
        + "  proxy: http://me@proxy:1\n  proxy_password_file: proxy.password\n"
    )
    assert client.servers[0].token == directory.secrets["office"]
    directory.config(CLIENT + f"  token: {directory.tokens['office']}\n", 0o440)
    assert load_config(directory.file, want="client", environ={}).servers[0].token == directory.secrets["office"]


def test_a_variable_in_a_flow_mapping_needs_quotes_and_is_told_so(directory: ConfigDirectory) -> None:
    assert "needs quotes" in directory.fault("client: {token: ${OFFICE_TOKEN}}\n")


@pytest.mark.parametrize("name", [".", "missing.token", "pipe"])
def test_what_is_no_file_is_refused_without_waiting_for_it(directory: ConfigDirectory, name: str) -> None:
    os.mkfifo(directory.path / "pipe", 0o600)
    assert "which cannot be read" in directory.fault(CLIENT + f"  token_file: {name}\n")


PLACES = [
    'client: {name: "@"}',
    'client: {url: "@"}',
    'client: {url: "wss://@/"}',
    'client: {url: "wss://user:@@host/"}',
    'client: {url: "ftp://host/@"}',
    'client: {transport: "@"}',
    'client: {transport: [grpc, "@"]}',
    'client: {token: "@"}',
    'client: {token: "@x"}',
    'client: {token: ["@"]}',
    'client: {token_file: "@"}',
    'client: {server_fingerprint: "@"}',
    'client: {servers: [{url: "wss://user:@@host/", token: "@", token_file: "@", server_fingerprint: "@"}]}',
    'client: {servers: [{url: ["ftp://@"], token: "@x"}, "@"], url: "@", token: "@x"}',
    'client: {servers: "@"}',
    'client: {tls: {ca_file: "@"}}',
    'client: {state_dir: {a: "@"}}',
    'client: {forwards: [{local: "@", to: "@"}]}',
    'client: {forwards: [{local: "127.0.0.1:@", to: "@:x"}]}',
    'client: {drain: "@"}',
    'client: {log: {level: "@", file: "@"}}',
    'client: "@"',
    '"@"',
    'server: {clients: [{name: "@"}]}',
    'server: {clients: [{name: a, token: "@x"}]}',
    'server: {clients: [{name: a, token_file: "@"}]}',
    'server: {clients: [{name: a, allow_connect: ["@:80"], allow_listen: "@:80"}]}',
    'server: {listen: "@:1", path: "@", node: "@@", identity: "@", trusted_proxies: "@"}',
    'server: {tls: {certificate: "@", key: "@"}}',
    # Where a variable is not replaced, so that only a literal token can be.
    'client: {"@": 1}',
    'client: {"@": 1, "@": 2}',
    '"@": 1',
    "client: {@: 1}",
    "client: [@",
    "client: *@",
    "client: !@ x",
    "client: {token: &@ x, name: *@x}",
]


@pytest.mark.parametrize("mode", [0o600, 0o644])
@pytest.mark.parametrize("way", ["literal", "environment"])
@pytest.mark.parametrize("place", PLACES)
def test_a_token_is_never_shown_wherever_it_was_pasted(
    directory: ConfigDirectory, place: str, way: str, mode: int
) -> None:
    # `faults` looks for the tokens in all that it got.
    token = directory.tokens["office"]
    directory.environ["SECRET"] = token
    directory.faults(place.replace("@", token if way == "literal" else "${SECRET}"), mode=mode)


def test_no_other_value_of_the_environment_is_shown_either(directory: ConfigDirectory) -> None:
    directory.environ["PASSWORD"] = "correct horse"
    for place in PLACES:
        for fault in directory.faults(place.replace("@", "${PASSWORD}")):
            assert "horse" not in fault


def test_a_token_with_one_character_wrong_is_refused_and_not_shown(directory: ConfigDirectory) -> None:
    token = generate_token()
    wrong = token[:20] + ("A" if token[20] != "A" else "B") + token[21:]
    fault = directory.fault(CLIENT + f"  token: {wrong}\n")
    assert "the token's checksum does not hold" in fault
    assert wrong[10:] not in fault


def test_space_round_a_token_in_a_file_does_not_matter(directory: ConfigDirectory) -> None:
    token = generate_token()
    directory.write("spaced.token", f"\n  {token}\r\n\n", 0o600)
    assert directory.client(CLIENT + "  token_file: spaced.token\n").servers[0].token == parse_token(token)
