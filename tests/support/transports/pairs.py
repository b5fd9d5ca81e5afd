"""Every kind of pipe, as joined pairs: what `test_pipe_promises` holds each of them to.

A new transport adds its pairs here, in both roles.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from qanat.transports.http2 import extended_connect, grpc
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.http2.dialect import Dialect
from qanat.transports.pipe import Pipe
from tests.support.machine.certificates import Authority, Certificate
from tests.support.transports.http2_loopback import http2_pair
from tests.support.transports.loopback import websocket_pair
from tests.support.transports.memory import memory_pair
from tests.support.transports.split_loopback import split_pair

Pair = tuple[Pipe, Pipe]
PairMaker = Callable[[ExitStack, Authority, Certificate], Pair]


def _memory(stack: ExitStack, authority: Authority, certificate: Certificate) -> Pair:
    one, other = memory_pair()
    stack.callback(one.close, "the test is over")
    stack.callback(other.close, "the test is over")
    return one, other


def _websocket(stack: ExitStack, authority: Authority, certificate: Certificate) -> Pair:
    return websocket_pair(stack, None)


def _websocket_tls(stack: ExitStack, authority: Authority, certificate: Certificate) -> Pair:
    return websocket_pair(stack, certificate, authority.ca_file)


def _http2(dialect: Dialect) -> PairMaker:
    return lambda stack, authority, certificate: http2_pair(stack, dialect)


def _http2_tls(dialect: Dialect) -> PairMaker:
    return lambda stack, authority, certificate: http2_pair(stack, dialect, certificate, authority.ca_file)


def _split(stack: ExitStack, authority: Authority, certificate: Certificate) -> Pair:
    return split_pair(stack)


def _split_packets(stack: ExitStack, authority: Authority, certificate: Certificate) -> Pair:
    return split_pair(stack, streams=False)


def _split_http2(stack: ExitStack, authority: Authority, certificate: Certificate) -> Pair:
    return split_pair(stack, certificate, authority.ca_file, http2=True)


def _split_tls(stack: ExitStack, authority: Authority, certificate: Certificate) -> Pair:
    return split_pair(stack, certificate, authority.ca_file)


def _reversed(maker: PairMaker) -> PairMaker:
    def make(stack: ExitStack, authority: Authority, certificate: Certificate) -> Pair:
        client, server = maker(stack, authority, certificate)
        return server, client

    return make


PAIRS: dict[str, PairMaker] = {
    "memory": _memory,
    "websocket": _websocket,
    "websocket reversed": _reversed(_websocket),
    "websocket tls": _websocket_tls,
    "websocket tls reversed": _reversed(_websocket_tls),
    "http2": _http2(http2.DIALECT),
    "http2 reversed": _reversed(_http2(http2.DIALECT)),
    "http2 tls": _http2_tls(http2.DIALECT),
    "http2 tls reversed": _reversed(_http2_tls(http2.DIALECT)),
    "grpc": _http2(grpc.DIALECT),
    "grpc reversed": _reversed(_http2(grpc.DIALECT)),
    "split": _split,
    "split reversed": _reversed(_split),
    "split packets": _split_packets,
    "split packets reversed": _reversed(_split_packets),
    "split http2": _split_http2,
    "split http2 reversed": _reversed(_split_http2),
    "split tls": _split_tls,
    "split tls reversed": _reversed(_split_tls),
    "websocket-h2": _http2(extended_connect.DIALECT),
    "websocket-h2 reversed": _reversed(_http2(extended_connect.DIALECT)),
    "websocket-h2 tls": _http2_tls(extended_connect.DIALECT),
    "websocket-h2 tls reversed": _reversed(_http2_tls(extended_connect.DIALECT)),
}
