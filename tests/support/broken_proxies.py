"""Proxies as people write them for a web site, which keep transports out: whole files, none from deploy/.

`doctor` has to say so, `doctor --proxy-config FILE` has to give a patch, and with that, and a reload, the path has to
be sound.  `Broken.cure` does all of it by the command line, as a user would.  Used by tests/doctor and
`benchmarks.doctor`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support.applications import Target, connection, echo, exchange
from tests.support.harness import ROOT, SECONDS, Program, Tunnel
from tests.support.machine.certificates import Authority
from tests.support.machine.ports import unused_port
from tests.support.machine.processes import run_qanat
from tests.support.machine.programs import require_program
from tests.support.machine.web import HOST, Master, wait_until_listening

_FLAWED = 4


@dataclass(frozen=True, slots=True)
class Broken:
    """A proxy's file, the codes of which one has to be named, and a transport that it keeps out until it is patched."""

    name: str
    program: str
    codes: frozenset[str]
    transport: str
    text: str

    def cure(self, tunnel: Tunnel, directory: Path) -> None:
        """Have the doctor find it and cure it, and a client connect; raises AssertionError.  Blocks."""
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
        authority = Authority(directory)
        issued = authority.issue(HOST)
        issued.key.chmod(0o600)
        both = directory / "both.pem"
        both.touch(mode=0o600)
        both.write_bytes(issued.certificate.read_bytes() + issued.key.read_bytes())
        port = unused_port()
        file = directory / f"{self.program}.conf"
        values = {
            "@PORT@": port,
            "@SERVER@": f"127.0.0.1:{tunnel.port}",
            "@SERVER_PORT@": tunnel.port,
            "@CERTIFICATE@": issued.certificate,
            "@KEY@": issued.key,
            "@BOTH@": both,
            "@DIRECTORY@": directory,
        }
        text = self.text
        for name, value in values.items():
            text = text.replace(name, str(value))
        file.write_text(text)
        url = f"wss://{HOST}:{port}/tunnel"
        examine = ("doctor", url, "--ca-file", authority.ca_file)
        with ExitStack() as stack:
            proxy = stack.enter_context(_START[self.program](directory, file, port))
            before = run_qanat(*examine)
            named = {code for code in self.codes if f"{code}" in before.stdout}
            assert named, f"not {sorted(self.codes)}:\n{before.stdout}{before.stderr}"
            found = run_qanat("doctor", "--proxy-config", file, cwd=directory)
            assert found.returncode == _FLAWED, f"nothing is wrong with the file:\n{found.stdout}{found.stderr}"
            subprocess.run([require_program("patch"), "-p0", "-s", file], input=found.stdout, text=True, check=True)
            _reload(self.program, proxy, file)
            deadline = time.monotonic() + SECONDS
            while True:  # a worker of before may still answer
                after = run_qanat(*examine)
                if not after.returncode and not any(code in after.stdout for code in self.codes):
                    break
                assert time.monotonic() < deadline, f"with {found.stdout}\nit is still not sound:\n{after.stdout}"
            self._connect(stack, tunnel, directory, url, authority.ca_file)

    def _connect(self, stack: ExitStack, tunnel: Tunnel, directory: Path, url: str, ca_file: Path) -> None:
        target = stack.enter_context(Target(echo))
        port = unused_port()
        client = stack.enter_context(
            Program(
                *(sys.executable, ROOT / "tunnel.py", "client", url, "--name", "a"),
                *("--token-file", tunnel.directory / "a.token", "--ca-file", ca_file),
                *("--fingerprint", tunnel.fingerprint, "--transport", self.transport),
                *("-L", f"{port}:{target.address}"),
                XDG_STATE_HOME=directory / "state",
            )
        )
        client.wait_for(rf"connected to \S+ over {self.transport} ")
        with connection(port) as sock:
            assert exchange(sock, b"cured") == b"cured"


# --- starting and reloading -------------------------------------------------------------------------


def _nginx(directory: Path, file: Path, port: int) -> Program:
    user = "user root; " if os.geteuid() == 0 else ""
    (directory / "main.conf").write_text(
        f"{user}worker_processes 1;\npid nginx.pid;\ndaemon off;\nerror_log stderr notice;\n"
        "events { worker_connections 1024; }\nhttp {\n    access_log off;\n"
        "    client_body_temp_path body;\n    proxy_temp_path proxy;\n    fastcgi_temp_path fastcgi;\n"
        f"    uwsgi_temp_path uwsgi;\n    scgi_temp_path scgi;\n    include {file};\n}}\n"
    )
    program = Master(require_program("nginx"), "-p", directory, "-e", "stderr", "-c", directory / "main.conf")
    wait_until_listening(port, program)
    return program


def _haproxy(directory: Path, file: Path, port: int) -> Program:
    program = Master(require_program("haproxy"), "-W", "-db", "-f", file)
    wait_until_listening(port, program)
    return program


