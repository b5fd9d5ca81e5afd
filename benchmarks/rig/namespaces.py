"""Two machines on this one, and a line between them with a delay, a rate, a bounded queue and loss.

Each end is a network namespace of its own; they exist as long as this process holds them, and have no names that
could be left behind.  The line is `benchmarks.rig.line`, a process that carries IP packets between two TUN devices: it
works where the kernel has no netem, and drops real packets, so that real TCP recovers from the loss.  Needs root, and
Linux.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rig.processes import Started, python
from tests.support.machine.programs import find_program

NEAR, FAR = "10.77.0.1", "10.77.0.2"
"""The addresses of the two ends."""
LARGEST_WINDOW = 64 * 1024 * 1024
"""Bytes that the kernel may let TCP's windows grow to, at both ends: its default would not fill 1 Gbit/s at 100 ms."""

_CLONE_NEWNET = 0x40000000  # sched.h
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0  # linux/if_tun.h
_TUN, _NO_PI, _VNET_HDR = 0x0001, 0x1000, 0x4000
_OFFLOAD_CSUM, _OFFLOAD_TSO4 = 0x01, 0x02
_MTU = 1500


@dataclass(frozen=True, slots=True)
class Line:
    """What lies between the two ends, the same both ways."""

    name: str
    title: str
    delay: float  # seconds each way
    rate: float  # bits a second
    queue: int  # bytes that may wait for their turn; what comes beyond them is dropped
    loss: float = 0.0  # of packets, 0 to 1


def impossible() -> str | None:
    """Return why there can be no such ends here; None when there can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun: modprobe tun"
    if find_program("ip") is None:
        return "not installed: apt-get install iproute2"
    return None


class Machines:
    """The two ends and, while `joined`, a line between them."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._home = _own_namespace()
        self._ends: dict[str, int] = {}
        self._devices: list[int] = []

    def __enter__(self) -> Machines:
        try:
            for address in (NEAR, FAR):
                self._call(self._libc.unshare, _CLONE_NEWNET)
                try:
                    self._ends[address] = _own_namespace()
                    self._devices.append(self._device(address))
                finally:
                    self._call(self._libc.setns, self._home, _CLONE_NEWNET)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (*self._devices, *self._ends.values(), self._home):
            os.close(descriptor)

    @property
    def near(self) -> AbstractContextManager[None]:
        """What this thread does in it (sockets, programs) is at the near end."""
        return self._inside(NEAR)

    @property
    def far(self) -> AbstractContextManager[None]:
        """The same for the far end."""
        return self._inside(FAR)

    @contextmanager
    def joined(self, line: Line) -> Iterator[None]:
        """Carry packets over `line` while inside.  A line is made of nothing that is kept from the last one."""
        descriptors = [os.dup(device) for device in self._devices]
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        command = python("-m", "benchmarks.rig.line", *descriptors, line.delay, line.rate, line.queue, line.loss)
        try:
            carrier = Started(*command, inherit=descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        try:
            yield
            if not carrier.running:
                raise RuntimeError(f"the line has ended: {carrier.last_words}")
        finally:
            carrier.stop()

    @contextmanager
    def _inside(self, address: str) -> Iterator[None]:
        self._call(self._libc.setns, self._ends[address], _CLONE_NEWNET)
        try:
            yield
        finally:
            self._call(self._libc.setns, self._home, _CLONE_NEWNET)

    def _call(self, function: Callable[..., int], *arguments: int) -> None:
        if function(*arguments):
            code = ctypes.get_errno()
            raise OSError(code, f"namespaces: {os.strerror(code)}; they need root")

    def _device(self, address: str) -> int:
        """A TUN device in this thread's namespace, whose packets come with their offloads still to be done."""
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"line", _TUN | _NO_PI | _VNET_HDR))
        fcntl.ioctl(device, _TUNSETOFFLOAD, _OFFLOAD_CSUM | _OFFLOAD_TSO4)
        ip = find_program("ip")
        for command in (
            "link set lo up",
            f"address add {address}/30 dev line",
            f"link set line mtu {_MTU} txqueuelen 10000 up",
        ):
            subprocess.run([str(ip), *command.split()], check=True)
        for name in ("rmem", "wmem"):
            Path(f"/proc/sys/net/ipv4/tcp_{name}").write_text(f"4096 131072 {LARGEST_WINDOW}")
        # What the last contender's connection has learned of the line is not for the next one.
        Path("/proc/sys/net/ipv4/tcp_no_metrics_save").write_text("1")
        return device


def _own_namespace() -> int:
    """The network namespace of this thread."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
