"""docs/PROTOCOL.md and the code say the same: every code, every limit, every example.

One part for each section of the page.  A new example needs an entry in one of the `*_EXAMPLES`
dictionaries, which makes its bytes with the code; an example that none of them knows is an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum

import pytest

from qanat.base.endpoint_addresses import TcpAddress, UnixAddress
from qanat.base.errors import LocalError
from qanat.base.untrusted import MAX_RETRY_AFTER
from qanat.config.server_settings import ServerLimits, ServerSettings
from qanat.config.settings import Flow, Keepalive
from qanat.handshake import exchange, hello, keys, machine, messages, sealed
from qanat.handshake import key_schedule as schedule
from qanat.handshake.exchange import REFUSAL_DELAY
from qanat.handshake.hello import Answer, Close, CloseReason, Hello, Intent, ParameterId, Parameters, Ready, RecordKind
from qanat.handshake.keys import fingerprint_of
from qanat.handshake.messages import AuthPlaintext, MessageType, Refusal, RefusalCode, ServerKey
from qanat.handshake.tokens import format_token, parse_token
from qanat.measure import far_end
from qanat.mux import attachment, pipe_runner
from qanat.mux import frames as wire
from qanat.mux.core import LaneCore
from qanat.mux.datagrams import DELAY_AGE, LATE
from qanat.mux.parameters import LaneParameters
from qanat.mux.pending_control import ACK_DELAY
from qanat.mux.sender import CONTROL_ROOM, CONTROL_ROOM_PER_STREAM, FRAMES_KIND
from qanat.mux.stream_state import TRANSITIONS, StreamPhase, StreamStep
from qanat.server.admission import handshake_rate
from qanat.server.front_door import kept_connection
from qanat.session import messages as session_messages
from qanat.session.messages import (
    Connect,
    ControlMessage,
    Listen,
    ListenAgain,
    ListenEnded,
    ListenFailed,
    Listening,
    Measure,
    Measurement,
    Published,
    StreamRequest,
    Through,
    Unlisten,
    decode_control,
    decode_request,
)
from qanat.transports.dial.route import NODE_COOKIE
from qanat.transports.pipe import MAX_MESSAGE
from qanat.transports.split import client as split_client
from qanat.transports.split import connections, segments
from qanat.transports.split import server as split_server
from qanat.transports.split import token as split_token
from qanat.transports.split.sending import HELD_UP
from tests.support.protocol_page import load_page, number

PAGE = load_page()


def codes(kind: type[IntEnum]) -> dict[str, int]:
    return {member.name: member.value for member in kind}


# --- section 1: the handshake ---------------------------------------------------------------------------------------


def test_the_clear_messages_have_the_types_and_limits_of_the_page() -> None:
    table = PAGE.table("type", "whole message at most")
    limits = {row[""]: number(row["whole message at most"]) for row in table.rows}
    assert limits == {
        "M1": messages.M1_LIMIT,
        "M2": messages.M2_LIMIT,
        "M3": messages.M3_LIMIT,
        "M4": messages.M4_LIMIT,
        "R": messages.REFUSED_LIMIT,
    }
    assert max(limits.values()) == messages.LARGEST_MESSAGE
    types = {row["type"].split("`")[1]: number(row["type"]) for row in table.rows}
    assert types == codes(MessageType)
    assert f"`{messages.AUTH_LABEL.decode()}`" in table.rows[1]["content"]
    assert f"`{messages.SESSION_LABEL.decode()}`" in table.rows[3]["content"]
    assert f"(1…{messages.MAX_VERSIONS})" in table.rows[0]["content"]


def test_the_handshake_s_numbers_in_the_text_are_the_code_s() -> None:
    assert PAGE.says(
        f"exactly {keys.SERVER_BITS} bits for the server and {keys.CLIENT_BITS} for the client",
        f"e = {keys.EXPONENT}",
        "`name` is 1 to 64 of `[A-Za-z0-9._-]`",
        f"is sent {REFUSAL_DELAY * 1000:g} ms after M3 came",
        f"Codes: {RefusalCode.REFUSED} refused",
        "Up to two tokens a client are accepted",
    )
    assert messages.NAME.pattern == "[A-Za-z0-9._-]{1,64}"
    assert machine.MAX_TOKENS == 2
    assert machine.VERSIONS == (1,)


def test_the_handshake_s_transitions_are_the_table_s() -> None:
    table = PAGE.table("state", "event", "next state", under="Handshake states")
    listed = {
        (machine.State[row["state"]], machine.Event[row["event"].split(":")[0]]): machine.State[row["next state"]]
        for row in table.rows
    }
    assert listed == machine.TRANSITIONS


TOKEN = bytes(range(32))
CLIENT_SECRET, SERVER_SECRET = b"\xc5" * 32, b"\x55" * 32
M2, M3, M4_BEFORE_PROOF = b"\x02" * 3, b"\x03" * 3, b"\x04" * 3  # OAEP is random, so these stand in


@functools.cache
def key_schedule() -> dict[str, bytes]:
    """The derived values of the page's example."""
    m1 = PAGE.examples["M1"]
    k_tok = schedule.token_key("office", TOKEN)
    auth = AuthPlaintext(1, "office", CLIENT_SECRET, bytes(32)).before_proof()
    transcript = schedule.transcript_hash(m1, M2, M3, M4_BEFORE_PROOF)
    secrets = schedule.session_secrets(k_tok, transcript, CLIENT_SECRET, SERVER_SECRET)
    return {
        "M2 plaintext before proof_c": auth,
        "K_tok": k_tok,
        "proof_c": schedule.client_proof(k_tok, m1, M3, auth),
        "TH": transcript,
        "proof_s": secrets.server_proof,
        "c2s": secrets.c2s,
        "s2c": secrets.s2c,
        "resume": secrets.resume,
        "split": secrets.split,
        "R": Refusal(RefusalCode.REFUSED, schedule.refusal_mac(m1, M2, M3, CLIENT_SECRET, 1)).encode(),
    }


