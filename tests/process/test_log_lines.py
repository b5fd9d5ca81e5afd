"""The log's last lines are kept as the log has them, and only so many."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest

from qanat.process.log_lines import LENGTH, LINES, LogLines

log = logging.getLogger("qanat.test")


@pytest.fixture
def lines() -> Iterator[LogLines]:
    level = logging.getLogger("qanat").level
    logging.getLogger("qanat").setLevel(logging.INFO)
    kept = LogLines()
    kept.start()
    yield kept
    kept.close()
    logging.getLogger("qanat").setLevel(level)


def test_lines_come_once_with_their_level(lines: LogLines) -> None:
    log.info("one")
    count, found = lines.since(0)
    assert [(level, text.split()[-1]) for level, text in found] == [("info", "one")]
    log.warning("two")
    log.critical("three")
    _, found = lines.since(count)
    assert [(level, text.split()[-1]) for level, text in found] == [("warning", "two"), ("error", "three")]


def test_a_token_and_a_control_character_never_show(lines: LogLines) -> None:
    log.info("with qanat1-abcdefghijklmnop and \x1b[31m\n")
    ((_, text),) = lines.since(0)[1]
    assert "qanat1-[hidden]" in text
    assert "abcdefgh" not in text
    assert text.isprintable()


def test_a_flood_of_long_lines_is_bounded(lines: LogLines) -> None:
    for number in range(LINES * 2):
        log.info("%d %s", number, "x" * 5000)
    count, found = lines.since(0)
    assert count == 2 * LINES
    assert len(found) == LINES
    assert max(len(text) for _, text in found) == LENGTH
    assert found[0][1].split()[3] == str(LINES)


def test_nothing_is_kept_before_the_start_or_after_the_end() -> None:
    kept = LogLines()
    log.error("before")
    kept.start()
    kept.close()
    with contextlib.suppress(ValueError):
        log.error("after")
    assert kept.since(0) == (0, [])
