"""Connecting as a stream's target is connected to, once its addresses are known."""

from __future__ import annotations

from collections.abc import Sequence

from qanat.base.cancel import Cancel
from qanat.base.deadline import Deadline
from qanat.base.resolve import Address
from qanat.endpoints.application_socket import DEFAULT_KEEPALIVE, ApplicationKeepalive
from qanat.endpoints.target import Target
from qanat.endpoints.wakeable import WakeableSocket


def connect(
    addresses: Sequence[Address],
    deadline: Deadline,
    cancel: Cancel | None = None,
    *,
    keepalive: ApplicationKeepalive = DEFAULT_KEEPALIVE,
) -> WakeableSocket:
    """Connect to a target of these addresses; blocks and raises as `Target.connect` does."""
    timeout = deadline.remaining()
    assert timeout is not None
    target = Target("a.name", 1, lambda _: list(addresses), timeout=timeout, cancel=cancel, keepalive=keepalive)
    return target.connect()