def example_m1() -> bytes:
    """M1 from its parts; the key in it is the page's, since a key cannot be made again."""
    spki = ServerKey.decode(PAGE.examples["M1"]).spki
    assert PAGE.says(f"``` {fingerprint_of(spki)} ```")
    keys.load_public_key(spki, keys.SERVER_BITS)
    return ServerKey((1,), bytes(range(0x40, 0x60)), spki).encode()


def derived(name: str) -> bytes:
    return key_schedule()[name]


_DERIVED = ("M2 plaintext before proof_c", "K_tok", "proof_c", "TH", "proof_s", "c2s", "s2c", "resume", "split", "R")

HANDSHAKE_EXAMPLES: dict[str, Callable[[], bytes]] = {
    "M1": example_m1,
    **{name: functools.partial(derived, name) for name in _DERIVED},
}


def test_the_example_of_a_token_is_one() -> None:
    text = format_token(TOKEN)
    assert PAGE.says(f"``` {text} ```")
    assert parse_token(text) == TOKEN


# --- section 2: the sealed channel ----------------------------------------------------------------------------------


def test_the_records_have_the_kinds_and_reasons_of_the_page() -> None:
    assert PAGE.table("kind", "name").codes("kind", "name") == codes(RecordKind)
    assert PAGE.table("CLOSE reason", "name").codes("CLOSE reason", "name") == codes(CloseReason)


def test_the_order_of_records_is_the_table_s() -> None:
    listed = {}
    for row in PAGE.table("phase", "record", "next phase").rows:
        for word in row["record"].split(", "):
            listed[sealed.Phase[row["phase"]], RecordKind[word.split()[0]]] = sealed.Phase[row["next phase"]]
    assert listed == sealed.ORDER


