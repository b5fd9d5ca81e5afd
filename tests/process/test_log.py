"""Promises of qanat.process.log: readable, one JSON object a line, never a token, and logrotate may move the file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qanat.base.errors import UsageError
from qanat.config.settings import LogSettings
from qanat.process import log as log_module
from qanat.process import log_output
from qanat.process.log import FLOOD, INTERVAL, flush_log, reopen, setup_logging

TOKEN = "qanat1-" + "A" * 43 + "-" + "b" * 6

SECONDS = 30.0
F_SETPIPE_SZ = 1031  # fcntl(2)

logger = logging.getLogger("qanat.test")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the size of a pipe is set as on Linux")


@pytest.fixture(autouse=True)
def _put_logging_back() -> Iterator[None]:
    level = logging.getLogger("qanat").level
    yield
    handler = log_module._installed
    if handler is not None:
        logging.getLogger().removeHandler(handler)
        handler.close()
        log_module._installed = None
    logging.getLogger("qanat").setLevel(level)
    logging.captureWarnings(False)


def json_log(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_text_has_time_level_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogSettings())
    logger.warning("connected to %s", "wss://example.com/tunnel")
    day, clock, level, message = capsys.readouterr().err.rstrip("\n").split(maxsplit=3)
    assert (len(day), len(clock)) == (len("2026-01-31"), len("12:00:00.123"))
    assert (level, message) == ("warning", "connected to wss://example.com/tunnel")


def test_json_is_one_object_a_line_with_the_extras(tmp_path: Path) -> None:
    setup_logging(LogSettings(format="json", file=tmp_path / "log"))
    logger.info("connected\nwell", extra={"event": "connected", "peer": ("127.0.0.1", 1), "path": Path("/x")})
    (entry,) = json_log(tmp_path / "log")
    assert entry["message"] == "connected\nwell"
    assert entry["level"] == "info"
    assert entry["logger"] == "qanat.test"
    assert str(entry["ts"]).endswith("Z")
    assert (entry["event"], entry["peer"], entry["path"]) == ("connected", ["127.0.0.1", 1], "/x")


def test_extras_cannot_replace_what_every_line_has(tmp_path: Path) -> None:
    setup_logging(LogSettings(format="json", file=tmp_path / "log"))
    logger.info("true", extra={"ts": "never", "level": "none", "logger": "other"})
    (entry,) = json_log(tmp_path / "log")
    assert (entry["level"], entry["logger"]) == ("info", "qanat.test")
    assert entry["ts"] != "never"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_token_never_reaches_the_log(form: str, tmp_path: Path) -> None:
    setup_logging(LogSettings(format=form, file=tmp_path / "log"))
    logger.info("the token %s", TOKEN, extra={"fact": TOKEN})
    logger.info("cut short: %s", TOKEN[:20])
    try:
        raise ValueError(TOKEN)
    except ValueError:
        logger.exception("failed")
    text = (tmp_path / "log").read_text()
    assert "AAAAAA" not in text
    assert "bbbbbb" not in text
    assert "qanat1-[hidden]" in text
    assert "ValueError" in text


def test_text_from_outside_can_neither_forge_a_line_nor_reach_the_terminal(tmp_path: Path) -> None:
    setup_logging(LogSettings(file=tmp_path / "log"))
    logger.info("the proxy says %s", "no\n2026-01-31 12:00:00.000 info    all is well\r\x1b[2J\x9b2J\u2028")
    (line,) = (tmp_path / "log").read_text().split("\n")[:-1]
    assert "no\\n2026" in line
    assert "\\x1b[2J\\x9b2J\\u2028" in line


def test_a_traceback_is_kept_and_indented(tmp_path: Path) -> None:
    setup_logging(LogSettings(file=tmp_path / "log"))
    try:
        raise ValueError("one\ntwo")
    except ValueError:
        logger.exception("failed")
    first, *rest = (tmp_path / "log").read_text().splitlines()
    assert first.endswith("error   failed")
    assert all(line.startswith("    ") for line in rest)
    assert rest[-2:] == ["    ValueError: one", "    two"]


def test_the_level_decides_what_is_heard(tmp_path: Path) -> None:
    setup_logging(LogSettings(level="warning", file=tmp_path / "log"))
    logger.info("too quiet")
    logger.warning("loud enough")
    logging.getLogger("some.library").info("chatter")
    setup_logging(LogSettings(level="debug", file=tmp_path / "log"))
    logger.debug("frames")
    logging.getLogger("some.library").info("chatter")
    messages = [line.split(maxsplit=3)[3] for line in (tmp_path / "log").read_text().splitlines()]
    assert messages == ["loud enough", "frames"]


def test_logging_follows_the_name_after_a_real_rename(tmp_path: Path) -> None:
    path = tmp_path / "qanat.log"
    setup_logging(LogSettings(file=path))
    logger.info("before")
    path.rename(tmp_path / "qanat.log.1")
    logger.info("between")
    assert reopen()
    logger.info("after")
    assert [line.split()[-1] for line in (tmp_path / "qanat.log.1").read_text().splitlines()] == ["before", "between"]
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["after"]


def test_a_log_that_cannot_be_opened_again_goes_on_in_the_old_file(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    setup_logging(LogSettings(file=folder / "qanat.log"))
    folder.rename(tmp_path / "moved")
    assert not reopen()
    logger.info("still here")
    text = (tmp_path / "moved" / "qanat.log").read_text()
    assert "the old one stays in use" in text
    assert "still here" in text


def test_reopening_without_a_file_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogSettings())
    assert not reopen()
    logger.info("here")
    assert capsys.readouterr().err.endswith("info    here\n")


def test_a_log_file_that_cannot_be_made_is_a_usage_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="missing/log: No such file") as caught:
        setup_logging(LogSettings(file=tmp_path / "missing" / "log"))
    assert caught.value.hint


def test_a_flood_of_one_line_leaves_room_for_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    moment = time.time()
    monkeypatch.setattr(time, "time", lambda: moment)
    setup_logging(LogSettings(file=path))
    for number in range(FLOOD + 500):
        logger.info("refused %d", number)
    logger.info("something else")
    *lines, last_of_kind, other = path.read_text().splitlines()
    assert len(lines) == FLOOD - 1
    assert "refused 999 [too many: others like this are left out for 60 s]" in last_of_kind
    assert other.endswith("something else")


def test_after_a_while_a_line_that_was_left_out_is_heard_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    setup_logging(LogSettings(file=path))
    moment = time.time()
    for later in (*[0.0] * (FLOOD + 1), INTERVAL - 1, INTERVAL, INTERVAL + 1):
        monkeypatch.setattr(time, "time", lambda later=later: moment + later)
        logger.info("at %.0f", later)
    assert [line.split("at ")[1] for line in path.read_text().splitlines()[FLOOD:]] == ["60", "61"]


def test_debug_lines_are_never_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    setup_logging(LogSettings(level="debug", file=path))
    for number in range(FLOOD + 500):
        logger.debug("frame %d", number)
    assert len(path.read_text().splitlines()) == FLOOD + 500


def test_a_peers_text_cannot_turn_a_line_round_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "log"
    setup_logging(LogSettings(file=path))
    logger.warning("the other end says: %s", "\u202eesrever\u2066\u200b")
    assert path.read_text().endswith("says: \\u202eesrever\\u2066\\u200b\n")


def test_a_full_disk_costs_lines_and_one_word_about_it(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogSettings(file=Path("/dev/full")))
    for number in range(5):
        logging.getLogger("qanat.test").warning("line %d", number)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot write the log /dev/full: No space left on device" in said


@contextlib.contextmanager
def read_by_nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Be a program whose stderr is a small pipe; yields its reading end, for the caller to close."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, F_SETPIPE_SZ, 4096)
    with open(write_end, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        yield read_end


@linux
def test_a_reader_of_the_log_who_does_not_read_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_output, "MAX_WAITING", 20_000)
    with read_by_nobody(monkeypatch) as reading:
        setup_logging(LogSettings(level="debug"))
        for number in range(1000):
            logger.debug("line %d %s", number, "x" * 100)
        assert not flush_log(0)
        told: queue.SimpleQueue[str] = queue.SimpleQueue()

        def read() -> None:
            with open(reading, encoding="utf-8") as pipe:
                for line in pipe:
                    told.put(line)

        reader = threading.Thread(target=read)
        reader.start()
        assert flush_log(SECONDS)
        logger.debug("the last")
        lines = [told.get(timeout=SECONDS)]
        while "the last" not in lines[-1]:
            lines.append(told.get(timeout=SECONDS))
        assert log_module._installed is not None
        log_module._installed.close()
    reader.join()
    text = "".join(lines[:-1])
    numbers = [int(number) for number in re.findall(r" line (\d+) x{100}\n", text)]
    left_out = [int(count) for count in re.findall(r"warning (\d+) lines are left out here, since nobody read", text)]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 0
    assert 0 < sum(left_out) == 1000 - len(numbers)


UNREAD = """
import logging, sys
from qanat.config.settings import LogSettings
from qanat.process.log import setup_logging
setup_logging(LogSettings(level="debug"))
for _ in range(200):
    logging.getLogger("qanat.test").debug("x" * 1000)
