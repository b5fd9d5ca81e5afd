"""Which proxy the environment names, and what NO_PROXY exempts: as curl has it, checked against curl itself."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack

import pytest

from qanat.base.errors import UsageError
from qanat.transports.dial.no_proxy import is_exempt
from qanat.transports.dial.proxies import EnvironmentProxies, Proxy
from qanat.transports.dial.urls import TunnelUrl
from tests.support.harness import SECONDS
from tests.support.machine.programs import require_program
from tests.support.transports.loopback import listen

NO_PROXY = [
    ("example.com", "", False),
    ("example.com", "*", True),
    ("example.com", "*,other", False),
    ("example.com", "example.com", True),
    ("example.com", "EXAMPLE.com", True),
    ("EXAMPLE.com", "example.com", True),
    ("www.example.com", "example.com", True),
    ("www.example.com", ".example.com", True),
    ("example.com", ".example.com", True),
    ("example.com", "www.example.com", False),
    ("notexample.com", "example.com", False),
    ("notexample.com", ".example.com", False),
    ("example.com", "com", True),
    ("example.com", "example.com.", True),
    ("example.com.", "example.com", True),
    ("example.com", "a.example, example.com", True),
    ("example.com", "a.example example.com", True),
    ("example.com", "a.example,,b.example,", False),
    ("example.com", "*.example.com", False),
    ("www.example.com", "*.example.com", False),
    ("localhost", "", False),
    ("localhost", "localhost", True),
    ("127.0.0.1", "", False),
    ("127.0.0.1", "localhost", False),
    ("192.0.2.7", "192.0.2.7", True),
    ("192.0.2.7", "0.2.7", False),
    ("192.0.2.7", "192.0.2.0/24", True),
    ("192.0.2.7", "192.0.2.1/24", True),
    ("192.0.3.7", "192.0.2.0/24", False),
    ("192.0.2.7", "192.0.2.0/33", False),
    ("192.0.2.7", "a.example,192.0.2.0/25", True),
    ("example.com", "192.0.2.0/24", False),
    ("2001:db8::7", "2001:db8::7", True),
    ("2001:db9::7", "2001:db8::/32", False),
    ("2001:db8::7", "192.0.2.0/24", False),
]
NOT_CURLS = [  # the first rows are faults of curl 7.88
    ("2001:db8::7", "2001:db8::/32", True),
    ("2001:db8::7", "[2001:db8::7]", True),
    ("2001:db8::7", "2001:0db8:0::7", True),
    ("example.com", " * ", True),
    ("example.com", "example.com:8443", True),
    ("www.example.com", ".example.com:8443", True),
    ("example.com", "example.com:443", False),
    ("192.0.2.7", "192.0.2.7:8443", True),
    ("2001:db8::7", "[2001:db8::7]:8443", True),
    ("2001:db8::7", "[2001:db8::7]:443", False),
    ("192.0.2.7", "0.0.0.0/0", True),
]
PORT = 8443


@pytest.mark.parametrize(("host", "no_proxy", "exempt"), NO_PROXY + NOT_CURLS)
def test_no_proxy_exempts_what_it_lists(host: str, no_proxy: str, exempt: bool) -> None:
    assert is_exempt(host, PORT, no_proxy) is exempt


def test_curl_reads_no_proxy_in_the_same_way(stack: ExitStack) -> None:
    """With a proxy that is down, curl says of each host whether it asked the proxy or found nobody itself."""
    curl = require_program("curl")
    closed = listen(stack)[1]
    stack.close()  # nobody listens there now
    wrong = []
    for host, no_proxy, exempt in NO_PROXY:
        name = f"[{host}]" if ":" in host else host
        # For a direct connection, every host is at a port of ours where nobody listens.
        command = [curl, "-sv", "--max-time", "5", "--connect-to", f"::127.0.0.1:{closed}", f"http://{name}:{PORT}/"]
        environ = {"http_proxy": f"http://127.0.0.1:{closed}", "NO_PROXY": no_proxy}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=SECONDS)
        if ("Uses proxy env variable http_proxy" in done.stderr) is exempt:
            wrong.append((host, no_proxy, done.stderr))
    assert not wrong


@pytest.mark.parametrize(
    ("environ", "tls", "plain"),
    [
        ({}, None, None),
        ({"https_proxy": "http://a:1"}, "a", None),
        ({"HTTPS_PROXY": "http://a:1"}, "a", None),
        ({"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1"}, "a", None),
        ({"https_proxy": "", "HTTPS_PROXY": "http://b:1"}, "b", None),
        ({"http_proxy": "http://a:1"}, None, "a"),
        ({"HTTP_PROXY": "http://a:1"}, None, None),
        ({"ALL_PROXY": "socks5h://a:1"}, "a", "a"),
        ({"all_proxy": "http://a:1", "ALL_PROXY": "http://b:1"}, "a", "a"),
        ({"https_proxy": "http://a:1", "all_proxy": "http://b:1", "http_proxy": ""}, "a", "b"),
        ({"all_proxy": "a:1", "no_proxy": "h.example"}, None, None),
        ({"all_proxy": "a:1", "NO_PROXY": "example"}, None, None),
        ({"all_proxy": "a:1", "no_proxy": "other.example", "NO_PROXY": "h.example"}, "a", "a"),
    ],
)
def test_the_environment_names_a_proxy(environ: dict[str, str], tls: str | None, plain: str | None) -> None:
    proxies = EnvironmentProxies.read(environ)
    found = [proxies.proxy_for(TunnelUrl.parse(f"{scheme}://h.example/t")) for scheme in ("wss", "https", "ws", "http")]
    assert [proxy and proxy.host for proxy in found] == [tls, tls, plain, plain]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("proxy", "http://proxy:1080"),
        ("proxy:3128", "http://proxy:3128"),
        ("HTTP://me:sesame@proxy:3128/", "http://proxy:3128"),
        ("https://proxy", "https://proxy:443"),
        ("socks5://me:sesame@[::1]", "socks5h://[::1]:1080"),
        ("http://pröxy.example:1", "http://xn--prxy-6qa.example:1"),
        ("http://me:ses@me/#?:sesame@proxy:1", "http://proxy:1"),
    ],
)
def test_a_proxy_is_shown_without_its_login(text: str, shown: str) -> None:
    proxy = Proxy.parse(text)
    assert str(proxy) == shown
    assert "sesame" not in repr(proxy)
    assert "sesame" not in repr(EnvironmentProxies.read({"ALL_PROXY": text}))


def test_a_login_is_decoded_and_may_have_every_character() -> None:
    proxy = Proxy.parse("http://a%20b:c%40d/e@f:g@proxy:1")
    assert (proxy.user, proxy.password) == ("a b", "c@d/e@f:g")
    assert Proxy.parse("http://me@proxy:1").password is None
    assert Proxy.parse("http://me:@proxy:1").password == ""


def test_a_variable_that_names_no_proxy_is_refused_by_its_name_alone() -> None:
    proxies = EnvironmentProxies.read({"ALL_PROXY": "socks4://me:sesame@proxy"})
    with pytest.raises(UsageError, match="the environment variable ALL_PROXY names a kind of proxy") as caught:
        proxies.proxy_for(TunnelUrl.parse("wss://h.example/"))
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("socks://127.0.0.1:1080/", "socks5h://127.0.0.1:1080"),
        ("http://proxy.example:3128//", "http://proxy.example:3128"),
        ("http://proxy.example:3128/proxy.pac", "http://proxy.example:3128"),
        ("http://[fe80::1%25eth0]:3128", "http://[fe80::1%eth0]:3128"),
    ],
)
def test_what_desktops_and_people_write_is_understood(text: str, shown: str) -> None:
    """GNOME writes ALL_PROXY=socks://…, and curl does not mind a path."""
    proxy = EnvironmentProxies.read({"ALL_PROXY": text}).proxy_for(TunnelUrl.parse("ws://tunnel.example/"))
    assert str(proxy) == shown


def test_a_windows_domain_is_part_of_the_user_name() -> None:
    proxy = Proxy.parse("http://CORP\\me:p%23ss@proxy.example:3128")
    assert (proxy.user, proxy.password) == ("CORP\\me", "p#ss")
