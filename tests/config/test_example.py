"""Promises of config.example.yaml: it works as it stands, it names every key, and its defaults are the code's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from qanat.base.endpoint_addresses import PublishedName, TcpAddress, UdpAddress, UnixAddress
from qanat.config.client_settings import ClientSettings, ClientTls, RemoteServer
from qanat.config.forward_settings import Forward, ForwardLimits
from qanat.config.load import check_config, load_config
from qanat.config.moments import parse_moment
from qanat.config.options import Kind, options_of
from qanat.config.server_settings import AuditSettings, ClientAccount, ServerLimits, ServerSettings, ServerTls
from qanat.config.settings import MonitorSettings
from qanat.endpoints.dynamic.passwords import Passwords
from qanat.endpoints.unix import Permissions
from qanat.handshake.tokens import generate_token, parse_token
from qanat.transports.dial.proxies import Proxy
from tests.support.config_rig import FINGERPRINT
from tests.support.example_config import COMMENTED_OUT, EXAMPLE, everything

WITHOUT_DEFAULT = {
    "tls",
    "certificate",
    "key",
    "node",
    "token",
    "pid_file",
    "state_dir",
    "file",
    "server_fingerprint",
    "ca_file",
    "client_ca",
    "server_name",
    "proxy_password_file",
    "connect_to",
    "host",
    "headers",
    "servers",
    "max_pipe_age",
    "failover_after",
    "publish_dir",
    "dynamic_password_file",
    "publish_group",
    "audit",
    "max_bytes",
    "keep",  # which are nothing without a file
    "not_after",
    "monitor",
    "listen",
    "mode",
    "group",
    "max_clients",
}
"""Keys that may be commented out, the last since it may not stand beside one server; every other one must stand there
with its default."""

TOKEN = generate_token()
FILES = {
    **dict.fromkeys(("office.token", "net.token"), TOKEN),
    **dict.fromkeys(("privkey.pem", "fullchain.pem", "clients-ca.pem"), ""),
    **dict.fromkeys(("company-ca.pem", "client.pem", "client.key"), ""),
    "proxy.password": "a secret\n",
    "metrics.token": TOKEN,
    "proxy.users": "me:a secret\n",
    "access.secret": "another\n",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)
    return tmp_path


def keys_of(settings: type) -> set[str]:
    """The keys that set these; of a token's the one that stands in the example."""
    return {key for option in options_of(settings) for key in option.keys} - {"token"}


def compare(section: dict[str, Any], settings: type) -> None:
    """Compare the keys of a section, and of those below, with the declared ones."""
    assert set(section) == keys_of(settings), settings.__name__
    for option in options_of(settings):
        if option.settings is not None:
            compare(section[option.key], option.settings)
        if option.declared.entries is not None:
            for entry in section[option.key][-1:]:
                compare(entry, option.declared.entries)


def test_the_example_works_as_it_stands_and_states_the_codes_own_defaults(directory: Path) -> None:
    file = directory / "config.yaml"
    file.write_text(EXAMPLE.read_text())
    file.chmod(0o644)  # it holds no token itself
    check_config(file, {})
    secret = parse_token(TOKEN)
    server = load_config(file, want="server", environ={})
    assert server == ServerSettings(
        clients=(ClientAccount("office", (secret,)),), identity=directory / "server.key", state_dir=directory
    )
    client = load_config(file, want="client", environ={})
    assert client == ClientSettings(
        "office", (RemoteServer(("wss://tunnel.example.com/tunnel",), secret),), state_dir=directory
    )


def test_every_setting_is_a_key_of_the_example_and_every_key_a_setting() -> None:
    tree: dict[str, Any] = yaml.safe_load(everything(several=True))
    server, client = tree["server"], tree["client"]
    compare(server, ServerSettings)
    compare(client, ClientSettings)
    one = yaml.safe_load(everything())["client"]
    assert set(one) == set(client) - {"servers", "failover_after"} | keys_of(RemoteServer)


@pytest.mark.parametrize(("name", "settings"), [("server", ServerSettings), ("client", ClientSettings)])
def test_each_default_that_stands_there_is_the_declared_one(name: str, settings: type) -> None:
    def look(section: dict[str, Any], settings: type) -> None:
        for option in options_of(settings):
            if option.settings is not None and option.key in section:
                look(section[option.key], option.settings)
            elif option.kind in (Kind.WHOLE, Kind.NUMBER, Kind.CHOICE, Kind.SWITCH):
                if option.default is None or option.key == "failover_after":
                    assert option.key not in section
                else:
                    assert section[option.key] == option.default, option.key

    look(yaml.safe_load(EXAMPLE.read_text())[name], settings)


