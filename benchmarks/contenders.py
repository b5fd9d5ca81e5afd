"""Everything that is measured side by side: what it is, what it needs, and how it is started and stopped.

`CONTENDERS` is the list.  Each start gives a `Running`: a port that leads to the target, and the processes of both
ends.  Qanat itself is in `benchmarks.qanat_contenders`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.rig import load, processes
from benchmarks.rig.bare import FAR, NEAR
from benchmarks.rig.processes import Started
from benchmarks.rig.target import ECHO
from tests.support.machine.certificates import Authority, Certificate
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import find_program

LOOPBACK = "127.0.0.1"
READY_SECONDS = 30.0
REST_SPAN, REST_CORES = 0.1, 0.1
"""Seconds over which a contender that rests uses less than so many cores."""


class Process(Protocol):
    """What a contender is made of."""

    pid: int

    @property
    def running(self) -> bool:
        """Whether it has not ended."""

    @property
    def last_words(self) -> str:
        """The end of its output."""

    def stop(self) -> None:
        """End it with its children."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a contender runs: a folder of its own, the target, and which machine each end is on."""

    folder: Path
    target: int  # its port at the far host
    far_host: str = LOOPBACK
    at_near: Callable[[], AbstractContextManager[None]] = nullcontext  # what is started in it is at the near end
    at_far: Callable[[], AbstractContextManager[None]] = nullcontext
    _authority: list[Authority] = field(default_factory=list)

    def near(self, *command: object) -> Started:
        """Start a program at the near end."""
        with self.at_near():
            return Started(*command)

    def far(self, *command: object) -> Started:
        """Start a program at the far end."""
        with self.at_far():
            return Started(*command)

    def certificate(self) -> tuple[Path, Certificate]:
        """Return an authority's file and a certificate of it for localhost."""
        if not self._authority:
            self._authority.append(Authority(self.folder))
        return self._authority[0].ca_file, self._authority[0].issue("localhost")

    def await_far(self, process: Started, port: int) -> None:
        """Block until something listens on this port of the far end."""
        with self.at_far():
            process.wait_until(lambda: listens((self.far_host, port)), f"listening on {self.far_host}:{port}")


