"""gRPC as its own makers speak it: a stock grpcio client at our server, and our client at a stock grpcio server.

The stubs are generated from docs/qanat.proto.  Not only messages are exchanged, but a whole handshake, and records
that both ends seal and open.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qanat.base.deadline import Deadline
from qanat.base.errors import PipeEnded, TransportError
from qanat.handshake.exchange import SealedPipe, client_handshake, server_handshake
from qanat.handshake.hello import RecordKind
from qanat.handshake.identity import load_or_create_identity
from qanat.handshake.key_pool import ClientKeyPool
from qanat.handshake.keys import ServerIdentity
from qanat.handshake.machine import ClientHandshake, ServerHandshake
from qanat.handshake.tokens import generate_token, parse_token
from qanat.server.admission.admission import HandshakeSlot
from qanat.server.admission.client_address import ClientAddress
from qanat.transports.cause import FirstCause
from qanat.transports.dial.route import Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.http2 import grpc as ours
from qanat.transports.pipe import MAX_MESSAGE, Pipe
from tests.support.background import DEADLINE, Background
from tests.support.machine.certificates import Authority
from tests.support.machine.certificates import Certificate as Issued
from tests.support.machine.programs import unavailable
from tests.support.server.front_door_rig import Certificate, front_door

PROTO = Path(__file__).resolve().parents[3] / "docs" / "qanat.proto"
OPTIONS = [("grpc.max_receive_message_length", 2**20), ("grpc.max_send_message_length", 2**20)]
NAME = "office"


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModuleType, ModuleType]]:
    """The two modules that grpcio-tools make of docs/qanat.proto."""
    try:
        from grpc_tools import protoc
    except ImportError:
        unavailable("grpcio and grpcio-tools are not installed (pip install '.[test]')")
    folder = tmp_path_factory.mktemp("stubs")
    arguments = ["protoc", f"-I{PROTO.parent}", f"--python_out={folder}", f"--grpc_python_out={folder}", str(PROTO)]
    assert protoc.main(arguments) == 0
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("qanat_pb2"), importlib.import_module("qanat_pb2_grpc")
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> ServerIdentity:
    return load_or_create_identity(tmp_path_factory.mktemp("identity") / "server.key")


@pytest.fixture(scope="module")
def keys() -> Iterator[ClientKeyPool]:
    pool = ClientKeyPool().start()
    yield pool
    pool.close()


@pytest.fixture(scope="module", autouse=True)
def shared_grpcio(stubs: tuple[ModuleType, ModuleType]) -> None:
    """grpcio starts threads and opens descriptors for the process with its first channel, and keeps them."""
    import grpc

    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(DEADLINE)
    server.stop(None).wait()


class StubPipe(Pipe):
    """A pipe made of what grpcio gives: messages come from an iterator and go into a queue."""

    transport = "grpcio"
    peer = "grpcio"
    headroom = 0

    def __init__(self, record: Any, incoming: Iterator[Any], end: Callable[[], object]) -> None:
        self._record = record
        self._incoming = incoming
        self._end = end
        self._cause = FirstCause()
        self.outgoing: queue.Queue[Any] = queue.Queue(16)

    def requests(self) -> Iterator[Any]:
        """What grpcio is to send."""
        while (message := self.outgoing.get()) is not None:
            yield self._record(data=message)

    def send(self, buffer: memoryview) -> None:
        self.outgoing.put(bytes(buffer))

    def recv(self) -> memoryview:
        try:
            return memoryview(bytearray(next(self._incoming).data))
        except Exception as error:
            self.close(f"the call ended: {error!r}")
            raise self._cause.error() from error

    def close(self, cause: str) -> None:
        if self._cause.set(cause):
            self.outgoing.put(None)
            self._end()

    def set_read_timeout(self, seconds: float | None) -> None:
        """grpcio has none."""

    def set_write_timeout(self, seconds: float | None) -> None:
        """grpcio has none."""

    def set_wakeup(self, wakeup: Callable[[], None]) -> None:
        """grpcio sends by itself."""

    def flush(self) -> None:
        """grpcio sends by itself."""

    @property
    def cause(self) -> str | None:
        return self._cause.text


def serve_sealed(pipe: Pipe, identity: ServerIdentity, token: bytes) -> str:
    """A server's handshake, then 8 MB both ways; the digest of those that came."""
    handshake = ServerHandshake(identity, lambda name: (token,) if name == NAME else None, threading.Semaphore(4))
    return transfer(server_handshake(pipe, handshake, Deadline(DEADLINE)), RecordKind.HELLO, RecordKind.READY)


