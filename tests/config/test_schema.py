"""Promises of the JSON Schema: it is the declared options', and accepts and refuses what `check` does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from qanat.config import load
from qanat.config.client_settings import ClientSettings
from qanat.config.options import Kind, Option, options_of
from qanat.config.schema import FILE, build_schema, schema_location, schema_text
from qanat.config.server_settings import ServerSettings
from tests.support.config_rig import CLIENT, FINGERPRINT, SERVER, ConfigDirectory, client_with, server_with
from tests.support.example_config import EXAMPLE, everything
from tests.support.json_schemas import validator

SHIPPED = Path(load.__file__).resolve().parents[1] / "share" / FILE


@cache
def config_validator() -> Any:
    return validator(build_schema())


@pytest.fixture
def directory(tmp_path: Path) -> ConfigDirectory:
    return ConfigDirectory(tmp_path)


def accepts(text: str) -> bool:
    return config_validator().is_valid(yaml.safe_load(text))


def test_the_schema_is_one_and_the_copy_that_is_shipped_is_it() -> None:
    validator(build_schema())
    assert SHIPPED.read_text("utf-8") == schema_text(), f"python tunnel.py schema > {SHIPPED}"
    assert json.loads(schema_text()) == build_schema()
    assert schema_location() == SHIPPED.as_uri()


def test_every_option_is_in_it_with_its_documentation_bounds_and_default() -> None:
    schema = build_schema()
    for section, settings in (("server", ServerSettings), ("client", ClientSettings)):
        _compare(schema["properties"][section]["properties"], settings)


def _compare(properties: dict[str, Any], settings: type) -> None:
    for option in options_of(settings):
        for key in option.keys:
            assert key in properties
        shown = properties[option.key if option.key in properties else option.keys[0]]
        assert shown["description"]
        if option.kind in (Kind.WHOLE, Kind.NUMBER):
            assert (shown["minimum"], shown["maximum"]) == (option.declared.low, option.declared.high)
            assert shown.get("default") == option.default
        if option.settings is not None:
            _compare(shown["properties"], option.settings)
        if option.declared.entries is not None:
            _compare(shown["items"]["properties"], option.declared.entries)


def test_the_example_and_all_that_is_commented_out_in_it_is_accepted() -> None:
    for text in (EXAMPLE.read_text(), everything(), everything(several=True)):
        config_validator().validate(yaml.safe_load(text))


VALID = [
    SERVER,
    CLIENT,
    SERVER + CLIENT,
    server_with('listen: ["0.0.0.0:443", "[::]:443"]\npath: /t/x\ntrusted_proxies: "::1"\nnode: ${NODE}\ndrain: 0'),
    server_with("limits: {sessions: 2, per_address_rate: 0.5, lanes: 16}\nkeepalive: {interval: 5, timeout: 15.5}"),
    server_with("limits:\n  # sessions: 7\nlog:"),
    server_with("log: {level: '${LEVEL}', format: json, file: logs/q.log}\nflow: {outbox: 1_048_576}"),
    server_with("tls: {certificate: full.pem, key: private.pem}"),
    SERVER.replace("office.token", "[office.token, home.token]"),
    SERVER.replace("token_file: office.token", "token: ${OFFICE_TOKEN}"),
    client_with(f"transport: [http2, auto]\nserver_fingerprint: {FINGERPRINT}\ntls:\nmax_pipe_age: 1.5\nproxy: none"),
    client_with("headers: {X-Team: tunnels, X-Secret: {value_file: password}}\nhost: inner.example:81"),
    client_with('forwards:\n  - {local: "127.0.0.1:0", to: "a:1"}\n  - {remote: "[::1]:80", to: "b:2"}'),
    "client: {name: a, servers: [{url: [ws://a/, ws://b/], token: '${T}'}, {url: ws://c/, token_file: t}]}",
]


@pytest.mark.parametrize("text", VALID)
def test_what_check_accepts_the_schema_accepts(directory: ConfigDirectory, text: str) -> None:
    directory.write("password", "x", 0o600)
    directory.write("t", directory.tokens["home"], 0o600)
    directory.config(text)
    token = directory.tokens["office"]
    load.check_config(directory.file, {"NODE": "n", "LEVEL": "info", "OFFICE_TOKEN": token, "T": token})
    config_validator().validate(yaml.safe_load(text))


INVALID = [
    "",
    "hello",
    "- a",
    "sever: {}",
    "server:",
    "server: {clients: []}",
    "client: {name: a, token_file: t}",
    "client: {url: ws://a/, token_file: t}",
    "client: {name: a, url: ws://a/}",
    "client: {name: a, url: ws://a/, token_file: t, token: x}",
    "client: {name: a, url: ws://a/, token_file: t, servers: [{url: ws://b/, token_file: u}]}",
    SERVER.replace("name: office", "nam: office"),
    SERVER.replace("office.token", "[]"),
    *(
        server_with(lines)
        for lines in (
            "listen: 8443",
            "listen: []",
            "listen:",
            "listen: [[a]]",
            "path: tunnel",
            "path: 1",
            "node: true",
            "node: a b",
            "tls: {certificate: full.pem}",
            "tls:",
            "drain: 5s",
            "drain: '5'",
            "drain: true",
            "drain: [5]",
            "resume: 5",
            "limits: 5",
            "limits: {sessions: 1.5}",
            "limits: {sesions: 1}",
            "sessions: 5",
            "log: {level: verbose}",
            "log: {file: ''}",
            "identity: ''",
        )
    ),
    *(
        client_with(lines)
        for lines in (
            "transport: websocket-h3",
            "transport: []",
            "lanes: many",
            "forwards: [{local: 5432, to: a:1}]",
            "forwards: [{local: 127.0.0.1:1}]",
            "forwards: [{locale: 127.0.0.1:1, to: a:1}]",
            "forwards: {local: 127.0.0.1:1, to: a:1}",
            "server_fingerprint: SHA256:abc",
            "tls: {client_ca: full.pem}",
            "headers: {X-A: 5}",
            "headers: {X-A: {}}",
            "headers: {X-A: {file: password, value_file: password}}",
            "proxy: [http://a:1]",
            "connect: some",
        )
    ),
]


@pytest.mark.parametrize("text", INVALID)
def test_what_check_refuses_for_its_type_range_or_key_the_schema_refuses(directory: ConfigDirectory, text: str) -> None:
    directory.write("t", directory.tokens["home"], 0o600)
    directory.config(text)
    with pytest.raises(load.ConfigError):
        load.check_config(directory.file, {})
    assert not accepts(text)


def faults_of(directory: ConfigDirectory) -> str:
    try:
        load.check_config(directory.file, {})
    except load.ConfigError as error:
        return str(error)
    return ""


def numbers() -> Iterator[tuple[str, Option]]:
    """Every number, with the lines of a section around it; `@` stands for it."""
    for name, settings in (("server", ServerSettings), ("client", ClientSettings)):
        for option in options_of(settings):
            if option.kind in (Kind.WHOLE, Kind.NUMBER):
                yield f"{name} {option.key}: @", option
            for inner in options_of(option.settings) if option.settings else ():
                if inner.kind in (Kind.WHOLE, Kind.NUMBER):
                    needed = {"monitor": "listen: '127.0.0.1:0', ", "audit": "file: audit.log, "}.get(option.key, "")
                    yield f"{name} {option.key}: {{{needed}{inner.key}: @}}", inner


@pytest.mark.parametrize(("where", "option"), list(numbers()), ids=[where for where, _ in numbers()])
def test_schema_and_check_have_the_same_bounds(directory: ConfigDirectory, where: str, option: Option) -> None:
    name, _, lines = where.partition(" ")
    rig = server_with if name == "server" else client_with
    step = 1 if option.kind is Kind.WHOLE else 0.001
    low, high = option.declared.low, option.declared.high
    assert low is not None
    assert high is not None
    for value, right in ((low, True), (high, True), (low - step, False), (high + step, False)):
        text = rig(lines.replace("@", f"{value:.15g}"))
        assert accepts(text) == right, value
        directory.config(text)
        assert (option.wanted in faults_of(directory)) == (not right), value
