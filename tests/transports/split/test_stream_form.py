"""Promises of what decides whether a split pipe's bytes come in an answer that goes on."""

from __future__ import annotations

from qanat.transports.split.stream_form import AGAIN, MIN_FILLER, MIN_LIFE, SOON, StreamForm


def test_an_answer_that_goes_on_takes_the_place_of_packets_until_it_is_cut_over_and_over() -> None:
    form = StreamForm()
    assert not form.streamed
    assert form.heard()
    assert not form.heard()
    life = form.life
    assert form.cut(0.1, 60.0, 100.0)
    assert form.life == 42.0 < life
    filler = form.filler
    assert form.cut(4.0, 60.0, 100.0)
    assert form.filler == MIN_FILLER < filler
    assert [form.cut(0.0, SOON / 2, 200.0) for _ in range(3)] == [True, True, False]
    assert form.life == MIN_LIFE
    assert not form.streamed
    assert not form.take_due(200.0 + AGAIN / 2)
    assert form.take_due(200.0 + AGAIN)
    assert not form.take_due(201.0 + AGAIN), "it is tried once"


def test_an_answer_that_is_held_back_is_tried_again_only_where_one_went_on_before() -> None:
    form = StreamForm()
    form.held_back(100.0)
    assert not form.take_due(1e9)
    assert form.heard()
    form.held_back(100.0)
    assert not form.streamed
    assert form.take_due(100.0 + AGAIN)
