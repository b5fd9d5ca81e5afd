"""Promises of what people read: it fits the terminal, shows what it can show there, and says what is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qanat.measure.chart import NARROWEST, Style, bars, progress_bar, rate_text, report_text, size_text, time_text
from qanat.measure.figures import Mark, Ping, Step
from qanat.measure.report import DOWNLOAD, IDLE, UPLOAD, Report

PINGS = tuple(Ping(number / 20, 0.001 * (1 + number % 3)) for number in range(100))
MARKS = tuple(Mark(number / 10, number * 10_000_000) for number in range(51))
REPORT = Report(
    client="office",
    url="wss://tunnel.example.com/tunnel",
    transport="http2",
    node="node-1",
    agent="qanat/1",
    seconds=5.0,
    steps={IDLE: Step(PINGS), DOWNLOAD: Step(PINGS, MARKS), UPLOAD: Step(PINGS, MARKS)},
    complete=True,
)


def test_the_table_has_each_step_and_the_plot_each_course() -> None:
    text = report_text(REPORT, Style())
    lines = text.splitlines()
    assert lines[0] == "office to wss://tunnel.example.com/tunnel over http2"
    assert lines[1] == "server node-1, qanat/1"
    assert "idle        2.00 ms  3.00 ms  3.00 ms  1.00 ms  3.00 ms  1.33 ms" in lines
    assert sum(line.startswith("download ") for line in lines) == 3
    assert sum(line.startswith("  latency ") for line in lines) == 2
    assert any("800 Mbit/s" in line and "500 MB" in line for line in lines)
    assert "cut short" not in text


@pytest.mark.parametrize("width", [0, 40, 60, 80, 120, 500])
@pytest.mark.parametrize("unicode", [True, False])
def test_no_line_is_wider_than_the_terminal(width: int, unicode: bool) -> None:
    style = Style(width, unicode)
    for line in report_text(REPORT, style).splitlines()[2:]:
        assert len(line) <= style.columns
    assert len(progress_bar("download", 0.5, style)) <= style.columns
    assert style.columns >= NARROWEST


def test_a_terminal_that_is_not_utf8_gets_ascii_and_only_a_terminal_gets_colors() -> None:
    assert report_text(REPORT, Style(unicode=False)).isascii()
    assert progress_bar("idle", 0.3, Style(unicode=False)).isascii()
    assert "\x1b" not in report_text(REPORT, Style())
    assert "\x1b[1m" in report_text(REPORT, Style(color=True))


def test_what_was_cut_short_says_so_and_shows_what_there_is() -> None:
    text = report_text(
        replace(REPORT, steps={IDLE: Step(PINGS), DOWNLOAD: Step((), MARKS[:1])}, complete=False), Style()
    )
    assert "cut short" in text
    assert "throughput" not in text
    assert "idle" in text


@pytest.mark.parametrize("unicode", [True, False])
def test_bars_go_from_nothing_to_the_largest(unicode: bool) -> None:
    lowest, *between, highest = bars([0, 3, 7, 8], 80, unicode=unicode)
    assert bars([8, 0], 80, unicode=unicode) == highest + lowest
    assert len({lowest, highest, *between}) >= 3
    assert bars([None, 1.0], 80, unicode=unicode) == " " + highest
    assert bars([0.0, 0.0], 80, unicode=unicode) == lowest * 2
    assert bars([], 80, unicode=unicode) == ""


@given(st.lists(st.none() | st.floats(0, 1e12), max_size=300), st.integers(1, 120), st.booleans())
def test_bars_never_take_more_room_than_there_is(values: list[float | None], width: int, unicode: bool) -> None:
    assert len(bars(values, width, unicode=unicode)) == min(width, len(values))


def test_a_short_peak_is_seen_however_narrow_the_terminal_is() -> None:
    values: list[float | None] = [1.0] * 1000
    values[617] = 100.0
    assert "█" in bars(values, 20, unicode=True)


def test_the_progress_bar_goes_from_empty_to_full() -> None:
    assert "█" not in progress_bar("idle", 0, Style())
    assert "░" not in progress_bar("idle", 1, Style())
    assert progress_bar("idle", 7, Style()) == progress_bar("idle", 1, Style()).replace("100%", "700%")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (rate_text(0), "0.00 bit/s"),
        (rate_text(999_600), "1.00 Mbit/s"),
        (rate_text(94_120_000), "94.1 Mbit/s"),
        (rate_text(12_345_000_000), "12.3 Gbit/s"),
        (time_text(0.000618), "0.62 ms"),
        (time_text(0.9994), "999 ms"),
        (time_text(2.5), "2.50 s"),
        (size_text(999), "999 B"),
        (size_text(1_234_000_000), "1.23 GB"),
        (size_text(5e12), "5.00 TB"),
    ],
)
def test_figures_are_said_with_three_digits(text: str, said: str) -> None:
    assert text == said
