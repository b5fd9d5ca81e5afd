"""Promises about how recovery is measured, without a tunnel."""

from __future__ import annotations

import time

import pytest

from tests.support.chaos import ChaosRelay
from tests.support.recovery import Heartbeat


def test_only_a_byte_that_was_sent_after_the_cut_counts() -> None:
    with Heartbeat() as beat, ChaosRelay(int(beat.address.rpartition(":")[2]), calm=True, delay=0.05) as relay:
        beat.connect(relay.port)
        for way in (beat.up, beat.down):
            moment = time.monotonic()
            # Fifty older bytes arrive in between.
            assert 0.05 <= way.wait_sent_after(moment) - moment < 0.5


def test_a_stream_that_is_reset_has_not_recovered() -> None:
    with Heartbeat() as beat, ChaosRelay(int(beat.address.rpartition(":")[2]), calm=True) as relay:
        beat.connect(relay.port)
        cut = relay.cut()
        with pytest.raises(AssertionError, match=r"down: .*(Reset|ended)"):
            beat.down.wait_sent_after(cut)
