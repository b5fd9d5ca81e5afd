"""One session on the client: its remote forwards are asked for, and their streams reach their targets here."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from qanat.base.addresses import BOTH_FAMILIES
from qanat.base.deadline import Deadline
from qanat.base.endpoint_addresses import (
    Anywhere,
    ListenPlace,
    PublishedName,
    TargetPlace,
    TcpAddress,
    UdpAddress,
    UnixAddress,
)
from qanat.base.errors import EndpointError, NoThread, ProtocolError
from qanat.base.proxy_protocol import encode
from qanat.base.resolve import Address, LookupShare
from qanat.base.watcher import Watcher
from qanat.client.port_lists import describe_failures, describe_place
from qanat.client.required_forwards import RequiredForwards
from qanat.config.settings import Forward
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE, ApplicationKeepalive
from qanat.endpoints.proxy_protocol import Connects, TargetWithHeader
from qanat.endpoints.target import Target
from qanat.endpoints.tcp import resolve
from qanat.endpoints.traffic_limits import TrafficLimits
from qanat.endpoints.unix import OURS_ALONE, UnixTarget
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

LookUp = Callable[[str, int, Deadline], list[Address]]

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
        """Begin a session.  `remotes` has the remote forwards by the first ids that the server gets for their ports.

        `required` hears what became of each, by that id; `connect_timeout` is the number of seconds to reach one's
        target.  `limits` are those of ports whose forwards have any; `connect_rules` judge what users of a dynamic one
        ask for.
        """
        super().__init__(name, parameters, session_id, secret, resume_for, watcher, keepalive)
        self.node = node
        """What the server calls itself: of several behind one address, this one has the session."""
        self.retired = False
        """Whether another server is preferred, and this session only keeps its streams until they end."""
        self._wholes = remotes
        self._remotes = {first + n: part for first, whole in remotes.items() for n, part in enumerate(whole.parts())}
        self._whole_of = {first + n: first for first, whole in remotes.items() for n in range(whole.ports)}
        self._answers: dict[int, Listening | Published | ListenFailed] = {}  # the last one for each port
        self._fresh: set[int] = set()  # those that the server listens for, and we have not said so
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

    @property
    def forward_states(self) -> list[tuple[str, str, str, str]]:
        """Of each remote forward, as it is written: where, where it leads, a word for its state, and why it failed."""
        found = []
        with self._asking:
            answers = dict(self._answers)
        for first, whole in self._wholes.items():
            given = [answers[number] for number in range(first, first + whole.ports) if number in answers]
            failures = [answer.text for answer in given if isinstance(answer, ListenFailed)]
            listening = [answer.port for answer in given if isinstance(answer, Listening)]
            names = [answer.name for answer in given if isinstance(answer, Published)]
            where = names[0] if names else describe_place(whole, listening) if listening else str(whole).split(" ")[1]
            state = "failed" if failures else "listening" if len(given) == whole.ports else "waiting"
            found.append((where, whole.target, state, failures[0] if failures else ""))
        return found

    def _stream_ended(self) -> None:
        if self.retired and not len(self.joined):
            self.stop(CloseReason.SHUTDOWN, "the client prefers another server")

    def _request(self, number: int) -> None:
        forward = self._remotes[number]
        at = forward.listen
        with self._asking:
            self._asked[number] += 1
            if number in self._by_literal and isinstance(at, TcpAddress):
                at = TcpAddress(BOTH_FAMILIES[at.host][0], at.port)
        whole = self._whole_of[number]
        message = Listen(number, at, _options(forward)).encode()
        try:
            check_known(message, self._peer_features, str(self._wholes[whole]))
        except EndpointError as error:
            self._not_asked(number, whole, error)
            return
        self.send_control(message)

    def _not_asked(self, number: int, whole: int, error: EndpointError) -> None:
        """Give up a forward that this server does not know.  Another server of this client may."""
        with self._asking:
            self._asked[number] -= 1
        if self._required.failed(whole, error):
            return
        if self._told.get(whole) != error.message:
            self._told[whole] = error.message
            log.error("%s", error)

    def _on_control(self, content: bytes) -> None:
        message = decode_control(content)
        if not isinstance(message, Listening | Published | ListenFailed):
            raise ProtocolError(f"a server may not send {type(message).__name__}")
        if message.forward not in self._remotes:
            raise ProtocolError(f"the server answers for forward {message.forward}, which there is not")
        with self._asking:
            if not self._asked[message.forward]:
                # Each failure costs a thread that waits, so a server must not be able to invent them.
                raise ProtocolError(f"the server answers for forward {message.forward}, for which nothing was asked")
        self._answered(message)

    def _answered(self, message: Listening | Published | ListenFailed) -> None:
        """Take in the answer for one port; once there is one for each of its forward, say what became of that."""
        number, at = message.forward, self._remotes[message.forward].listen
        with self._asking:
            self._asked[number] -= 1
            if isinstance(message, ListenFailed) and self._asked[number] > 0:
                return  # the answer to that counts
            refused = isinstance(message, ListenFailed) and message.reason == Reason.NOT_ALLOWED
            by_literal = refused and isinstance(at, TcpAddress) and at.host in BOTH_FAMILIES
            if by_literal and number not in self._by_literal:
                self._by_literal.add(number)
            else:
                by_literal = False
                self._answers[number] = message
                if not isinstance(message, ListenFailed):
                    self._fresh.add(number)
            first = self._whole_of[number]
            numbers = range(first, first + self._wholes[first].ports)
            answered = all(each in self._answers and not self._asked[each] for each in numbers)
        if by_literal:
            self._request(number)
        elif answered:
            self._conclude_forward(first, numbers)

    def _conclude_forward(self, first: int, numbers: range) -> None:
        """Say which ports of a forward the server listens on now, and deal with those that it does not."""
        whole = self._wholes[first]
        with self._asking:
            answers = [self._answers[number] for number in numbers]
            fresh = self._fresh.intersection(numbers)
            self._fresh.difference_update(numbers)
        for each in answers:
            if isinstance(each, Published) and each.forward in fresh:
                log.info("the server publishes %s for %s", each.name, whole.target, extra={"event": "listening"})
        ports = [each.port for each in answers if isinstance(each, Listening) and each.forward in fresh]
        if ports:
            where = describe_place(whole, ports)
            log.info("the server listens on %s for %s", where, whole.target, extra={"event": "listening"})
        failed = [each for each in answers if isinstance(each, ListenFailed)]
        if failed:
            self._not_listening(first, failed)
        else:
            self._told.pop(first, None)
            self._required.listens(first)

    def _not_listening(self, first: int, answers: Sequence[ListenFailed]) -> None:
        """End the client where it must have this forward; otherwise ask again after a while.  Does not block."""
        whole = self._wholes[first]
        reasons = {answer.reason for answer in answers}
        refused = reasons == {Reason.NOT_ALLOWED}
        why = {_port_of(self._remotes[each.forward]): f"{reason_name(each.reason)}: {each.text}" for each in answers}
        error = EndpointError(
            f"the server cannot listen for {whole}: {describe_failures(whole, why)}",
            code=answers[0].reason,
            hint=f"add it to this client's {_rules_for(whole.listen)}, on the server"
            if refused
            else "stop what holds that port on the server, choose another, or raise the limit that is named",
        )
        if not self.retired and self._required.failed(first, error):
            return
        wait = RETRY_NOT_ALLOWED if refused else RETRY_IN_USE
        if self._told.get(first) != error.message:
            self._told[first] = error.message
            log.error("%s; asking again in %.0f s", error, wait)
        numbers, generation = [answer.forward for answer in answers], self._generation

        def ask_again() -> None:
            # Not `_stopping`: a client that drains must not wait for this.
            if not self._draining.wait(wait):
                with self._retiring:
                    if not self.retired and generation == self._generation:
                        for number in numbers:
                            self._request(number)

        try:
            self.joined.threads.start(f"{self.name}-forward-{first}", ask_again)
        except NoThread as error:
            log.warning("%s is asked for again only with the next session: %s", whole, error)

    def _on_open(self, stream: Stream, request: StreamRequest) -> None:
        forward = self._remotes.get(request.forward) if isinstance(request, Through) else None
        if forward is None or not isinstance(request, Through):
            log.warning("the server opened a stream that is for none of our forwards; it was refused")
            self.refuse(stream, Reason.NOT_ALLOWED, "no such forward")
            return
        is_dynamic = isinstance(forward.to, Anywhere)
        stream.forward, stream.kind = str(forward), "dynamic" if is_dynamic else ""
        to = forward.to if request.to is None else request.to
        look_up: LookUp = self._judge if is_dynamic else self._look_up
        if isinstance(to, UdpAddress) and (is_dynamic or to == forward.to):
            judged = partial(partial(self._judge, udp=True) if is_dynamic else self._look_up, to.host, to.port)
            limits = self._limits.get(forward)
            self.udp_targets.join(stream, to, judged, timeout=self._connect_timeout, limits=limits)
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
        joined = self.joined
        if not joined.connect_now(stream, target.connect_now, what, limits) and not joined.connect(
            stream, target.connect, what, limits
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

    def _release(self) -> None:
        """Do nothing: the local listeners belong to the client, and outlive its sessions."""


def _rules_for(place: ListenPlace) -> str:
    return "allow_publish" if isinstance(place, PublishedName) else "allow_listen, or shared_listen"


def _options(forward: Forward) -> dict[int, int]:
    """Return what the server is asked for beside the place."""
    options = listen_options(forward.limits, udp=isinstance(forward.listen, UdpAddress))
    if isinstance(forward.to, Anywhere):
        options[ListenOption.DYNAMIC] = 1
    if forward.accept_proxy_protocol:
        options[ListenOption.PROXY_PROTOCOL] = 1
    permissions = forward.permissions
    if isinstance(forward.listen, UnixAddress) and permissions != OURS_ALONE:
        options[ListenOption.MODE] = permissions.mode
        if permissions.owner:
            options[ListenOption.OWNER] = int(permissions.owner)
        if permissions.group:
            options[ListenOption.GROUP] = int(permissions.group)
    return options


def _port_of(forward: Forward) -> int:
    return forward.listen.port if isinstance(forward.listen, TcpAddress | UdpAddress) else 0
