"""Which pipe has a lane: the whole table of transitions, and that the highest epoch wins."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.base.errors import LocalError
from qanat.mux.attachment import TRANSITIONS, Attachment, AttachmentState, AttachmentStep

LEGAL = {
    ("detached", "attach"): "attached",
    ("detached", "yield"): "detached",
    ("detached", "end"): "over",
    ("attached", "yield"): "yielding",
    ("attached", "pipe ended"): "detached",
    ("attached", "end"): "over",
    ("yielding", "yield"): "yielding",
    ("yielding", "pipe ended"): "detached",
    ("yielding", "end"): "over",
    ("over", "yield"): "over",
    ("over", "pipe ended"): "over",
    ("over", "end"): "over",
}
"""docs/PROTOCOL.md §3, Resuming, in words."""


def attachment_in(state: AttachmentState) -> Attachment:
    """One that has come into `state` by steps."""
    attachment = Attachment()
    steps = {
        AttachmentState.DETACHED: (),
        AttachmentState.ATTACHED: (AttachmentStep.ATTACH,),
        AttachmentState.YIELDING: (AttachmentStep.ATTACH, AttachmentStep.YIELD),
        AttachmentState.OVER: (AttachmentStep.END,),
    }
    for step in steps[state]:
        attachment.advance(step)
    assert attachment.state is state
    return attachment


def test_the_table_is_the_one_that_is_documented() -> None:
    assert {(state.value, step.value): after.value for (state, step), after in TRANSITIONS.items()} == LEGAL


@pytest.mark.parametrize(("state", "step"), list(itertools.product(AttachmentState, AttachmentStep)))
def test_a_step_is_made_when_the_table_has_it_and_is_a_fault_otherwise(
    state: AttachmentState, step: AttachmentStep
) -> None:
    attachment = attachment_in(state)
    following = LEGAL.get((state.value, step.value))
    if following is None:
        with pytest.raises(LocalError, match=f"a lane that is {state.value} cannot {step.value}"):
            attachment.advance(step)
        assert attachment.state is state
    else:
        attachment.advance(step)
        assert attachment.state.value == following


def test_a_lane_begins_without_a_pipe_and_takes_any_epoch() -> None:
    assert Attachment().state is AttachmentState.DETACHED
    for epoch in (0, 7, 2**32 - 1):
        attachment = Attachment()
        assert attachment.grant(epoch)
        assert (attachment.epoch, attachment.state) == (epoch, AttachmentState.DETACHED)


@pytest.mark.parametrize("state", AttachmentState)
def test_no_epoch_is_granted_twice_and_none_below(state: AttachmentState) -> None:
    attachment = attachment_in(state)
    assert attachment.grant(3)
    granted = attachment.state
    for epoch in (3, 2, 0):
        assert not attachment.grant(epoch)
        assert (attachment.epoch, attachment.state) == (3, granted)
    assert attachment.grant(4)


@given(st.lists(st.integers(min_value=0, max_value=9), min_size=1), st.lists(st.booleans()))
def test_the_highest_epoch_has_the_lane_whatever_the_order_of_arrival(
    arrivals: list[int], attaches: list[bool]
) -> None:
    """Some of those that are granted the lane come to attach before the next one arrives, some do not."""
    attachment = Attachment()
    highest = -1
    for epoch, attach in itertools.zip_longest(arrivals, attaches[: len(arrivals)], fillvalue=False):
        before = attachment.state
        assert attachment.grant(epoch) == (epoch > highest)
        if epoch <= highest:
            assert attachment.state is before
            continue
        highest = epoch
        if attachment.state is AttachmentState.YIELDING:
            attachment.advance(AttachmentStep.PIPE_ENDED)
        if attach:
            attachment.advance(AttachmentStep.ATTACH)
    assert attachment.epoch == max(arrivals)
