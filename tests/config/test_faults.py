"""Promises of the configuration file: every fault is told at once, in its place, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from qanat.config.load import ConfigError, check_config
from tests.support.config_rig import FINGERPRINT, SERVER, ConfigDirectory, client_with, server_with


@pytest.fixture
def directory(tmp_path: Path) -> ConfigDirectory:
    return ConfigDirectory(tmp_path)


def test_a_directory_for_names_that_makes_sockets_paths_too_long_is_refused(directory: ConfigDirectory) -> None:
    assert directory.server(server_with(f"publish_dir: /run/{'long' * 21}")).publish_dir is not None
    rule = SERVER + "      allow_publish: ['*.office.example.com']\n"
    assert directory.server(rule + "  publish_dir: /run/qanat/published\n").publish_dir is not None
    (fault,) = directory.faults(rule + f"  publish_dir: /run/{'long' * 21}\n")
    assert "makes the path of a socket too long" in fault
    assert "110 bytes, and 107 are possible" in fault


def test_all_faults_are_reported_at_once_in_the_order_of_the_file(directory: ConfigDirectory) -> None:
    faults = directory.faults("""\
        server:
          lisen: 127.0.0.1:8443
          drain: soon
          clients:
            - name: office
              token_file: nowhere.token
              allow_conect: []
              shared_listen: 127.0.0.1:0
          resume_for: long
          limits:
            sessions: 0
            handshake_rate: 0
            lanes: many
        client:
          name: "no good"
          url: ftp://example.com
          token_file: office.token
          forwards:
            - {local: 127.0.0.1:1}
        sever: {}
        """)
    assert [fault.split(": ")[0] for fault in faults] == [
        "2:3",
        "3:10",
        "6:19",
        "7:7",
        "8:22",
        "9:15",
        "11:15",
        "12:21",
        "13:12",
        "15:9",
        "16:8",
        "19:7",
        "20:1",
    ]
    for fault, expected in zip(
        faults,
        [
            "unknown key `lisen` in `server`; did you mean `listen`?",
            "`drain` must be a number of seconds from 0 to 3600, without a unit",
            "nowhere.token, which cannot be read: No such file",
            "did you mean `allow_connect`?",
            "`shared_listen` has port 0",
            "`resume_for` must be a number of seconds from 0 to 86400",
            "`sessions` must be a whole number from 1 to 1000000",
            "`handshake_rate` must be a number from 0.1 to 100000",
            "`lanes` must be a whole number from 1 to 16",
            "`name` must be 1 to 64 of",
            "`url` cannot be used: the URL 'ftp://example.com' does not begin with",
            "`forwards` has no `to`",
            "unknown key `sever` in `the file`; did you mean `server`?",
        ],
        strict=True,
    ):
        assert expected in fault


@pytest.mark.parametrize(
    ("content", "place", "text"),
    [
        ("", "1:1", "the file is empty"),
        ("# only a comment\n", "1:1", "the file is empty"),
        ("- a\n- b\n", "1:1", "`the file` must be a section of `key: value` lines, not a list"),
        ("hello\n", "1:1", "`the file` must be a section of `key: value` lines, not text"),
        ("server:\n\tlisten: x\n", "2:1", "indent with spaces, not with tabs"),
        ("server: {listen: x\n", "2:1", "this is not YAML"),
        ("server:\n  listen: [::1]:8443\n", "2:12", 'an IPv6 address needs quotes: "[::1]:8443"'),
        ("client: {forwards: [{to: ::1:80}]}\n", "1:26", 'an IPv6 address needs brackets, and quotes: "[::1]:8443"'),
        ("server: *nothing\n", "1:9", "this is not YAML: found undefined alias"),
        ("a: 1\n---\nb: 2\n", "2:1", "a second document begins here (`---`); a configuration is one"),
        (b"server:\n  path: /\xff\n", "2:10", "not UTF-8"),
        ("server:\n  # \u00fc\n  path: '\x07'\n", "3:10", "control character"),
        ("\ufeff", "1:1", "the file is empty"),
        ("a: " + "[" * 5000, "1:1", "nested deeper"),
        ("x: " + "a" * 1_100_000, "1:1", "longer than 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_says_where_and_why(
    directory: ConfigDirectory, content: str | bytes, place: str, text: str
) -> None:
    faults = directory.faults(content if isinstance(content, bytes) else content.encode())
    assert faults[0].startswith(f"{place}: ")
    assert text in faults[0]


def test_a_file_that_is_not_there_or_not_a_file_is_a_fault_too(directory: ConfigDirectory) -> None:
    for path in (directory.path / "missing.yaml", directory.path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match=r":1:1: cannot be read: .* \((correct the path, or have|name a file)"):
            check_config(path, {})


def test_a_few_lines_of_aliases_cannot_stand_for_billions(directory: ConfigDirectory) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    assert "more than 256 aliases" in directory.fault("\n".join(lines) + "\n")


def test_an_alias_may_share_a_list(directory: ConfigDirectory) -> None:
    settings = directory.server("""\
        server:
          clients:
            - {name: a, token_file: office.token, allow_connect: &inner ["10.0.0.0/8:*"]}
            - {name: b, token_file: home.token, allow_connect: *inner}
        """)
    assert settings.clients[0].allow_connect == settings.clients[1].allow_connect == ("10.0.0.0/8:*",)


def test_an_alias_of_itself_ends(directory: ConfigDirectory) -> None:
    assert directory.faults("server: &s {clients: *s}\nclient: &c {forwards: [*c]}\n")


@pytest.mark.parametrize(
    ("lines", "place", "text"),
    [
        ("listen: :8443", "5:11", "write 0.0.0.0:8443 for every IPv4 address, [::]:8443 for every IPv6 address"),
        ("listen: '*:8443'", "5:11", "does not say on which address"),
        ("listen: localhost:8443", "5:11", "write 127.0.0.1:8443 or [::1]:8443"),
        ("listen: 8443", "5:11", "must be text, or a list of texts, not a number; put it in quotes"),
        ("listen: 8443", "5:11", 'put it in quotes, with its address: "127.0.0.1:8443"'),
        ("listen: [8443]", "5:12", 'put it in quotes, with its address: "127.0.0.1:8443"'),
        ("listen: 127.0.0.1", "5:11", "has no port"),
        ("listen: 127.0.0.1:99999", "5:11", "has a port outside 0 to 65535"),
        ("listen: 127.0.0.1:999999", "5:11", "has a port outside 0 to 65535"),
        ("listen: 127.0.0.1:http", "5:11", "has a port that is not a number"),
        ("listen: ::1:8443", "5:11", "write an IPv6 address in brackets"),
        ("listen: []", "5:11", "is empty, so nobody can connect"),
        ("listen: {host: x}", "5:11", "must be text, or a list of texts, not a section"),
        ("listen: [[a]]", "5:12", "must be text, or a list of texts, not a list"),
        ("listen:", "5:3", "has no value; give one, or leave the key out for its default"),
        ('listen: ["127.0.0.1:1", "127.0.0.1:1"]', "5:27", "has this address twice"),
        ("path: tunnel", "5:9", "must begin with /"),
        ("path: /a b", "5:9", "must begin with /"),
        ("path: /a?b", "5:9", "must begin with /"),
        ("path: /healthz", "5:9", "is taken"),
        ('path: "/a\\nb"', "5:9", "has a control character"),
        ("path: 1", "5:9", "must be text, not a number; put it in quotes"),
        ("path: !!python/object:os.system x", "5:9", "must be text, not a value with a tag of its own"),
        ("node: yes", "5:9", "must be text, not a yes or no; put it in quotes"),
        ("node: a b", "5:9", "must be 1 to 64"),
        ("tls: {certificate: full.pem}", "5:3", "`tls` has no `key`"),
        ("tls: {key: private.pem}", "5:3", "`tls` has no `certificate`"),
        ("tls: {certificate: none.pem, key: private.pem}", "5:22", "cannot be read: No such file"),
        ("tls: {certificate: full.pem, key: full.pem}", "5:37", "others can read (mode 0644) (chmod 600"),
        ("tls: {certificate: ., key: private.pem}", "5:22", "it is not a file"),
        ("identity: full.pem", "5:13", "others can read (mode 0644) (chmod 600"),
        ("identity: ~/key.pem", "5:13", "write ${HOME} or the whole path"),
        ("identity: ''", "5:13", "is empty"),
        ("trusted_proxies: [10.0.0.1/8]", "5:21", "did you mean 10.0.0.0/8?"),
        ("trusted_proxies: [10.0.0.0/33]", "5:21", "is not a network"),
        ("trusted_proxies: [example.com]", "5:21", "is not a network"),
        ("drain: -1", "5:10", "must be a number of seconds from 0 to 3600"),
        ("drain: 5s", "5:10", "without a unit"),
        ("drain: .inf", "5:10", "must be a number"),
        ("drain: .nan", "5:10", "must be a number"),
        ("drain: '5'", "5:10", "must be a number"),
        ("drain: 010", "5:10", "must be a number"),
        ("drain: [5]", "5:10", "must be a number"),
        ("drain: true", "5:10", "must be a number"),
        ("resume_for: -1", "5:15", "must be a number of seconds from 0 to 86400, without a unit"),
        ("resume_for: 86401", "5:15", "must be a number of seconds from 0 to 86400"),
        ("resume_for: 5m", "5:15", "without a unit"),
        ("resume: 5", "5:3", "did you mean `resume_for`?"),
        ("limits: {lanes: 0}", "5:19", "must be a whole number from 1 to 16"),
        ("limits: {lanes: 17}", "5:19", "must be a whole number from 1 to 16"),
        ("limits: {handshake_rate: 0.05}", "5:28", "must be a number from 0.1 to 100000"),
        ("limits: {handshake_rate: 100001}", "5:28", "must be a number from 0.1 to 100000"),
        ("lanes: 4", "5:3", "it belongs in `limits:`"),
        ("handshake_rate: 4", "5:3", "it belongs in `limits:`"),
        ("shared_listen: ['0.0.0.0:80']", "5:3", "it belongs in an entry of `clients:`"),
        ("limits: {sessions: 1.5}", "5:22", "must be a whole number"),
        ("limits: {sessions: 1000001}", "5:22", "must be a whole number from 1 to 1000000"),
        ("limits: {sesions: 1}", "5:12", "did you mean `sessions`?"),
        ("limits: 5", "5:11", "`limits` must be a section"),
        ("limits: [a]", "5:11", "`limits` must be a section"),
        ("sessions: 5", "5:3", "it belongs in `limits:`"),
        ("token: x", "5:3", "it belongs in an entry of `clients:`"),
        ("xyzzy: 5", "5:3", "known are application_keepalive, audit, bench, clients, connect_timeout"),
        ("keepalive: {interval: 45}", "5:15", "leaves `timeout` no longer than `interval`"),
        ("keepalive: {timeout: 10}", "5:15", "leaves `timeout` no longer than `interval`"),
        (
            "flow: {initial_window: 131072, max_window: 65536}",
            "5:10",
            "makes `initial_window` larger than `max_window`",
        ),
        ("flow: {initial_window: 16777217}", "5:26", "must be a whole number from 16384 to 16777216"),
        ("log: {level: verbose}", "5:16", "must be error, warning, info or debug"),
        ("log: {level: warn}", "5:16", "did you mean `warning`?"),
        ("log: {format: xml}", "5:17", "must be text or json"),
        ("drain: 1\ndrain: 2", "6:3", "`drain` is here twice; it is in line 5 already"),
        ("5: x", "5:3", "a key must be a word"),
        ("? [a]\n: x", "5:5", "a key must be a word"),
        ("<<: {drain: 1}", "5:3", "a merge (<<) is not available"),
    ],
)
def test_a_servers_fault_is_told_in_its_place(directory: ConfigDirectory, lines: str, place: str, text: str) -> None:
    fault = directory.fault(server_with(lines))
    assert fault.startswith(f"{place}: ")
    assert text in fault


@pytest.mark.parametrize(
    ("clients", "place", "text"),
    [
        ("clients: []", "2:12", "is empty, so nobody can connect"),
        ("clients: office", "2:12", "must be a list, each entry with a dash in front, not text"),
        ("clients: {name: office}", "2:12", "must be a list, each entry with a dash in front, not a section"),
        ("clients: [office]", "2:13", "`clients` must be a section"),
        ("clients:", "2:3", "has no value"),
        ("drain: 1", "1:1", "`server` has no `clients`"),
        ("clients: [{name: a}]", "2:13", "needs `token_file` or `token`; `tunnel.py token` makes a token"),
        ("clients: [{token_file: office.token}]", "2:13", "`clients` has no `name`"),
        ("clients: [{name: a/b, token_file: office.token}]", "2:20", "must be 1 to 64"),
        (f"clients: [{{name: {'a' * 65}, token_file: office.token}}]", "2:20", "must be 1 to 64"),
        (
            "clients: [{name: a, token: '${HOME_TOKEN}', token_file: office.token}]",
            "2:47",
            "`token_file` and `token` are both given",
        ),
        ("clients: [{name: a, token: x}]", "2:30", "is no token: this is not a token: it does not begin with qanat1-"),
        ("clients: [{name: a, token_file: full.pem}]", "2:35", "others can read (mode 0644) (chmod 600"),
        ("clients: [{name: a, token_file: private.pem}]", "2:35", "holds no token"),
        ("clients: [{name: a, token_file: []}]", "2:35", "is an empty list"),
        (
            "clients: [{name: a, token_file: office.token}, {name: a, token_file: home.token}]",
            "2:51",
            "is that of the client in line 2 too",
        ),
        (
            "clients: [{name: a, token_file: office.token}, {name: b, token_file: office.token}]",
            "2:72",
            "this token is that of the client of line 2 too",
        ),
        ("clients: [{name: a, token_file: [office.token, office.token]}]", "2:50", "this token is here twice"),
        (
            "clients: [{name: a, token_file: office.token, allow_listen: ['*:80']}]",
            "2:64",
            "does not say on which address",
        ),
        (
            "clients: [{name: a, token_file: office.token, shared_listen: ['*:80']}]",
            "2:65",
            "does not say on which address",
        ),
        (
            "clients: [{name: a, token_file: office.token, shared_listen: ['0.0.0.0:80', '127.0.0.1:0']}]",
            "2:79",
            "has port 0, for which the system gives each client a port of its own (put it into `allow_listen`)",
        ),
        (
            "clients: [{name: a, token_file: office.token, share_listen: ['0.0.0.0:80']}]",
            "2:49",
            "did you mean `shared_listen`?",
        ),
        (
            "clients: [{name: a, token_file: office.token, allow_connect: ['*:80']}]",
            "2:65",
            "write 0.0.0.0/0:80 for all of IPv4",
        ),
        (
            "clients: [{name: a, token_file: office.token, allow_connect: ['10.0.0.0/40:80']}]",
            "2:65",
            "is not a network in CIDR form",
        ),
        (
            "clients: [{name: a, token_file: office.token, allow_connect: ['localhost:80']}]",
            "2:65",
            "write 127.0.0.1 or [::1] instead",
        ),
    ],
)
def test_a_fault_in_the_list_of_clients_is_told_in_its_place(
    directory: ConfigDirectory, clients: str, place: str, text: str
) -> None:
    directory.environ["HOME_TOKEN"] = directory.tokens["home"]
    fault = directory.fault(f"server:\n  {clients}\n")
    assert fault.startswith(f"{place}: "), fault
    assert text in fault


def test_a_third_token_is_refused(directory: ConfigDirectory) -> None:
    directory.write("third.token", ConfigDirectory(directory.path).tokens["office"], 0o600)
    fault = directory.faults(SERVER.replace("office.token", "[office.token, home.token, third.token]"))[0]
    assert "`token_file` has more than 2 entries" in fault


@pytest.mark.parametrize(
    ("lines", "place", "text"),
    [
        ("forwards: [{dynamic: 127.0.0.1:1, to: a:1}]", "5:37", "leave one of the two out"),
        ("forwards: [{dynamic: 127.0.0.1:1, remote: 127.0.0.1:2}]", "5:15", "are both in one forward"),
        ("forwards: [{local: 127.0.0.1:1, to: dynamic}]", "5:15", "are written `dynamic: ADDRESS:PORT`"),
        ("forwards: [{dynamic: 1080}]", "5:24", 'put it in quotes, with its address: "127.0.0.1:1080"'),
        ("forwards: [{dynamic: 127.0.0.1:1, password_file: none}]", "5:52", "cannot be read"),
        (
            "forwards: [{remote: 127.0.0.1:1, to: dynamic, password_file: private.pem}]",
            "5:49",
            "goes with `dynamic` alone",
        ),
        ("forwards: [{local: 127.0.0.1:1, to: a:1}, {dynamic: 127.0.0.1:1}]", "5:46", "listens on already"),
        ("allow_connect: '127.0.0.1'", "5:18", "has no port"),
        ("forwards: [{local: 127.0.0.1:1, remote: 127.0.0.1:2, to: a:1}]", "5:35", "are both in one forward"),
        ("forwards: [{to: a:1}]", "5:14", "a forward needs `local` or `remote`"),
        ("forwards: [{local: 127.0.0.1:1}]", "5:14", "`forwards` has no `to`"),
        ("forwards: [{local: 127.0.0.1:1, to: a:0}]", "5:39", "has a port outside 1 to 65535"),
        ("forwards: [{local: 127.0.0.1:1, to: a}]", "5:39", "has no port"),
        ("forwards: [{local: 127.0.0.1:1, to: 10.0.0.1:53/udp}]", "5:39", "(write `udp: true` beside it instead)"),
        ("forwards: [{local: 127.0.0.1:1/udp, to: 10.0.0.1:53}]", "5:22", "(write `udp: true` beside it instead)"),
        ("forwards: [{local: 127.0.0.1:1, to: ':80'}]", "5:39", "names no host"),
        ("forwards: [{local: 127.0.0.1:1, to: 'http://a:80'}]", "5:39", "has too many colons"),
        ("forwards: [{local: 127.0.0.1:1, to: a/b:80}]", "5:39", "has a character in its host"),
        ("forwards: [{local: 5432, to: a:1}]", "5:22", "must be text, or a list of texts, not a number"),
        ("forwards: [{local: 5432, to: a:1}]", "5:22", 'put it in quotes, with its address: "127.0.0.1:5432"'),
        (
            "forwards: [{local: 99999, to: a:1}]",
            "5:22",
            "must be text, or a list of texts, not a number; put it in quotes",
        ),
        ("forwards: [{local: 127.0.0.1:1, to: 22}]", "5:39", 'put it in quotes, with its address: "HOST:22"'),
        ("connect_to: 443", "5:15", 'put it in quotes, with its address: "HOST:443"'),
        ("forwards: [{remote: 'example.com:80', to: a:1}]", "5:23", "needs a literal address, not a name"),
        (
            "forwards: [{local: 'localhost:80', to: a:1}, {local: '[::1]:80', to: a:1}]",
            "5:49",
            "is what the forward in line 5 listens on already",
        ),
        ("forwards: [{local: [], to: a:1}]", "5:22", "`local` is empty"),
        ("forwards: [{local: ['[::1]:1', 'a:1'], to: a:1}]", "5:34", "needs a literal address, not a name"),
        ("forwards: [{local: ['*:1', '0.0.0.0:1'], to: a:1}]", "5:15", "listens on already"),
        ("forwards: [{locale: 127.0.0.1:1, to: a:1, local: 127.0.0.1:2}]", "5:15", "did you mean `local`?"),
        ("forwards: {local: 127.0.0.1:1, to: a:1}", "5:13", "must be a list, each entry with a dash"),
        ("local: 127.0.0.1:1", "5:3", "it belongs in an entry of `forwards:`"),
        (
            "transport: websockets",
            "5:14",
            "must be websocket, http2, grpc, websocket-h2, split or auto (did you mean `websocket`?)",
        ),
        ("server_fingerprint: SHA256:abc", "5:23", "is not a fingerprint"),
        (f"server_fingerprint: {FINGERPRINT}=", "5:23", "is not a fingerprint"),
        (f"server_fingerprint: {FINGERPRINT[:-1]}", "5:23", "is not a fingerprint"),
        (f"server_fingerprint: {FINGERPRINT[:-1]}B", "5:23", "is mistyped: no fingerprint ends in that character"),
        ("tls: {ca_file: none.pem}", "5:18", "cannot be read"),
        ("reconnect: {min: 10, max: 5}", "5:15", "makes `min` larger than `max`"),
        ("ca_file: full.pem", "5:3", "it belongs in `tls:`"),
    ],
)
def test_a_clients_fault_is_told_in_its_place(directory: ConfigDirectory, lines: str, place: str, text: str) -> None:
    fault = directory.fault(client_with(lines))
    assert fault.startswith(f"{place}: "), fault
    assert text in fault


def test_two_forwards_cannot_listen_in_one_place(directory: ConfigDirectory) -> None:
    fault = directory.fault(
        client_with(
            "forwards:\n"
            "  - {local: 127.0.0.1:1, to: a:1}\n"
            "  - {remote: 127.0.0.1:1, to: a:1}\n"
            "  - {local: 127.0.0.1:0, to: a:1}\n"
            "  - {local: 127.0.0.1:0, to: a:1}\n"
            "  - {local: 127.0.0.1:1, to: b:2}"
        )
    )
    assert fault == "10:8: `local` is what the forward in line 6 listens on already"


@pytest.mark.parametrize(
    ("client", "text"),
    [
        ("name: a\n  token_file: office.token", "`client` has no `url`"),
        ("url: ws://a/\n  token_file: office.token", "`client` has no `name`"),
        ("name: a\n  url: ws://a/", "`client` needs `token_file` or `token`"),
        ("name: a\n  url: []\n  token_file: office.token", "is empty, so there is no server"),
        ("name: a\n  url: [ws://a/, 'wss://u:p@b/']\n  token_file: office.token", "leave out all before the @"),
        ("name: a\n  url: ws://a/\n  token_file: [office.token]", "must be text, not a list"),
        ("name: a\n  url: ws://a/\n  token_file: office.token\n  tls: {ca_file: full.pem}", "has no effect"),
    ],
)
def test_a_client_without_what_it_needs_says_what(directory: ConfigDirectory, client: str, text: str) -> None:
    assert text in directory.fault(f"client:\n  {client}\n")