_APACHE_MODULES = (
    *("mpm_event", "authz_core", "reqtimeout", "socache_shmcb", "ssl", "http2"),
    *("proxy", "proxy_http", "proxy_http2", "proxy_wstunnel", "rewrite", "headers"),
)


def _apache(directory: Path, file: Path, port: int) -> Program:
    modules = "".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n" for name in _APACHE_MODULES)
    user = "User www-data\nGroup www-data\n" if os.geteuid() == 0 else ""
    (directory / "apache2.conf").write_text(
        f"ServerRoot {directory}\nDefaultRuntimeDir {directory}\nPidFile {directory}/pid\n"
        f"ServerName {HOST}\nErrorLog /dev/stderr\n{user}{modules}Timeout 300\n"
        "RequestReadTimeout header=20-40,minrate=500\nRequestReadTimeout body=10,minrate=500\n"
        "StartServers 1\nThreadsPerChild 25\nMaxRequestWorkers 50\n"
        f"Listen 127.0.0.1:{port}\nInclude {file}\n"
    )
    program = Master(require_program("apache2"), "-DFOREGROUND", "-f", directory / "apache2.conf")
    wait_until_listening(port, program)
    return program


def _caddy(directory: Path, file: Path, port: int) -> Program:
    homes = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), directory)
    caddy = require_program("caddy")
    program = Program(caddy, "run", "--watch", "--adapter", "caddyfile", "--config", file, **homes)
    wait_until_listening(port, program)
    return program


def _nghttpx(directory: Path, file: Path, port: int) -> Program:
    program = Master(require_program("nghttpx"), f"--conf={file}")
    wait_until_listening(port, program)
    return program


_START: dict[str, Callable[[Path, Path, int], Program]] = {
    "nginx": _nginx,
    "haproxy": _haproxy,
    "apache": _apache,
    "caddy": _caddy,
    "nghttpx": _nghttpx,
}
_SIGNALS = {
    "nginx": signal.SIGHUP,
    "haproxy": signal.SIGUSR2,
    "apache": signal.SIGUSR1,
    "nghttpx": signal.SIGHUP,
}
"""What their units' `reload` sends.  Caddy watches its file."""


def _reload(which: str, proxy: Program, file: Path) -> None:
    if which in _SIGNALS:
        proxy.process.send_signal(_SIGNALS[which])
    else:
        proxy.wait_for("config file changed; reloading")


# --- the files --------------------------------------------------------------------------------------

_NGINX_TLS = "    ssl_certificate @CERTIFICATE@;\n    ssl_certificate_key @KEY@;\n"


def _broken(name: str, program: str, codes: Sequence[str], transport: str, text: str) -> Broken:
    return Broken(name, program, frozenset(codes), transport, text)


