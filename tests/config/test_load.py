"""Promises of the configuration file: what it gives when it is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from qanat.base.endpoint_addresses import TcpAddress
from qanat.config.client_settings import Reconnect, RemoteServer
from qanat.config.forward_settings import Forward
from qanat.config.load import ConfigError, check_config, load_config
from qanat.config.server_settings import ClientAccount, ServerTls
from qanat.config.settings import Flow, Keepalive, LogSettings
from tests.support.config_rig import CLIENT, FINGERPRINT, SERVER, ConfigDirectory, server_with


@pytest.fixture
def directory(tmp_path: Path) -> ConfigDirectory:
    return ConfigDirectory(tmp_path)


def test_a_whole_server_is_read_as_written(directory: ConfigDirectory) -> None:
    settings = directory.server(f"""\
        server:
          listen: ["0.0.0.0:443", "[::]:443"]
          path: /t/x
          identity: keys/id.pem
          tls: {{certificate: full.pem, key: private.pem}}
          trusted_proxies: ["10.0.0.0/8", "::1"]
          node: node-1
          connect_timeout: 2.5
          drain: 0
          takeover_timeout: 1
          resume_for: 0
          clients:
            - name: office
              token_file: [office.token]
              allow_listen: ["0.0.0.0:8000-8100", "127.0.0.1:0"]
              allow_connect: ["127.0.0.1:*", "10.0.0.0/8:5432", "*.example.com:443"]
            - name: home
              token: {directory.tokens["home"]}
              allow_connect: db.example.com:5432
              shared_listen: ["0.0.0.0:443", "[::]:8000-8100"]
          limits: {{sessions: 2, per_address_rate: 0.5, handshake_rate: 0.1, lanes: 16}}
          keepalive: {{interval: 5, timeout: 15.5}}
          flow: {{outbox: 1_048_576}}
          log: {{level: debug, format: json, file: logs/q.log}}
          pid_file: /run/q.pid
          state_dir: state
        """)
    path = directory.path
    assert settings.listen == (("0.0.0.0", 443), ("::", 443))
    assert settings.path == "/t/x"
    assert settings.identity == path / "keys/id.pem"
    assert settings.tls == ServerTls(path / "full.pem", path / "private.pem")
    assert settings.trusted_proxies == ("10.0.0.0/8", "::1")
    assert (settings.node, settings.connect_timeout, settings.drain, settings.takeover_timeout) == ("node-1", 2.5, 0, 1)
    assert settings.resume_for == 0
    assert settings.clients == (
        ClientAccount(
            "office",
            (directory.secrets["office"],),
            ("0.0.0.0:8000-8100", "127.0.0.1:0"),
            ("127.0.0.1:*", "10.0.0.0/8:5432", "*.example.com:443"),
        ),
        ClientAccount(
            "home", (directory.secrets["home"],), (), ("db.example.com:5432",), ("0.0.0.0:443", "[::]:8000-8100")
        ),
    )
    assert (settings.limits.sessions, settings.limits.per_address_rate, settings.limits.handshakes) == (2, 0.5, 64)
    assert (settings.limits.handshake_rate, settings.limits.lanes) == (0.1, 16)
    assert settings.keepalive == Keepalive(5, 15.5)
    assert settings.flow == Flow(outbox=1_048_576)
    assert settings.log == LogSettings("debug", "json", path / "logs/q.log")
    assert (settings.pid_file, settings.state_dir) == (Path("/run/q.pid"), path / "state")


def test_a_whole_client_is_read_as_written(directory: ConfigDirectory) -> None:
    settings = directory.client(f"""\
        client:
          name: office
          url: [wss://a.example.com/tunnel, "https://[2001:db8::1]:8443/tunnel"]
          transport: auto
          token: {directory.tokens["office"]}
          server_fingerprint: {FINGERPRINT}
          tls: {{ca_file: full.pem}}
          forwards:
            - {{local: 127.0.0.1:5432, to: db.internal:5432}}
            - {{remote: 0.0.0.0:8080, to: 127.0.0.1:80}}
            - local: "[::1]:0"
              to: "[2001:db8::2]:22"
            - {{local: [localhost:1, "*:2", ":3", "10.0.0.1:4"], to: a:5}}
            - {{remote: ["127.0.0.1:1", "[::1]:1"], to: a:5}}
          reconnect: {{first: 0, min: 0.5, max: 5}}
        """)
    assert settings.name == "office"
    urls = ("wss://a.example.com/tunnel", "https://[2001:db8::1]:8443/tunnel")
    assert settings.servers == (RemoteServer(urls, directory.secrets["office"], FINGERPRINT),)
    assert settings.transports == ("auto",)
    assert settings.tls.ca_file == directory.path / "full.pem"
    assert settings.forwards == (
        Forward("local", TcpAddress("127.0.0.1", 5432), TcpAddress("db.internal", 5432)),
        Forward("remote", TcpAddress("0.0.0.0", 8080), TcpAddress("127.0.0.1", 80)),
        Forward("local", TcpAddress("::1", 0), TcpAddress("2001:db8::2", 22)),
        *(
            Forward("local", listen, TcpAddress("a", 5))
            for listen in (
                TcpAddress("localhost", 1),
                TcpAddress("*", 2),
                TcpAddress("*", 3),
                TcpAddress("10.0.0.1", 4),
            )
        ),
        *(Forward("remote", TcpAddress(host, 1), TcpAddress("a", 5)) for host in ("127.0.0.1", "::1")),
    )
    assert settings.reconnect == Reconnect(0, 0.5, 5)


def test_both_sections_may_stand_in_one_file_and_only_the_wanted_one_is_read(directory: ConfigDirectory) -> None:
    directory.config(SERVER + CLIENT.replace("token_file: office.token", "token: ${NOT_SET_HERE}"))
    assert load_config(directory.file, want="server", environ={}).clients[0].name == "office"
    with pytest.raises(ConfigError, match="NOT_SET_HERE"):
        load_config(directory.file, want="client", environ={})
    with pytest.raises(ConfigError, match="NOT_SET_HERE"):
        check_config(directory.file, {})


def test_a_file_without_the_wanted_section_says_so(directory: ConfigDirectory) -> None:
    directory.config(SERVER)
    with pytest.raises(ConfigError, match=r":1:1: `the file` has no `client`"):
        load_config(directory.file, want="client", environ={})


def test_a_section_with_every_key_commented_out_has_its_defaults(directory: ConfigDirectory) -> None:
    assert directory.server(server_with("limits:\n  # sessions: 7\nlog:")).limits.sessions == 1024


def test_paths_are_relative_to_the_file_wherever_the_program_starts(
    directory: ConfigDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.config(SERVER)
    elsewhere = directory.path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for file in (directory.file, Path("../qanat.yaml")):
        settings = load_config(file, want="server", environ={})
        assert settings.identity.resolve() == directory.path / "server.key"
        assert settings.state_dir.resolve() == directory.path
        assert settings.state_dir.is_absolute()


def test_systemds_state_directory_comes_before_the_files_own(directory: ConfigDirectory) -> None:
    directory.environ["STATE_DIRECTORY"] = "/var/lib/qanat:/var/lib/other"
    assert directory.server(SERVER).state_dir == Path("/var/lib/qanat")
    assert directory.client(CLIENT).state_dir == Path("/var/lib/qanat")
    assert directory.server(server_with("state_dir: mine")).state_dir == directory.path / "mine"


def test_two_tokens_are_accepted_while_one_is_being_changed(directory: ConfigDirectory) -> None:
    settings = directory.server(SERVER.replace("office.token", "[office.token, home.token]"))
    assert settings.clients[0].tokens == (directory.secrets["office"], directory.secrets["home"])


def test_settings_never_show_a_token(directory: ConfigDirectory) -> None:
    assert "token" not in repr(directory.server(SERVER)).replace("tokens", "")
    assert repr(directory.secrets["office"]) not in repr(directory.client(CLIENT))