def test_the_sealed_channel_s_numbers_in_the_text_are_the_code_s() -> None:
    assert PAGE.says(
        f"The plaintext is 1 byte to {sealed.MAX_PLAINTEXT:,} bytes",
        f"ciphertext ‖ tag[{sealed.TAG_SIZE}]",
        f"{sealed.REKEY_BYTES // 2**30} GiB, 2^{sealed.REKEY_RECORDS.bit_length() - 1} records or 1 hour",
        f"more than 2^{sealed.RECEIVE_RECORDS.bit_length() - 1} records under one key",
        "Numbers from 0xf000 on in that list are no versions",
        f"{machine.TAKES_PROBES:#x} says that the server takes PROBE records",
        f"up to {exchange.MAX_PROBES} on a pipe and {exchange.MAX_PROBE_BYTES:,} bytes of content in all",
        f"sends {exchange.PROBE_SIZE // exchange.PROBE_PART} with {exchange.PROBE_PART:,} bytes each and 1 with a",
        f"{exchange.PROBE_SIZE // 1024} KiB have gone each way",
        f"lp16(text, UTF-8, at most {hello.MAX_CLOSE_TEXT} bytes)",
        f"one above {MAX_MESSAGE:,} bytes",
    )
    assert (sealed.REKEY_RECORDS, sealed.RECEIVE_RECORDS, sealed.REKEY_SECONDS) == (2**24, 2**25, 3600)
    assert sealed.MAX_RECORD <= MAX_MESSAGE


# --- section 3: HELLO and READY -------------------------------------------------------------------------------------


def test_hello_and_ready_have_the_codes_of_the_page() -> None:
    both = PAGE.table("intent", "answer")
    assert both.codes("intent", "intent name") == codes(Intent)
    assert both.codes("answer", "answer name") == codes(Answer)


def test_the_parameters_have_the_ids_and_defaults_of_the_page() -> None:
    table = PAGE.table("parameter", "id", "default")
    assert table.codes("id", "parameter") == codes(ParameterId)
    defaults = Parameters()
    assert table.codes("default", "parameter") == {
        "INITIAL_WINDOW": defaults.initial_window,
        "MAX_STREAMS": defaults.max_streams,
        "KEEPALIVE": defaults.keepalive,
        "LANES": defaults.lanes,
        "RESUME_FOR": defaults.resume_for,
        "MEASURE": defaults.measure,
        "FEATURES": defaults.features,
    }
    assert PAGE.says(f"an INITIAL_WINDOW above {hello.MAX_INITIAL_WINDOW // 2**20} MiB")


NEW = Hello(bytes(range(0x10, 0x20)), Parameters("qanat/0.1.0"))
SERVER = replace(NEW.parameters, resume_for=300)
STARTED = Ready(Answer.NEW, "node-1", SERVER, session=bytes(range(0x20, 0x30)))
CLOSE = Close(CloseReason.SHUTDOWN, "bye")


def hello_to_resume() -> Hello:
    asked = Hello(NEW.instance, NEW.parameters, Intent.RESUME, STARTED.session, lane=0, epoch=3, expected=1000)
    return asked.proven(key_schedule()["resume"], key_schedule()["TH"])


def ready_resumed() -> Ready:
    answered = Ready(Answer.RESUMED, "node-1", SERVER, STARTED.session, expected=2000)
    return answered.proven(key_schedule()["resume"], key_schedule()["TH"])


def plaintext(kind: RecordKind, message: Hello | Ready | Close) -> bytes:
    return bytes([kind]) + message.encode()


@functools.cache
def records() -> tuple[bytes, ...]:
    """The client's three records of the page's example."""
    sealer = sealed.Sealer(key_schedule()["c2s"], lambda: 0.0, opening=RecordKind.HELLO)
    made = []
    for content in (plaintext(RecordKind.HELLO, NEW), sealed.KEY_UPDATE_RECORD, plaintext(RecordKind.CLOSE, CLOSE)):
        out = bytearray(len(content) + sealed.TAG_SIZE)
        sealer.seal_into(content, memoryview(out))
        made.append(bytes(out))
    return tuple(made)


CHANNEL_EXAMPLES: dict[str, Callable[[], bytes]] = {
    "HELLO": lambda: plaintext(RecordKind.HELLO, NEW),
    "READY": lambda: plaintext(RecordKind.READY, STARTED),
    "HELLO RESUME": lambda: plaintext(RecordKind.HELLO, hello_to_resume()),
    "READY RESUMED": lambda: plaintext(RecordKind.READY, ready_resumed()),
    "CLOSE": lambda: plaintext(RecordKind.CLOSE, CLOSE),
    "record HELLO": lambda: records()[0],
    "record KEY_UPDATE": lambda: records()[1],
    "record CLOSE": lambda: records()[2],
}


