"""Split pipes over loopback: a client's, and the server's that a front door has made of its requests."""

from __future__ import annotations

import queue
import threading
import unittest.mock
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from qanat.base.deadline import Deadline
from qanat.config.server_settings import ServerTls
from qanat.server.admission.admission import HandshakeSlot
from qanat.server.admission.client_address import ClientAddress
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.pipe import Pipe
from qanat.transports.split import client as client_module
from qanat.transports.split import connect as connect_module
from qanat.transports.split.connections import Connections
from qanat.transports.split.http2_requests import Http2Requests
from tests.support.background import DEADLINE
from tests.support.machine.certificates import Certificate
from tests.support.server.front_door_rig import front_door

SECRET = bytes(range(32))
"""What a handshake gives both ends of a pair."""


def split_pair(
    stack: ExitStack,
    certificate: Certificate | None = None,
    ca_file: Path | None = None,
    *,
    streams: bool = True,
    http2: bool = False,
    port_of: Callable[[int], int] = int,
) -> tuple[Pipe, Pipe]:
    """The client's and the server's pipe, bound to a secret as after a handshake; `streams` is as on the path.

    With `http2` the client does not try HTTP/1.1.  `port_of` says where the client connects for the server's port.
    """
    pipes: queue.SimpleQueue[Pipe] = queue.SimpleQueue()
    over = threading.Event()

    def keep(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        slot.release()
        pipe.bind(SECRET)
        pipe.set_unauthenticated(False)
        pipes.put(pipe)
        pipe.send(memoryview(bytearray(pipe.headroom) + b"first"))
        over.wait(DEADLINE)

    tls = None if certificate is None else ServerTls(certificate=certificate.certificate, key=certificate.key)
    door = stack.enter_context(front_door(keep, tls=tls))
    stack.callback(over.set)
    scheme = "http" if certificate is None else "https"
    url = TunnelUrl.parse(f"{scheme}://127.0.0.1:{port_of(door.addresses[0][1])}/tunnel")
    first = Http2Requests if http2 else Connections
    with unittest.mock.patch.object(connect_module, "Connections", first):
        client = connect_module.connect(url, route=Route(ca_file=ca_file), deadline=Deadline(DEADLINE))
    stack.callback(client.close, "the test is over")
    server = pipes.get(timeout=DEADLINE)
    stack.callback(server.close, "the test is over")
    assert client.recv() == b"first"
    with unittest.mock.patch.object(client_module, "STREAMS", streams):
        client.bind(SECRET)
    return client, server