@dataclass(slots=True)
class Running:
    """A contender at work: `address` leads to the target."""

    address: tuple[str, int]
    near: list[Process] = field(default_factory=list)
    far: list[Process] = field(default_factory=list)
    between: list[Process] = field(default_factory=list)

    @property
    def processes(self) -> list[Process]:
        """All of them, from the load to the target."""
        return [*self.near, *self.between, *self.far]

    @property
    def processor_time(self) -> float:
        """Seconds used so far by all of them."""
        return processes.processor_time(process.pid for process in self.processes)

    def await_rest(self, seconds: float) -> bool:
        """Block until its processes have nothing left to do, at most `seconds`; return whether it came to that.

        An echo that is quick says less: v2ray goes on for seconds with what it has taken of 64 uploads, beside it.
        """
        end = time.monotonic() + seconds
        while self.processes:
            before, since = self.processor_time, time.monotonic()
            time.sleep(REST_SPAN)
            now = time.monotonic()
            if self.processor_time - before < REST_CORES * (now - since):
                break
            if now >= end:
                return False
        return True

    def why_dead(self) -> str | None:
        """Return which of its processes has ended and with which words; None while all run."""
        for process in self.processes:
            if not process.running:
                return f"process {process.pid} has ended: {process.last_words}"
        return None

    def stop(self) -> None:
        """End all of them."""
        for process in self.processes:
            process.stop()


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of each table."""

    name: str  # in --only, in JSON
    title: str
    start: Callable[[Site], Running]
    programs: tuple[str, ...] = ()
    packages: str = ""  # Debian's, that hold the programs
    streams: int = 5000  # at most, where each costs it a process
    version: Callable[[], str] = lambda: ""
    on_paths: bool = False  # whether it can be measured between two namespaces too
    start_clients: Callable[[Site, int], Running] | None = None  # a server (far) and that many idle clients (near)
    clients: int = 1000  # at most, where each costs a process

    @property
    def missing(self) -> str | None:
        """Return what to do before it can be measured; None when nothing is missing."""
        gone = [name for name in self.programs if find_program(name) is None]
        return f"not installed: apt-get install {self.packages}" if gone else None


def listens(address: tuple[str, int]) -> bool:
    """Whether a connection to `address` is accepted."""
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
        return True
    return False


def await_echo(running: Running, site: Site) -> Running:
    """Block until the whole way to the target works; ends what was started and raises RuntimeError when it does not."""

    def echoes() -> bool:
        with contextlib.suppress(OSError), load.connect(running.address, ECHO + b"?") as sock:
            sock.settimeout(2)
            return sock.recv(1) == b"?"
        return False

    try:
        with site.at_near():
            if running.processes:
                first = next(iter([*running.near, *running.far]))
                assert isinstance(first, Started)
                first.wait_until(echoes, "a way to the target")
            elif not echoes():
                raise RuntimeError("the target does not answer")
    except BaseException:
        running.stop()
        raise
    return running


def program_version(name: str, option: str) -> Callable[[], str]:
    """Return what asks an installed program for its version."""

    def ask() -> str:
        path = find_program(name)
        if path is None:
            return ""
        done = subprocess.run([path, option], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        found = re.search(r"\d+\.[\w.]+", done.stdout + done.stderr)
        return found[0] if found else "?"

    return ask


# --- no tunnel, and other people's ---------------------------------------------------------------


def _start_direct(site: Site) -> Running:
    return await_echo(Running((site.far_host, site.target)), site)


def _start_sshd(site: Site) -> tuple[Started, int]:
    """sshd with keys of its own, and its port."""
    folder = site.folder
    for name in ("host", "user"):
        command = [find_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name]
        subprocess.run([str(part) for part in command], check=True)
    (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
    with site.at_far():
        port = unused_port()
    (folder / "known").write_text(f"[{site.far_host}]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress {site.far_host}\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
        "PasswordAuthentication no\nMaxStartups 1000\nUseDNS no\nLogLevel ERROR\nCiphers aes256-gcm@openssh.com\n"
    )
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    sshd = site.far(find_program("sshd"), "-D", "-e", "-f", folder / "sshd_config")
    try:
        site.await_far(sshd, port)
    except BaseException:
        sshd.stop()
        raise
    return sshd, port


def _ssh(site: Site, remote: bool) -> Running:
    sshd, port = _start_sshd(site)
    running = Running((LOOPBACK, 0), far=[sshd])
    try:
        with site.at_near():
            entrance = unused_port()
        rule = f"{LOOPBACK}:{entrance}:{site.far_host}:{site.target}"
        running.address = (LOOPBACK, entrance)
        running.near.append(site.near(*_ssh_command(site, port, "-R" if remote else "-L", rule)))
    except BaseException:
        running.stop()
        raise
    return await_echo(running, site)


def _start_ssh_clients(site: Site, count: int) -> Running:
    """Clients that only hold their connection, a process each."""
    sshd, port = _start_sshd(site)
    running = Running((LOOPBACK, port), far=[sshd])
    try:
        for turn in range(count):
            in_now = site.folder / f"logged-in-{turn}"
            tell = ("-o", "PermitLocalCommand=yes", "-o", f"LocalCommand=touch {in_now}")
            client = site.near(*_ssh_command(site, port, *tell))
            running.near.append(client)
            client.wait_until(in_now.exists, "logged in")
    except BaseException:
        running.stop()
        raise
    return running


def _ssh_command(site: Site, port: int, *arguments: object) -> tuple[object, ...]:
    """A client that logs in and runs nothing."""
    folder = site.folder
    options = [
        *("IdentitiesOnly=yes", f"UserKnownHostsFile={folder}/known", "GlobalKnownHostsFile=/dev/null"),
        *("StrictHostKeyChecking=yes", "BatchMode=yes", "LogLevel=ERROR", "ExitOnForwardFailure=yes"),
    ]
    return (
        *(find_program("ssh"), "-F", "/dev/null", "-N", "-c", "aes256-gcm@openssh.com", "-i", folder / "user"),
        *(part for option in options for part in ("-o", option)),
        *("-p", port, *arguments, site.far_host),
    )


def _start_stunnel(site: Site) -> Running:
    """TLS 1.3 between two stunnels, the near one checking the far one's certificate."""
    ca_file, issued = site.certificate()
    crossing, entrance = unused_port(), unused_port()
    common = "foreground = yes\npid =\nsyslog = no\ndebug = err\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n"
    (site.folder / "far.conf").write_text(
        f"{common}[far]\naccept = {site.far_host}:{crossing}\nconnect = {site.far_host}:{site.target}\n"
        f"cert = {issued.certificate}\nkey = {issued.key}\nsslVersionMin = TLSv1.3\n"
    )
    (site.folder / "near.conf").write_text(
        f"{common}[near]\nclient = yes\naccept = {LOOPBACK}:{entrance}\nconnect = {site.far_host}:{crossing}\n"
        f"CAfile = {ca_file}\nverifyChain = yes\ncheckHost = localhost\nsslVersionMin = TLSv1.3\n"
    )
    stunnel = find_program("stunnel")
    far, near = site.far(stunnel, site.folder / "far.conf"), site.near(stunnel, site.folder / "near.conf")
    return await_echo(Running((LOOPBACK, entrance), near=[near], far=[far]), site)


