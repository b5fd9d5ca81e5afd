"""What an HTTP/2 connection does with bytes: h2's state machine, and the bulk that goes round it.

    control frames:  h2 decides; what it wants to say is kept in `pending_control`, in its order
    DATA, inwards:   views into the receive buffer, put together by the stream's inbox; h2 sees only END_STREAM
    DATA, outwards:  within the windows that h2 knows (`charge`)
    GOAWAY:          ours: h2 takes any for the end, but streams up to its last id go on (RFC 9113 §6.8)

Does no I/O and starts no thread; a change is announced through the conditions of `Http2Stream`, so every method needs
the lock that these share.  Used by `engine` alone.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.exceptions import ProtocolError as H2ProtocolError
from h2.settings import SettingCodes, Settings
from h2.stream import StreamState
from h2.utilities import HeaderValidationFlags, validate_headers
from hyperframe.frame import GoAwayFrame, WindowUpdateFrame

from qanat.base.errors import ProtocolError
from qanat.base.untrusted import header_text, http_status, words
from qanat.base.usage import Peaks, Usage
from qanat.transports.dial.answer_fields import mapping
from qanat.transports.dial.errors import explain_reset
from qanat.transports.http2.accounts import Accounts
from qanat.transports.http2.dialect import Dialect, Headers
from qanat.transports.http2.frames import (
    HEADER_SIZE,
    MAX_CONTROL,
    MAX_FRAME,
    PREFACE,
    ControlFrame,
    DataPart,
    FrameReader,
    FrameType,
    Http2Error,
    empty_data,
    last_data,
)
from qanat.transports.http2.limits import (
    CONNECTION_UPDATE,
    MAX_BURST,
    MAX_HEADER_LIST,
    MAX_LINGERING,
    MAX_PENDING_CONTROL,
    MAX_STREAMS,
    RIDING_UPDATE,
    WINDOW,
    StreamBudget,
)
from qanat.transports.http2.request import Http2Request, PlainAnswer, Router, no_budget
from qanat.transports.http2.stream import Http2Stream

_DEFAULT_WINDOW = 65535  # RFC 9113 §6.9.2
_OPENING = 16
_REQUEST = HeaderValidationFlags(is_client=False, is_trailer=False, is_response_header=False, is_push_promise=False)


class Http2Core:
    """See the module's docstring."""

    def __init__(
        self,
        lock: threading.Lock,
        *,
        window: int,
        first: bytes,
        router: Router | None,
        budget_of: Callable[[Http2Request], StreamBudget | None],
    ) -> None:
        """Make a server's core when there is a `router`.  The rest is as for `Http2Engine`."""
        client = router is None
        self.streams: dict[int, Http2Stream] = {}
        """Those that have a pipe, or will have one, until it is over for both ends."""
        self.requests: list[tuple[Http2Request, PlainAnswer | Http2Stream]] = []
        """A server's new requests and what becomes of them; the owner empties it."""
        self.pending_control = bytearray()
        """Control frames to send before any DATA."""
        self.leaving = False
        """The peer has sent GOAWAY: what runs may finish, nothing new may begin."""
        self.has_settings = False
        """Whether the peer's SETTINGS have come."""
        self.goaway_reason = ""
        """Why the peer gave up the connection, if its GOAWAY said so."""
        self.opening = b""
        """The first few bytes, to tell what spoke when it was not HTTP/2."""
        self.last_received = time.monotonic()
        self._lock = lock
        self._router = router
        self._client = client
        self._window = window
        self._borrower: Http2Stream | None = None  # whose inbox may keep a view into the receive buffer
        self._connection_due = 0  # bytes that came since the connection's window was last reopened
        self._budget_of = budget_of
        self._peaks = Peaks()
        self._lingering: deque[int] = deque()  # streams that were answered last; the peer may have ended them since
        # A server's h2 would end the connection, and all streams of a proxy with it, for one malformed request.
        self._h2 = H2Connection(
            H2Configuration(client_side=client, header_encoding=None, validate_inbound_headers=client)
        )
        self._accounts = Accounts(self._h2.streams)
        self._h2.local_settings = _settings(client, window)
        self._h2.decoder.max_header_list_size = MAX_HEADER_LIST
        self._h2.max_inbound_frame_size = MAX_FRAME
        self._h2.initiate_connection()
        if not client:
            if not first.startswith(PREFACE):
                raise ProtocolError("not HTTP/2")
            self._h2.receive_data(PREFACE)
            first = first[len(PREFACE) :]
        self.unread = bool(first)
        """Whether `receive` has something to do though nothing new came."""
        self._frames = FrameReader(first)
        if client:
            self._accounts.connection.trust()
        self._collect()
        self._add_window_update(0, WINDOW - _DEFAULT_WINDOW)

    # --- streams

    def request(self, headers: Headers, dialect: Dialect, *, ended: bool = False) -> Http2Stream:
        """As a client: open a stream; its HEADERS wait in `pending_control`.  With `ended` there is no body."""
        stream_id = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream_id, headers, end_stream=ended)
        self._collect()
        return self._add_stream(stream_id, dialect)

    def end_request(self, stream: Http2Stream) -> None:
        """As a client: queue the end of a request's body; the answer goes on."""
        with contextlib.suppress(H2ProtocolError):  # the peer has ended it meanwhile
            self._h2.end_stream(stream.id)
        self._collect()

    def _add_stream(self, stream_id: int, dialect: Dialect) -> Http2Stream:
        """From now on, DATA for this stream is kept for its pipe; without one, it is ignored."""
        stream = self.streams[stream_id] = Http2Stream(stream_id, dialect, self._lock, self._window)
        return stream

    def answer(self, stream_id: int, headers: Headers, body: bytes | None) -> None:
        """As a server: queue the head of an answer, and with `body` the whole of it.

        A peer whose window does not take the body gets none.  What still comes of the request is ignored, and its
        window not reopened.  It is not reset at once, though RFC 9113 §8.1 allows that with NO_ERROR: curl 7.88 takes
        it for a failure.
        """
        with contextlib.suppress(H2ProtocolError):  # the peer has ended it meanwhile
            self._h2.send_headers(stream_id, headers, end_stream=body == b"")
            if body and self._h2.local_flow_control_window(stream_id) < len(body):
                self._accounts.spend(stream_id, FrameType.RST_STREAM)
                self._h2.reset_stream(stream_id, ErrorCodes.FLOW_CONTROL_ERROR)
            elif body:
                self._h2.send_data(stream_id, body, end_stream=True)
        if body is not None:
            self._let_linger(stream_id)
        self._collect()

    def _let_linger(self, stream_id: int) -> None:
        """Leave an answered stream to the peer to end, and reset the oldest of too many.

        nghttpx 1.52 forgets those whose client is gone, and MAX_STREAMS of them would let nobody in any more.
        """
        self._lingering.append(stream_id)
        while len(self._lingering) > MAX_LINGERING:
            oldest = self._lingering.popleft()
            if self._is_answered(oldest):
                self._h2.reset_stream(oldest, ErrorCodes.NO_ERROR)

    def refuse(self, stream_id: int, code: ErrorCodes) -> None:
        """Reset a request that nothing becomes of; it costs as much as one that gets a plain answer."""
        self.streams.pop(stream_id, None)
        self._accounts.end(stream_id, served=False)
        self.reset(stream_id, code)

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        """Queue RST_STREAM, unless it is over already."""
        with contextlib.suppress(H2ProtocolError):
            self._h2.reset_stream(stream_id, code)
        self._collect()

    def finish(self, stream: Http2Stream) -> None:
        """End our side of a stream, in an orderly way if no message would be cut by that."""
        self.streams.pop(stream.id, None)
        if stream.ended_here:
            return
        stream.ended_here = True
        if stream.in_message or not stream.answered:
            self.reset(stream.id, ErrorCodes.CANCEL)
            return
        trailers = stream.dialect.trailers()
        with contextlib.suppress(H2ProtocolError):  # the peer has reset it meanwhile
            if trailers:
                self._h2.send_headers(stream.id, trailers, end_stream=True)
            elif stream.final and self._has_room(stream):
                self._h2.send_data(stream.id, stream.final, end_stream=True)
            else:
                self._h2.end_stream(stream.id)
            if not stream.ended_there:
                self._h2.reset_stream(stream.id, ErrorCodes.NO_ERROR)
        self._collect()

    def closing_bytes(self, code: int) -> bytes:
        """Return what to say when the connection ends here: what is pending, a client's END_STREAM, GOAWAY."""
        closing = bytes(self.pending_control)
        if self._client:
            whole = (s for s in self.streams.values() if not s.in_message and not s.ended_here)
            closing += b"".join(last_data(s.id, s.final if self._has_room(s) else b"") for s in whole)
        return closing + self._goaway(code)

    def _has_room(self, stream: Http2Stream) -> bool:
        """Whether the windows take what the stream has to say last."""
        try:
            return self._h2.local_flow_control_window(stream.id) >= len(stream.final)
        except H2ProtocolError:  # h2 knows it no more
            return False

    def close(self) -> None:
        """Forget every stream and whoever decides on requests: nothing is received any more.

        h2 keeps methods of itself in a table, and our owner is behind the router: both would be cycles.
        """
        self.streams.clear()
        self._router, self._budget_of = None, no_budget
        self._h2._frame_dispatch_table = {}

    def go_away(self) -> None:
        """Queue GOAWAY, so that the peer begins nothing new; what runs may finish."""
        self.pending_control += self._goaway(ErrorCodes.NO_ERROR)

    def _goaway(self, code: int) -> bytes:
        return GoAwayFrame(0, last_stream_id=self._h2.highest_inbound_stream_id, error_code=code).serialize()

    # --- outwards

    @property
    def frame_size(self) -> int:
        """The largest DATA that the peer takes."""
        return self._h2.max_outbound_frame_size

    @property
    def offers_extended_connect(self) -> bool:
        """Whether the peer takes requests with `:protocol` (RFC 8441 §3)."""
        return self._h2.remote_settings.enable_connect_protocol == 1

    def charge(self, stream: Http2Stream, wanted: int) -> int:
        """How many bytes of DATA may be sent now, at most `wanted` and MAX_BURST; they count as sent."""
        connection, known = self._h2, self._h2.streams[stream.id]
        size = min(connection.outbound_flow_control_window, known.outbound_flow_control_window, wanted, MAX_BURST)
        if size <= 0:
            return 0
        connection.outbound_flow_control_window -= size
        known.outbound_flow_control_window -= size
        self._accounts.connection.earn(size)
        stream.sent += size
        stream.in_message = size < wanted
        return size

    def may_send(self, stream: Http2Stream) -> bool:
        """Whether `charge` would give anything.  Only while the stream is not over."""
        return self._h2.local_flow_control_window(stream.id) > 0

    def widen(self, stream: Http2Stream) -> None:
        """Take the peer of this stream for an authenticated one: open its whole window, and be patient."""
        if not stream.authenticated:
            self._accounts.authenticate(stream.id)
            stream.widen()
            self.credit(stream)

    def charge_request(self, stream: Http2Stream) -> None:
        """Charge the peer for a tunnel request that is over and whose client was never authenticated."""
        if not stream.authenticated:
            self._accounts.end(stream.id, served=stream.answered)

    def credit(self, stream: Http2Stream, released: int = 0) -> None:
        """Give back to the peer what `stream` has no more need of."""
        released += stream.inbox.released
        stream.inbox.released = 0
        due = stream.credit(released)
        if due:
            self._add_window_update(stream.id, due)
            if self._connection_due >= RIDING_UPDATE:
                self._credit_connection()

    def _credit_connection(self) -> None:
        """Open the connection's window again by what has come."""
        self._add_window_update(0, self._connection_due)
        self._connection_due = 0

    def _add_window_update(self, stream_id: int, increment: int) -> None:
        self.pending_control += WindowUpdateFrame(stream_id, window_increment=increment).serialize()

    def _collect(self) -> None:
        self.pending_control += self._h2.data_to_send()

    # --- inwards

    def space(self) -> memoryview:
        """Where to receive the next bytes.  The lock is not needed while they are received."""
        if self._borrower is not None:
            if not self._borrower.inbox.return_borrowed():
                self._frames.leave_buffer()
            self._borrower = None
        return self._frames.space()

    def trim(self) -> None:
        """Give memory back that bulk has needed.  While nobody reads."""
        if self._borrower is not None:
            if not self._borrower.inbox.return_borrowed():
                self._frames.leave_buffer()
            self._borrower = None
        self._frames.trim()

    def receive(self, count: int, borrower: Http2Stream | None = None, most: int | None = None) -> None:
        """Act on `count` more bytes.  Raises Http2Error when the connection cannot go on.

        After `most` frames that are no DATA it returns, and `unread` is set.

        The pipe of the stream `borrower` is what reads, so its messages need not be copied: it takes each before it
        reads on.
        """
        self._frames.whole = borrower is not None
        if count:
            self.last_received = time.monotonic()
            self._frames.filled(count)
            if len(self.opening) < _OPENING:
                self.opening += self._frames.peek(_OPENING)
        self.unread = False
        next_frame = self._frames.next
        controls = 0
        try:
            while (frame := next_frame()) is not None:
                if isinstance(frame, DataPart):
                    self._data(frame, borrower)
                    continue
                self._control(frame)
                self._accounts.connection.check()
                controls += 1
                if controls == most:
                    self.unread = True
                    break
        except H2ProtocolError as error:
            self._h2.clear_outbound_data_buffer()  # h2's GOAWAY; `closing_bytes` has one that says the same
            raise Http2Error(error.error_code, str(error)) from error
        except H2Error as error:
            raise Http2Error(ErrorCodes.PROTOCOL_ERROR, str(error)) from error
        if borrower is not None and self._frames.awaited == borrower.id:
            borrower.last_received = self.last_received
        if self.pending_control:
            self._peaks.note("bytes of answers that wait", Usage(len(self.pending_control), MAX_PENDING_CONTROL))
        if len(self.pending_control) > MAX_PENDING_CONTROL:
            raise Http2Error(ErrorCodes.ENHANCE_YOUR_CALM, "it asks for answers and does not read them")

    def _data(self, part: DataPart, borrower: Http2Stream | None) -> None:
        stream = self.streams.get(part.stream_id)
        if part.charged:
            self._connection_due += part.charged
            if self._connection_due >= CONNECTION_UPDATE:
                self._credit_connection()
        if stream is None or stream.ended_there or stream.over:
            self._stray_data(part, stream)
            self._accounts.connection.check()
            return
        if part.empty and not part.ended:
            self._accounts.spend(stream.id, FrameType.DATA)
            self._accounts.connection.check()
        stream.window -= part.charged
        if stream.window < 0:
            self.fail_stream(stream, ErrorCodes.FLOW_CONTROL_ERROR, "more DATA than its window allows")
            return
        stream.last_received = self.last_received
        if part.data:
            try:
                came = stream.inbox.feed(part.data, borrow=stream is borrower)
                if came or stream.readable.listener is not None:  # who listens counts bytes as a sign of life
                    stream.readable.notify()
                if came and stream is borrower:
                    self._borrower = stream
            except ProtocolError as error:
                self.fail_stream(stream, ErrorCodes.PROTOCOL_ERROR, error.message)
                return
        padding = part.charged - len(part.data)
        if padding:
            self.credit(stream, padding)
        if part.ended:
            self._end_data(stream.id)

    def _end_data(self, stream_id: int) -> None:
        """Have h2 see the end of a body, of which it has seen nothing."""
        known = self._h2.streams.get(stream_id)
        if known is not None:
            known._expected_content_length = None
        self._feed_h2(empty_data(stream_id))

    def _stray_data(self, part: DataPart, stream: Http2Stream | None) -> None:
        """Handle DATA for a stream that is over here, or that we never kept: on its way when we ended it."""
        known = self._h2.streams.get(part.stream_id)
        if part.ended and stream is None and known is not None and not known.closed:
            self._end_data(part.stream_id)  # or the stream counts as open for ever
        if not part.first:
            return
        self._accounts.spend(part.stream_id, FrameType.DATA)
        if stream is not None or part.stream_id > self._h2.highest_inbound_stream_id:
            # After END_STREAM, or before HEADERS: h2 knows how bad that is (RFC 9113 §5.1).
            self._feed_h2(empty_data(part.stream_id))

    def fail_stream(self, stream: Http2Stream, code: ErrorCodes, text: str) -> None:
        """Reset a stream, and end its pipe, for what the other end did on it."""
        self._accounts.spend(stream.id, FrameType.RST_STREAM)
        self.streams.pop(stream.id, None)
        stream.ended_here = True
        self.reset(stream.id, code)
        cause = f"the other end broke the {stream.dialect.name} protocol: {text}"
        stream.end(cause, ProtocolError(cause))

    def _control(self, frame: ControlFrame) -> None:
        if frame.kind == FrameType.HEADERS:
            if self._client:
                self._accounts.connection.spend(frame.kind)
        elif frame.kind == FrameType.RST_STREAM:
            answered = self._is_answered(frame.stream_id)
            self._accounts.spend(frame.stream_id, FrameType.DATA if answered else frame.kind)
        else:  # WINDOW_UPDATE and PRIORITY are the proxy's own, whatever its clients do
            self._accounts.connection.spend(frame.kind)
        if frame.kind == FrameType.GOAWAY:
            self._hear_goaway(frame)
        else:
            self._feed_h2(frame.raw)

    def _is_answered(self, stream_id: int) -> bool:
        """Whether the peer has our whole answer: its reset, as proxies send for a body left open, costs us nothing."""
        known = self._h2.streams.get(stream_id)
        return known is not None and known.state_machine.state is StreamState.HALF_CLOSED_LOCAL

    def _feed_h2(self, data: bytes | memoryview) -> None:
        events = self._h2.receive_data(bytes(data))
        said = self._h2.data_to_send()
        for stream_id in _resets(said):
            self._accounts.spend(stream_id, FrameType.RST_STREAM)
        self.pending_control += said
        for event in events:
            self._event(event)
        self._collect()

    def _event(self, event: Event) -> None:
        if isinstance(event, WindowUpdated):
            concerned: Iterable[Http2Stream | None] = (
                (self.streams.get(event.stream_id),) if event.stream_id else self.streams.values()
            )
            for stream in concerned:
                if stream is not None:
                    stream.writable.notify_all()
        elif isinstance(event, RequestReceived):
            fields, ended = tuple(_decode(event.headers)), event.stream_ended is not None
            self._decide(Http2Request(event.stream_id, fields, ended, _is_well_formed(event.headers)))
        elif isinstance(event, ResponseReceived | TrailersReceived | StreamReset | StreamEnded):
            known = self.streams.get(event.stream_id)
            if known is not None:
                self._stream_event(known, event)
        else:  # SETTINGS may have changed every window; the rest needs nothing
            self.has_settings |= isinstance(event, RemoteSettingsChanged)
            for stream in self.streams.values():
                stream.writable.notify_all()

    def _decide(self, request: Http2Request) -> None:
        assert self._router is not None
        self._peaks.note("streams open at once", Usage(self._h2.open_inbound_streams, MAX_STREAMS))
        budget = self._budget_of(request)
        if budget is not None:
            self._accounts.open(request.stream_id, budget)
            if seconds := budget.refused_for():
                busy = PlainAnswer(503, "Service Unavailable\n", [("retry-after", str(seconds))])
                self.requests.append((request, busy))
                return
        decision = self._router(request)
        if isinstance(decision, Dialect):
            self._accounts.begin(request.stream_id)
            self.requests.append((request, self._add_stream(request.stream_id, decision)))
        else:
            if budget is not None:  # otherwise MAX_PLAIN bounds them
                budget.spend(FrameType.HEADERS)
            self.requests.append((request, decision))

    def has_budget(self, stream_id: int) -> bool:
        """Whether what happens on this stream is charged to a client that shares the connection with others."""
        return self._accounts.has_own(stream_id)

    @property
    def used_most(self) -> dict[str, Usage]:
        """How near the peer has come to each limit of this connection, by the limit's name."""
        peaks = {"control frames": self._accounts.connection.used_most, **self._peaks.copy()}
        return peaks | {f"of these {kind}": used for kind, used in self._accounts.connection.used_most_for.items()}

    def _stream_event(self, stream: Http2Stream, event: Event) -> None:
        if isinstance(event, ResponseReceived):
            headers = mapping(_decode(event.headers))
            stream.response = http_status(headers.pop(":status", "")), headers
            stream.readable.notify_all()
        elif isinstance(event, TrailersReceived):
            stream.trailers = stream.dialect.describe_trailers(dict(_decode(event.headers)))
        elif isinstance(event, StreamReset):
            stream.ended_here = stream.ended_there = True
            self.streams.pop(stream.id, None)
            name = _name_of(event.error_code)
            if event.remote_reset and self._client:
                name += explain_reset(name, stream.sent)
            who = "it or a proxy on the path" if event.remote_reset else "this end"
            stream.end(f"{who} reset the stream: {name}" + (f" ({self.goaway_reason})" if self.goaway_reason else ""))
        elif isinstance(event, StreamEnded):
            stream.ended_there = True
            if stream.dialect.half_closes and not self._client:
                return
            if stream.inbox.in_the_middle:
                stream.end("the other end or a proxy on the path ended the stream in the middle of a message")
            else:
                why = f": {stream.trailers}" if stream.trailers else ""
                stream.end(f"the other end or a proxy on the path ended the stream{why}")

    def _hear_goaway(self, frame: ControlFrame) -> None:
        if frame.stream_id or len(frame.payload) < 8:
            raise Http2Error(ErrorCodes.PROTOCOL_ERROR, "a malformed GOAWAY")
        last, code = struct.unpack_from("!II", frame.payload)
        self.leaving = True
        if code != ErrorCodes.NO_ERROR:
            text = words(frame.payload[8:])
            reason = f"{_name_of(code)}, {text}" if text else _name_of(code)
            self.goaway_reason = f"the other end gave up the connection: {reason}"
        if self._client:
            for stream in list(self.streams.values()):
                if stream.id > last & 0x7FFF_FFFF:
                    self.streams.pop(stream.id)
                    stream.end(self.goaway_reason or "the other end is going away and did not take the request")


