"""`python -m packages KIND...`: build what is named, with its SBOM beside it, as `make wheel` and so on do."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from packages import deb, oci, pyz, wheel
from packages.sbom import write_sbom
from packages.source import ROOT, version
from packages.wheels import fetch, read, read_all

KINDS = ("wheel", "pyz", "deb", "oci")


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, and print the path of each file that was made."""
    parser = argparse.ArgumentParser(prog="python -m packages", description=__doc__)
    parser.add_argument("kinds", nargs="+", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--into", type=Path, default=ROOT / "dist", metavar="DIR", help="where (default: dist)")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="take the dependencies' wheels from here")
    parser.add_argument("--locked", type=Path, metavar="SBOM", help="take those that this SBOM names, by their hashes")
    parser.add_argument("--base", metavar="NAME|FILE", help="the image's base: an image's name, or a root's tar file")
    options = parser.parse_args(arguments)
    into = Path(os.path.abspath(options.into))
    into.mkdir(parents=True, exist_ok=True)
    if "wheel" in options.kinds:
        made = wheel.build_wheel(into)
        _tell(made, write_sbom(made, purl=f"pkg:pypi/qanat@{version()}"))
    if set(options.kinds) == {"wheel"}:
        return
    with _wheels(options.wheels, options.locked) as directory, tempfile.TemporaryDirectory() as own:
        made = wheel.build_wheel(Path(own))
        wheels = sorted([read(made), *read_all(directory)], key=lambda one: one.name)
        if "pyz" in options.kinds:
            file = pyz.build_pyz(wheels, into / "tunnel.pyz")
            _tell(file, write_sbom(file, wheels, purl=f"pkg:generic/qanat@{version()}"))
        if "deb" in options.kinds:
            _tell(*deb.build_deb(wheels, into))
        if "oci" in options.kinds:
            _tell(*oci.build_oci(wheels, into, base=options.base))


@contextlib.contextmanager
def _wheels(given: Path | None, locked: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as directory:
        fetch(Path(directory), locked=locked)
        yield Path(directory)


def _tell(*files: Path) -> None:
    for file in files:
        print(os.path.relpath(file))


if __name__ == "__main__":
    main()