def test_a_range_that_stands_there_is_the_declared_one() -> None:
    """`1 to 16`, in the comment above a key or behind it."""
    lines, found = EXAMPLE.read_text().splitlines(), 0
    declared = {
        option.key: option
        for settings in (ServerSettings, ServerLimits, ClientSettings)
        for option in options_of(settings)
        if option.kind in (Kind.WHOLE, Kind.NUMBER)
    }
    comment = ""
    for line in lines:
        key = re.match(r" *(?:# )?([a-z_]+): [0-9]", line)
        comment += line if key is None and line.lstrip().startswith("#") else ""
        if key is not None and key[1] in declared:
            for low, high in re.findall(r"\b([0-9]+) to ([0-9]+)\b", comment + line.partition("#")[2]):
                option, found = declared[key[1]], found + 1
                assert (float(low), float(high)) == (option.declared.low, option.declared.high), line
        if key is not None or not line.strip():
            comment = ""
    assert found >= 3


def test_every_limit_of_a_forward_is_explained_there() -> None:
    text = EXAMPLE.read_text()
    assert all(f"{option.key}" in text for option in options_of(ForwardLimits))


def test_only_what_has_no_default_is_commented_out() -> None:
    matches = COMMENTED_OUT.finditer(EXAMPLE.read_text())
    keys = {match[2].strip().split(":")[0] for match in matches if not match[2].strip().startswith("- ")}
    assert keys - {"forwards", "proxy", "token_file"} == WITHOUT_DEFAULT


def test_what_is_commented_out_works_too(directory: Path) -> None:
    file = directory / "config.yaml"
    file.write_text(everything())
    check_config(file, {})
    server = load_config(file, want="server", environ={})
    assert server.tls == ServerTls(*(directory / name for name in ("fullchain.pem", "privkey.pem", "clients-ca.pem")))
    assert server.node == "tunnel-1"
    assert server.audit == AuditSettings(directory / "audit.log")
    assert server.clients[0].not_after == (parse_moment("2027-01-31T00:00:00Z"),)
    assert server.clients[0].dynamic_passwords == Passwords.parse("me:a secret")
    assert server.monitor == MonitorSettings("127.0.0.1:9480", directory / "metrics.token", group="www-data")
    client = load_config(file, want="client", environ={})
    assert client.servers == (RemoteServer(("wss://tunnel.example.com/tunnel",), parse_token(TOKEN), FINGERPRINT),)
    files = (directory / name for name in ("company-ca.pem", "client.pem", "client.key"))
    assert client.tls == ClientTls(*files, "tunnel.example.com")
    assert client.proxy == Proxy("http", "proxy.example.com", 3128, "me", "a secret")
    assert client.connect_to == ("192.0.2.7", 443)
    assert client.max_pipe_age == 3000
    assert client.host == "tunnel.internal.example"
    assert client.headers == (("User-Agent", "Mozilla/5.0"), ("CF-Access-Client-Secret", "another"))
    assert client.forwards == (
        Forward("local", TcpAddress("127.0.0.1", 5432), TcpAddress("db.internal", 5432)),
        Forward(
            "remote",
            TcpAddress("0.0.0.0", 8080),
            TcpAddress("127.0.0.1", 80),
            ForwardLimits(rate_up=2_000_000, max_streams_per_address=50),
        ),
        Forward("local", UdpAddress("127.0.0.1", 53), UdpAddress("10.0.0.1", 53)),
        Forward("remote", PublishedName("app.office.example.com"), TcpAddress("127.0.0.1", 3000)),
        Forward(
            "local",
            UnixAddress("/run/qanat/db.sock"),
            UnixAddress("/run/postgresql/.s.PGSQL.5432"),
            permissions=Permissions(0o660),
        ),
        Forward("local", TcpAddress("localhost", 8000), TcpAddress("host", 9000), ports=101),
        Forward("remote", TcpAddress("0.0.0.0", 25), TcpAddress("127.0.0.1", 10025), proxy_protocol="v2"),
    )


def test_the_list_of_servers_that_is_commented_out_works_too(directory: Path) -> None:
    file = directory / "config.yaml"
    file.write_text(everything(several=True))
    assert load_config(file, want="client", environ={}).servers == (
        RemoteServer(("wss://tunnel.example.com/tunnel",), parse_token(TOKEN)),
        RemoteServer(
            ("wss://tunnel.example.net/tunnel", "wss://cdn.example.net/tunnel"), parse_token(TOKEN), FINGERPRINT
        ),
    )


def test_the_other_way_to_give_a_token_works_too(directory: Path) -> None:
    file = directory / "config.yaml"
    text = re.sub(r"token_file: office.token\n *# (?=token:)", "", EXAMPLE.read_text())
    file.write_text(text)
    environ = {"OFFICE_TOKEN": TOKEN, "QANAT_TOKEN": TOKEN}
    assert load_config(file, want="server", environ=environ).clients[0].tokens == (parse_token(TOKEN),)
    assert load_config(file, want="client", environ=environ).servers[0].token == parse_token(TOKEN)