def _settings(client: bool, window: int) -> Settings:
    values = {
        SettingCodes.INITIAL_WINDOW_SIZE: window,
        SettingCodes.MAX_FRAME_SIZE: MAX_FRAME,
        SettingCodes.MAX_HEADER_LIST_SIZE: MAX_CONTROL,
    }
    if client:
        values[SettingCodes.ENABLE_PUSH] = 0
    else:
        values[SettingCodes.MAX_CONCURRENT_STREAMS] = MAX_STREAMS
        values[SettingCodes.ENABLE_CONNECT_PROTOCOL] = 1
    return Settings(client=client, initial_values=values)


def _is_well_formed(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether these are a request's (RFC 9113 §8.2, §8.3)."""
    try:
        for _ in validate_headers(headers, _REQUEST):
            pass
    except H2ProtocolError:
        return False
    return True


def _decode(headers: Iterable[tuple[bytes | str, bytes | str]]) -> Headers:
    return [(header_text(name), header_text(value)) for name, value in headers]


def _resets(frames: bytes) -> list[int]:
    """Return the streams that these whole frames reset."""
    found, at = [], 0
    while at < len(frames):
        if frames[at + 3] == FrameType.RST_STREAM:
            found.append(int.from_bytes(frames[at + 5 : at + HEADER_SIZE], "big"))
        at += HEADER_SIZE + int.from_bytes(frames[at : at + 3], "big")
    return found


def _name_of(code: int) -> str:
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"error {code}"
