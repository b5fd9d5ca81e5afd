"""Long work lets others have the interpreter, and leaves it as it was."""

from __future__ import annotations

import gc
import sys

import pytest

from qanat.base.long_work import SWITCH, long_work


def test_it_holds_until_the_last_of_several_is_done_and_leaves_no_trace() -> None:
    before = sys.getswitchinterval(), gc.isenabled()
    with long_work():
        with pytest.raises(KeyError), long_work():
            raise KeyError
        assert (sys.getswitchinterval(), gc.isenabled()) == (pytest.approx(SWITCH), False)
    assert (sys.getswitchinterval(), gc.isenabled()) == before


def test_who_collects_nothing_anyhow_goes_on_so() -> None:
    gc.disable()
    try:
        with long_work():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
