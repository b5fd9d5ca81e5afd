"""`python -m tests [PYTEST ARGUMENTS]`, which is what `make test` runs: the tests in four processes.

Most tests run real programs by the real clock, beside three others on whatever machine it is.  What fails there runs
once more, alone, if it is at most `FEW` tests: one that fails again has failed, one that passes has only been starved
and is named at the end, since it has to become better all the same.  More than a few are no accident and fail at once.
CPython's own tests are run in this manner (`python -m test --rerun`).
"""

from __future__ import annotations

import subprocess
import sys

import pytest

PROCESSES = 4
FEW = 3


class _Failures:
    """A pytest plugin: the tests that failed, setting up and taking down included."""

    def __init__(self) -> None:
        self.tests: dict[str, None] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.tests[report.nodeid] = None


def main(arguments: list[str]) -> int:
    """Run the tests, as pytest's `arguments` say; return pytest's exit code."""
    failures = _Failures()
    code = pytest.main([f"--numprocesses={PROCESSES}", *arguments], plugins=[failures])
    tests = list(failures.tests)
    if code != pytest.ExitCode.TESTS_FAILED or not 0 < len(tests) <= FEW:
        return code
    print(f"\nOnce more, alone: {len(tests)} that failed beside others.", flush=True)
    again = subprocess.run([sys.executable, "-m", "pytest", *tests], check=False).returncode
    if again == pytest.ExitCode.OK:
        print("These passed alone, and failed beside others (see above why); they ask too much of a busy machine:")
        print("\n".join(f"  {test}" for test in tests))
    return again


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
