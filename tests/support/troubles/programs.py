"""Real proxies with the least that a user writes: nginx, Apache, h2o, Varnish and Squid as Debian installs them.

None of them passes WebSocket, HTTP/2 or gRPC on to the server in this state, and some hold bodies back.  Those with the
files in deploy/ are `tests.support.machine.proxies`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tests.support.harness import Program
from tests.support.machine.certificates import Certificate
from tests.support.machine.programs import require_program
from tests.support.machine.web import HOST, Master, Nginx, wait_until_listening

_APACHE_MODULES = ("mpm_event", "authz_core", "reqtimeout", "socache_shmcb", "ssl", "http2", "proxy", "proxy_http")


def start_nginx(directory: Path, port: int, server_port: int, issued: Certificate | None) -> Program:
    """`proxy_pass` and nothing else: HTTP/1.0 to the server, no Upgrade, both bodies buffered, 1 MiB at most."""
    tls = "" if issued is None else f"ssl_certificate {issued.certificate}; ssl_certificate_key {issued.key};"
    listen = f"listen 127.0.0.1:{port}{'' if issued is None else ' ssl http2'};"
    block = (
        # What Debian's nginx.conf has above a site.
        "sendfile on;\ntcp_nopush on;\ngzip on;\ntypes_hash_max_size 2048;\n"
        f"server {{\n{listen} server_name {HOST}; {tls}\n"
        f"location / {{\nproxy_pass http://127.0.0.1:{server_port};\n}}\n}}\n"
    )
    return Nginx(directory, [block], port)


def start_apache(directory: Path, port: int, server_port: int, issued: Certificate | None) -> Program:
    """`ProxyPass / http://`, in what Debian's apache2.conf and modules have."""
    modules = "".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n" for name in _APACHE_MODULES)
    user = "User www-data\nGroup www-data\n" if os.geteuid() == 0 else ""
    tls = (
        "Protocols h2c http/1.1\n"
        if issued is None
        else f"Protocols h2 http/1.1\nSSLEngine on\nSSLCertificateFile {issued.certificate}\n"
        f"SSLCertificateKeyFile {issued.key}\n"
    )
    file = directory / "apache.conf"
    file.write_text(
        f"ServerRoot {directory}\nDefaultRuntimeDir {directory}\nPidFile {directory}/pid\n"
        f"ServerName {HOST}\nErrorLog /dev/stderr\n{user}{modules}"
        "Timeout 300\nKeepAlive On\nMaxKeepAliveRequests 100\nKeepAliveTimeout 5\n"
        "RequestReadTimeout header=20-40,minrate=500\nRequestReadTimeout body=10,minrate=500\n"
        "StartServers 2\nMinSpareThreads 25\nMaxSpareThreads 75\nThreadLimit 64\nThreadsPerChild 25\n"
        "MaxRequestWorkers 150\n"
        f"Listen 127.0.0.1:{port}\n<VirtualHost *:{port}>\n{tls}"
        f"ProxyPass / http://127.0.0.1:{server_port}/\n</VirtualHost>\n"
    )
    return _listening(Master(require_program("apache2"), "-DFOREGROUND", "-f", file), port)


def start_h2o(directory: Path, port: int, server_port: int, issued: Certificate | None) -> Program:
    """`proxy.reverse.url`."""
    tls = (
        ""
        if issued is None
        else f"      ssl:\n        certificate-file: {issued.certificate}\n        key-file: {issued.key}\n"
    )
    user = "user: root\n" if os.geteuid() == 0 else ""
    file = directory / "h2o.conf"
    file.write_text(
        f"{user}num-threads: 1\nerror-log: /dev/stderr\n"
        f"hosts:\n  default:\n    listen:\n      host: 127.0.0.1\n      port: {port}\n{tls}"
        f"    paths:\n      /:\n        proxy.reverse.url: http://127.0.0.1:{server_port}/\n"
    )
    return _listening(Master(require_program("h2o"), "-m", "worker", "-c", file), port)


def start_varnish(directory: Path, port: int, server_port: int, issued: Certificate | None) -> Program:
    """A backend and the built-in rules, with HTTP/2 switched on; Varnish has no TLS."""
    file = directory / "default.vcl"
    file.write_text(f'vcl 4.1;\nbackend default {{ .host = "127.0.0.1"; .port = "{server_port}"; }}\n')
    for path in (file, directory):
        path.chmod(0o755)  # what compiles the rules has given root up
    return _listening(
        Master(
            require_program("varnishd"),
            *("-F", "-n", directory / "work", "-a", f"127.0.0.1:{port}", "-f", file, "-p", "feature=+http2"),
            *("-s", "malloc,64m", "-p", "thread_pool_min=20", "-p", "thread_pools=1", "-j", "none"),
        ),
        port,
    )


class Accelerator(Master):
    """Squid in front of a server."""

    def __init__(self, directory: Path, port: int, server_port: int, issued: Certificate | None) -> None:
        # It gives root up, and could then not use a directory that is only ours.
        self._directory = Path(tempfile.mkdtemp(prefix="qanat-squid-"))
        if os.geteuid() == 0:
            shutil.chown(self._directory, "proxy", "proxy")
        listen = f"http_port 127.0.0.1:{port}"
        if issued is not None:
            listen = f"https_port 127.0.0.1:{port} tls-cert={issued.certificate} tls-key={issued.key}"
        file = self._directory / "squid.conf"
        file.write_text(
            f"{listen} accel defaultsite={HOST} no-vhost\n"
            f"cache_peer 127.0.0.1 parent {server_port} 0 no-query no-digest originserver name=tunnel\n"
            "http_access allow all\ncache deny all\npid_filename none\n"
            f"access_log none\ncache_log {self._directory}/cache.log\ncoredump_dir {self._directory}\n"
            "shutdown_lifetime 0 seconds\npinger_enable off\nnetdb_filename none\ndns_nameservers 127.0.0.1\n"
        )
        # Two Squids of one name would share their memory.
        super().__init__(require_program("squid"), "-N", "-d1", "-n", f"qanat{port}", "-f", file, cwd=self._directory)
        wait_until_listening(port, self)

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._directory, ignore_errors=True)


def _listening(program: Program, port: int) -> Program:
    wait_until_listening(port, program)
    return program
