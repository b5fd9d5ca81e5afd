"""Promises of a client that has no file: a URL, and forwards in ssh's syntax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qanat.base.endpoint_addresses import ANYWHERE, TcpAddress
from qanat.base.errors import UsageError
from qanat.config.client_settings import ANY_ORDINARY, RemoteServer
from qanat.config.command_line import client_from_options
from qanat.config.forward_settings import Forward
from qanat.config.forwards import parse_ssh_forward
from qanat.handshake.tokens import generate_token, parse_token
from tests.support.config_rig import ENVIRON, FINGERPRINT, TOKEN, URL


@pytest.mark.parametrize(
    ("text", "listen", "to"),
    [
        ("5432:db:5432", ("localhost", 5432), ("db", 5432)),
        ("0:db:5432", ("localhost", 0), ("db", 5432)),
        ("127.0.0.2:80:db:81", ("127.0.0.2", 80), ("db", 81)),
        ("localhost:80:db:81", ("localhost", 80), ("db", 81)),
        ("localhost:80:localhost:81", ("localhost", 80), ("localhost", 81)),
        ("*:80:db:81", ("*", 80), ("db", 81)),
        (":80:db:81", ("*", 80), ("db", 81)),
        ("[::1]:80:db:81", ("::1", 80), ("db", 81)),
        ("[::]:80:[2001:db8::1]:81", ("::", 80), ("2001:db8::1", 81)),
        ("80:[2001:db8::1]:81", ("localhost", 80), ("2001:db8::1", 81)),
        ("80:[10.0.0.1]:81", ("localhost", 80), ("10.0.0.1", 81)),
        ("[127.0.0.1]:80:[db]:81", ("127.0.0.1", 80), ("db", 81)),
        (" 80:db:81 ", ("localhost", 80), ("db", 81)),
    ],
)
def test_forwards_are_read_as_ssh_reads_them(text: str, listen: tuple[str, int], to: tuple[str, int]) -> None:
    where, target = TcpAddress(*listen), TcpAddress(*to)
    for kind in ("local", "remote"):
        assert parse_ssh_forward(kind, text.strip()) == Forward(kind, where, target)
    settings = client_from_options(urls=[URL], local=[text], remote=[text], environ=ENVIRON)
    assert settings.forwards == (Forward("local", where, target), Forward("remote", where, target))


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"remote": ["80:127.0.0.1"]}, "-R 80:127.0.0.1 has a port that is not a number, '127.0.0.1'", "HOST:HOSTPORT"),
        ({"local": ["80:db:http"]}, "has a port that is not a number, 'http'", "a service's name is not looked up"),
        ({"local": ["99999:a:1"]}, "-L 99999:a:1 has a port outside", "[ADDRESS:]PORT:HOST:HOSTPORT"),
        ({"dynamic": ["99999"]}, "-D 99999 has a port outside", "127.0.0.1:1080"),
        ({"name": "my name"}, "the client's name must be", "give --name NAME"),
        ({"token_file": Path("/nonexistent/a")}, "cannot be read: No such file", "correct the path"),
        ({"token_file": Path("/")}, "cannot be read: it is not a file", "name a file"),
        ({"ca_file": Path("/nonexistent/a")}, "cannot be read: No such file", "correct the path"),
    ],
)
def test_what_is_wrong_says_what_to_do_next(given: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        client_from_options(urls=[URL], environ=ENVIRON, **given)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no target"),
        ("1:2:3:4:5", "has too many parts"),
        ("::1:80:db:81", "has too many parts"),
        ("80:2001:db8::1:81", "has too many parts"),
        ("[::1:80:db:81", "has a bracket in the wrong place"),
        ("[::1]80:db:81", "has a bracket in the wrong place"),
        ("80:db]:81", "has a bracket in the wrong place"),
        ("[[::1]]:80:db:81", "has a bracket in the wrong place"),
        ("http:db:81", "has a port that is not a number"),
        ("80:db:http", "has a port that is not a number"),
        ("80:db:0", "has a port outside 1 to 65535"),
        ("65536:db:80", "has a port outside 0 to 65535"),
        ("-1:db:80", "has a port that is not a number"),
        ("80::81", "names no host"),
        ("80:d b:81", "has a character in its host"),
        ("example.com:80:db:81", "needs a literal address, not a name"),
        ("80:db:", "has a port that is not a number"),
    ],
)
def test_a_forward_that_cannot_be_is_refused_with_its_option_and_text(text: str, message: str) -> None:
    with pytest.raises(UsageError) as local:
        client_from_options(urls=[URL], local=[text], environ=ENVIRON)
    with pytest.raises(UsageError) as remote:
        client_from_options(urls=[URL], remote=[text], environ=ENVIRON)
    for option, error in (("-L", local.value), ("-R", remote.value)):
        assert message in error.message
        assert error.hint
        assert error.message.startswith(f"{option} {text} ")


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("1080", ("localhost", 1080)),
        ("127.0.0.1:1080", ("127.0.0.1", 1080)),
        ("[::1]:1080", ("::1", 1080)),
        ("*:1080", ("*", 1080)),
        (":0", ("*", 0)),
    ],
)
def test_who_connects_says_where_to_at_either_end(text: str, listen: tuple[str, int]) -> None:
    settings = client_from_options(urls=[URL], dynamic=[text], remote=[text], environ=ENVIRON)
    where = TcpAddress(*listen)
    assert settings.forwards == (Forward("remote", where, ANYWHERE), Forward("local", where, ANYWHERE))
    assert settings.allow_connect == ANY_ORDINARY
    with pytest.raises(UsageError, match=r"-L .* has no target"):
        client_from_options(urls=[URL], local=[text], environ=ENVIRON)


@pytest.mark.parametrize("text", ["", "1080:a:1", "a:1080", "65536", "x", "[::1]", "1:2:3"])
def test_a_dynamic_forward_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^-D "):
        client_from_options(urls=[URL], dynamic=[text], environ=ENVIRON)


def test_rules_for_what_others_may_reach_from_here() -> None:
    rules = ["10.0.0.0/8:*,*.example.com:443", "127.0.0.1:80"]
    settings = client_from_options(urls=[URL], remote=["1080"], allow_connect=rules, environ=ENVIRON)
    assert settings.allow_connect == ("10.0.0.0/8:*", "*.example.com:443", "127.0.0.1:80")
    with pytest.raises(UsageError, match="--allow-connect"):
        client_from_options(urls=[URL], remote=["1080"], allow_connect=["10.0.0.0/8"], environ=ENVIRON)


def test_two_forwards_of_a_kind_cannot_listen_in_one_place() -> None:
    with pytest.raises(UsageError, match="listens where another -L does already"):
        client_from_options(urls=[URL], local=["80:a:1", "127.0.0.1:80:b:2"], environ=ENVIRON)
    with pytest.raises(UsageError, match="listens where another -R does already"):
        client_from_options(urls=[URL], remote=["[::]:80:a:1", "*:80:b:2"], environ=ENVIRON)
    assert client_from_options(urls=[URL], local=["80:a:1", "0:a:1", "0:a:1"], remote=["80:a:1"], environ=ENVIRON)


def test_everything_given_ends_up_in_the_settings(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    settings = client_from_options(
        urls=[URL],
        name="office",
        fingerprint=FINGERPRINT,
        ca_file=tmp_path / "ca.pem",
        state_dir=tmp_path,
        environ=ENVIRON,
    )
    assert settings.servers == (RemoteServer((URL,), parse_token(TOKEN), FINGERPRINT),)
    assert (settings.name, settings.tls.ca_file, settings.state_dir) == ("office", tmp_path / "ca.pem", tmp_path)


def test_the_token_file_comes_before_the_environment(tmp_path: Path) -> None:
    token = generate_token()
    file = tmp_path / "office.token"
    file.write_text(token)
    file.chmod(0o600)
    assert client_from_options(urls=[URL], token_file=file, environ=ENVIRON).servers[0].token == parse_token(token)
    file.chmod(0o644)
    with pytest.raises(UsageError, match=f"--token-file names {file}, which others can read .* .chmod 600 {file}"):
        client_from_options(urls=[URL], token_file=file, environ=ENVIRON)


def test_a_missing_or_wrong_token_is_said_and_not_shown() -> None:
    with pytest.raises(UsageError, match="--token-file FILE, or set QANAT_TOKEN"):
        client_from_options(urls=[URL], environ={})
    with pytest.raises(UsageError, match="QANAT_TOKEN holds no token") as caught:
        client_from_options(urls=[URL], environ={"QANAT_TOKEN": TOKEN[:-1]})
    assert TOKEN[7:30] not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "url", "environ", "file", "expected"),
    [
        ("a", "wss://b@h/", {"QANAT_NAME": "c"}, "d.token", "a"),
        (None, "wss://b@h/", {"QANAT_NAME": "c"}, "d.token", "b"),
        (None, "wss://h/", {"QANAT_NAME": "c"}, "d.token", "c"),
        (None, "wss://h/", {}, "d.token", "d"),
        (None, "wss://h/", {}, None, "client"),
    ],
)
def test_the_name_is_the_first_that_is_given(
    tmp_path: Path, name: str | None, url: str, environ: dict[str, str], file: str | None, expected: str
) -> None:
    path = tmp_path / file if file else None
    if path:
        path.write_text(TOKEN)
        path.chmod(0o600)
    settings = client_from_options(urls=[url], name=name, token_file=path, environ=ENVIRON | environ)
    assert settings.name == expected
    assert settings.servers[0].urls == ("wss://h/",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"urls": ["ftp://h/"]}, "does not begin with wss://"),
        ({"urls": ["wss://user:secret@h/"]}, "leave out all before the @"),
        ({"urls": ["wss://h/a b"]}, "the URL cannot be used"),
        ({"urls": ["wss://a~b@h/"]}, "the client's name must be 1 to 64"),
        ({"urls": [URL], "name": "a/b"}, "the client's name must be 1 to 64"),
        ({"urls": [URL], "fingerprint": "SHA256:x"}, "--fingerprint is not a fingerprint"),
        ({"urls": [URL], "ca_file": Path("/nonexistent")}, "--ca-file names /nonexistent, which cannot be read"),
        ({"urls": ["ws://h/"], "ca_file": Path(__file__)}, "--ca-file has no effect on a URL without TLS"),
        ({"urls": ["ws://h/", "ws://i/"], "ca_file": Path(__file__)}, "--ca-file has no effect on a URL without TLS"),
        ({"urls": [URL, "ftp://h/"]}, "the URL cannot be used: the URL 'ftp://h/' does not begin with"),
        ({"urls": ["wss://a@h/", "wss://b@i/"]}, "the URLs have different names before the @"),
        (
            {"urls": [URL], "transport": ["quic"]},
            "--transport must be websocket, http2, grpc, websocket-h2, split or auto",
        ),
        (
            {"urls": [URL], "transport": ["http2,"]},
            "--transport must be websocket, http2, grpc, websocket-h2, split or auto",
        ),
        ({"urls": [URL], "transport": ["grpc", "http2,grpc"]}, "--transport names grpc twice"),
        ({"urls": [URL], "lanes": 0}, "--lanes must be a whole number from 1 to 16"),
        ({"urls": [URL], "lanes": 17}, "--lanes must be a whole number from 1 to 16"),
    ],
)
def test_what_cannot_be_used_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        client_from_options(environ=ENVIRON, **options)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_known_hosts_are_kept_where_the_user_keeps_such_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = {"QANAT_TOKEN": TOKEN}
    assert client_from_options(urls=[URL], environ=ENVIRON).state_dir == Path("/var/lib/qanat")
    assert client_from_options(urls=[URL], environ=token | {"XDG_STATE_HOME": "/x"}).state_dir == Path("/x/qanat")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert client_from_options(urls=[URL], environ=token).state_dir == tmp_path / ".local/state/qanat"


@pytest.mark.parametrize(
    ("transports", "expected"),
    [
        ([], ("auto",)),
        (["http2"], ("http2",)),
        (["auto"], ("auto",)),
        (["grpc, http2"], ("grpc", "http2")),
        (["grpc", "http2,websocket"], ("grpc", "http2", "websocket")),
    ],
)
def test_the_transport_is_auto_unless_others_are_named_in_their_order(
    transports: list[str], expected: tuple[str, ...]
) -> None:
    assert client_from_options(urls=[URL], transport=transports, environ=ENVIRON).transports == expected


def test_one_connection_unless_more_lanes_are_asked_for() -> None:
    assert client_from_options(urls=[URL], environ=ENVIRON).lanes == 1
    assert client_from_options(urls=[URL], lanes=16, environ=ENVIRON).lanes == 16


def test_several_urls_are_several_ways_to_one_server(tmp_path: Path) -> None:
    plain = "ws://inside.example.com/tunnel"
    (tmp_path / "ca.pem").write_text("")
    settings = client_from_options(
        urls=[URL.replace("://", "://office@"), plain, URL], ca_file=tmp_path / "ca.pem", environ=ENVIRON
    )
    assert settings.servers == (RemoteServer((URL, plain, URL), parse_token(TOKEN)),)
    assert settings.name == "office"
    with pytest.raises(UsageError, match="the environment variable http_proxy names a kind of proxy"):
        client_from_options(urls=[URL, plain], environ=ENVIRON | {"http_proxy": "gopher://proxy"})


def test_a_user_without_a_home_needs_none_when_nothing_would_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    token = {"QANAT_TOKEN": TOKEN}
    assert client_from_options(urls=[URL], fingerprint=FINGERPRINT, environ=token).state_dir is None
    with pytest.raises(UsageError, match=r"no home directory .*--fingerprint"):
        client_from_options(urls=[URL], environ=token)
