"""Promises of qanat.cli.init_files: it writes what fits together, keeps secrets private, and overwrites nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from qanat.base.errors import UsageError
from qanat.cli.init_files import Written, nginx_block, write_files
from qanat.config.load import load_config
from qanat.handshake.identity import load_or_create_identity
from qanat.handshake.tokens import parse_token

DEPLOYED = Path(__file__).resolve().parents[2] / "deploy" / "nginx.conf"


def write(directory: Path, *, name: str = "client", url: str | None = None, listen: str | None = None) -> Written:
    return write_files(directory, name=name, url=url, listen=listen)


def test_both_files_name_the_same_token_and_the_server_key_is_pinned(tmp_path: Path) -> None:
    written = write(tmp_path / "new" / "directory", name="office")
    server = yaml.safe_load(written.server_yaml.read_text())["server"]
    client = yaml.safe_load(written.client_yaml.read_text())["client"]
    assert server["clients"][0]["name"] == client["name"] == "office"
    assert server["clients"][0]["token_file"] == client["token_file"] == "office.token"
    parse_token(written.token_file.read_text().strip())
    identity = load_or_create_identity(written.identity, create=False)
    assert client["server_fingerprint"] == written.fingerprint == identity.fingerprint
    assert client["url"] == "ws://127.0.0.1:8443/tunnel"
    assert server["path"] == "/tunnel"


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    written = write(tmp_path)
    assert [path.stat().st_mode & 0o777 for path in (written.token_file, written.identity)] == [0o600, 0o600]


@pytest.mark.parametrize("name", ["no", "007", "a.b_c-D", "1e3", "2026-01-31"])
def test_a_name_stays_a_name_whatever_yaml_would_make_of_it(name: str, tmp_path: Path) -> None:
    written = write(tmp_path, name=name)
    assert yaml.safe_load(written.client_yaml.read_text())["client"]["name"] == name


@pytest.mark.parametrize(
    ("listen", "direct"),
    [
        ("127.0.0.1:9000", "127.0.0.1:9000"),
        ("0.0.0.0:9000", "127.0.0.1:9000"),
        ("[::]:9000", "[::1]:9000"),
        ("[::1]:18080", "[::1]:18080"),
    ],
)
def test_the_client_dials_where_the_server_listens(listen: str, direct: str, tmp_path: Path) -> None:
    written = write(tmp_path, listen=listen)
    server = yaml.safe_load(written.server_yaml.read_text())["server"]
    client = yaml.safe_load(written.client_yaml.read_text())["client"]
    assert server["listen"] == listen
    assert client["url"] == f"ws://{direct}/tunnel"
    assert client["forwards"][0]["to"] == direct == server["clients"][0]["allow_connect"][0]
    assert client["forwards"][0]["local"] == written.sample != direct
    assert f"proxy_pass http://{direct};" in (written.nginx_block or "")


@pytest.mark.parametrize(
    ("url", "listen"),
    [
        ("ws://127.0.0.1:19443/tunnel", "127.0.0.1:19443"),
        ("ws://localhost:19443/tunnel", "127.0.0.1:19443"),
        ("http://[::1]:19443/tunnel", "[::1]:19443"),
        ("ws://tunnel.example.com:8080/tunnel", "0.0.0.0:8080"),
        ("ws://[2001:db8::1]:8080/tunnel", "[::]:8080"),
    ],
)
def test_a_server_that_the_url_names_itself_listens_there_with_no_proxy(url: str, listen: str, tmp_path: Path) -> None:
    written = write(tmp_path, url=url)
    server = yaml.safe_load(written.server_yaml.read_text())["server"]
    assert server["listen"] == written.listen == listen
    assert "trusted_proxies" not in server
    assert written.nginx_block is None


@pytest.mark.parametrize(
    ("url", "listen"),
    [
        ("wss://tunnel.example.com/tunnel", None),
        ("wss://127.0.0.1:19443/tunnel", None),
        ("ws://tunnel.example.com/tunnel", None),
        ("ws://127.0.0.1:19443/tunnel", "127.0.0.1:8443"),
    ],
)
def test_what_a_proxy_has_to_bring_together_gets_its_block(url: str, listen: str | None, tmp_path: Path) -> None:
    written = write(tmp_path, url=url, listen=listen)
    assert written.listen == "127.0.0.1:8443"
    assert "proxy_pass http://127.0.0.1:8443;" in (written.nginx_block or "")


def test_the_url_decides_the_path_on_server_and_nginx(tmp_path: Path) -> None:
    written = write(tmp_path, url="wss://tunnel.example.com/deep/er")
    assert yaml.safe_load(written.server_yaml.read_text())["server"]["path"] == "/deep/er"
    assert "location = /deep/er {" in (written.nginx_block or "")


def test_the_nginx_block_is_the_deployed_one() -> None:
    block = nginx_block(path="/tunnel", upstream="127.0.0.1:8443")
    assert block.startswith("    location = /tunnel {\n")
    assert block.endswith("    }\n")
    assert block in DEPLOYED.read_text()


@pytest.mark.parametrize("name", ["server.yaml", "client.yaml", "client.token", "server.key"])
def test_nothing_is_overwritten_and_nothing_else_written(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(UsageError, match=f"not overwritten: .*{name}"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_a_failure_half_way_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "client.yaml"

    def made_just_after_the_check(path: Path) -> bool:
        taken.touch()
        return False

    monkeypatch.setattr(os.path, "lexists", made_just_after_the_check)
    with pytest.raises(UsageError, match="cannot write"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == [taken]


def test_a_directory_that_cannot_be_made_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        write(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"name": "a b"}, "not a client name"),
        ({"name": "../x"}, "not a client name"),
        ({"name": "x" * 65}, "not a client name"),
        ({"listen": "8443"}, "--listen 8443 has no port"),
        ({"listen": "localhost:8443"}, "literal address"),
        ({"listen": "127.0.0.1:0"}, "a port that the client can know"),
        ({"url": "ftp://example.com/"}, "does not begin with"),
        ({"url": "wss://example.com/a$b"}, "needs quoting"),
    ],
)
def test_values_that_cannot_work_are_refused_before_anything_is_written(
    options: dict[str, str], fault: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=fault):
        write(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_published_is_in_both_files(tmp_path: Path) -> None:
    names = ["app.example.com:3000", "Shop.example.com:10.0.0.5:80"]
    written = write_files(tmp_path, name="office", url=None, listen="127.0.0.1:8443", publish=names)
    server = load_config(written.server_yaml, want="server", environ={})
    client = load_config(written.client_yaml, want="client", environ={})
    assert server.publish_dir == written.publish_dir == tmp_path / "published"
    assert server.clients[0].allow_publish == ("app.example.com", "shop.example.com")
    assert [str(forward) for forward in client.forwards[1:]] == [
        "publish app.example.com to 127.0.0.1:3000",
        "publish shop.example.com to 10.0.0.5:80",
    ]
