"""Promises of how a configuration says which way to go: proxies, certificates, other addresses and names, headers."""

from __future__ import annotations

from pathlib import Path

import pytest

from qanat.base.errors import UsageError
from qanat.client.connect import route_of
from qanat.config.client_settings import ClientSettings, ClientTls
from qanat.config.command_line import client_from_options
from qanat.config.server_settings import ServerTls
from qanat.transports.dial.proxies import EnvironmentProxies, Proxy
from qanat.transports.dial.urls import TunnelUrl
from tests.support.config_rig import CLIENT, ENVIRON, URL, ConfigDirectory, client_with, server_with

PASSWORD = "s3cret/p@ss:word"


@pytest.fixture
def directory(tmp_path: Path) -> ConfigDirectory:
    directory = ConfigDirectory(tmp_path)
    directory.write("password", PASSWORD + "\n", 0o600)
    directory.environ["ENCODED"] = "s3cret%2Fp%40ss%3Aword"
    return directory


# --- the proxy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", None),
        ("http://proxy.example.com:3128", Proxy("http", "proxy.example.com", 3128)),
        ("https://proxy.example.com", Proxy("https", "proxy.example.com", 443)),
        ("socks5://127.0.0.1", Proxy("socks5h", "127.0.0.1", 1080)),
        ('"socks5h://u:p@[::1]:9050/"', Proxy("socks5h", "::1", 9050, "u", "p")),
        ("http://me:${ENCODED}@proxy:3128", Proxy("http", "proxy", 3128, "me", PASSWORD)),
    ],
)
def test_a_proxy_is_a_url_or_none(directory: ConfigDirectory, text: str, expected: Proxy | None) -> None:
    assert directory.client(client_with(f"proxy: {text}")).proxy == expected


def test_without_a_word_the_environment_names_the_proxy(directory: ConfigDirectory) -> None:
    directory.environ.update(HTTPS_PROXY="http://proxy:3128", NO_PROXY="localhost")
    for text in (CLIENT, client_with("proxy: environment")):
        settings = directory.client(text)
        assert settings.proxy == EnvironmentProxies.read(directory.environ)
        assert route_of(settings).proxy_for(settings_url(settings)) == Proxy("http", "proxy", 3128)


def test_a_password_may_come_from_a_file_as_it_is(directory: ConfigDirectory) -> None:
    proxy = directory.client(client_with("proxy: http://me@proxy:3128\nproxy_password_file: password")).proxy
    assert isinstance(proxy, Proxy)
    assert (proxy.user, proxy.password) == ("me", PASSWORD)


def test_a_password_is_refused_where_others_can_read_it(directory: ConfigDirectory) -> None:
    text = client_with("proxy: http://me:open-secret@proxy:3128")
    fault = directory.fault(text, mode=0o644)
    assert "`proxy` has a password and is in a file that others can read (chmod 600" in fault
    assert "open-secret" not in fault
    assert directory.client(text).proxy == Proxy("http", "proxy", 3128, "me", "open-secret")
    from_environment = client_with("proxy: http://me:${ENCODED}@proxy:3128")
    directory.config(from_environment, mode=0o644)
    assert directory.client(from_environment).proxy is not None
    (directory.path / "password").chmod(0o644)
    assert "others can read" in directory.fault(client_with("proxy: http://me@p:1\nproxy_password_file: password"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("proxy: enviroment", "did you mean `environment`?"),
        ("proxy: proxy.example.com:3128", "must be none, environment or a proxy's URL"),
        ("proxy: ftp://me:sesame@proxy:21", "names a kind of proxy that is not spoken here"),
        ("proxy: socks4://proxy:1080", "names a kind of proxy that is not spoken here"),
        ("proxy: http://me:sesame@:3128", "names no host"),
        ("proxy: http://me:sesame@proxy:99999", "has a port outside 1 to 65535"),
        ("proxy: http://me:sesame@proxy:3128/path", "is not HOST:PORT"),
        ("proxy: http://me:sesame@proxy two:3128", "contains a space"),
        ("proxy: socks5h://me:@proxy:1080", "1 to 255 characters each for SOCKS5"),
        ("proxy: socks5h://me@proxy:1080", "1 to 255 characters each for SOCKS5"),
        ("proxy: socks5h://me:s%C3%A9same@proxy:1080", "a letter beyond ASCII"),
        ("proxy: http://m%3Ae:sesame@proxy:1080", "a colon in its user name"),
        ("proxy: http://me:sesame%0a@proxy:1080", "a control character"),
        ("proxy: [http://a:1]", "must be text"),
        ("proxy_password_file: password", "needs a user in `proxy`"),
        ("proxy: none\nproxy_password_file: absent", "which cannot be read"),
        ("proxy: http://proxy:3128\nproxy_password_file: password", "needs a user in `proxy`"),
        ("proxy: http://me:sesame@proxy:1\nproxy_password_file: password", "keep one of them"),
    ],
)
def test_a_proxy_that_cannot_be_is_refused_without_its_password(
    directory: ConfigDirectory, text: str, words: str
) -> None:
    fault = directory.fault(client_with(text))
    assert words in fault
    assert "sesame" not in fault
    assert PASSWORD not in fault


