"""Promises of qanat.session.joined_streams that need no session around it."""

from __future__ import annotations

from qanat.base.watcher import Watcher
from qanat.session.joined_streams import JoinedStreams
from tests.support.mux.rig import Pair


def test_a_stream_that_has_to_wait_for_its_target_has_not_ended() -> None:
    """Whoever hears of an end may stop the session for being empty."""
    ended: list[bool] = []
    joined = JoinedStreams("a", Watcher(), 1, lambda: ended.append(True))
    with Pair() as pair:
        _, theirs = pair.open()
        assert not joined.connect_now(theirs, lambda: None, "to a.name:1")
        assert not ended
        assert len(joined) == 0