def _start_v2ray(site: Site) -> Running:
    """VMess with AES-128-GCM in WebSocket without TLS, one WebSocket a connection, as its own examples have it."""
    crossing, entrance = unused_port(), unused_port()
    user = {"id": "6d2e1a2e-6f4c-4d59-9b7f-0f5c0c6a7b11", "alterId": 0, "security": "aes-128-gcm"}
    websocket = {"network": "ws", "wsSettings": {"path": "/tunnel"}}
    far = {
        "log": {"loglevel": "error"},
        "inbounds": [
            {
                "listen": site.far_host,
                "port": crossing,
                "protocol": "vmess",
                "settings": {"clients": [user]},
                "streamSettings": websocket,
            }
        ],
        "outbounds": [{"protocol": "freedom"}],
    }
    server = {"address": site.far_host, "port": crossing, "users": [user]}
    near = {
        "log": {"loglevel": "error"},
        "inbounds": [
            {
                "listen": LOOPBACK,
                "port": entrance,
                "protocol": "dokodemo-door",
                "settings": {"address": site.far_host, "port": site.target, "network": "tcp"},
            }
        ],
        "outbounds": [{"protocol": "vmess", "settings": {"vnext": [server]}, "streamSettings": websocket}],
    }
    started: list[Process] = []
    for name, content, start in (("far", far, site.far), ("near", near, site.near)):
        file = site.folder / f"{name}.json"
        file.write_text(json.dumps(content))
        started.append(start(find_program("v2ray"), "-config", file))
    return await_echo(Running((LOOPBACK, entrance), near=started[1:], far=started[:1]), site)


def _start_bare(site: Site) -> Running:
    """Two Python programs that seal and open, and do nothing else."""
    crossing, entrance = unused_port(), unused_port()

    def end(name: str, port: int, onward: int) -> tuple[object, ...]:
        return processes.python("-m", "benchmarks.rig.bare", name, port, site.far_host, onward)

    far, near = site.far(*end(FAR, crossing, site.target)), site.near(*end(NEAR, entrance, crossing))
    return await_echo(Running((LOOPBACK, entrance), near=[near], far=[far]), site)


def _start_socat(site: Site) -> Running:
    """Two hops without any cipher, a process a connection at each."""
    crossing, entrance = unused_port(), unused_port()
    socat = find_program("socat")

    def hop(host: str, port: int, to_host: str, to_port: int) -> tuple[object, ...]:
        listen = f"TCP-LISTEN:{port},bind={host},reuseaddr,fork,backlog=512,nodelay"
        return socat, "-b", 131072, listen, f"TCP:{to_host}:{to_port},nodelay"

    far = site.far(*hop(site.far_host, crossing, site.far_host, site.target))
    near = site.near(*hop(LOOPBACK, entrance, site.far_host, crossing))
    return await_echo(Running((LOOPBACK, entrance), near=[near], far=[far]), site)


SSH = "ssh"
"""The contender that all ratios are taken to."""
DIRECT = "direct"

OTHERS = (
    Contender(DIRECT, "no tunnel", _start_direct, version=lambda: f"Linux {platform.release()}", on_paths=True),
    Contender(
        SSH,
        "OpenSSH -L",
        lambda site: _ssh(site, remote=False),
        programs=("ssh", "sshd", "ssh-keygen"),
        packages="openssh-server openssh-client",
        version=program_version("ssh", "-V"),
        on_paths=True,
        start_clients=_start_ssh_clients,
        clients=200,
    ),
    Contender(
        "ssh-R",
        "OpenSSH -R",
        lambda site: _ssh(site, remote=True),
        programs=("ssh", "sshd", "ssh-keygen"),
        packages="openssh-server openssh-client",
        version=program_version("ssh", "-V"),
    ),
    Contender(
        "stunnel",
        "stunnel, TLS 1.3",
        _start_stunnel,
        programs=("stunnel",),
        packages="stunnel4",
        version=program_version("stunnel", "-version"),
    ),
    Contender(
        "v2ray",
        "v2ray, VMess in WebSocket",
        _start_v2ray,
        programs=("v2ray",),
        packages="v2ray",
        version=program_version("v2ray", "-version"),
    ),
    Contender(
        "socat",
        "socat, two hops, no cipher",
        _start_socat,
        programs=("socat",),
        packages="socat",
        streams=1000,
        version=program_version("socat", "-V"),
    ),
    Contender("bare", "two bare Python programs, AES-256-GCM", _start_bare, streams=64),
)
