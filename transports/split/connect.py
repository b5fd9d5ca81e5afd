"""How the client's end of a split pipe begins: a first request, which the server answers with a pipe."""

from __future__ import annotations

import os

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.errors import ProtocolError, TransportError
from qanat.transports.dial.answer_fields import cookies
from qanat.transports.dial.errors import explain_status
from qanat.transports.dial.route import DIRECT, Route
from qanat.transports.dial.urls import TunnelUrl
from qanat.transports.pipe import Pipe
from qanat.transports.split.client import WRITE_TIMEOUT, ClientPipe
from qanat.transports.split.connections import CONTENT_TYPE, Connections, FirstAnswer, Requests
from qanat.transports.split.http2_requests import Http2Requests
from qanat.transports.split.measures import MAX_ANSWER
from qanat.transports.split.segments import WELCOME_SIZE, Welcome, decode_welcome
from qanat.transports.split.token import NONCE_SIZE, OPENING, Carrier, nonce_text

_REFUSALS = (401, 403)
"""Answers to a first request that may be about its Authorization: it is made again without."""


class _HeaderRefused(TransportError):
    """A proxy may have checked the header that our token travels in for a login of its own."""


def connect(url: TunnelUrl, *, route: Route = DIRECT, deadline: Deadline, cancel: Cancel | None = None) -> Pipe:
    """Dial `url` by `route`, have the server make a pipe, and return it.

    HTTP/1.1 first, since each request has a connection of its own there, and HTTP/2 where nothing answers that.  Blocks
    until `deadline`, or until `cancel` is canceled.  Raises TransportError whose hint says what to do, and UsageError
    for files that `route` names and that cannot be used.
    """
    cancel = cancel or Cancel()
    try:
        requests: Requests = Connections(url, route, WRITE_TIMEOUT)
        try:
            return _open_pipe(requests, deadline, cancel)
        except _HeaderRefused:
            requests = Connections(url, route, WRITE_TIMEOUT)
            return _open_pipe(requests, deadline, cancel, header=False)
    except TransportError as error:
        if requests.answered or cancel.canceled or deadline.passed:
            raise
        failure = error
    try:
        requests = Http2Requests(url, route, WRITE_TIMEOUT)
        try:
            return _open_pipe(requests, deadline, cancel)
        except _HeaderRefused:
            requests = Http2Requests(url, route, WRITE_TIMEOUT)
            return _open_pipe(requests, deadline, cancel, header=False)
    except TransportError:
        if requests.answered:
            raise
    raise failure


def _open_pipe(requests: Requests, deadline: Deadline, cancel: Cancel, *, header: bool = True) -> ClientPipe:
    """Ask for a pipe, and take in the answer; without `header` with no Authorization of ours.  Raises TransportError.

    _HeaderRefused where it may go without.
    """
    url, nonce = requests.url, os.urandom(NONCE_SIZE)
    header = header and not requests.has_authorization
    carriers = [Carrier.HEADER, Carrier.COOKIE] if header else [Carrier.COOKIE]
    carried = [(carrier, nonce_text(nonce)) for carrier in carriers]
    try:
        with requests.first(carried, OPENING + nonce, deadline, cancel) as first:
            if header and first.answer.status in _REFUSALS:
                raise _HeaderRefused(f"{url} refuses what has an Authorization")
            pipe = _take_first(requests, first, deadline)
        found = cookies(first.answer.headers)
        requests.add_cookies(found)
        pipe.cookies = found
        pipe.start()
    except ProtocolError as error:
        requests.close()
        raise TransportError(
            f"{url} answered, but not as a Qanat server: {error.message}", hint="check the path in the URL"
        ) from error
    except BaseException:
        requests.close()
        raise
    return pipe


def _take_first(requests: Requests, first: FirstAnswer, deadline: Deadline) -> ClientPipe:
    answer = first.answer
    if answer.status != 200 or answer.headers.get("content-type", "") != CONTENT_TYPE:
        raise explain_status(answer.status, answer.headers, "split", requests.url, reason=first.reason)
    body = bytearray()
    answer.set_timeout(deadline.remaining() or 0.001)
    for piece in answer.pieces():
        body += piece
        if len(body) > MAX_ANSWER:
            raise ProtocolError("an answer that is too long")
    welcome = decode_welcome(body)
    pipe = ClientPipe(requests, first, welcome, _best_carrier(welcome))
    pipe.take_first(memoryview(body)[WELCOME_SIZE:])
    return pipe


def _best_carrier(welcome: Welcome) -> Carrier:
    return next((carrier for carrier in (Carrier.HEADER, Carrier.COOKIE) if welcome.carriers & carrier), Carrier.QUERY)
