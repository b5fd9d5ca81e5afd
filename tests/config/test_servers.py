"""Promises of how a client's configuration names its servers, and what carries the tunnel to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qanat.config.client_settings import ClientTls, RemoteServer
from qanat.transports.dial.proxies import EnvironmentProxies
from tests.support.config_rig import CLIENT, FINGERPRINT, ConfigDirectory, client_with

A, B, C = ("wss://a.example.com/tunnel", "wss://b.example.com/tunnel", "ws://c.example.com/tunnel")
ONE = f"client:\n  name: office\n  servers:\n    - {{url: {A}, token_file: office.token}}\n"
TWO = ONE + f"    - {{url: {B}, token_file: home.token}}\n"


def servers_with(lines: str) -> str:
    return TWO + "".join(f"  {line}\n" for line in lines.splitlines())


@pytest.fixture
def directory(tmp_path: Path) -> ConfigDirectory:
    return ConfigDirectory(tmp_path)


# --- one server, or a list of them


def test_each_server_has_its_urls_its_token_and_its_key(directory: ConfigDirectory) -> None:
    directory.environ["HOME_TOKEN"] = directory.tokens["home"]
    settings = directory.client(f"""\
        client:
          name: office
          servers:
            - url: {A}
              token_file: office.token
              server_fingerprint: {FINGERPRINT}
            - url: [{B}, {C}]
              token: ${{HOME_TOKEN}}
        """)
    assert settings.servers == (
        RemoteServer((A,), directory.secrets["office"], FINGERPRINT),
        RemoteServer((B, C), directory.secrets["home"]),
    )


def test_a_list_of_one_server_is_as_good_as_its_url(directory: ConfigDirectory) -> None:
    assert directory.client(ONE).servers == (RemoteServer((A,), directory.secrets["office"]),)


def test_the_same_token_may_open_two_servers(directory: ConfigDirectory) -> None:
    assert len(directory.client(TWO.replace("home.token", "office.token")).servers) == 2


@pytest.mark.parametrize(
    ("servers", "place", "text"),
    [
        ("[]", "3:12", "`servers` is empty, so there is no server to connect to"),
        ("", "3:3", "`servers` has no value"),
        (A, "3:12", "must be a list, each entry with a dash in front, not text"),
        (f"{{url: {A}, token_file: office.token}}", "3:12", "must be a list, each entry with a dash"),
        (f"[{A}]", "3:13", "`servers` must be a section of `key: value` lines, not text"),
        ("[{token_file: office.token}]", "3:13", "`servers` has no `url`; for example wss://"),
        (f"[{{url: {A}}}]", "3:13", "`servers` needs `token_file` or `token`"),
        ("[{url: [], token_file: office.token}]", "3:19", "`url` is empty, so there is no server"),
        ("[{url: ftp://a/, token_file: office.token}]", "3:19", "`url` cannot be used: the URL 'ftp://a/'"),
        (f"[{{url: {A}, token_file: full.pem}}]", "3:59", "others can read (mode 0644) (chmod 600"),
        (f"[{{url: {A}, token_file: [office.token]}}]", "3:59", "must be text, not a list"),
        (f"[{{url: {A}, token_file: office.token, token: '${{T}}'}}]", "3:47", "`token_file` and `token` are both"),
        (f"[{{url: {A}, token_file: office.token, server_fingerprint: SHA256:x}}]", "3:93", "is not a fingerprint"),
        (f"[{{url: {A}, token_file: office.token, fingerprint: x}}]", "3:73", "did you mean `server_fingerprint`?"),
        (f"[{{url: {A}, token_file: office.token, urls: [{B}]}}]", "3:73", "did you mean `url`?"),
        (f"[{{url: {A}, token_file: office.token, transport: grpc}}]", "3:73", "it belongs in `client:`"),
        (f"[{{url: {A}, token_file: office.token, name: a}}]", "3:73", "it belongs in `client:`"),
    ],
)
def test_a_fault_in_the_list_of_servers_is_told_in_its_place(
    directory: ConfigDirectory, servers: str, place: str, text: str
) -> None:
    directory.environ["T"] = directory.tokens["office"]
    fault = directory.fault(f"client:\n  name: office\n  servers: {servers}\n")
    assert fault.startswith(f"{place}: "), fault
    assert text in fault


def test_one_url_cannot_be_two_servers(directory: ConfigDirectory) -> None:
    for same in (A, "https://A.example.com:443/tunnel"):
        fault = directory.fault(TWO.replace(B, f"[{B}, '{same}']"))
        assert fault.startswith("5:42: `url` is that of the server in line 4 too (are they two servers, or one")
    assert directory.client(TWO.replace(B, "wss://a.example.com/other"))


def test_one_server_beside_the_list_is_refused_key_by_key(directory: ConfigDirectory) -> None:
    faults = directory.faults(TWO + f"  url: {C}\n  token_file: office.token\n  server_fingerprint: {FINGERPRINT}\n")
    assert faults == [
        f"{line}:3: `{key}` stands beside `servers`; move it into an entry there, or leave `servers` out"
        for line, key in ((6, "url"), (7, "token_file"), (8, "server_fingerprint"))
    ]


def test_a_near_miss_of_url_or_servers_is_known_for_what_it_is(directory: ConfigDirectory) -> None:
    faults = directory.faults(CLIENT.replace("url:", "urls:"))
    assert "1:1: `client` has no `url`; for example" in faults[0]
    assert "3:3: unknown key `urls` in `client`; did you mean `url`?" in faults[1]
    assert any("did you mean `servers`?" in fault for fault in directory.faults(TWO.replace("servers:", "server:")))


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_token_in_the_list_must_be_closed_to_others(directory: ConfigDirectory, mode: int) -> None:
    text = TWO.replace("token_file: home.token", f"token: {directory.tokens['home']}")
    if mode == 0o600:
        assert directory.client(text).servers[1].token == directory.secrets["home"]
        assert repr(directory.secrets["home"]) not in repr(directory.client(text))
    else:
        fault = directory.fault(text, mode=mode)
        assert fault.startswith("5:48: `token` is in a file that others can read (chmod 600")


def test_checks_of_the_way_look_at_the_urls_of_all_servers(directory: ConfigDirectory) -> None:
    tls = "  tls: {ca_file: full.pem}\n"
    plain = TWO.replace("wss:", "ws:")
    assert "`ca_file` has no effect, since no `url` is with TLS" in directory.fault(plain + tls)
    mixed = plain.replace("ws://b", "wss://b")
    assert directory.client(mixed + tls).tls == ClientTls(directory.path / "full.pem")
    directory.environ["https_proxy"] = "gopher://me:sesame@proxy:70"
    assert directory.client(plain).proxy == EnvironmentProxies.read(directory.environ)
    fault = directory.fault(mixed)
    assert "the environment variable https_proxy names a kind of proxy" in fault
    assert "sesame" not in fault


def test_all_faults_of_all_servers_are_reported_at_once(directory: ConfigDirectory) -> None:
    faults = directory.faults("""\
        client:
          name: office
          url: ftp://a/
          token: nonsense
          servers:
            - {url: "wss:///x", token_file: absent}
            - {uri: ws://b/}
        """)
    assert [fault.split(": ")[0] for fault in faults] == [
        "3:3",
        "3:8",
        "4:3",
        "4:10",
        "6:13",
        "6:37",
        "7:7",
        "7:7",
        "7:8",
    ]


# --- one after the other, or all at once


def test_servers_follow_one_another_unless_all_are_wanted(directory: ConfigDirectory) -> None:
    for text, expected in (
        (TWO, ("first", 5.0)),
        (servers_with("connect: first\nfailover_after: 0.5"), ("first", 0.5)),
        (servers_with("failover_after: 0"), ("first", 0)),
        (servers_with("failover_after: 3600"), ("first", 3600)),
        (servers_with("connect: all"), ("all", 5.0)),
        (client_with("connect: first"), ("first", 5.0)),
    ):
        settings = directory.client(text)
        assert (settings.connect, settings.failover_after) == expected


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (servers_with("connect: any"), "6:12", "`connect` must be first or all"),
        (servers_with("connect: alle"), "6:12", "(did you mean `all`?)"),
        (servers_with("connect: [all]"), "6:12", "must be text, not a list"),
        (servers_with("failover_after: -1"), "6:19", "must be a number of seconds from 0 to 3600, without a unit"),
        (servers_with("failover_after: 3601"), "6:19", "must be a number of seconds from 0 to 3600"),
        (servers_with("failover_after: 5s"), "6:19", "without a unit"),
        (servers_with("connect: all\nfailover_after: 5"), "7:3", "has no effect with `connect: all`"),
        (ONE + "  connect: all\n", "5:3", "`connect` is about several servers, and `servers` has only one"),
        (ONE + "  failover_after: 5\n", "5:3", "`failover_after` is about several servers, and `servers` has only one"),
        (
            client_with("connect: all"),
            "5:3",
            "`connect` is about several servers, and there is only the one that `url`",
        ),
        (
            client_with("failover_after: 5"),
            "5:3",
            "is about several servers, and there is only the one that `url` names",
        ),
        (
            "client: {name: a, servers: [], connect: all, failover_after: 5}",
            "1:46",
            "has no effect with `connect: all`",
        ),
    ],
)
def test_what_only_several_servers_can_do_is_refused_for_one(
    directory: ConfigDirectory, text: str, place: str, words: str
) -> None:
    *others, fault = directory.faults(text)
    assert fault.startswith(f"{place}: "), fault
    assert words in fault
    assert [other for other in others if "`servers` is empty" not in other] == []


# --- what carries the tunnel


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("websocket", ("websocket",)),
        ("auto", ("auto",)),
        ("[grpc]", ("grpc",)),
        ("[http2, grpc, websocket]", ("http2", "grpc", "websocket")),
        ("[grpc, auto]", ("grpc", "auto")),
    ],
)
def test_transports_are_tried_in_the_order_of_their_list(
    directory: ConfigDirectory, text: str, expected: tuple[str, ...]
) -> None:
    assert directory.client(client_with(f"transport: {text}")).transports == expected


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("[]", "5:14", "`transport` is empty, so nothing could carry the tunnel"),
        ("[grpc, grpc]", "5:21", "`transport` names grpc twice"),
        ("[auto, auto]", "5:21", "`transport` names auto twice"),
        ("[http2, web-socket]", "5:22", "did you mean `websocket`?"),
        ("'http2, grpc'", "5:14", "must be websocket, http2, grpc, websocket-h2, split or auto"),
        ("{http2: grpc}", "5:14", "must be text, or a list of texts, not a section"),
        ("[2]", "5:15", "must be text, or a list of texts, not a number"),
    ],
)
def test_transports_that_cannot_be_tried_are_refused(
    directory: ConfigDirectory, text: str, place: str, words: str
) -> None:
    fault = directory.fault(client_with(f"transport: {text}"))
    assert fault.startswith(f"{place}: "), fault
    assert words in fault


# --- the connections themselves


def test_one_connection_for_as_long_as_it_lasts_unless_said(directory: ConfigDirectory) -> None:
    for text, expected in (
        (CLIENT, (1, None)),
        (client_with("lanes: 1\nmax_pipe_age: 1"), (1, 1)),
        (client_with("lanes: 16\nmax_pipe_age: 604_800"), (16, 604800)),
        (servers_with("lanes: 4\nmax_pipe_age: 99.5"), (4, 99.5)),
    ):
        settings = directory.client(text)
        assert (settings.lanes, settings.max_pipe_age) == expected


@pytest.mark.parametrize(
    ("lines", "place", "text"),
    [
        ("lanes: 0", "5:10", "`lanes` must be a whole number from 1 to 16"),
        ("lanes: 17", "5:10", "`lanes` must be a whole number from 1 to 16"),
        ("lanes: 1.5", "5:10", "`lanes` must be a whole number"),
        ("lanes: '2'", "5:10", "`lanes` must be a whole number"),
        ("lane: 2", "5:3", "did you mean `lanes`?"),
        ("max_pipe_age: 0", "5:17", "must be a number of seconds from 1 to 604800, without a unit"),
        ("max_pipe_age: 604801", "5:17", "must be a number of seconds from 1 to 604800"),
        ("max_pipe_age: 1h", "5:17", "without a unit"),
        ("max_pipe_age: none", "5:17", "must be a number of seconds"),
        ("max_pipe_age:", "5:3", "has no value; give one, or leave the key out for its default"),
        ("max_age: 5", "5:3", "did you mean `max_pipe_age`?"),
    ],
)
def test_a_number_of_connections_or_an_age_that_cannot_be_is_refused(
    directory: ConfigDirectory, lines: str, place: str, text: str
) -> None:
    fault = directory.fault(client_with(lines))
    assert fault.startswith(f"{place}: "), fault
    assert text in fault


def test_all_that_is_wrong_with_servers_and_connections_is_reported_at_once(directory: ConfigDirectory) -> None:
    faults = directory.faults(
        ONE + "  connect: all\n  failover_after: -1\n  transport: [grpc, quic]\n  lanes: 0\n  max_pipe_age: 0\n"
    )
    assert [fault.split(": ")[0] for fault in faults] == ["5:3", "6:3", "6:19", "7:21", "8:10", "9:17"]
