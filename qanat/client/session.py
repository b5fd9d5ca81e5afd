"""One session on the client: the streams of its remote forwards reach their targets here.

Which remote forwards there are, and what the server says to them, is `qanat.client.remote_forwards`'s.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from qanat.base.deadline import Deadline
from qanat.base.endpoint_addresses import Anywhere, TargetPlace, TcpAddress, UdpAddress, UnixAddress
from qanat.base.errors import ProtocolError
from qanat.base.proxy_protocol import encode
from qanat.base.resolve import Address, LookupShare
from qanat.base.watcher import Watcher
from qanat.client.remote_forwards import NumberedForward, RemoteForwards
from qanat.client.required_forwards import RequiredForwards
from qanat.config.forward_settings import Forward
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE, ApplicationKeepalive
from qanat.endpoints.proxy_protocol import Connects, TargetWithHeader
from qanat.endpoints.target import Target
from qanat.endpoints.tcp import resolve
from qanat.endpoints.traffic_limits import TrafficLimits
from qanat.endpoints.unix import UnixTarget
from qanat.handshake.hello import CloseReason
from qanat.mux.frames import Reason
from qanat.mux.parameters import LaneParameters
from qanat.mux.stream import Stream
from qanat.session.connect_rules import ConnectRules
from qanat.session.messages import (
    ListenAgain,
    ListenEnded,
    ListenFailed,
    Listening,
    Published,
    StreamRequest,
    Through,
    decode_control,
)
from qanat.session.session import Session

log = logging.getLogger("qanat.session")

LookUp = Callable[[str, int, Deadline], list[Address]]


class ClientSession(Session):
    """One session of a client.  Methods may be called from any thread."""

    def __init__(
        self,
        name: str,
        parameters: LaneParameters,
        session_id: bytes,
        secret: bytes,
        resume_for: float,
        *,
        node: str,
        remotes: Sequence[NumberedForward],
        required: RequiredForwards,
        connect_timeout: float,
        watcher: Watcher,
        keepalive: ApplicationKeepalive = DEFAULT_KEEPALIVE,
        limits: Mapping[Forward, TrafficLimits] | None = None,
        connect_rules: ConnectRules | None = None,
        ports: dict[int, int] | None = None,
    ) -> None:
        """Begin a session.  `remotes` has the remote forwards, with the numbers of their ports, and `ports` which of
        those the server has chosen before (see RemoteForwards).

        `required` hears what became of each; `connect_timeout` is the number of seconds to reach one's
        target.  `limits` are those of ports whose forwards have any; `connect_rules` judge what users of a dynamic one
        ask for.
        """
        super().__init__(name, parameters, session_id, secret, resume_for, watcher, keepalive)
        self.node = node
        """What the server calls itself: of several behind one address, this one has the session."""
        self.retired = False
        """Whether another server is preferred, or this one not wanted: it only keeps its streams until they end."""
        self.proven: set[tuple[bytes, str]] = set()
        """The servers' keys and the fingerprints of our tokens by which its pipes were authenticated."""
        self._retired_because = ""
        here = weakref.ref(self)  # or what it owns would keep it alive

        def send(message: bytes) -> None:
            session = here()
            if session is not None:
                session.send_control(message)

        self.remotes = RemoteForwards(
            name,
            remotes,
            required,
            parameters.peer_features,
            send=send,
            start=self.joined.threads.start,
            draining=self._draining,
            ports=ports,
        )
        """The remote forwards, which the server is asked for."""
        self._connect_timeout = connect_timeout
        self._keepalive = keepalive
        self._limits = limits or {}
        self._connect_rules = connect_rules or ConnectRules(())
        self._share = LookupShare()
        self._retiring = threading.Lock()  # guards `retired`, and the order of the messages that follow from it

    def request_forwards(self) -> None:
        """Ask the server to listen for every remote forward.  Does not block."""
        self.remotes.request()

    def use(self, *, connect_rules: ConnectRules, connect_timeout: float) -> list[str]:
        """Judge by these rules, and wait for targets so long; reset what they forbid, and return that in words.

        Does not block.
        """
        before, self._connect_rules, self._connect_timeout = self._connect_rules, connect_rules, connect_timeout
        if connect_rules is before:
            return []
        streams = [stream for lane in self.lanes.values() for stream in lane.streams]
        return [line for stream in streams if (line := self._judge_open(stream))]

    def retire(self, why: str = "the client prefers another server") -> None:
        """Give the ports back, and stop when the last stream has ended: there is another server, or none is wanted.

        Idempotent; does not block.
        """
        with self._retiring:
            if self.retired:
                return
            self.retired, self._retired_because = True, why
            self.remotes.withdraw()
        self._stream_ended()

    def return_to_service(self) -> None:
        """Ask for the ports anew, since the other server is gone again.  Idempotent; does not block."""
        with self._retiring:
            if self.retired:
                self.retired = False
                self.remotes.request_again()

    @property
    def forward_states(self) -> list[tuple[str, str, str, str]]:
        """Of each remote forward, as it is written: where, where it leads, a word for its state, and why it failed."""
        return self.remotes.states

    def _stream_ended(self) -> None:
        if self.retired and not len(self.joined):
            self.stop(CloseReason.SHUTDOWN, self._retired_because)

    def _on_control(self, content: bytes) -> None:
        message = decode_control(content)
        if isinstance(message, Listening | Published | ListenFailed):
            self.remotes.answered(message)
        elif isinstance(message, ListenEnded):
            self.remotes.ended(message)
        elif isinstance(message, ListenAgain):
            self.remotes.ask_again()
        else:
            raise ProtocolError(f"a server may not send {type(message).__name__}")

    def _on_open(self, stream: Stream, request: StreamRequest) -> None:
        forward = self.remotes.find(request.forward) if isinstance(request, Through) else None
        if forward is None or not isinstance(request, Through):
            if not isinstance(request, Through) or not self.remotes.is_gone(request.forward):
                log.warning("the server opened a stream that is for none of our forwards; it was refused")
            self.refuse(stream, Reason.NOT_ALLOWED, "no such forward")
            return
        is_dynamic = isinstance(forward.to, Anywhere)
        stream.forward, stream.kind = str(forward), "dynamic" if is_dynamic else ""
        if is_dynamic:
            stream.target = request.to  # before the rules are looked at: whoever changes them judges it by that
        to = forward.to if request.to is None else request.to
        look_up: LookUp = self._judge if is_dynamic else self._look_up
        rules = self._connect_rules

        def joined() -> None:
            if is_dynamic and self._connect_rules is not rules:  # since it began to connect
                self._judge_open(stream)

        if isinstance(to, UdpAddress) and (is_dynamic or to == forward.to):
            judged = partial(partial(self._judge, udp=True) if is_dynamic else self._look_up, to.host, to.port)
            limits = self._limits.get(forward)
            self.udp_targets.join(stream, to, judged, timeout=self._connect_timeout, limits=limits, on_joined=joined)
            return
        leads_there = isinstance(to, TcpAddress) if is_dynamic else to == forward.to
        target: Connects | None = self._target_for(to, look_up) if leads_there else None
        if target is None:
            self.refuse(stream, Reason.NOT_ALLOWED, f"this forward does not lead to {to}")
            return
        if forward.proxy_protocol:
            target = TargetWithHeader(target, encode(forward.proxy_protocol, request.origin, request.local))
        what = f"from {request.origin} for {forward}" + (f", to {to}" if is_dynamic else "")
        limits = self._limits.get(forward)
        if not self.joined.connect_now(stream, target.connect_now, what, limits, joined) and not self.joined.connect(
            stream, target.connect, what, limits, joined
        ):
            target.give_up()

    def _target_for(self, to: TargetPlace, look_up: LookUp) -> Target | UnixTarget | None:
        """Return what connects to `to`; None for a kind that there is not."""
        if isinstance(to, UnixAddress):
            path = to.path
            return UnixTarget(lambda: path, path, timeout=self._connect_timeout, cancel=self._stopping)
        if not isinstance(to, TcpAddress):
            return None
        return Target(
            to.host,
            to.port,
            partial(look_up, to.host, to.port),
            timeout=self._connect_timeout,
            cancel=self._stopping,
            keepalive=self._keepalive,
        )

    def _look_up(self, host: str, port: int, deadline: Deadline) -> list[Address]:
        """Return the addresses of a target that is our own configuration's."""
        return resolve(host, port, deadline, self._share, self._stopping)

    def _judge(self, host: str, port: int, deadline: Deadline, *, udp: bool = False) -> list[Address]:
        """Return those addresses of a target that somebody at the server's end has named that our rules allow."""
        return self._connect_rules.resolve(host, port, deadline, self._stopping, udp=udp)

    def _judge_open(self, stream: Stream) -> str:
        """Reset a stream whose target somebody at the server's end has named, if our rules do not allow that any more.

        Returns what was done, in words.
        """
        # Any other's target is our own configuration's, or at the other end.
        return "" if stream.target is None else self._connect_rules.judge(stream, stream.target)

    def _release(self) -> None:
        """Do nothing: the local listeners belong to the client, and outlive its sessions."""
