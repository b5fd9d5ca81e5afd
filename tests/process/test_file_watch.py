"""A file that changes is noticed once, when it stands still, however it was written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qanat.base.watcher import Watcher
from qanat.process.file_watch import FileWatch


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("one")
    return path


def watch(path: Path, watcher: Watcher) -> tuple[FileWatch, list[str]]:
    """Return a watch that nothing but the test has look, and what it has called for each change."""
    calls: list[str] = []
    watched = FileWatch(path, watcher, lambda: calls.append(path.read_text()))
    return watched, calls


def test_a_change_counts_once_when_two_looks_have_found_the_same(path: Path, watcher: Watcher) -> None:
    watched, calls = watch(path, watcher)
    watched.look()
    assert calls == []
    path.write_text("three")
    watched.look()
    assert calls == []
    path.write_text("fourteen")
    watched.look()
    assert calls == []
    for _ in range(3):
        watched.look()
    assert calls == ["fourteen"]
    watched.stop()


def test_a_file_that_is_replaced_or_linked_anew_is_noticed(path: Path, watcher: Watcher) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    watched, calls = watch(link, watcher)
    other = path.with_name("other")
    other.write_text("two")
    new = path.with_name("new")
    new.symlink_to(other)
    os.replace(new, link)
    watched.look()
    watched.look()
    assert len(calls) == 1
    watched.stop()


def test_a_file_that_is_gone_is_waited_for(path: Path, watcher: Watcher) -> None:
    watched, calls = watch(path, watcher)
    path.unlink()
    for _ in range(3):
        watched.look()
    assert calls == []
    path.write_text("again")
    watched.look()
    watched.look()
    assert calls == ["again"]
    watched.stop()


def test_what_was_read_already_is_no_change(path: Path, watcher: Watcher) -> None:
    watched, calls = watch(path, watcher)
    path.write_text("three")
    watched.note()
    watched.look()
    watched.look()
    assert calls == []
    watched.stop()
    path.write_text("fourteen")
    watched.look()
    watched.look()
    assert calls == []
