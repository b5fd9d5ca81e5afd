"""Promises of the wheel and the sdist: `qanat` and nothing else, with all that it names, whatever lies around it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120.0
REPRODUCIBLE = "1700000000"
"""The time that every file of a build gets (https://reproducible-builds.org/specs/source-date-epoch/)."""
DEPENDENCIES = ("cryptography", "websocket", "python_socks", "simple_websocket", "wsproto", "h11", "websockets", "h2")
DEPENDENCIES_OF_THOSE = ("cffi", "_cffi_backend", "hpack", "hyperframe", "yaml", "setuptools")
NONSENSE = ("base", "service", "mux", "transports", "handshake")

pytestmark = pytest.mark.slow

ASSETS = ROOT / "qanat" / "monitor" / "page" / "assets"


def run(command: list[object], directory: Path, **environment: object) -> str:
    """What `command` prints, after it ended well; its environment is nothing but `environment` and a path."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env={
            "PATH": os.defpath,
            "HOME": str(directory),
            **{name: str(value) for name, value in environment.items()},
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def copy_checkout(to: Path, *, links: bool) -> Path:
    """Copy what a build may look at; `links` keeps the links, as git does."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "*.pyz", "tests", "benchmarks")
    return Path(shutil.copytree(ROOT, to, symlinks=links, ignore=ignored))


def build_wheel(source: Path, into: Path) -> Path:
    """Build the wheel of `source`, a tree or an sdist, without the network."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run([*pip, "--wheel-dir", into, source], into.parent, SOURCE_DATE_EPOCH=REPRODUCIBLE)
    (wheel,) = into.glob("*.whl")
    return wheel


@dataclass(frozen=True)
class Built:
    wheel: Path
    sdist: Path
    wheel_of_sdist: Path

    def names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A wheel and an sdist of this checkout, and a wheel of that sdist."""
    directory = tmp_path_factory.mktemp("built")
    tree = copy_checkout(directory / "tree", links=True)
    wheel = build_wheel(tree, directory / "wheel")
    sdists = directory / "sdist"
    backend = "import setuptools.build_meta, sys; setuptools.build_meta.build_sdist(sys.argv[1])"
    run([sys.executable, "-c", backend, sdists], tree)
    (sdist,) = sdists.iterdir()
    return Built(wheel, sdist, build_wheel(sdist, directory / "again"))


class Environment:
    """A virtual environment without anything but what Qanat depends on, taken from the one that runs the tests."""

    def __init__(self, directory: Path) -> None:
        venv.EnvBuilder(symlinks=True).create(directory)
        self.directory = directory
        self.python = directory / "bin" / "python"
        self.qanat = directory / "bin" / "qanat"
        (self.packages,) = directory.glob("lib/python*/site-packages")
        # A folder named in a .pth is searched, but no .pth in it is obeyed: an editable install there stays unseen.
        (self.packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in sorted(self._dependencies())))

    def install(self, *what: object) -> None:
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", "--no-deps", "--no-index"]
        run([*pip, "--no-build-isolation", "--no-compile", *what], self.directory)

    @staticmethod
    def _dependencies() -> set[Path]:
        specs = [find_spec(name) for name in (*DEPENDENCIES, *DEPENDENCIES_OF_THOSE)]
        origins = [Path(spec.origin) for spec in specs if spec is not None and spec.origin is not None]
        return {origin.parents[1] if origin.name == "__init__.py" else origin.parent for origin in origins}


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel, installed where there was nothing."""
    environment = Environment(tmp_path_factory.mktemp("installed"))
    before = set(environment.packages.iterdir())
    environment.install(built.wheel)
    assert {path.name.split("-")[0] for path in set(environment.packages.iterdir()) - before} == {"qanat"}
    return environment


@pytest.fixture
def nonsense(tmp_path: Path) -> Path:
    """A folder full of what others may call by the names that rooms of Qanat have or have had."""
    directory = tmp_path / "nonsense"
    for name in NONSENSE:
        (directory / name).mkdir(parents=True)
        (directory / name / "__init__.py").write_text(f"raise RuntimeError('this is another {name}')\n")
    (directory / "tunnel.py").write_text("raise RuntimeError('this is another tunnel')\n")
    return directory


def test_the_wheel_holds_the_package_alone(built: Built) -> None:
    tops = {name.partition("/")[0] for name in built.names()}
    (metadata,) = tops - {"qanat"}
    assert metadata.endswith(".dist-info")
    modules = {name for name in built.names() if name.startswith("qanat/") and name.endswith(".py")}
    python = {str(path.relative_to(ROOT)) for path in followed(ROOT / "qanat") if path.suffix == ".py"}
    assert modules == {path for path in python if "/share/" not in path}
    others = {name for name in built.names() - modules if name.startswith("qanat/")}
    files = {f"qanat/share/deploy/{path.name}" for path in (ROOT / "deploy").iterdir() if path.is_file()}
    files |= {f"qanat/monitor/page/assets/{path.name}" for path in ASSETS.iterdir()}
    assert others == {"qanat/py.typed", "qanat/share/config.example.yaml", "qanat/share/config.schema.json", *files}


def followed(directory: Path) -> list[Path]:
    """Every file below `directory`, behind links too (Path.rglob follows none)."""
    return [
        Path(folder, name)
        for folder, _, names in os.walk(directory, followlinks=True)
        for name in names
        if "__pycache__" not in folder
    ]


def test_what_is_linked_in_a_checkout_has_its_content_in_the_wheel(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        for inside, file in (
            ("qanat/share/config.example.yaml", "config.example.yaml"),
            ("qanat/share/deploy/nginx.conf", "deploy/nginx.conf"),
            ("qanat/transports/pipe.py", "transports/pipe.py"),
            ("qanat/handshake/machine.py", "handshake/machine.py"),
        ):
            assert archive.read(inside) == (ROOT / file).read_bytes()


def test_the_sdist_has_no_links_and_makes_the_very_same_wheel(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        members = archive.getmembers()
    assert [member.name for member in members if not (member.isfile() or member.isdir())] == []
    names = {member.name.partition("/")[2] for member in members}
    assert {"tunnel.py", "docs/PROTOCOL.md", "CHANGELOG.md", "LICENSE", "qanat/transports/pipe.py"} <= names
    assert not [name for name in names if name.split("/")[0] in ("tests", "benchmarks", "transports", "handshake")]
    assert built.wheel_of_sdist.name == built.wheel.name
    assert built.wheel_of_sdist.read_bytes() == built.wheel.read_bytes()


def test_an_unpacked_sdist_runs_as_it_lies(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        if hasattr(tarfile, "data_filter"):  # not in Debian 12's Python
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(tmp_path)
    (source,) = tmp_path.iterdir()
    environment = Environment(tmp_path / "environment")
    assert run([environment.python, source / "tunnel.py", "token"], tmp_path).startswith("qanat1-")


def test_the_wheel_runs_a_tunnel_among_folders_of_the_same_names(
    installed: Environment, nonsense: Path, tmp_path: Path
) -> None:
    output = run([installed.qanat, "demo", "--once"], tmp_path, PYTHONPATH=nonsense)
    for transport in ("websocket", "http2", "grpc", "websocket-h2"):
        assert f"{transport}: a client connected" in output


def test_the_package_is_a_program_too(installed: Environment, nonsense: Path) -> None:
    # In that very folder: `-m` puts the current directory first.
    version = run([installed.python, "-m", "qanat", "--version"], nonsense, PYTHONPATH=nonsense)
    assert version == run([installed.qanat, "--version"], nonsense)
    assert version.startswith("qanat ")


def test_init_names_files_that_are_there(installed: Environment, nonsense: Path, tmp_path: Path) -> None:
    output = run([installed.qanat, "init", tmp_path / "made"], tmp_path, PYTHONPATH=nonsense)
    share = installed.packages / "qanat" / "share"
    for file in (share / "config.example.yaml", share / "deploy", share / "deploy" / "nginx.conf"):
        assert str(file) in output
        assert file.exists()


IMPORT = "import qanat.transports.pipe as pipe; from qanat.transports.pipe import Pipe; print(pipe.__file__)"


def test_a_library_s_user_imports_it_from_the_wheel(installed: Environment, nonsense: Path) -> None:
    found = run([installed.python, "-c", IMPORT], nonsense, PYTHONPATH=nonsense).strip()
    assert Path(found) == installed.packages / "qanat" / "transports" / "pipe.py"


@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_an_editable_install_is_the_checkout(mode: str, nonsense: Path, tmp_path: Path) -> None:
    tree = copy_checkout(tmp_path / "tree", links=True)
    environment = Environment(tmp_path / "environment")
    environment.install(f"--config-settings=editable_mode={mode}", "--editable", tree)
    found = run([environment.python, "-c", IMPORT], nonsense, PYTHONPATH=nonsense).strip()
    assert Path(found).resolve() == tree / "transports" / "pipe.py"
    example = "from importlib.resources import files; print(files('qanat').joinpath('share', 'config.example.yaml'))"
    assert Path(run([environment.python, "-c", example], nonsense).strip()).read_text().startswith("#")
    assert run([environment.qanat, "token"], nonsense, PYTHONPATH=nonsense).startswith("qanat1-")