def test_the_example_records_are_opened_in_their_order() -> None:
    opener = sealed.Opener(PAGE.examples["c2s"], opening=RecordKind.HELLO)
    opened = [opener.open(PAGE.examples[f"record {name}"]) for name in ("HELLO", "KEY_UPDATE", "CLOSE")]
    assert opened == [PAGE.examples["HELLO"], b"\x04", PAGE.examples["CLOSE"]]
    assert Hello.decode(opened[0][1:]) == NEW
    assert Close.decode(opened[2][1:]) == CLOSE
    assert opener.ended


def test_the_examples_of_hello_and_ready_are_read() -> None:
    assert Ready.decode(PAGE.examples["READY"][1:]) == STARTED
    resuming = Hello.decode(PAGE.examples["HELLO RESUME"][1:])
    assert resuming.proof_holds(PAGE.examples["resume"], PAGE.examples["TH"])
    resumed = Ready.decode(PAGE.examples["READY RESUMED"][1:])
    assert resumed.proof_holds(PAGE.examples["resume"], PAGE.examples["TH"])


def test_the_states_of_a_lane_are_the_table_s() -> None:
    table = PAGE.table("lane's state", "step", "next state", under="Resuming")
    listed = {
        (
            attachment.AttachmentState[row["lane's state"]],
            attachment.AttachmentStep[row["step"].split(":")[0]],
        ): attachment.AttachmentState[row["next state"]]
        for row in table.rows
    }
    assert listed == attachment.TRANSITIONS


def test_the_numbers_of_resuming_are_the_code_s() -> None:
    assert PAGE.says(
        "where that is possible in half a second", f"waits {pipe_runner.CLOSE_TIMEOUT:g} s for the other end"
    )
    assert pipe_runner.YIELD_TIMEOUT == 0.5
    limits = {row["what"]: row["number"] for row in PAGE.table("what", "number", under="Limits").rows}
    assert number(limits["lanes of a session"]) == ServerLimits().lanes
    kept = number(limits["seconds that a lane is kept without a pipe (RESUME_FOR)"])
    assert kept == ServerSettings(clients=()).resume_for


# --- section 4: frames ----------------------------------------------------------------------------------------------


def test_the_frames_have_the_types_of_the_page_and_those_are_numbered_that_it_numbers() -> None:
    table = PAGE.table("type", "name", "numbered")
    assert table.codes("type", "name") == codes(wire.FrameType)
    for row in table.rows:
        core = LaneCore(LaneParameters(client=False), 0.0)
        core.attach(0.0)
        core.receiver.receive(memoryview(wire.Open(1, b"").encode()), 0.0)
        assert core.open_stream(b"", 0.0).id == 2
        core.receiver.receive(memoryview(SIMPLEST_FRAMES[row["name"]]), 0.0)
        assert core.receiver.expected - 1 == (row["numbered"] == "yes"), row["name"]


SIMPLEST_FRAMES = {
    "OPEN": wire.Open(3, b"").encode(),
    "DATA": wire.data_header(1, 1) + b"x",
    "FIN": wire.Fin(1, 0).encode(),
    "RESET": wire.Reset(1, 1, "").encode(),
    "ACCEPT": wire.Accept(2, "").encode(),
    "CONTROL": wire.Control(b"").encode(),
    "ACK": wire.Ack(0).encode(),
    "CREDIT": wire.Credit(1, 1).encode(),
    "PING": wire.Ping(1).encode(),
    "PONG": wire.Pong(1).encode(),
    "DATAGRAM": wire.Datagram(1, b"").encode(),
    "CLOCK": wire.Clock(1).encode(),
}
"""Each as a server with streams 1 and 2 may get it."""


def test_the_reasons_of_a_reset_are_the_page_s() -> None:
    assert PAGE.table("RESET reason", "name").codes("RESET reason", "name") == codes(wire.Reason)


def test_the_states_of_a_stream_are_the_table_s() -> None:
    listed: dict[tuple[StreamPhase, StreamStep], StreamPhase] = {}
    for row in PAGE.table("state", "we send FIN", "peer sends FIN").rows:
        state = StreamPhase[row["state"]]
        for column, steps in (
            ("we send FIN", [StreamStep.SEND_FIN]),
            ("peer sends FIN", [StreamStep.RECV_FIN]),
            ("RESET, either way", [StreamStep.SEND_RESET, StreamStep.RECV_RESET]),
        ):
            # A dash is no transition; and what is closed is forgotten, so that nothing advances it.
            if row[column] in StreamPhase.__members__ and state is not StreamPhase.CLOSED:
                listed.update({(state, step): StreamPhase[row[column]] for step in steps})
    assert listed == {key: after for key, after in TRANSITIONS.items() if "DATA" not in key[1].name}
    receiving = {state: after for (state, step), after in TRANSITIONS.items() if step is StreamStep.RECV_DATA}
    assert receiving == {state: state for state in (StreamPhase.OPEN, StreamPhase.HALF_CLOSED_LOCAL)}


