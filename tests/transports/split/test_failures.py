"""Promises of when requests that fail end a split pipe."""

from __future__ import annotations

from qanat.transports.split.failures import PATIENCE, Failures


def test_failures_end_a_pipe_after_a_while_and_none_does_if_one_request_succeeds() -> None:
    failures = Failures()
    assert failures.failed("x", 100.0, unknown=False) is None
    assert failures.pause == 0.0, "the first may be a connection that was closed just then"
    assert failures.failed("x", 100.0 + PATIENCE, unknown=False) is None
    assert failures.pause > 0.0
    assert failures.succeeded()
    assert not failures.succeeded()
    assert failures.failed("x", 200.0, unknown=False) is None
    assert failures.failed("y", 201.0 + PATIENCE, unknown=False) == "requests fail for 15 s: y"


def test_a_server_that_does_not_know_the_pipe_is_believed_the_second_time() -> None:
    failures = Failures()
    assert failures.failed("x", 100.0, unknown=True) is None
    assert failures.failed("x", 100.1, unknown=False) is None
    assert failures.failed("x", 100.2, unknown=True) is None
    assert failures.failed("x", 100.3, unknown=True) == "the server does not know this pipe any more"
