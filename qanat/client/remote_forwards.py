"""The remote forwards of one client's session: what the server is asked for, its answers, and asking again.

A forward has a number for each of its ports, by which both ends speak of it for as long as the session lasts.  Forwards
come and go meanwhile (`change`): one that leads elsewhere from now on keeps its number, and the server hears nothing.

    number is new          LISTEN
    number is gone         UNLISTEN; streams that are open go on
    other options, there   LISTEN again, for a server that can change them; one that cannot gets UNLISTEN, then LISTEN
    refused, or ended by   LISTEN again after a while, with a reload of the client, and as soon as the server says that
    other rules there      it may be had now (LISTEN_AGAIN)

`qanat.client.session` owns it, gives it what the server says, and asks it where a stream leads.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qanat.base.addresses import BOTH_FAMILIES
from qanat.base.deadline import Deadline
from qanat.base.endpoint_addresses import (
    Anywhere,
    ListenPlace,
    PublishedName,
    TcpAddress,
    UdpAddress,
    UnixAddress,
)
from qanat.base.errors import EndpointError, NoThread, ProtocolError
from qanat.base.lazy_waiting import LazyEvent
from qanat.client.forward_changes import Fate, ForwardChange, match_ports
from qanat.client.port_lists import describe_failures, describe_place
from qanat.client.required_forwards import RequiredForwards
from qanat.config.forward_settings import Forward
from qanat.endpoints.unix import OURS_ALONE
from qanat.handshake.hello import Features
from qanat.mux.frames import Reason, reason_name
from qanat.session.forward_limits import listen_options
from qanat.session.messages import (
    Listen,
    ListenEnded,
    ListenFailed,
    Listening,
    ListenOption,
    Published,
    Unlisten,
    check_known,
)

log = logging.getLogger("qanat.session")

RETRY_IN_USE = 10.0
"""Seconds until a remote forward is asked for again whose port was in use."""
RETRY_NOT_ALLOWED = 60.0
"""The same when the server's rules refused it: they may change."""
TOGETHER = 0.2
"""Seconds in which the server's words about several ports of a forward count as one, for the log."""
LOOK = 1.0
"""Seconds in which whoever waits to ask again sees that the forward is wanted no more."""
MAX_NUMBER = 0xFFFF_FFFF
REMEMBERED = 1024
"""Numbers of forwards that are gone for which the server may still open a stream, since it had not heard of it."""

Answer = Listening | Published | ListenFailed


@dataclass(frozen=True, slots=True)
class NumberedForward:
    """A remote forward and the numbers of its ports, in their order."""

    forward: Forward
    numbers: tuple[int, ...]

    @property
    def first(self) -> int:
        """What it is known by among the forwards of a client."""
        return self.numbers[0]


class ForwardNumbers:
    """Which number each port of a client's remote forwards has, at every server.  One thread at a time."""

    def __init__(self, forwards: Sequence[Forward]) -> None:
        """Give each port a number, those of local ones too."""
        found: list[NumberedForward] = []
        following = 0
        for forward in forwards:
            if forward.kind == "remote":
                found.append(NumberedForward(forward, tuple(range(following, following + forward.ports))))
            following += forward.ports
        self._next = following
        self.forwards = tuple(found)
        """Those that are remote."""

    def change(self, forwards: Sequence[Forward]) -> None:
        """Have these in place of the present ones: a port that stays keeps its number."""
        before = [
            (part, number)
            for one in self.forwards
            for part, number in zip(one.forward.parts(), one.numbers, strict=True)
        ]
        taken = {number for _, number in before}
        wanted = [forward for forward in forwards if forward.kind == "remote"]
        matches = match_ports([part for part, _ in before], [part for one in wanted for part in one.parts()])
        numbers = iter([self._new(taken) if match is None else before[match][1] for match in matches])
        self.forwards = tuple(
            NumberedForward(forward, tuple(next(numbers) for _ in range(forward.ports))) for forward in wanted
        )

    def _new(self, taken: set[int]) -> int:
        while self._next in taken or self._next > MAX_NUMBER:
            self._next = 0 if self._next > MAX_NUMBER else self._next + 1
        number, self._next = self._next, self._next + 1
        return number


