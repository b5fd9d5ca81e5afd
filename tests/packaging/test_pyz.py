"""Promises of tunnel.pyz: one file, and a Python without any package, are enough."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.bundles import Shared

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 150.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, built once, in a directory of its own."""
    target = Shared(tmp_path_factory).built("pyz") / "tunnel.pyz"
    assert {path.name for path in target.parent.iterdir()} == {"tunnel.pyz", "tunnel.pyz.cdx.json"}
    return target


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This Python with no package installed, not even pip."""
    directory = tmp_path_factory.mktemp("bare")
    venv.EnvBuilder(symlinks=True).create(directory)
    return directory / "bin" / "python"


class Bare:
    """Runs the file with nothing but Python: no environment, and a current directory elsewhere."""

    def __init__(self, python: Path, pyz: Path, directory: Path) -> None:
        self.python = python
        self.pyz = pyz
        self.directory = directory
        self.home = directory / "home"
        self.home.mkdir()

    def start(self, *arguments: object, **environment: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.python, "-I", self.pyz, *map(str, arguments)],
            cwd=self.directory,
            env={"PATH": "/usr/bin:/bin", **{key: str(value) for key, value in environment.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> str:
        output, errors = process.communicate(timeout=SECONDS)
        assert (process.returncode, errors) == (0, "")
        return output

    def run(self, *arguments: object, **environment: object) -> str:
        """What it prints, after it ended well and without a word on stderr."""
        return self.finish(self.start(*arguments, **(environment or {"HOME": self.home})))


@pytest.fixture
def bare(bare_python: Path, pyz: Path, tmp_path: Path) -> Bare:
    return Bare(bare_python, pyz, tmp_path)


@pytest.fixture
def cleaned() -> Iterator[list[Path]]:
    """Places outside of the test's own directory, where what the test unpacks is removed again."""
    places = [Path(f"/var/tmp/qanat-{os.getuid()}"), Path("~/.cache/qanat").expanduser()]
    before = {place: set(place.iterdir()) if place.exists() else None for place in places}
    yield places
    for place, had in before.items():
        if had is None:
            shutil.rmtree(place, ignore_errors=True)
            continue
        for path in set(place.iterdir()) - had:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def unpacked_in(place: Path) -> list[Path]:
    return [path for path in place.glob("tunnel.pyz_*") if path.is_dir()]


def test_every_package_is_in_it_once(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as archive:
        names = archive.namelist()
    assert len(set(names)) == len(names)
    tops = {name.split("/")[1] for name in names if name.startswith("site-packages/") and name.count("/") > 1}
    assert "qanat" in tops
    assert not tops & {path.name for path in (ROOT / "qanat").iterdir()}
    assert not tops & {"tests", "benchmarks", "deploy", "packages"}
    assert "site-packages/qanat/transports/pipe.py" in names
    assert "site-packages/qanat/share/config.example.yaml" in names


def test_it_runs_where_there_is_nothing_but_python(bare: Bare) -> None:
    assert bare.run("--version").startswith("qanat ")
    assert bare.run("token").startswith("qanat1-")
    assert "location = /tunnel" in bare.run("init", bare.directory / "made")
    assert bare.run("check", "-c", "made/server.yaml") == "ok\n"
    assert bare.run("check", "-c", "made/client.yaml") == "ok\n"
    assert bare.run("fingerprint", "-c", "made/server.yaml").startswith("SHA256:")


def test_a_whole_tunnel_runs_from_it(bare: Bare) -> None:
    process = bare.start("demo", "--once", HOME=bare.home)
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output + errors


def test_two_that_unpack_at_once_both_run(bare: Bare) -> None:
    together = [bare.start("--version", HOME=bare.home) for _ in range(3)]
    assert len({bare.finish(process) for process in together}) == 1
    assert len(unpacked_in(bare.home / ".cache" / "qanat")) == 1


def test_a_service_manager_may_name_the_place(bare: Bare) -> None:
    cache = bare.directory / "cache"
    bare.run("--version", CACHE_DIRECTORY=cache, HOME=bare.home)
    assert unpacked_in(cache)
    bare.run("--version", SHIV_ROOT=bare.directory / "named", CACHE_DIRECTORY=cache, HOME=bare.home)
    assert unpacked_in(bare.directory / "named")
    assert not (bare.home / ".cache").exists()


def test_a_place_where_others_can_write_is_not_used(bare: Bare) -> None:
    cache = bare.directory / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    bare.run("--version", CACHE_DIRECTORY=cache, HOME=bare.home)
    assert not unpacked_in(cache)
    assert unpacked_in(bare.home / ".cache" / "qanat")


def test_it_runs_with_an_environment_of_nothing_but_a_path(bare: Bare, cleaned: list[Path]) -> None:
    assert bare.run("--version", PATH="/usr/bin:/bin").startswith("qanat ")


def test_without_a_home_it_unpacks_into_var_tmp_and_restores_what_is_gone(bare: Bare, cleaned: list[Path]) -> None:
    fallback, _ = cleaned
    bare.run("--version", HOME="/proc/none")
    (unpacked,) = unpacked_in(fallback)
    assert fallback.stat().st_mode & 0o777 == 0o700
    module = unpacked / "site-packages" / "qanat" / "base" / "version.py"
    module.unlink()
    bare.run("--version", HOME="/proc/none")
    assert module.exists()


def test_another_python_than_it_was_built_for_is_told_so() -> None:
    # Before it is built into an archive, the start is for no Python at all.
    start = subprocess.run(
        [sys.executable, ROOT / "packages" / "pyz_start.py"], capture_output=True, text=True, timeout=SECONDS
    )
    assert start.returncode == 1
    assert "qanat: error:" in start.stderr
    assert "hint: run it with that Python" in start.stderr
