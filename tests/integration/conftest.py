"""Tunnels that several tests of one file share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import SECTIONS
from tests.support.applications import Target, discard, echo, greeting, reply_after_end, reset_at_once, source, stalled
from tests.support.harness import Tunnel
from tests.support.machine.ports import unused_port
from tests.support.matrix import CELLS, PROMISES, Cell, Matrix
from tests.support.silence import Silence

HANDLERS = {
    "echo": echo,
    "discard": discard,
    "stalled": stalled,
    "reply": reply_after_end,
    "reset": reset_at_once,
    "greeting": greeting,
    "source": source,
}


@dataclass(frozen=True, slots=True)
class Shared:
    """A running tunnel with each handler of HANDLERS behind a local and behind a remote forward."""

    tunnel: Tunnel
    targets: dict[tuple[str, str], Target]  # by kind of forward and name of the handler
    ports: dict[tuple[str, str], int]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    keys = [(kind, name) for kind in ("local", "remote") for name in HANDLERS]
    with ExitStack() as stack:
        targets = {key: stack.enter_context(Target(HANDLERS[key[1]])) for key in keys}
        ports = {key: unused_port() for key in keys}
        forwards = [{kind: f"127.0.0.1:{ports[kind, name]}", "to": targets[kind, name].address} for kind, name in keys]
        tunnel = stack.enter_context(Tunnel(tmp_path_factory.mktemp("tunnel"), forwards))
        tunnel.start()
        yield Shared(tunnel, targets, ports)


@pytest.fixture(scope="session")
def matrix(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Matrix]:
    directory = tmp_path_factory.mktemp("matrix")
    for place in (directory, *directory.parents[:2]):
        place.chmod(0o755)  # Apache's children are nobody in particular
    with ExitStack() as stack:
        matrix = Matrix(directory, stack)
        yield matrix
        matrix.check_output()
        kept = f"{matrix.table()}They are: {', '.join(PROMISES)}."
        pytestconfig.stash[SECTIONS]["transports and paths: promises kept"] = kept


@pytest.fixture(params=CELLS, ids="-".join)
def cell(request: pytest.FixtureRequest, matrix: Matrix) -> Cell:
    return matrix.cells[request.param]


@pytest.fixture(scope="session")
def silence(matrix: Matrix, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Silence]:
    with ExitStack() as stack:
        yield Silence(matrix, tmp_path_factory.mktemp("unkept"), stack)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a test's own tunnel has its files."""
    return tmp_path / "tunnel"