def dial_sealed(pipe: Pipe, keys: ClientKeyPool, token: bytes) -> str:
    handshake = ClientHandshake(NAME, token, keys.take(DEADLINE), lambda spki: None)
    return transfer(client_handshake(pipe, handshake, Deadline(DEADLINE)), RecordKind.READY, RecordKind.HELLO)


BLOCKS = [os.urandom(size) for size in (1, 100, 20_000, 100_000, 262_000)]
TIMES = 21
EXPECTED = hashlib.sha256(b"".join(BLOCKS) * TIMES).hexdigest()


def transfer(sealed: SealedPipe, first_in: RecordKind, first_out: RecordKind) -> str:
    """Send 8 MB in sealed records and receive as many, both at once."""

    def send() -> None:
        sealed.send_record(bytes((first_out,)) + b"x")
        for _ in range(TIMES):
            for block in BLOCKS:
                sealed.send_record(bytes((RecordKind.FRAMES,)) + block)

    sending = Background(send)
    kind, _ = sealed.recv_record()
    assert kind is first_in
    digest = hashlib.sha256()
    for _ in range(TIMES * len(BLOCKS)):
        digest.update(sealed.recv_record()[1])
    sending.result()
    return digest.hexdigest()


@pytest.mark.parametrize("tls", [False, True])
def test_a_stock_grpcio_client_talks_to_our_server(
    stubs: tuple[ModuleType, ModuleType],
    identity: ServerIdentity,
    keys: ClientKeyPool,
    tls: bool,
    tmp_path: Path,
) -> None:
    import grpc

    messages, services = stubs
    token = parse_token(generate_token())
    served: queue.SimpleQueue[str] = queue.SimpleQueue()
    over = threading.Event()

    def on_pipe(pipe: Pipe, address: ClientAddress, slot: HandshakeSlot) -> None:
        served.put(serve_sealed(pipe, identity, token))
        over.wait(DEADLINE)

    certificate = Certificate(tmp_path) if tls else None
    with front_door(on_pipe, tls=None if certificate is None else certificate.tls) as door:
        port = door.addresses[0][1]
        if certificate is None:
            channel = grpc.insecure_channel(f"127.0.0.1:{port}", OPTIONS)
        else:
            trust = grpc.ssl_channel_credentials(certificate.tls.certificate.read_bytes())
            channel = grpc.secure_channel(f"localhost:{port}", trust, OPTIONS)
        with channel:
            pipe = StubPipe(messages.Record, iter(()), lambda: None)
            call = services.TunnelStub(channel).Connect(pipe.requests())
            pipe._incoming = iter(call)
            assert dial_sealed(pipe, keys, token) == EXPECTED
            assert served.get(timeout=DEADLINE) == EXPECTED
            assert dict(call.initial_metadata()) == {}
            over.set()
            with pytest.raises(PipeEnded):
                pipe.recv()
            assert call.code() is grpc.StatusCode.OK, "an orderly end is status 0"