class RemoteForwards:
    """See the module's docstring.  Methods may be called from any thread; only `wait` blocks."""

    def __init__(
        self,
        name: str,
        forwards: Sequence[NumberedForward],
        required: RequiredForwards,
        peer_features: int,
        *,
        send: Callable[[bytes], None],
        start: Callable[[str, Callable[[], None]], object],
        draining: LazyEvent,
        ports: dict[int, int] | None = None,
    ) -> None:
        """Ask for nothing before `request`.

        `name` is the client's; `required` hears what became of each.  `send` queues a control message, `start` runs
        something in a thread of that name, or raises NoThread.  Once `draining` is set nothing is asked for again.
        `ports` are those that the server has chosen so far where port 0 was asked for, by number: they are asked for
        again, and kept up to date.
        """
        self._name = name
        self._required = required
        self._peer_features = peer_features
        self._send = send
        self._start = start
        self._draining = draining
        self._order = threading.RLock()  # held while the server is told what follows from a change, in that order
        self._withdrawn = True  # until `request`; guarded by it, as the next
        self._generation = 0  # how often all were asked for anew
        self._changed = threading.Condition()  # guards the rest
        self._wholes: dict[int, NumberedForward] = {}  # by the first number
        self._parts: dict[int, Forward] = {}  # by number
        self._whole_of: dict[int, int] = {}  # the first number, by each
        self._set_locked(forwards)
        self._answers: dict[int, Answer] = {}  # the last one for each port
        self._fresh: set[int] = set()  # those that the server listens for, and we have not said so
        self._told: dict[int, str] = {}  # by forward, what was logged last: not again every ten seconds for years
        self._asked = Counter[int]()  # how many LISTENs have no answer yet
        self._ending: dict[int, list[ListenFailed]] = {}  # by the first number: what a thread will say has ended
        self._updating: set[int] = set()  # those asked for though the server listens already, to change their limits
        self._by_literal: set[int] = set()  # those asked for by an IPv4 literal, the only way that old servers know
        self._ports = {} if ports is None else ports
        self._moved: dict[int, int] = {}  # by number, the port that was chosen before and could not be had again
        self._gone: deque[int] = deque(maxlen=REMEMBERED)

    def _set_locked(self, forwards: Iterable[NumberedForward]) -> None:
        self._wholes = {one.first: one for one in forwards}
        self._parts = {
            number: part
            for one in self._wholes.values()
            for number, part in zip(one.numbers, one.forward.parts(), strict=True)
        }
        self._whole_of = {number: one.first for one in self._wholes.values() for number in one.numbers}

    # --- what is asked for ------------------------------------------------------------------------

    def request(self) -> None:
        """Ask the server to listen for every one.  Does not block."""
        with self._order:
            self._withdrawn = False
            for number in tuple(self._parts):
                self._request(number)

    def withdraw(self) -> None:
        """Give all ports back.  Idempotent; does not block."""
        with self._order:
            if not self._withdrawn:
                self._withdrawn = True
                for number in tuple(self._parts):
                    self._send(Unlisten(number).encode())

    def request_again(self) -> None:
        """Ask for them anew after `withdraw`.  Idempotent; does not block."""
        with self._order:
            if self._withdrawn:
                self._generation += 1
                self.request()

    def ask_again(self) -> None:
        """Ask once more for what the server does not listen for: it may be allowed by now.  Does not block."""
        with self._order:
            if self._withdrawn:
                return
            with self._changed:
                failed = [n for n in self._parts if self._failed_locked(n)]
                self._by_literal.difference_update(failed)
            for number in failed:
                self._request(number)

    def _failed_locked(self, number: int) -> bool:
        return isinstance(self._answers.get(number), ListenFailed) and not self._asked[number]

    def change(self, forwards: Sequence[NumberedForward]) -> None:
        """Have these in place of the present ones; the server is told what concerns it.  Does not block."""
        with self._order:
            with self._changed:
                before, wholes = self._parts, self._wholes
                self._set_locked(forwards)
                after = self._parts
                for number in before.keys() - after.keys():
                    self._forget_locked(number)
                for first in wholes.keys() - self._wholes.keys():
                    self._told.pop(first, None)
                self._changed.notify_all()
            if self._withdrawn:
                return
            for number in before.keys() - after.keys():
                self._send(Unlisten(number).encode())
            for number, part in after.items():
                known = before.get(number)
                if known is None:
                    self._request(number)
                elif _asks_for(known) != _asks_for(part):
                    self._update(number)

    def _forget_locked(self, number: int) -> None:
        self._answers.pop(number, None)
        self._fresh.discard(number)
        self._by_literal.discard(number)
        self._updating.discard(number)
        self._ports.pop(number, None)
        self._moved.pop(number, None)
        self._gone.append(number)

    def _update(self, number: int) -> None:
        """Tell the server of other options of a forward that it may listen for already."""
        with self._changed:
            if isinstance(self._answers.get(number), Listening | Published) or self._asked[number]:
                self._updating.add(number)
        self._request(number)

    def _request(self, number: int) -> None:
        with self._changed:
            forward = self._parts[number]
            whole = self._wholes[self._whole_of[number]].forward
            at = forward.listen
            self._asked[number] += 1
            if number in self._by_literal and isinstance(at, TcpAddress):
                at = TcpAddress(BOTH_FAMILIES[at.host][0], at.port)
            options = _options(forward)
            if number in self._ports and self._peer_features & Features.KINDS:
                options[ListenOption.KEEP_PORT] = self._ports[number]
        message = Listen(number, at, options).encode()
        try:
            check_known(message, self._peer_features, str(whole))
        except EndpointError as error:
            self._not_asked(number, error)
            return
        self._send(message)

    def _not_asked(self, number: int, error: EndpointError) -> None:
        """Give up a forward that this server does not know.  Another server of this client may."""
        with self._changed:
            self._count_answer_locked(number)
            self._answers[number] = ListenFailed(number, Reason.NOT_ALLOWED, error.message)
            first = self._whole_of[number]
            told, self._told[first] = self._told.get(first), error.message
            self._changed.notify_all()
        if not self._required.failed(first, error) and told != error.message:
            log.error("%s", error)

    # --- what is answered -------------------------------------------------------------------------

    def answered(self, message: Answer) -> None:
        """Take in the answer for one port; once there is one for each of its forward, say what became of that.

        Does not block.  Raises ProtocolError for an answer to nothing.
        """
        number = message.forward
        again = self._take_in(message)
        if again:
            with self._order:
                if number in self._parts and not self._withdrawn:
                    if again == "anew":
                        self._send(Unlisten(number).encode())
                    self._request(number)
            return
        with self._changed:
            first = self._whole_of.get(number)
            if first is None:
                return
            numbers = self._wholes[first].numbers
            if not all(each in self._answers and not self._asked[each] for each in numbers):
                return
        self._conclude(first)

    def _take_in(self, message: Answer) -> str:
        """Note an answer; return whether to ask once more for that port, "literally" or "anew"."""
        number, failed = message.forward, isinstance(message, ListenFailed)
        with self._changed:
            if not self._asked[number]:
                if number not in self._parts:
                    raise ProtocolError(f"the server answers for forward {number}, which there is not")
                # Each failure costs a thread that waits, so a server must not be able to invent them.
                raise ProtocolError(f"the server answers for forward {number}, for which nothing was asked")
            self._count_answer_locked(number)
            forward = self._parts.get(number)
            if forward is None:
                return ""  # it has been removed meanwhile
            if failed and self._asked[number] > 0:
                return ""  # the answer to that counts
            updating = number in self._updating
            if not self._asked[number]:
                self._updating.discard(number)
            refused = isinstance(message, ListenFailed) and message.reason == Reason.NOT_ALLOWED
            at = forward.listen
            if refused and isinstance(at, TcpAddress) and at.host in BOTH_FAMILIES and number not in self._by_literal:
                self._by_literal.add(number)
                return "literally"
            if failed and updating:
                return "anew"
            self._answers[number] = message
            if isinstance(message, Listening) and isinstance(at, TcpAddress | UdpAddress) and not at.port:
                before = self._ports.get(number, message.port)
                self._ports[number] = message.port
                if before != message.port:
                    self._moved[number] = before
            if not failed and not (updating and number not in self._moved):
                self._fresh.add(number)
            self._changed.notify_all()
        return ""

    def ended(self, message: ListenEnded) -> None:
        """Take in that the server listens for one port no more, and say so of its whole forward.  Does not block.

        One that it does not listen for changes nothing: that message crossed ours, or the server makes it up.
        """
        number = message.forward
        with self._changed:
            first = self._whole_of.get(number)
            if first is None or not isinstance(self._answers.get(number), Listening | Published):
                return
            self._answers[number] = answer = ListenFailed(number, message.reason, message.text)
            self._fresh.discard(number)
            self._changed.notify_all()
            if first in self._ending:
                self._ending[first].append(answer)
                return
            self._ending[first] = [answer]
        try:
            self._start(f"{self._name}-ended-{first}", lambda: self._tell_ended(first))
        except NoThread as error:
            with self._changed:
                self._ending.pop(first, None)
            log.error("the server listens no more for forward %d: %s (%s)", first, message.text, error)

    def _tell_ended(self, first: int) -> None:
        """Say which ports of a forward have ended, once the server has named them, and ask for them again."""
        self._draining.wait(TOGETHER)
        with self._changed:
            ended, one = self._ending.pop(first, []), self._wholes.get(first)
        if one is not None:
            last = {answer.forward: answer for answer in ended if answer.forward in one.numbers}
            if last:
                self._not_listening(one, tuple(last.values()), ended=True)

    def _count_answer_locked(self, number: int) -> None:
        self._asked[number] -= 1
        if not self._asked[number]:
            del self._asked[number]

    def _conclude(self, first: int) -> None:
        """Say which ports of a forward the server listens on now, and deal with those that it does not."""
        with self._changed:
            one = self._wholes.get(first)
            if one is None:
                return
            whole = one.forward
            answers = [self._answers[number] for number in one.numbers if number in self._answers]
            fresh = self._fresh.intersection(one.numbers)
            self._fresh.difference_update(one.numbers)
            moved = self._describe_move_locked(one)
        for each in answers:
            if isinstance(each, Published) and each.forward in fresh:
                log.info("the server publishes %s for %s", each.name, whole.target, extra={"event": "listening"})
        ports = [each.port for each in answers if isinstance(each, Listening) and each.forward in fresh]
        if ports and moved:
            log.warning(
                "the server listens on %s for %s, %s: tell those who come there, or give the forward a port of its own",
                describe_place(whole, ports),
                whole.target,
                moved,
                extra={"event": "listening"},
            )
        elif ports:
            where = describe_place(whole, ports)
            log.info("the server listens on %s for %s", where, whole.target, extra={"event": "listening"})
        failed = [each for each in answers if isinstance(each, ListenFailed)]
        if failed:
            self._not_listening(one, failed)
        else:
            with self._changed:
                self._told.pop(first, None)
            self._required.listens(first)

    def _describe_move_locked(self, one: NumberedForward) -> str:
        """Return that a forward on port 0 has another port than before; "" where it has the same, or its first."""
        before = [self._moved[number] for number in one.numbers if number in self._moved]
        return f"in place of port {before[0]}, which could not be had again" if before else ""

    def _not_listening(self, one: NumberedForward, answers: Sequence[ListenFailed], *, ended: bool = False) -> None:
        """End the client where it must have this forward; otherwise ask again after a while.  Does not block.

        `ended` says that the server has listened for it.
        """
        refused = {answer.reason for answer in answers} == {Reason.NOT_ALLOWED}
        error = self._failure(one, answers)
        with self._order:
            withdrawn, generation = self._withdrawn, self._generation
        if not withdrawn and self._required.failed(one.first, error):
            return
        wait = RETRY_NOT_ALLOWED if refused else RETRY_IN_USE
        with self._changed:
            told, self._told[one.first] = self._told.get(one.first), error.message
        if ended or told != error.message:
            what = str(error).replace("cannot listen", "listens no more", 1) if ended else str(error)
            log.error("%s; asking again in %.0f s", what, wait)

        def ask_again() -> None:
            deadline = Deadline(wait)
            while (remaining := deadline.remaining()) and not deadline.passed:
                # Not `_stopping`: a client that drains must not wait for this.
                if self._draining.wait(min(remaining, LOOK)) or not any(map(self._failed_last, answers)):
                    return
            with self._order:
                if not self._withdrawn and generation == self._generation:
                    for answer in answers:
                        if self._failed_last(answer):
                            self._request(answer.forward)

        try:
            self._start(f"{self._name}-forward-{one.first}", ask_again)
        except NoThread as error:
            log.warning("%s is asked for again only with the next session: %s", one.forward, error)

    def _failed_last(self, answer: ListenFailed) -> bool:
        """Return whether that is still the last answer for its port, and nothing was asked since."""
        with self._changed:
            return self._answers.get(answer.forward) is answer and not self._asked[answer.forward]

    def _failure(self, one: NumberedForward, answers: Sequence[ListenFailed]) -> EndpointError:
        """Return what to say of a forward for which the server does not listen on all ports."""
        whole = one.forward
        refused = {answer.reason for answer in answers} == {Reason.NOT_ALLOWED}
        ports = dict(zip(one.numbers, map(_port_of, whole.parts()), strict=True))
        why = {ports[each.forward]: _why(each) for each in answers}
        return EndpointError(
            f"the server cannot listen for {whole}: {describe_failures(whole, why)}",
            code=answers[0].reason,
            hint=f"add it to this client's {_rules_for(whole.listen)}, on the server"
            if refused
            else "stop what holds that port on the server, choose another, or raise the limit that is named",
        )

    # --- who asks ---------------------------------------------------------------------------------

    def find(self, number: int) -> Forward | None:
        """Return the forward of that number, as one of a single port; None when there is none."""
        return self._parts.get(number)

    def is_gone(self, number: int) -> bool:
        """Return whether there was one of that number until lately."""
        with self._changed:
            return number in self._gone

    @property
    def states(self) -> list[tuple[str, str, str, str]]:
        """Of each forward, as it is written: where, where it leads, a word for its state, why it failed or moved."""
        found = []
        with self._changed:
            answers, wholes = dict(self._answers), list(self._wholes.values())
            moves = {one.first: self._describe_move_locked(one) for one in wholes}
        for one in wholes:
            whole = one.forward
            given = [answers[number] for number in one.numbers if number in answers]
            failures = [answer.text for answer in given if isinstance(answer, ListenFailed)]
            listening = [answer.port for answer in given if isinstance(answer, Listening)]
            names = [answer.name for answer in given if isinstance(answer, Published)]
            where = names[0] if names else describe_place(whole, listening) if listening else str(whole).split(" ")[1]
            state = "failed" if failures else "listening" if len(given) == whole.ports else "waiting"
            found.append((where, whole.target, state, failures[0] if failures else moves[one.first]))
        return found

    def wait(self, forwards: Sequence[NumberedForward], deadline: Deadline) -> bool:
        """Block until the server has answered for all ports of these, or until `deadline`; return whether it has."""
        numbers = [number for one in forwards for number in one.numbers]

        def answered() -> bool:
            return all(n not in self._parts or (n in self._answers and not self._asked[n]) for n in numbers)

        with self._changed:
            return self._changed.wait_for(lambda: answered() or self._draining.is_set(), deadline.remaining())

    def bound_ports(self, one: NumberedForward) -> list[int]:
        """Return the ports on which the server listens for a forward."""
        with self._changed:
            answers = [self._answers.get(number) for number in one.numbers]
        return [answer.port for answer in answers if isinstance(answer, Listening)]

    def outcome(self, one: NumberedForward) -> tuple[tuple[str, ...], str]:
        """Return where the server listens for a forward, and why it does not in other places; both empty: unknown."""
        with self._changed:
            answers = [self._answers[number] for number in one.numbers if number in self._answers]
        names = [each.name for each in answers if isinstance(each, Published)]
        ports = [each.port for each in answers if isinstance(each, Listening)]
        failed = [each for each in answers if isinstance(each, ListenFailed)]
        where = (*names, *([describe_place(one.forward, ports)] if ports else ()))
        return where, str(self._failure(one, failed)) if failed else ""