def test_socks_needs_a_password_even_when_it_comes_from_a_file(directory: ConfigDirectory) -> None:
    text = client_with("proxy: socks5h://me@proxy:1080\nproxy_password_file: password")
    assert directory.client(text).proxy == Proxy("socks5h", "proxy", 1080, "me", PASSWORD)


def test_a_variable_that_cannot_be_used_is_named_and_not_shown(directory: ConfigDirectory) -> None:
    fault = directory.fault(CLIENT, {"https_proxy": "gopher://me:sesame@proxy:70"})
    assert "the environment variable https_proxy names a kind of proxy" in fault
    assert "sesame" not in fault
    directory.environ["https_proxy"] = "gopher://me:sesame@proxy:70"
    assert directory.client(client_with("proxy: none")).proxy is None
    directory.environ["no_proxy"] = "example.com"
    assert directory.client(CLIENT)


def test_settings_never_show_a_secret(directory: ConfigDirectory) -> None:
    text = client_with(
        "proxy: http://me:${ENCODED}@proxy:3128\nheaders: {X-Api-Key: '${ENCODED}', B: {value_file: password}}"
    )
    shown = repr(directory.client(text))
    assert "s3cret" not in shown
    directory.environ["ALL_PROXY"] = f"http://me:{PASSWORD}@proxy:3128"
    assert "s3cret" not in repr(directory.client(CLIENT))


# --- certificates


def test_both_ends_may_have_certificates(directory: ConfigDirectory) -> None:
    path = directory.path
    client = directory.client(
        client_with("tls: {ca_file: full.pem, certificate: full.pem, key: private.pem, server_name: Bücher.example}")
    )
    assert client.tls == ClientTls(path / "full.pem", path / "full.pem", path / "private.pem", "xn--bcher-kva.example")
    server = directory.server(server_with("tls: {certificate: full.pem, key: private.pem, client_ca: full.pem}"))
    assert server.tls == ServerTls(path / "full.pem", path / "private.pem", path / "full.pem")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tls: {certificate: full.pem}", "`certificate` needs `key` beside it"),
        ("tls: {key: private.pem}", "`key` needs `certificate` beside it"),
        ("tls: {certificate: full.pem, key: full.pem}", "which others can read"),
        ("tls: {certificate: absent.pem, key: private.pem}", "which cannot be read"),
        ("tls: {server_name: 'a b'}", "a character in its host"),
        ("tls: {client_ca: full.pem}", "unknown key `client_ca`"),
    ],
)
def test_a_certificate_that_cannot_be_is_refused(directory: ConfigDirectory, text: str, words: str) -> None:
    assert words in directory.fault(client_with(text))


def test_what_could_have_no_effect_is_refused(directory: ConfigDirectory) -> None:
    plain = client_with("tls: {ca_file: full.pem, server_name: a}").replace("wss://", "ws://")
    assert len(directory.faults(plain)) == 2
    through_tls = plain.replace(", server_name: a", "") + "  proxy: https://proxy:443\n"
    assert directory.client(through_tls).tls.ca_file is not None


# --- other addresses, names and headers


def test_another_address_and_another_name(directory: ConfigDirectory) -> None:
    settings = directory.client(client_with('connect_to: "[::1]:8443"\nhost: inner.example:81'))
    assert (settings.connect_to, settings.host) == (("::1", 8443), "inner.example:81")
    route = route_of(settings)
    url = settings_url(settings)
    assert (route.target(url), route.authority(url), route.tls_name(url)) == (
        ("::1", 8443),
        "inner.example:81",
        "tunnel.example.com",
    )


