"""One session on the client: its remote forwards are asked for, and their streams reach their targets here."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from qanat.base.addresses import BOTH_FAMILIES
from qanat.base.deadline import Deadline
from qanat.base.endpoint_addresses import Anywhere, ListenPlace, PublishedName, TcpAddress, UdpAddress
from qanat.base.errors import EndpointError, NoThread, ProtocolError
from qanat.base.resolve import Address, LookupShare
from qanat.base.watcher import Watcher
from qanat.client.required_forwards import RequiredForwards
from qanat.config.settings import Forward
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE, ApplicationKeepalive
from qanat.endpoints.target import Target
from qanat.endpoints.tcp import resolve
from qanat.endpoints.traffic_limits import TrafficLimits
from qanat.handshake.hello import CloseReason
from qanat.mux.frames import Reason, reason_name
from qanat.mux.parameters import LaneParameters
from qanat.mux.stream import Stream
from qanat.session.connect_rules import ConnectRules
from qanat.session.forward_limits import listen_options
from qanat.session.messages import (
    Listen,
    ListenFailed,
    Listening,
    ListenOption,
    Published,
    StreamRequest,
    Through,
    Unlisten,
    check_known,
    decode_control,
)
from qanat.session.session import Session

log = logging.getLogger("qanat.session")

RETRY_IN_USE = 10.0
"""Seconds until a remote forward is asked for again whose port was in use."""
RETRY_NOT_ALLOWED = 60.0
"""The same when the server's rules refused it: they may change."""


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
        remotes: dict[int, Forward],
        required: RequiredForwards,
        connect_timeout: float,
        watcher: Watcher,
        keepalive: ApplicationKeepalive = DEFAULT_KEEPALIVE,
        limits: Mapping[Forward, TrafficLimits] | None = None,
        connect_rules: ConnectRules | None = None,
    ) -> None:
        """Begin a session.  `remotes` has the remote forwards by the ids that the server gets for them.

        `required` hears what became of each; `connect_timeout` is the number of seconds to reach one's target.
        `limits` are those of forwards that have any; `connect_rules` judge what users of a dynamic one ask for.
        """
        super().__init__(name, parameters, session_id, secret, resume_for, watcher, keepalive)
        self.node = node
        """What the server calls itself: of several behind one address, this one has the session."""
        self.retired = False
        """Whether another server is preferred, and this session only keeps its streams until they end."""
        self._remotes = remotes
        self._required = required
        self._told: dict[int, str] = {}  # by forward, what was logged last: not again every ten seconds for years
        self._connect_timeout = connect_timeout
        self._keepalive = keepalive
        self._limits = limits or {}
        self._peer_features = parameters.peer_features
        self._connect_rules = connect_rules or ConnectRules(())
        self._share = LookupShare()
        self._asked = Counter[int]()  # by forward, how many LISTENs have no answer yet; guarded by the next
        self._by_literal: set[int] = set()  # those asked for by an IPv4 literal, the only way that old servers know
        self._asking = threading.Lock()
        self._retiring = threading.Lock()  # guards the next, and the order of the messages that follow from it
        self._generation = 0  # how often it has returned to service

    def request_forwards(self) -> None:
        """Ask the server to listen for every remote forward.  Does not block."""
        for number in self._remotes:
            self._request(number)

    def retire(self) -> None:
        """Give the ports back, since another server is preferred, and stop when the last stream has ended.

        Idempotent; does not block.
        """
        with self._retiring:
            if self.retired:
                return
            self.retired = True
            for number in self._remotes:
                self.send_control(Unlisten(number).encode())
        self._stream_ended()

    def return_to_service(self) -> None:
        """Ask for the ports anew, since the other server is gone again.  Idempotent; does not block."""
        with self._retiring:
            if self.retired:
                self.retired = False
                self._generation += 1
                self.request_forwards()

    def _stream_ended(self) -> None:
        if self.retired and not len(self.joined):
            self.stop(CloseReason.SHUTDOWN, "the client prefers another server")

    def _request(self, number: int) -> None:
        at = self._remotes[number].listen
        with self._asking:
            self._asked[number] += 1
            if number in self._by_literal and isinstance(at, TcpAddress):
                at = TcpAddress(BOTH_FAMILIES[at.host][0], at.port)
        forward = self._remotes[number]
        options = listen_options(forward.limits, udp=isinstance(at, UdpAddress))
        if isinstance(forward.to, Anywhere):
            options = {**options, ListenOption.DYNAMIC: 1}
        message = Listen(number, at, options).encode()
        try:
            check_known(message, self._peer_features, str(forward))
        except EndpointError as error:
            self._not_asked(number, error)
            return
        self.send_control(message)

    def _not_asked(self, number: int, error: EndpointError) -> None:
        """Give up a forward that this server does not know.  Another server of this client may."""
        with self._asking:
            self._asked[number] -= 1
        if self._required.failed(number, error):
            return
        if self._told.get(number) != error.message:
            self._told[number] = error.message
            log.error("%s", error)

    def _on_control(self, content: bytes) -> None:
        message = decode_control(content)
        if not isinstance(message, Listening | Published | ListenFailed):
            raise ProtocolError(f"a server may not send {type(message).__name__}")
        forward = self._remotes.get(message.forward)
        if forward is None:
            raise ProtocolError(f"the server answers for forward {message.forward}, which there is not")
        with self._asking:
            if not self._asked[message.forward]:
                # Each failure costs a thread that waits, so a server must not be able to invent them.
                raise ProtocolError(f"the server answers for forward {message.forward}, for which nothing was asked")
            self._asked[message.forward] -= 1
            asked_again = self._asked[message.forward] > 0
        if isinstance(message, Listening | Published):
            at = forward.listen
            if isinstance(message, Published):
                log.info("the server publishes %s for %s", message.name, forward.to, extra={"event": "listening"})
            else:
                where = replace(at, port=message.port) if isinstance(at, TcpAddress | UdpAddress) else at
                log.info("the server listens on %s for %s", where, forward.to, extra={"event": "listening"})
            self._told.pop(message.forward, None)
            self._required.listens(message.forward)
            return
        if asked_again:
            return  # the answer to that counts
        at = forward.listen
        if message.reason == Reason.NOT_ALLOWED and isinstance(at, TcpAddress) and at.host in BOTH_FAMILIES:
            with self._asking:
                known = message.forward in self._by_literal
                self._by_literal.add(message.forward)
            if not known:
                self._request(message.forward)
                return
        self._not_listening(forward, message)

    def _not_listening(self, forward: Forward, answer: ListenFailed) -> None:
        """End the client where it must have this forward; otherwise ask again after a while.  Does not block."""
        refused = answer.reason == Reason.NOT_ALLOWED
        error = EndpointError(
            f"the server cannot listen for {forward}: {reason_name(answer.reason)}: {answer.text}",
            code=answer.reason,
            hint=f"add it to this client's {_rules_for(forward.listen)}, on the server"
            if refused
            else "stop what holds that port on the server, choose another, or raise the limit that is named",
        )
        if not self.retired and self._required.failed(answer.forward, error):
            return
        wait = RETRY_NOT_ALLOWED if refused else RETRY_IN_USE
        if self._told.get(answer.forward) != error.message:
            self._told[answer.forward] = error.message
            log.error("%s; asking again in %.0f s", error, wait)
        number, generation = answer.forward, self._generation

        def ask_again() -> None:
            # Not `_stopping`: a client that drains must not wait for this.
            if not self._draining.wait(wait):
                with self._retiring:
                    if not self.retired and generation == self._generation:
                        self._request(number)

        try:
            self.joined.threads.start(f"{self.name}-forward-{number}", ask_again)
        except NoThread as error:
            log.warning("%s is asked for again only with the next session: %s", forward, error)

    def _on_open(self, stream: Stream, request: StreamRequest) -> None:
        forward = self._remotes.get(request.forward) if isinstance(request, Through) else None
        if forward is None or not isinstance(request, Through):
            log.warning("the server opened a stream that is for none of our forwards; it was refused")
            self.refuse(stream, Reason.NOT_ALLOWED, "no such forward")
            return
        is_dynamic = isinstance(forward.to, Anywhere)
        to = forward.to if request.to is None else request.to
        if isinstance(to, UdpAddress) and (is_dynamic or to == forward.to):
            look_up = partial(partial(self._judge, udp=True) if is_dynamic else self._look_up, to.host, to.port)
            limits = self._limits.get(forward)
            self.udp_targets.join(stream, to, look_up, timeout=self._connect_timeout, limits=limits)
            return
        if not isinstance(to, TcpAddress) or not (is_dynamic or to == forward.to):
            self.refuse(stream, Reason.NOT_ALLOWED, f"this forward does not lead to {to}")
            return
        host, port = to.host, to.port
        target = Target(
            host,
            port,
            partial(self._judge if is_dynamic else self._look_up, host, port),
            timeout=self._connect_timeout,
            cancel=self._stopping,
            keepalive=self._keepalive,
        )
        what = f"from {request.origin} for {forward}" + (f", to {to}" if is_dynamic else "")
        limits = self._limits.get(forward)
        joined = self.joined
        if not joined.connect_now(stream, target.connect_now, what, limits) and not joined.connect(
            stream, target.connect, what, limits
        ):
            target.give_up()

    def _look_up(self, host: str, port: int, deadline: Deadline) -> list[Address]:
        """Return the addresses of a target that is our own configuration's."""
        return resolve(host, port, deadline, self._share, self._stopping)

    def _judge(self, host: str, port: int, deadline: Deadline, *, udp: bool = False) -> list[Address]:
        """Return those addresses of a target that somebody at the server's end has named that our rules allow."""
        return self._connect_rules.resolve(host, port, deadline, self._stopping, udp=udp)

    def _release(self) -> None:
        """Do nothing: the local listeners belong to the client, and outlive its sessions."""


def _rules_for(place: ListenPlace) -> str:
    return "allow_publish" if isinstance(place, PublishedName) else "allow_listen, or shared_listen"