BROKEN = (
    _broken(
        "nginx: a site with proxy_pass for everything",
        "nginx",
        ["upgrade-dropped", "http2-off", "request-held"],
        "websocket",
        "server {\n    listen 127.0.0.1:@PORT@ ssl;\n    server_name localhost;\n"
        + _NGINX_TLS
        + "    location / {\n        proxy_pass http://@SERVER@;\n        proxy_set_header Host $host;\n"
        "        proxy_set_header X-Real-IP $remote_addr;\n"
        "        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n"
        "        proxy_buffering on;\n    }\n}\n",
    ),
    _broken(
        "nginx: an upstream, and headers set above the location",
        "nginx",
        ["request-held", "http2-not-to-server", "upgrade-dropped"],
        "http2",
        "upstream app {\n    server @SERVER@;\n    keepalive 8;\n}\n"
        "map $http_upgrade $connection_upgrade {\n    default upgrade;\n    '' close;\n}\n"
        "client_max_body_size 20m;\n"
        "server {\n    listen 127.0.0.1:@PORT@ ssl http2;\n    server_name localhost;\n"
        + _NGINX_TLS
        + "    proxy_set_header Host $host;\n    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n"
        "    proxy_read_timeout 20s;\n"
        "    location ~ ^/(tunnel|api) {\n        proxy_http_version 1.1;\n"
        '        proxy_set_header Connection "";\n        proxy_pass http://app;\n    }\n'
        "    location / {\n        return 404;\n    }\n}\n",
    ),
    _broken(
        "nginx: the path is taken away",
        "nginx",
        ["wrong-path"],
        "websocket",
        "server {\n    listen 127.0.0.1:@PORT@ ssl http2;\n    server_name localhost;\n"
        + _NGINX_TLS
        + "    location /tunnel {\n        proxy_pass http://@SERVER@/;\n        proxy_http_version 1.1;\n"
        "        proxy_set_header Upgrade $http_upgrade;\n        proxy_set_header Connection $http_connection;\n"
        "    }\n}\n",
    ),
    _broken(
        "nginx: grpc_pass alone",
        "nginx",
        ["upgrade-dropped", "body-limit"],
        "websocket",
        "server {\n    listen 127.0.0.1:@PORT@ ssl http2;\n    server_name localhost;\n"
        + _NGINX_TLS
        + "    location = /tunnel {\n        grpc_pass grpc://@SERVER@;\n"
        "        grpc_set_header Host $host;\n    }\n}\n",
    ),
    _broken(
        "HAProxy: a frontend and a backend with health checks",
        "haproxy",
        ["http2-off", "request-held"],
        "grpc",
        "global\n    maxconn 1000\n\ndefaults\n    mode http\n    option httplog\n    option dontlognull\n"
        "    timeout connect 5s\n    timeout client 20s\n    timeout server 20s\n\n"
        "frontend www\n    bind 127.0.0.1:@PORT@ ssl crt @BOTH@\n"
        "    http-request set-header X-Forwarded-Proto https\n    default_backend app\n\n"
        "backend app\n    balance roundrobin\n    option forwardfor\n    server app1 @SERVER@ check\n",
    ),
    _broken(
        "HAProxy: one listen section that waits for whole requests",
        "haproxy",
        ["request-held", "http2-off"],
        "http2",
        "defaults\n    mode http\n    timeout connect 5s\n    timeout client 1m\n    timeout server 1m\n"
        "    timeout http-request 10s\n    option http-buffer-request\n\n"
        "listen app\n    bind 127.0.0.1:@PORT@ ssl crt @BOTH@ alpn http/1.1\n"
        "    http-request deny if { req.body_size gt 1000000 }\n    server app1 @SERVER@ maxconn 100\n",
    ),
    _broken(
        "Apache: ProxyPass for the whole site",
        "apache",
        ["http2-off", "upgrade-dropped", "request-held"],
        "http2",
        "<VirtualHost *:@PORT@>\n    ServerName localhost\n    SSLEngine on\n    SSLCertificateFile @CERTIFICATE@\n"
        "    SSLCertificateKeyFile @KEY@\n    ProxyPreserveHost On\n    LimitRequestBody 1048576\n"
        "    ProxyPass / http://@SERVER@/\n    ProxyPassReverse / http://@SERVER@/\n</VirtualHost>\n",
    ),
    _broken(
        "Apache: ProxyPass inside a Location",
        "apache",
        ["upgrade-dropped", "request-held"],
        "websocket",
        "<VirtualHost *:@PORT@>\n    ServerName localhost\n    Protocols h2 http/1.1\n    SSLEngine on\n"
        "    SSLCertificateFile @CERTIFICATE@\n    SSLCertificateKeyFile @KEY@\n"
        "    <Location /tunnel>\n        ProxyPass http://@SERVER@/tunnel\n"
        "        ProxyPassReverse http://@SERVER@/tunnel\n    </Location>\n</VirtualHost>\n",
    ),
    _broken(
        "Caddy: reverse_proxy for everything",
        "caddy",
        ["request-held", "http2-not-to-server", "body-limit"],
        "http2",
        "{\n\tadmin off\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n}\n"
        "https://localhost:@PORT@ {\n\ttls @CERTIFICATE@ @KEY@\n\tencode gzip\n"
        "\trequest_body {\n\t\tmax_size 1MB\n\t}\n\treverse_proxy @SERVER@ {\n"
        "\t\theader_up X-Real-IP {remote_host}\n\t}\n}\n",
    ),
    _broken(
        "Caddy: handle_path takes the path away",
        "caddy",
        ["wrong-path"],
        "websocket",
        "{\n\tadmin off\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n}\n"
        "https://localhost:@PORT@ {\n\ttls @CERTIFICATE@ @KEY@\n"
        "\thandle_path /tunnel* {\n\t\treverse_proxy @SERVER@\n\t}\n"
        "\thandle {\n\t\trespond 404\n\t}\n}\n",
    ),
    _broken(
        "nghttpx: HTTP/1.1 alone, and another web server for the rest",
        "nghttpx",
        ["http2-off", "wrong-path", "backend-down"],
        "grpc",
        "frontend=127.0.0.1,@PORT@\ncertificate-file=@CERTIFICATE@\nprivate-key-file=@KEY@\n"
        "npn-list=http/1.1\nbackend=127.0.0.1,@SERVER_PORT@;/app/;proto=h2\n"
        "backend=127.0.0.1,9;/\nadd-x-forwarded-for=yes\n",
    ),
    _broken(
        "nghttpx: HTTP/1.1 to the server, and short patience",
        "nghttpx",
        ["request-held", "http2-not-to-server"],
        "http2",
        "frontend=127.0.0.1,@PORT@\ncertificate-file=@CERTIFICATE@\nprivate-key-file=@KEY@\n"
        "backend=127.0.0.1,@SERVER_PORT@\nbackend-read-timeout=20s\nadd-x-forwarded-for=yes\n",
    ),
)