def change_of_remote(one: NumberedForward, was: Forward | None, asked: Sequence[RemoteForwards]) -> ForwardChange:
    """Return what came of a forward that is new, or `was` another, at the servers that were `asked` for it."""
    outcomes = [remotes.outcome(one) for remotes in asked]
    listening = dict.fromkeys(place for where, _ in outcomes for place in where)
    failures = dict.fromkeys(failure for _, failure in outcomes if failure)
    pending = ""
    if not outcomes:
        pending = "the server is asked for it once there is a connection"
    elif not all(where or failure for where, failure in outcomes):
        pending = "the server has not answered yet; the log says what it answers"
    fate = Fate.ADDED if was is None else Fate.CHANGED
    return ForwardChange(fate, one.forward, tuple(listening), "; ".join(failures), pending, was)


def _asks_for(forward: Forward) -> tuple[ListenPlace, dict[int, int]]:
    """Return what the server is asked for: where the forward leads is none of its business."""
    return forward.listen, _options(forward)


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


def _why(answer: ListenFailed) -> str:
    """Return why the server does not listen.  LIMIT stands for a taken port too, so it is named by its text alone."""
    if answer.reason == Reason.LIMIT and answer.text:
        return answer.text
    return f"{reason_name(answer.reason)}: {answer.text}"


def _port_of(forward: Forward) -> int:
    """Return the port that is asked for; 0 as well for what has none."""
    return forward.listen.port if isinstance(forward.listen, TcpAddress | UdpAddress) else 0