def test_headers_come_from_texts_variables_and_files(directory: ConfigDirectory) -> None:
    settings = directory.client(
        client_with("""\
headers:
  X-Team: tunnels
  CF-Access-Client-Id: ${ENCODED}
  CF-Access-Client-Secret: {value_file: password}""")
    )
    assert settings.headers == (
        ("X-Team", "tunnels"),
        ("CF-Access-Client-Id", "s3cret%2Fp%40ss%3Aword"),
        ("CF-Access-Client-Secret", PASSWORD),
    )


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("Host: a", "has a key of its own: `host`"),
        ("Connection: close", "is about one connection"),
        ("upgrade: x", "is about one connection"),
        ("Transfer-Encoding: chunked", "is about one connection"),
        ("TE: trailers", "is about one connection"),
        ("Proxy-Authorization: Basic sesame", "belong in the URL in `proxy`"),
        ("Sec-WebSocket-Key: x", "belongs to the transport"),
        ("Content-Length: '5'", "belongs to the transport"),
        ("grpc-timeout: 1S", "belongs to the transport"),
        ("'a b': c", "is no name that a header can have"),
        ("':path': /", "is no name that a header can have"),
        ("X-A: 'sesame\u00e9'", "beyond printable ASCII"),
        ("X-A: ' sesame'", "space around it"),
        ('X-A: "sesame\\r\\nX-B: c"', "has a control character"),
        ("X-A: 5", "put it in quotes"),
        ("X-A: {}", "no `value_file`"),
        ("X-A: {value_file: absent}", "which cannot be read"),
        ("X-A: {file: password, value_file: password}", "unknown key `file`"),
        ("X-A: {value_file: full.pem}", "which others can read"),
        ("X-A: {value_file: empty}", "which is empty"),
        ("X-A: {value_file: two-lines}", "more than one line"),
        ("{X-A: b, x-a: c}", "is the same header as `X-A`"),
    ],
)
def test_a_header_that_cannot_be_is_refused_without_its_value(
    directory: ConfigDirectory, header: str, words: str
) -> None:
    directory.write("empty", "\n", 0o600)
    directory.write("two-lines", "sesame\nsesame\n", 0o600)
    fault = directory.fault(client_with(f"headers: {header}" if header[0] == "{" else f"headers:\n  {header}"))
    assert words in fault
    assert "sesame" not in fault


@pytest.mark.parametrize("name", ["Authorization", "Cookie", "CF-Access-Client-Secret", "X-Api-Key", "x-auth-token"])
def test_what_looks_secret_is_refused_where_others_can_read_it(directory: ConfigDirectory, name: str) -> None:
    fault = directory.fault(client_with(f"headers: {{{name}: sesame}}"), mode=0o644)
    assert f"`{name}` looks like a secret and is in a file that others can read" in fault
    assert directory.client(client_with(f"headers: {{{name}: sesame}}"))


# --- the same on a command line


def test_a_command_line_says_the_same(directory: ConfigDirectory) -> None:
    path = directory.path
    settings = client_from_options(
        urls=[URL],
        cert=path / "full.pem",
        key=path / "private.pem",
        proxy="http://me@proxy:3128",
        proxy_password_file=path / "password",
        connect_to="192.0.2.1:443",
        header=["X-Team: tunnels"],
        header_file=[f"X-Secret:{path}/password"],
        environ=ENVIRON | {"https_proxy": "http://other:1"},
    )
    assert settings.tls == ClientTls(None, path / "full.pem", path / "private.pem")
    assert settings.proxy == Proxy("http", "proxy", 3128, "me", PASSWORD)
    assert settings.connect_to == ("192.0.2.1", 443)
    assert settings.headers == (("X-Team", "tunnels"), ("X-Secret", PASSWORD))
    default = client_from_options(urls=[URL], environ=ENVIRON | {"https_proxy": "http://other:1"})
    assert route_of(default).proxy_for(settings_url(default)) == Proxy("http", "other", 1)
    assert client_from_options(urls=[URL], proxy="none", environ=ENVIRON).proxy is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"proxy": "http://me:sesame@proxy:1"}, "--proxy has a password, which every user of this machine can read"),
        ({"proxy": "proxy:1"}, "--proxy must be none, environment or"),
        ({"proxy_password_file": "password"}, "--proxy-password-file needs a user in --proxy"),
        ({"proxy": "http://me@p:1", "proxy_password_file": "absent"}, "--proxy-password-file names"),
        ({"header": ["Authorization: Bearer sesame"]}, "give --header-file Authorization:FILE"),
        ({"header": ["X-A"]}, "--header must be NAME:VALUE"),
        ({"header": ["X-A: 1", "x-a: 2"]}, "--header x-a is given twice"),
        ({"header": ["Host: sesame"]}, "--header Host has a key of its own"),
        ({"header_file": ["X-A:absent"]}, "--header-file X-A names"),
        ({"connect_to": "host"}, "--connect-to has no port"),
        ({"cert": "full.pem"}, "--cert and --key go together"),
        ({"cert": "full.pem", "key": "full.pem"}, "--key names"),
        ({"environ": {"all_proxy": "quic://sesame"}}, "the environment variable all_proxy names a kind of proxy"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused_without_a_secret(
    directory: ConfigDirectory, options: dict[str, object], words: str
) -> None:
    for name in ("cert", "key", "proxy_password_file"):
        if name in options:
            options = options | {name: directory.path / str(options[name])}
    environ = ENVIRON | options.pop("environ", {})  # type: ignore[operator]
    with pytest.raises(UsageError) as caught:
        client_from_options(urls=[URL], environ=environ, **options)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "sesame" not in str(caught.value)


def settings_url(settings: ClientSettings) -> TunnelUrl:
    return TunnelUrl.parse(settings.servers[0].urls[0])