@pytest.mark.parametrize("phase", [phase for phase in StreamPhase if phase is not StreamPhase.CLOSED])
def test_data_is_sent_in_the_states_in_which_the_page_allows_it(phase: StreamPhase) -> None:
    core = LaneCore(LaneParameters(client=False), 0.0)
    core.attach(0.0)
    core.receiver.receive(memoryview(wire.Open(1, b"").encode()), 0.0)
    (stream,) = core.streams
    if phase is StreamPhase.HALF_CLOSED_LOCAL:
        core.sender.finish(stream)
    elif phase is StreamPhase.HALF_CLOSED_REMOTE:
        core.receiver.receive(memoryview(wire.Fin(1, 0).encode()), 0.0)
    assert stream.phase is phase
    if phase is StreamPhase.HALF_CLOSED_LOCAL:
        with pytest.raises(LocalError):
            core.sender.send(stream, b"x")
    else:
        core.sender.send(stream, b"x")
        assert core.sender.queued_bytes == 1


def test_the_frames_numbers_in_the_text_are_the_code_s() -> None:
    assert PAGE.says(
        f"so DATA's header is {wire.DATA_HEADER_SIZE} bytes",
        f"at most {wire.MAX_TEXT:,} bytes; DATA carries 1 byte or more",
        f"a quarter of the outbox ({LaneParameters(client=True).outbox // 4 // 2**20} MiB)",
        f"or {ACK_DELAY * 1000:g} ms after the first unacknowledged",
    )
    assert wire.MAX_PLAINTEXT == sealed.MAX_PLAINTEXT
    assert FRAMES_KIND == RecordKind.FRAMES


REQUESTS: dict[str, StreamRequest] = {
    "CONNECT_TCP": Connect(TcpAddress("db.internal", 5432), "127.0.0.1:50000"),
    "FORWARD": Through(2, "192.0.2.7:40000"),
    "MEASURE": Measure(Measurement.SINK),
    "CONNECT": Connect(UnixAddress("/run/db"), "127.0.0.1:50000"),
    "THROUGH": Through(2, "192.0.2.7:40000", TcpAddress("db.internal", 5432)),
}
CONTROLS: dict[str, ControlMessage] = {
    "LISTEN": Listen(2, TcpAddress("0.0.0.0", 8080)),
    "LISTENING": Listening(2, 8080),
    "LISTEN_FAILED": ListenFailed(2, wire.Reason.NOT_ALLOWED, "not allowed"),
    "UNLISTEN": Unlisten(2),
    "PUBLISHED": Published(2, "app.example.com"),
    "LISTEN_ENDED": ListenEnded(2, wire.Reason.NOT_ALLOWED, "not allowed"),
    "LISTEN_AGAIN": ListenAgain(),
    "LISTEN_AT": Listen(2, UnixAddress("/run/web")),
}


def test_requests_and_control_messages_have_the_first_bytes_of_the_page() -> None:
    requests = PAGE.table("first byte", "name", under="Stream requests").codes("first byte", "name")
    assert requests == {name: request.encode()[0] for name, request in REQUESTS.items()}
    controls = PAGE.table("first byte", "name", under="Control messages").codes("first byte", "name")
    assert controls == {name: message.encode()[0] for name, message in CONTROLS.items()}


def test_what_is_measured_has_the_numbers_of_the_page() -> None:
    assert PAGE.says(
        "u8 what: " + ", ".join(f"{what.value} {what.name}" for what in Measurement),
        f"about every {far_end.REPORT_INTERVAL:g} s while",
        f"allows {far_end.MAX_STREAMS} of them at once, and ends one after {far_end.MAX_SECONDS:g} s",
    )
    assert far_end.REPORT.format == "!QQ"


