"""Threads have a name and an owner, and one that cannot be started is said in the program's own words."""

from __future__ import annotations

import threading

import pytest

from qanat.base.errors import NoThread
from qanat.base.threads import ThreadGroup, start_thread
from qanat.base.workers import Workers


def no_thread(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_system_without_threads_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    group = ThreadGroup("test")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        patch.setattr("qanat.base.threads.WORKERS", Workers())
        with pytest.raises(NoThread) as caught:
            start_thread("never", lambda: None)
        assert "ulimit -u" in caught.value.hint
        with pytest.raises(NoThread):
            group.start("never", lambda: None)
    assert len(group) == 0
    ran = threading.Event()
    group.start("again", ran.set)
    assert ran.wait(20)
    assert group.join(20) == []


def test_what_escapes_a_thread_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("a bug")

    start_thread("faulty", fail).join(20)
    assert "faulty" in caplog.text
    assert "ValueError: a bug" in caplog.text
