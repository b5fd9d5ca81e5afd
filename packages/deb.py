"""The Debian package: both ends, their units, manuals and completion, and the Python packages that they need.

Built with dpkg-deb from a tree that is laid out here, without root.  What is Debian's own lies in deploy/debian; the
units are those in deploy/, with the paths of the package.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from packages.completion import write_bash, write_zsh
from packages.man import write_manuals
from packages.sbom import write_sbom
from packages.source import ROOT, build_environment, epoch, settle, summary, version
from packages.wheel import put
from packages.wheels import Wheel, unpack

REVISION = "1"
DEBIAN = ROOT / "deploy" / "debian"
DEPLOY = ROOT / "deploy"
_SCRIPTS = ("postinst", "prerm", "postrm")
_LEAST_LIBC = (2, 17)


def build_deb(wheels: Sequence[Wheel], into: Path) -> tuple[Path, Path]:
    """Build the package of `wheels`, Qanat's own among them, and return its path and that of its SBOM.

    It is for the Python that runs this, and its machine.  Needs dpkg-deb.
    """
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory, "tree")
        lay_out(wheels, tree)
        architecture = _output("dpkg", "--print-architecture")
        name = f"qanat_{version()}-{REVISION}_{architecture}.deb"
        _write_control(wheels, tree, architecture)
        settle(tree)
        for script in _SCRIPTS:
            (tree / "DEBIAN" / script).chmod(0o755)
        build = ["dpkg-deb", "--root-owner-group", "--threads-max=1", "-Zxz", "-z2", "--build", str(tree)]
        made = Path(directory, name)
        subprocess.run([*build, str(made)], check=True, env=build_environment(), stdout=subprocess.DEVNULL, umask=0o022)
        purl = f"pkg:deb/qanat@{version()}-{REVISION}?arch={architecture}"
        file = put(made, into / name)
    return file, write_sbom(file, wheels, purl=purl)


def lay_out(wheels: Sequence[Wheel], tree: Path) -> None:
    """Lay out below `tree` what the package installs, with the paths that it has there."""
    library = tree / "usr" / "lib" / "qanat"
    unpack(wheels, library)
    _leave_out(library)
    command = tree / "usr" / "bin" / "qanat"
    command.parent.mkdir(parents=True)
    shutil.copy(DEBIAN / "qanat", command)
    command.chmod(0o755)
    _units(tree / "lib" / "systemd" / "system")
    _put(DEBIAN / "sysusers.conf", tree / "usr" / "lib" / "sysusers.d" / "qanat.conf")
    write_bash(tree / "usr" / "share" / "bash-completion" / "completions" / "qanat")
    write_zsh(tree / "usr" / "share" / "zsh" / "vendor-completions" / "_qanat")
    for page in write_manuals(tree / "usr" / "share" / "man"):
        _compress(page)
    _documents(tree, wheels)


def _leave_out(library: Path) -> None:
    """Remove what nobody runs: C sources, stubs for type checkers, and tests that wheels bring along."""
    for pattern in ("*.pyi", "*.c", "*.h", "*.pyx", "*.pxd"):
        for path in library.rglob(pattern):
            path.unlink()
    for path in library.glob("*/tests"):
        shutil.rmtree(path)


def _units(into: Path) -> None:
    """Write the units for /usr/bin/qanat: one server, one client, and further clients by the names of their files."""
    into.mkdir(parents=True)
    for role in ("server", "client"):
        text = unit(role)
        (into / f"qanat-{role}.service").write_text(text, "utf-8")
        if role == "client":
            many = text.replace("/etc/qanat/client.yaml", "/etc/qanat/%i.yaml")
            many = many.replace("Description=Qanat tunnel, client", "Description=Qanat tunnel, client %i")
            (into / "qanat-client@.service").write_text(many, "utf-8")


def unit(role: str) -> str:
    """Return the unit of `role` in deploy/ with the package's paths; without a configuration it does not start."""
    text = (DEPLOY / f"qanat-{role}.service").read_text("utf-8")
    text = text[text.index("[Unit]") :].replace("/usr/local/bin/qanat", "/usr/bin/qanat")
    described = f"Description=Qanat tunnel, {role}\n"
    more = f"Documentation=man:qanat-{role}(1) man:qanat.yaml(5)\nConditionPathExists=/etc/qanat/{role}.yaml\n"
    assert described in text
    return text.replace(described, described + more)