def test_the_texts_in_them_have_the_limits_of_the_page() -> None:
    limits = {row["what"]: row["number"] for row in PAGE.table("what", "number", under="Limits").rows}
    names = limits["a host, an address, and the text that says who connected, in a request or LISTEN"]
    assert number(names) == session_messages.MAX_NAME
    assert number(limits["the text of LISTEN_FAILED, LISTEN_ENDED and CLOSE"]) == session_messages.MAX_REASON
    assert session_messages.MAX_REASON == hello.MAX_CLOSE_TEXT
    assert PAGE.says(
        f"at most {session_messages.MAX_NAME} bytes of UTF-8; the sender cuts",
        f"LISTEN_FAILED at most {session_messages.MAX_REASON} of UTF-8",
    )


def first_record_of_a_stream() -> bytes:
    """What a client's core sends first when an application connects, speaks and finishes at once."""
    core = LaneCore(LaneParameters(client=True), 0.0)
    core.attach(0.0)
    stream = core.open_stream(REQUESTS["CONNECT_TCP"].encode(), 0.0)
    core.sender.send(stream, b"hello")
    core.sender.finish(stream)
    record = core.sender.next_record(0.0)
    assert record is not None
    return bytes(record)


FRAME_EXAMPLES: dict[str, Callable[[], bytes]] = {
    "OPEN": lambda: wire.Open(1, REQUESTS["CONNECT_TCP"].encode()).encode(),
    "OPEN MEASURE": lambda: wire.Open(1, REQUESTS["MEASURE"].encode()).encode(),
    "OPEN CONNECT": lambda: wire.Open(1, REQUESTS["CONNECT"].encode()).encode(),
    "OPEN THROUGH": lambda: wire.Open(2, REQUESTS["THROUGH"].encode()).encode(),
    "OPEN FORWARD": lambda: wire.Open(2, REQUESTS["FORWARD"].encode()).encode(),
    "DATA": lambda: wire.data_header(1, 5) + b"hello",
    "FIN": lambda: wire.Fin(1, 5).encode(),
    "RESET": lambda: wire.Reset(1, wire.Reason.REFUSED, "Connection refused").encode(),
    "ACCEPT": lambda: wire.Accept(1, "10.0.0.5:5432").encode(),
    **{f"CONTROL {name}": lambda m=message: wire.Control(m.encode()).encode() for name, message in CONTROLS.items()},
    "ACK": lambda: wire.Ack(3).encode(),
    "CREDIT": lambda: wire.Credit(1, 196_608).encode(),
    "PING": lambda: wire.Ping(7).encode(),
    "PONG": lambda: wire.Pong(7).encode(),
    "DATAGRAM": lambda: wire.Datagram(1, b"query").encode(),
    "CLOCK": lambda: wire.Clock(60_000).encode(),
    "FRAMES": first_record_of_a_stream,
}


def test_every_example_of_a_frame_is_read() -> None:
    for name in FRAME_EXAMPLES.keys() - {"FRAMES"}:
        (frame,) = wire.parse_frames(memoryview(PAGE.examples[name]))
        assert type(frame).__name__.upper() == name.split()[0]
        if isinstance(frame, wire.Open):
            assert decode_request(frame.request) in REQUESTS.values()
        elif isinstance(frame, wire.Control):
            assert decode_control(frame.message) == CONTROLS[name.split()[1]]


# --- section 6.5: split ---------------------------------------------------------------------------------------------


def test_split_s_tokens_and_segments_have_the_sizes_and_codes_of_the_page() -> None:
    assert split_token.TOKEN_SIZE == 90
    assert segments.HEADER_SIZE == 33
    assert segments.WELCOME_SIZE == split_token.ID_SIZE + split_token.SECRET_SIZE + 1
    kinds = {row["name"]: number(row["request"]) for row in PAGE.table("request", "name", "method").rows}
    assert kinds == {kind.name: int(kind) for kind in split_token.Kind}
    text = split_token.Token(bytes(16), split_token.Kind.UP, 1, 0, 0, early=True, ended=True, streams=True).encode(b"")
    assert len(text) == 120
    raw = split_token.parse(text)
    assert raw is not None
    assert raw.raw[17] == 7
    assert (split_token.Carrier.HEADER, split_token.Carrier.COOKIE, split_token.Carrier.QUERY) == (1, 2, 4)
    assert split_token.OPENING == b"qanat/1 split"


