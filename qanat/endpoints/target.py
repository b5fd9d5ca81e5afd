"""Connecting to the target of a stream, with the reasons of the wire.

Which addresses may be reached is decided elsewhere (`qanat.session.connect_rules`); what arrives here has been checked.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from qanat.base.addresses import format_host_port, parse_address
from qanat.base.cancel import Cancel
from qanat.base.connect import Connecting
from qanat.base.deadline import Deadline
from qanat.base.errors import Canceled, ConnectError, EndpointError
from qanat.base.resolve import Address
from qanat.base.sockets import describe_os_error, format_address
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE, ApplicationKeepalive
from qanat.endpoints.tcp import REASONS
from qanat.endpoints.wakeable import WakeableSocket
from qanat.mux.frames import Reason

_CLOSER_REASONS = {errno.ETIMEDOUT: Reason.TIMED_OUT, errno.ENETUNREACH: Reason.NO_ROUTE}
"""What `tcp.REASONS` has no word for, for an end that knows these."""


class Target:
    """Where a stream leads.  Connect at once if that can be; otherwise a thread has to wait.  One thread at a time."""

    def __init__(
        self,
        host: str,
        port: int,
        look_up: Callable[[Deadline], list[Address]],
        *,
        timeout: float,
        cancel: Cancel | None = None,
        keepalive: ApplicationKeepalive = DEFAULT_KEEPALIVE,
    ) -> None:
        """`look_up` returns the addresses to try, and does not block where `host` is a literal address.

        It raises EndpointError.  `timeout` is in seconds, from now on; `cancel` ends `connect`.
        """
        self.name = format_host_port(host, port)
        """As people know it: `host:port`."""
        self._is_literal = parse_address(host) is not None
        self._look_up = look_up
        self._deadline = Deadline(timeout)
        self._cancel = cancel
        self._keepalive = keepalive
        self._connecting: Connecting | None = None

    def connect_now(self) -> WakeableSocket | None:
        """Return the connected socket; None when that has to be waited for.  Does not block.  Raises EndpointError."""
        return self._connect(wait=False) if self._is_literal else None

    def connect(self) -> WakeableSocket:
        """Go on, and block for the first address that answers, until the deadline or until `cancel`.

        Raises EndpointError with the reason of the last failure, in the words of the operating system.
        """
        sock = self._connect(wait=True)
        assert sock is not None  # having waited
        return sock

    def give_up(self) -> None:
        """Give up what `connect_now` has begun: `connect` will not be called.  Does not block."""
        if self._connecting is not None:
            self._connecting.close()

    def _connect(self, *, wait: bool) -> WakeableSocket | None:
        connecting = self._connecting
        try:
            connected = None
            if connecting is None:
                addresses = self._look_up(self._deadline)
                connecting = self._connecting = Connecting(addresses, configure=self._keepalive.configure)
                if not (self._deadline.passed or (self._cancel is not None and self._cancel.canceled)):
                    connected = connecting.at_once()
            if connected is None and wait:
                connected = connecting.wait(self._deadline, self._cancel)
        except ConnectError as error:
            number = error.last.errno or 0
            reason = REASONS.get(number, Reason.UNREACHABLE)
            closer = _CLOSER_REASONS.get(number, reason)
            raise EndpointError(describe_os_error(error.last), code=reason, closer_code=closer) from error
        except Canceled as error:
            raise EndpointError(error.message, code=Reason.CANCELED) from error
        if connected is None:
            return None
        sock, address = connected
        return WakeableSocket(sock, format_address(address), prepared=True)
