"""Many ports of one forward in one message: which of them listen, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from qanat.base.endpoint_addresses import TcpAddress, UdpAddress
from qanat.config.forward_settings import Forward


def describe_ports(ports: Iterable[int]) -> str:
    """Return `8000-8002, 8005` for four ports, in their order.  Pure."""
    runs: list[list[int]] = []
    for port in sorted(ports):
        if runs and runs[-1][1] + 1 == port:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return ", ".join(f"{low}-{high}" if low < high else f"{low}" for low, high in runs)


def describe_failures(forward: Forward, failures: Mapping[int, str]) -> str:
    """Return why some of a forward's ports cannot be listened on, given why for each.  Pure.

    The one of a forward that has one is as it is; of many, those that failed alike share the words.
    """
    if forward.ports == 1:
        return next(iter(failures.values()))
    alike: dict[str, list[int]] = {}
    for port, text in failures.items():
        alike.setdefault(text.replace(f":{port}", ""), []).append(port)
    each = "; ".join(f"{describe_ports(ports)}: {text}" for text, ports in alike.items())
    return f"{len(failures)} of {forward.ports} ports failed: {each}"


def describe_place(forward: Forward, ports: Iterable[int]) -> str:
    """Return where a forward listens on these of its ports, which are known now."""
    at = forward.listen
    if not isinstance(at, TcpAddress | UdpAddress):
        return str(at)
    host, _, behind = str(replace(at, port=0)).rpartition(":0")
    return f"{host}:{describe_ports(ports)}{behind}"
