"""The `client:` section of a configuration file: what has a form of its own in it, and what goes together.

All else is read as `qanat.config.client_settings.ClientSettings` declares it.  `qanat.config.load` calls `read_client`.
"""

from __future__ import annotations

from qanat.config.client_settings import ClientSettings
from qanat.config.forwards import read_forwards
from qanat.config.reader import read_options
from qanat.config.route import read_client_tls, read_headers, read_proxy
from qanat.config.section import Section
from qanat.config.servers import check_order, read_servers
from qanat.config.state import read_state_dir

_ELSEWHERE = dict.fromkeys(("local", "remote", "dynamic", "password_file", "to", "udp"), "an entry of `forwards:`")


def read_client(s: Section) -> ClientSettings:
    """Return the client's settings; they mean nothing when a fault was noted."""
    servers = read_servers(s)
    urls = tuple(url for server in servers for url in server.urls)
    proxy = read_proxy(s, urls)
    settings = read_options(
        s,
        ClientSettings,
        elsewhere=_ELSEWHERE,
        servers=servers,
        forwards=read_forwards(s),
        tls=read_client_tls(s, urls, proxy),
        proxy=proxy,
        headers=read_headers(s),
        state_dir=read_state_dir(s),
    )
    check_order(s, settings)
    return settings