"""


@linux
def test_a_program_ends_though_nobody_reads_its_log() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", UNREAD], stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as done:
        assert done.wait(SECONDS) == 0
        assert done.stderr is not None
        assert b"Fatal" not in done.stderr.read()


def test_a_log_does_not_follow_a_link_that_someone_may_have_put_there(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError, match="it is a symbolic link, which a log does not follow"):
        setup_logging(LogSettings(file=tmp_path / "log"))
    assert not (tmp_path / "precious").exists()
    (tmp_path / "real").mkdir()
    (tmp_path / "directory").symlink_to(tmp_path / "real")
    setup_logging(LogSettings(file=tmp_path / "directory" / "log"))
    assert (tmp_path / "real" / "log").exists()


def test_a_link_that_appears_later_is_not_followed_either(tmp_path: Path) -> None:
    path = tmp_path / "log"
    setup_logging(LogSettings(file=path))
    path.rename(tmp_path / "log.1")
    path.symlink_to(tmp_path / "precious")
    assert not reopen()
    assert "symbolic link" in (tmp_path / "log.1").read_text()


@pytest.mark.parametrize("reader", [False, True])
def test_a_pipe_as_a_log_is_refused_instead_of_blocking_the_start(tmp_path: Path, reader: bool) -> None:
    os.mkfifo(tmp_path / "log")
    descriptor = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK) if reader else None
    with pytest.raises(UsageError, match="it is not a file: a pipe without a reader would stop the program"):
        setup_logging(LogSettings(file=tmp_path / "log"))
    if descriptor is not None:
        os.close(descriptor)


def test_the_standard_streams_may_be_named_though_they_are_links(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STANDARD_STREAM],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.endswith("warning here\n"), done.stderr


STANDARD_STREAM = """
import logging
from pathlib import Path
from qanat.config.settings import LogSettings
from qanat.process.log import setup_logging

setup_logging(LogSettings(file=Path("/dev/stdout")))
logging.getLogger("qanat.test").warning("here")
"""
