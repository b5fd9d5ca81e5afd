"""What docs/PROTOCOL.md says about HTTP/2 and gRPC is what the code does."""

from __future__ import annotations

from qanat.transports.http2 import client as http2_client
from qanat.transports.http2 import grpc
from qanat.transports.http2 import limits as http2_limits
from qanat.transports.http2 import octet_stream as http2
from qanat.transports.http2.frames import MAX_CONTROL, MAX_FRAME
from qanat.transports.pipe import MAX_UNAUTHENTICATED
from tests.support.protocol_page import load_page, number
from tests.support.transports.http2_loopback import DIALECTS, framed

PAGE = load_page()


def test_the_limits_are_the_code_s() -> None:
    rows = [number(row["number"]) for row in PAGE.table("of an HTTP/2 connection", "number").rows]
    assert rows == [
        http2_limits.WINDOW,
        http2_limits.UNAUTHENTICATED_WINDOW,
        MAX_FRAME,
        MAX_CONTROL,
        http2_limits.MAX_HEADER_LIST,
        http2_limits.MAX_STREAMS,
        http2_limits.MAX_PLAIN,
        http2_limits.MAX_PENDING_CONTROL,
        http2_limits.IDLE,
        http2_limits._BUDGET,
        http2_limits._UNAUTHENTICATED_BUDGET,
        http2_limits._BYTES_AN_UPDATE,
    ]
    costs = http2_limits._COSTS
    assert PAGE.says(
        f"RST_STREAM counts {costs[3]:.0f}, SETTINGS {costs[4]:.0f}",
        f"A message above {MAX_UNAUTHENTICATED:,} bytes ends the stream before the server knows the client",
    )
    assert http2_limits._REFILL == 1 / 16


def test_the_windows_suffice_for_a_gigabit_over_a_tenth_of_a_second() -> None:
    for not_open in (http2_limits.WINDOW // http2_limits.STREAM_UPDATES, http2_limits.CONNECTION_UPDATE):
        assert http2_limits.WINDOW - not_open >= 1e9 / 8 * 0.1


def test_headers_and_examples_are_the_code_s() -> None:
    assert http2_client.ALPN == ("h2",)
    for name, example in (("http2", "00000005 68656c6c6f"), ("grpc", "00 00000007 0a 05 68656c6c6f")):
        assert framed(DIALECTS[name], b"hello") == bytes.fromhex(example)
        assert PAGE.says(f"`{example}`")
    assert PAGE.says(
        f"`content-type: {http2.CONTENT_TYPE}`", f"`content-type: {grpc.CONTENT_TYPE}`", f"`{grpc.METHOD_PATH}`"
    )
    assert ("te", "trailers") in grpc.DIALECT.request_headers()
    assert not [name for name, _ in grpc.DIALECT.request_headers() if name == "grpc-timeout"]