def test_split_s_limits_are_those_of_the_page() -> None:
    limits = {row["of a split pipe"]: row["number"] for row in PAGE.table("of a split pipe", "number").rows}
    assert limits == {
        "bytes of a direction beyond those that were taken": f"{split_server.WINDOW >> 20} MiB",
        "the same towards the server, before that knows the client": f"{split_server.UNAUTHENTICATED_WINDOW >> 10} KiB",
        "bytes of a request's body": f"{kept_connection.MAX_BODY >> 20} MiB",
        "requests that wait at once": str(split_server.MAX_ASKERS),
        "requests on one connection, by our client": str(connections.MAX_REQUESTS),
        "seconds that an idle connection is kept by the server": f"{kept_connection.IDLE:g}",
    }
    assert split_client.WINDOW == split_server.WINDOW
    assert split_server.LINGER == 10


# --- section 5: limits ----------------------------------------------------------------------------------------------


def test_the_handshake_s_rows_of_the_limits_are_the_code_s() -> None:
    limits = {row["what"]: row["number"] for row in PAGE.table("what", "number", under="Limits").rows}
    assert number(limits["record's plaintext"]) == sealed.MAX_PLAINTEXT


def test_the_mux_s_rows_of_the_limits_are_the_code_s() -> None:
    limits = {row["what"]: row["number"] for row in PAGE.table("what", "number", under="Limits").rows}
    ours = LaneParameters(client=True)
    assert number(limits["a frame's text, request or control message"]) == wire.MAX_TEXT
    assert number(limits["DATA bytes kept for acknowledgment, a lane and direction (outbox)"]) == ours.outbox
    others = limits["other frames kept for it, beyond that, before an OPEN or CONTROL is an error"]
    assert [number(part) for part in others.split(", and ")] == [CONTROL_ROOM, CONTROL_ROOM_PER_STREAM]
    stream = limits["DATA bytes received and not consumed, a stream"]
    assert [number(part) for part in stream.split(", at most ")] == [ours.initial_window, ours.max_window]
    session = limits["the same, a session"]
    assert [number(part) for part in session.split(" + ")] == [ours.initial_window, ours.window_budget]
    assert number(limits["streams a peer may have open in a session"]) == ours.max_streams
    assert number(limits["seconds between PINGs, until a silent pipe is dead"]) == ours.keepalive
    assert number(limits["seconds that the path may hold up a datagram"]) == LATE
    assert PAGE.says(
        f"lately, in the last {DELAY_AGE:g} to {2 * DELAY_AGE:g} s, is the path's own delay",
        f"more than {LATE:g} s above the least are dropped",
        f"or while bytes have waited {HELD_UP:g} s for one",
    )


def test_the_mux_s_defaults_are_the_configuration_s() -> None:
    ours, flow, limits = LaneParameters(client=True), Flow(), ServerLimits()
    assert (ours.initial_window, ours.max_window, ours.window_budget, ours.outbox) == (
        flow.initial_window,
        flow.max_window,
        flow.window_budget,
        flow.outbox,
    )
    assert (ours.max_streams, ours.keepalive) == (limits.streams, Keepalive().interval)


# --- section 6: over HTTP -------------------------------------------------------------------------------------------


def test_what_all_transports_have_in_common_is_the_code_s() -> None:
    assert PAGE.says(
        f"`{ServerSettings(clients=()).path}` by default",
        f"in whole seconds, 1 to {handshake_rate.LONGEST}",
        f"waits at most {MAX_RETRY_AFTER:,.0f} s",
        f"the cookie `{NODE_COOKIE}`",
        "that is not 1 to 64 of `[A-Za-z0-9._-]`",
    )


# --- section 7: the examples ----------------------------------------------------------------------------------------

EXAMPLES = HANDSHAKE_EXAMPLES | CHANNEL_EXAMPLES | FRAME_EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_code_makes_the_example(name: str) -> None:
    assert EXAMPLES[name]().hex() == PAGE.examples[name].hex()


def test_no_example_on_the_page_is_unchecked() -> None:
    assert set(PAGE.examples) == set(EXAMPLES)