@pytest.mark.parametrize("tls", [False, True])
def test_our_client_talks_to_a_stock_grpcio_server(
    stubs: tuple[ModuleType, ModuleType],
    identity: ServerIdentity,
    keys: ClientKeyPool,
    tls: bool,
    authority: Authority,
    good_certificate: Issued,
) -> None:
    import grpc

    messages, services = stubs
    token = parse_token(generate_token())
    served: queue.SimpleQueue[str] = queue.SimpleQueue()

    class Servicer(services.TunnelServicer):  # type: ignore[misc, name-defined]
        def Connect(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
            assert dict(context.invocation_metadata()).get("user-agent", "").startswith("grpc-python-qanat/")
            assert context.time_remaining() is None or context.time_remaining() > 1e9, "no deadline"
            pipe = StubPipe(messages.Record, requests, lambda: None)
            answering = Background(lambda: served.put(serve_sealed(pipe, identity, token)))
            context.add_callback(lambda: pipe.close("the call is over"))
            yield from pipe.requests()
            answering.wait(DEADLINE)

    with ThreadPoolExecutor(2) as workers:
        server = grpc.server(workers, options=OPTIONS)
        services.add_TunnelServicer_to_server(Servicer(), server)
        if tls:
            pair = [(good_certificate.key.read_bytes(), good_certificate.certificate.read_bytes())]
            port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        scheme = "wss" if tls else "ws"
        route = Route(ca_file=authority.ca_file)
        url = TunnelUrl.parse(f"{scheme}://127.0.0.1:{port}{ours.METHOD_PATH}")
        pipe = ours.connect(url, route=route, deadline=Deadline(DEADLINE))
        assert dial_sealed(pipe, keys, token) == EXPECTED
        assert served.get(timeout=DEADLINE) == EXPECTED
        pipe.close("done")
        server.stop(5).wait()


def test_a_stock_server_without_the_method_is_explained(stubs: tuple[ModuleType, ModuleType]) -> None:
    import grpc

    with ThreadPoolExecutor(1) as workers:
        server = grpc.server(workers)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        url = TunnelUrl.parse(f"ws://127.0.0.1:{port}/tunnel")
        with pytest.raises(TransportError, match="gRPC status 12 UNIMPLEMENTED") as caught:
            ours.connect(url, deadline=Deadline(DEADLINE))
        assert "path" in caught.value.hint
        server.stop(None).wait()


def test_many_calls_share_one_channel_and_the_largest_message_passes(stubs: tuple[ModuleType, ModuleType]) -> None:
    import grpc

    messages, services = stubs
    with front_door() as door, grpc.insecure_channel(f"127.0.0.1:{door.addresses[0][1]}", OPTIONS) as channel:
        calls = []
        for number in range(20):
            pipe = StubPipe(messages.Record, iter(()), lambda: None)
            call = services.TunnelStub(channel).Connect(pipe.requests())
            pipe._incoming = iter(call)
            calls.append((bytes([number]) * (MAX_MESSAGE if number == 7 else number), pipe, call))
        for data, pipe, _ in calls:
            pipe.send(memoryview(data))
        for data, pipe, _ in calls:
            assert pipe.recv() == data
        for _, pipe, call in calls:
            pipe.close("done")
            started = time.monotonic()
            assert call.code() is grpc.StatusCode.OK
            assert time.monotonic() - started < DEADLINE


def test_the_proto_file_is_what_the_code_speaks(stubs: tuple[ModuleType, ModuleType]) -> None:
    messages, _ = stubs
    for size in (0, 1, 127, 128, 16383, 16384, MAX_MESSAGE):
        data = os.urandom(size)
        body = messages.Record(data=data).SerializeToString()
        assert ours.DIALECT.unwrap(memoryview(body)) == data
        buffer = memoryview(bytearray(ours.DIALECT.overhead) + data)
        written = bytes(buffer[ours.DIALECT.wrap(buffer, ours.DIALECT.overhead) :])
        assert messages.Record.FromString(written[5:]).data == data
        assert written[1:5] == (len(written) - 5).to_bytes(4, "big")
    service = messages.DESCRIPTOR.services_by_name["Tunnel"]
    assert f"/{service.full_name}/{service.methods[0].name}" == ours.METHOD_PATH
