"""One way to reload, whoever asks: the whole file is good and takes effect, or nothing has changed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from qanat.base.errors import UsageError
from qanat.base.watcher import Watcher
from qanat.config.faults import ConfigError, Fault
from qanat.config.settings import LogSettings
from qanat.process.reloading import Reloader

DEADLINE = 30.0


@dataclass(frozen=True)
class Settings:
    """What a process runs with, as far as these tests need it."""

    value: int = 0
    log: LogSettings = field(default_factory=LogSettings)
    watch_config: bool = False


class Running:
    """What is reloaded: it remembers what it was given."""

    def __init__(self, path: Path) -> None:
        self.file: Settings | Exception = Settings()
        self.applied: list[Settings] = []
        self.fails: Exception | None = None
        self.applying = threading.Semaphore(0)
        self.go_on = threading.Semaphore(1_000)
        self.reloader = Reloader(path, self.load)

    def load(self) -> Settings:
        if isinstance(self.file, Exception):
            raise self.file
        return self.file

    def apply(self, settings: Settings) -> list[str]:
        self.applying.release()
        assert self.go_on.acquire(timeout=DEADLINE)
        if self.fails is not None:
            raise self.fails
        self.applied.append(settings)
        return [f"value: {settings.value}"]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    watcher = Watcher()
    path = tmp_path / "file.yaml"
    path.write_text("one")
    running = Running(path)
    with running.reloader.serving(Settings(), running.apply, watcher):
        yield running
    watcher.close()


def test_what_the_file_says_is_put_into_effect_and_told(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qanat.reload")
    running.file = Settings(7)
    assert running.reloader.reload("a test") == ["value: 7"]
    assert running.applied == [Settings(7)]
    assert running.reloader.settings == Settings(7)
    assert any("(a test): 1 change" in message for message in caplog.messages)


def test_a_faulty_file_changes_nothing_and_every_fault_is_told(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.file = ConfigError("f.yaml", [Fault(1, 2, "one", "f.yaml"), Fault(3, 4, "two", "f.yaml")])
    with pytest.raises(ConfigError):
        running.reloader.reload("a test")
    assert running.applied == []
    assert running.reloader.settings == Settings()
    text = "\n".join(caplog.messages)
    assert "f.yaml:1:2: one" in text
    assert "f.yaml:3:4: two" in text
    assert "nothing has changed" in text


def test_what_cannot_be_applied_leaves_the_old_settings_and_the_old_log(running: Running, tmp_path: Path) -> None:
    running.file = Settings(1, LogSettings(file=tmp_path / "new.log"))
    running.fails = UsageError("the port is taken")
    with pytest.raises(UsageError):
        running.reloader.reload("a test")
    assert running.reloader.settings == Settings()


def test_a_log_that_cannot_be_opened_changes_nothing(running: Running, tmp_path: Path) -> None:
    running.file = Settings(1, LogSettings(file=tmp_path / "missing" / "new.log"))
    with pytest.raises(UsageError):
        running.reloader.reload("a test")
    assert running.applied == []


def test_hangups_during_a_reload_become_one_more(running: Running) -> None:
    running.go_on = threading.Semaphore(0)
    running.file = Settings(1)
    running.reloader.hangup()
    assert running.applying.acquire(timeout=DEADLINE)
    for _ in range(20):
        running.reloader.hangup()
    running.file = Settings(2)
    running.go_on.release()
    assert running.applying.acquire(timeout=DEADLINE)
    running.go_on.release()
    assert not running.applying.acquire(timeout=0.3)
    assert running.applied == [Settings(1), Settings(2)]


def test_without_a_file_there_is_nothing_to_read_and_the_caller_learns_that() -> None:
    watcher = Watcher()
    reloader: Reloader[Settings] = Reloader(None, None)
    with reloader.serving(Settings(), lambda settings: [], watcher), pytest.raises(UsageError, match="flags alone"):
        reloader.reload("a test")
    watcher.close()


def test_outside_of_serving_nothing_is_reloaded(tmp_path: Path) -> None:
    running = Running(tmp_path / "file.yaml")
    with pytest.raises(UsageError, match="starting or stopping"):
        running.reloader.reload("a test")
    running.reloader.hangup()
    assert running.applied == []


def test_watching_the_file_begins_and_ends_with_the_setting(running: Running, tmp_path: Path) -> None:
    running.file = Settings(1, watch_config=True)
    running.reloader.reload("a test")
    running.file = replace(running.file, value=2)
    (tmp_path / "file.yaml").write_text("another")
    for _ in range(2):
        assert running.applying.acquire(timeout=DEADLINE)
    running.file = Settings(3)
    running.reloader.reload("a test")
    assert [settings.value for settings in running.applied] == [1, 2, 3]