def _documents(tree: Path, wheels: Sequence[Wheel]) -> None:
    documents = tree / "usr" / "share" / "doc" / "qanat"
    documents.mkdir(parents=True)
    license_text = "".join(f" {line or '.'}\n" for line in (ROOT / "LICENSE").read_text("utf-8").splitlines()[4:])
    copyright_text = (DEBIAN / "copyright").read_text("utf-8").replace("@LICENSE@\n", license_text)
    (documents / "copyright").write_text(copyright_text, "utf-8")
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(epoch()))
    (documents / "changelog.Debian").write_text(
        f"qanat ({version()}-{REVISION}) unstable; urgency=medium\n\n"
        f"  * See changelog.gz.\n\n -- {maintainer(os.environ)}  {date}\n",
        "utf-8",
    )
    shutil.copy(ROOT / "CHANGELOG.md", documents / "changelog")
    shutil.copy(ROOT / "README.md", documents)
    for name in ("changelog", "changelog.Debian"):
        _compress(documents / name)
    examples = documents / "examples"
    examples.mkdir()
    shutil.copy(ROOT / "config.example.yaml", examples)
    for path in sorted(DEPLOY.iterdir()):
        if path.is_file() and path.suffix != ".service":
            shutil.copy(path, examples)
    overrides = tree / "usr" / "share" / "lintian" / "overrides" / "qanat"
    _put(DEBIAN / "lintian-overrides", overrides)
    (own,) = (wheel for wheel in wheels if wheel.name == "qanat")
    write_sbom(own.path, wheels, purl=f"pkg:generic/qanat@{version()}", to=documents / "qanat.cdx.json")


def _write_control(wheels: Sequence[Wheel], tree: Path, architecture: str) -> None:
    control = tree / "DEBIAN"
    control.mkdir()
    files = sorted(path for path in tree.rglob("*") if path.is_file() and control not in path.parents)
    sums = "".join(f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n" for path in files)
    (control / "md5sums").write_text(sums, "utf-8")
    values = {
        "VERSION": f"{version()}-{REVISION}",
        "ARCHITECTURE": architecture,
        # In KiB, each file rounded up, as dpkg-gencontrol counts.
        "SIZE": str(sum((path.stat().st_size + 1023) // 1024 for path in files) + len({path.parent for path in files})),
        "PYTHON": f"{sys.version_info.major}.{sys.version_info.minor}",
        "NEXT_PYTHON": f"{sys.version_info.major}.{sys.version_info.minor + 1}~",
        "LIBC": ".".join(map(str, _libc(wheels))),
        "SUMMARY": summary(),
        "MAINTAINER": maintainer(os.environ),
    }
    text = (DEBIAN / "control").read_text("utf-8")
    (control / "control").write_text(re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], text), "utf-8")
    for script in _SCRIPTS:
        shutil.copy(DEBIAN / script, control)


def maintainer(environ: Mapping[str, str]) -> str:
    """Return who answers for the package, "NAME <ADDRESS>": $DEBFULLNAME and $DEBEMAIL, as for Debian's own tools.

    Without them it is nobody who could be written to (RFC 2606 §2).  Raises ValueError for what a control file cannot
    have there (Debian Policy §5.6.2).
    """
    name, address = environ.get("DEBFULLNAME", "The Qanat authors"), environ.get("DEBEMAIL", "qanat@example.invalid")
    if not re.fullmatch(r"[^<>,\n]+", name) or not re.fullmatch(r"[^\s<>@,]+@[^\s<>@,]+", address):
        raise ValueError("DEBFULLNAME is a name without , < or >, and DEBEMAIL an address: set or unset them")
    return f"{name} <{address}>"


def _libc(wheels: Sequence[Wheel]) -> tuple[int, int]:
    """Return the oldest C library that all of `wheels` run with: each names several that it was built for (PEP 600)."""
    needed = _LEAST_LIBC
    for wheel in wheels:
        versions = [(int(a), int(b)) for a, b in re.findall(r"manylinux_(\d+)_(\d+)_", wheel.tag)]
        if versions:
            needed = max(needed, min(versions))
    return needed


def _put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _compress(path: Path) -> None:
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), compresslevel=9, mtime=0))
    path.unlink()


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
