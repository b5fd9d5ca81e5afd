"""A directory with a configuration file in it, for the tests of how these are read."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from qanat.config.client_settings import ClientSettings
from qanat.config.load import ConfigError, check_config, load_config
from qanat.config.server_settings import ServerSettings
from qanat.handshake.tokens import generate_token, parse_token

URL = "wss://tunnel.example.com/tunnel"
TOKEN = generate_token()
ENVIRON = {"QANAT_TOKEN": TOKEN, "STATE_DIRECTORY": "/var/lib/qanat"}
"""What a client without a file finds in its environment."""
FINGERPRINT = "SHA256:" + base64.b64encode(bytes(32)).decode().rstrip("=")

SERVER = """\
server:
  clients:
    - name: office
      token_file: office.token
"""
CLIENT = """\
client:
  name: office
  url: wss://tunnel.example.com/tunnel
  token_file: office.token
"""


def server_with(lines: str) -> str:
    return SERVER + "".join(f"  {line}\n" for line in lines.splitlines())


def client_with(lines: str) -> str:
    return CLIENT + "".join(f"  {line}\n" for line in lines.splitlines())


class ConfigDirectory:
    """`office.token` and `home.token` are there, and 0600; so are `full.pem` and `private.pem`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "qanat.yaml"
        self.environ: dict[str, str] = {}
        self.tokens = {name: generate_token() for name in ("office", "home")}
        for name, token in self.tokens.items():
            self.write(f"{name}.token", token + "\n", 0o600)
        self.write("full.pem", "", 0o644)
        self.write("private.pem", "", 0o600)

    @property
    def secrets(self) -> dict[str, bytes]:
        return {name: parse_token(token) for name, token in self.tokens.items()}

    def write(self, name: str, content: str | bytes, mode: int) -> Path:
        path = self.path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    def config(self, content: str | bytes, mode: int = 0o600) -> None:
        self.write(self.file.name, textwrap.dedent(content) if isinstance(content, str) else content, mode)

    def server(self, content: str) -> ServerSettings:
        self.config(content)
        return load_config(self.file, want="server", environ=self.environ)

    def client(self, content: str) -> ClientSettings:
        self.config(content)
        return load_config(self.file, want="client", environ=self.environ)

    def faults(self, content: str | bytes, environ: Mapping[str, str] | None = None, mode: int = 0o600) -> list[str]:
        """All faults as `line:column: text`; the test fails when there is none, or when one shows a token."""
        self.config(content, mode)
        with pytest.raises(ConfigError) as caught:
            check_config(self.file, self.environ if environ is None else environ)
        prefix = f"{self.file}:"
        whole = f"{caught.value}{caught.value.message}{caught.value.hint}"
        assert not any(token in whole or token[7:40] in whole for token in self.tokens.values())
        for fault in caught.value.faults:
            assert str(fault).startswith(f"{prefix}{fault.line}:{fault.column}: ")
        assert list(caught.value.faults) == sorted(caught.value.faults)
        return [str(fault).removeprefix(prefix) for fault in caught.value.faults]

    def fault(self, content: str | bytes, environ: Mapping[str, str] | None = None, mode: int = 0o600) -> str:
        """The one fault there is."""
        faults = self.faults(content, environ, mode)
        assert len(faults) == 1, faults
        return faults[0]
