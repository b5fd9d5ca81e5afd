"""The image, as an OCI archive: Qanat and Python, without a shell, for a user that is not root.

`lay_out` makes the context that deploy/oci/Dockerfile copies, out of the Debian packages that Python needs; buildah,
podman or docker does the rest.  The archive is written anew at the end, so that its bytes depend on its content alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packages.sbom import write_sbom
from packages.source import ROOT, build_environment, epoch, settle, version
from packages.wheel import put
from packages.wheels import Wheel, unpack

USER = 65532
"""The user and the group of the image, as in others that have no root."""
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
DEBIAN = (
    "base-files ca-certificates libbz2-1.0 libc6 libcrypt1 libexpat1 libffi8 libgcc-s1 liblzma5 libssl3 libuuid1 "
    f"netbase tzdata zlib1g libpython{_PYTHON}-minimal libpython{_PYTHON}-stdlib python{_PYTHON}-minimal"
).split(" ")
"""Debian's packages that Python, and the libraries inside Qanat's, need at run time; none of them has a shell."""
_USELESS = ("usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/share/binfmts", "usr/share/bug", "home", "boot")


def build_oci(wheels: Sequence[Wheel], into: Path, *, base: str | None = None) -> tuple[Path, Path]:
    """Build the image on `base`, by default on nothing, and return the paths of its archive and of its SBOM.

    Needs buildah, podman or docker; without `base` a Debian with this Python, and the network for its packages.
    """
    builder = next((name for name in ("buildah", "podman", "docker") if _works(name)), None)
    if builder is None:
        raise SystemExit("There is no buildah, podman or docker that works here.  On Debian: apt install buildah")
    with tempfile.TemporaryDirectory() as directory:
        context, made = Path(directory, "context"), Path(directory, "made")
        debian = lay_out(wheels, context, on_debian=base is None)
        _run(builder, context, base or "scratch", made)
        archive = Path(directory, "archive.tar")
        _pack(made, archive)
        machine = os.uname().machine
        file = put(archive, into / f"qanat-{version()}-{machine}.oci.tar")
    purl = f"pkg:oci/qanat@{version()}?arch={machine}"
    return file, write_sbom(file, wheels, purl=purl, others=debian)


def lay_out(wheels: Sequence[Wheel], context: Path, *, on_debian: bool) -> list[dict[str, Any]]:
    """Make the directory that the Dockerfile builds from; return SBOM components of Debian's packages in it."""
    root, state = context / "root", context / "state"
    root.mkdir(parents=True)
    state.mkdir()
    components = _lay_out_debian(root) if on_debian else []
    unpack(wheels, root / "usr" / "lib" / "qanat")
    command = root / "usr" / "bin" / "qanat"
    command.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "deploy" / "debian" / "qanat", command)
    command.chmod(0o755)
    (root / "etc" / "qanat").mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "oci" / "Dockerfile", context)
    settle(context)
    if on_debian:
        (root / "tmp").chmod(0o1777)
    state.chmod(0o700)
    return components


def _lay_out_debian(root: Path) -> list[dict[str, Any]]:
    """Unpack Debian's packages below `root`: no script of theirs runs, and what these would do is done here."""
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    components = []
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *DEBIAN],
            cwd=directory,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for deb in sorted(Path(directory).glob("*.deb")):
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as unpacking:
                # Debian's /lib is a link to usr/lib, and older packages have it as a directory.
                tar = ["tar", "--extract", "--keep-directory-symlink", "--no-same-owner", "--directory", str(root)]
                subprocess.run(tar, stdin=unpacking.stdout, check=True)
            components.append(_component(deb))
    for useless in _USELESS:
        shutil.rmtree(root / useless, ignore_errors=True)
    (root / "usr" / "bin" / "python3").symlink_to(f"python{_PYTHON}")
    # What update-ca-certificates would write.
    authorities = sorted((root / "usr" / "share" / "ca-certificates" / "mozilla").glob("*.crt"))
    certificates = root / "etc" / "ssl" / "certs"
    certificates.mkdir(parents=True, exist_ok=True)
    bundle = "".join(path.read_text("ascii").strip() + "\n" for path in authorities)
    (certificates / "ca-certificates.crt").write_text(bundle, "ascii")
    accounts = {"root": (0, "/nonexistent"), "qanat": (USER, "/var/lib/qanat")}
    passwd = "".join(f"{name}:x:{uid}:{uid}::{home}:/nonexistent\n" for name, (uid, home) in accounts.items())
    (root / "etc" / "passwd").write_text(passwd, "ascii")
    (root / "etc" / "group").write_text("".join(f"{n}:x:{uid}:\n" for n, (uid, _) in accounts.items()), "ascii")
    (root / "etc" / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n", "ascii")
    return components


def _component(deb: Path) -> dict[str, Any]:
    fields = ("Package", "Version", "Architecture")
    said = subprocess.run(["dpkg-deb", "--field", deb, *fields], check=True, capture_output=True, text=True).stdout
    name, number, architecture = (line.partition(": ")[2] for line in said.splitlines())
    purl = f"pkg:deb/debian/{name}@{number.replace(':', '%3A')}?arch={architecture}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": number, "purl": purl, "scope": "required"}


def _works(builder: str) -> bool:
    if shutil.which(builder) is None:
        return False
    return subprocess.run([builder, "info"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def _run(builder: str, context: Path, base: str, made: Path) -> None:
    """Build the image, and leave it in the directory `made` in OCI's layout."""
    tag = f"localhost/qanat:{version()}"
    if builder == "docker":
        command = ["docker", "buildx", "build", "--build-arg", f"BASE={base}", "--provenance=false", "--tag", tag]
        output = f"type=oci,tar=false,dest={made},rewrite-timestamp=true"
        _call([*command, "--output", output, str(context)])
        return
    with tempfile.TemporaryDirectory() as storage:
        # A store of its own leaves nothing behind, and vfs works where no other driver does.
        program = [builder, "--root", f"{storage}/root", "--runroot", f"{storage}/run", "--storage-driver", "vfs"]
        build = ["build", "--isolation", "chroot", "--format", "oci", "--layers=false", "--timestamp", str(epoch())]
        try:
            _call([*program, *build, "--build-arg", f"BASE={base}", "--tag", tag, str(context)])
            _call([*program, "push", tag, f"oci:{made}:{version()}"])
        finally:
            subprocess.run([*program, "rmi", "--all", "--force"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, env=build_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, umask=0o022
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}")


def _pack(layout: Path, archive: Path) -> None:
    """Write OCI's layout in `layout` as a tar file: sorted, of `epoch`, owned by nobody in particular."""
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(path for path in layout.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(str(path.relative_to(layout)))
            entry.size, entry.mode, entry.mtime = path.stat().st_size, 0o644, epoch()
            with path.open("rb") as file:
                tar.addfile(entry, file)


def read_manifest(archive: Path) -> dict[str, Any]:
    """Return the configuration of the image in an archive that `build_oci` has made."""
    with tarfile.open(archive) as tar:

        def load(name: str) -> Any:
            file = tar.extractfile(name)
            assert file is not None
            return json.load(file)

        manifest = load("index.json")["manifests"][0]["digest"].replace(":", "/")
        configuration = load(f"blobs/{manifest}")["config"]["digest"].replace(":", "/")
        found: dict[str, Any] = load(f"blobs/{configuration}")
        return found
