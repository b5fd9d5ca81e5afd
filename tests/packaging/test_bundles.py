"""Promises of everything that is built: the same bytes twice, an SBOM beside it, and the same program in each."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from packages.completion import write_bash, write_zsh
from packages.deb import maintainer, unit
from packages.man import write_manuals
from packages.oci import USER, lay_out, read_manifest
from packages.source import requirements
from packages.wheel import build_wheel
from packages.wheels import read, read_all
from qanat.cli.parser import COMMANDS
from tests.packaging.bundles import ROOT, Shared, boot_in, build, copy_of_this_machine, run_in
from tests.support.json_schemas import bill_of_materials_validator
from tests.support.long import LONG, long_only
from tests.support.machine.programs import require_program

KINDS = ("wheel", "pyz", "deb")
SECONDS = 170.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels of what Qanat depends on, fetched once."""
    return Shared(tmp_path_factory).wheels()


@pytest.fixture(scope="module")
def built(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel pyz deb` makes."""
    require_program("dpkg-deb")
    directory = tmp_path_factory.mktemp("built")
    for kind in KINDS:
        for path in Shared(tmp_path_factory).built(kind).iterdir():
            os.link(path, directory / path.name)
    return directory


def file_of(built: Path, pattern: str) -> Path:
    (path,) = (path for path in built.glob(pattern) if not path.name.endswith(".json"))
    return path


def test_each_built_twice_gives_the_same_bytes(built: Path, wheels: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere" / "and deeper"
    # The package takes most of the time, and has the same tree as the single file; `make soak` builds it, too.
    kinds = KINDS if LONG else ("wheel", "pyz")
    names = build(kinds, wheels, again, umask=0o077, zone="Asia/Tokyo")
    assert names == {path.name for path in built.iterdir() if LONG or "_" not in path.name}
    assert len(names) == 2 * len(kinds)
    assert [name for name in names if (built / name).read_bytes() != (again / name).read_bytes()] == []


def test_each_has_an_sbom_that_the_standard_s_schema_accepts(built: Path) -> None:
    validator = bill_of_materials_validator()
    for pattern in ("*.whl", "*.pyz", "*.deb"):
        sbom = Path(f"{file_of(built, pattern)}.cdx.json")
        assert validator.validate_str(sbom.read_text()) is None, sbom.name


def test_the_sbom_names_what_is_inside_by_version_and_hash(built: Path, wheels: Path) -> None:
    sbom = json.loads(Path(f"{file_of(built, '*.deb')}.cdx.json").read_text())
    inside = {part["name"]: (part["version"], part["hashes"][0]["content"]) for part in sbom["components"]}
    assert inside == {wheel.name: (wheel.version, wheel.sha256) for wheel in read_all(wheels)}
    wanted = json.loads(Path(f"{file_of(built, '*.whl')}.cdx.json").read_text())["components"]
    assert [part["properties"][0]["value"] for part in wanted] == requirements()


def run(*command: object, **environment: object) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_pipx_installs_the_same_program(built: Path, wheels: Path, tmp_path: Path) -> None:
    places = {f"PIPX_{name}": tmp_path for name in ("MAN_DIR", "COMPLETION_DIR")}
    places |= {"PIPX_HOME": tmp_path / "home", "PIPX_BIN_DIR": tmp_path / "bin"}
    pip = f"--pip-args=--no-index --find-links {wheels}"
    run(sys.executable, "-m", "pipx", "install", pip, file_of(built, "*.whl"), **places)
    assert run(tmp_path / "bin" / "qanat", "--version") == run(sys.executable, file_of(built, "*.pyz"), "--version")
    assert run(tmp_path / "bin" / "qanat", "token").startswith("qanat1-")
    manuals = {"man1/qanat.1", "man5/qanat.yaml.5", *(f"man1/qanat-{name}.1" for name in COMMANDS)}
    shared = {*manuals, "bash-completion/completions/qanat", "zsh/site-functions/_qanat"}
    assert [name for name in sorted(shared) if not (tmp_path / name).is_file()] == []


def test_uv_installs_the_same_program(built: Path, wheels: Path, tmp_path: Path) -> None:
    places = {"UV_TOOL_DIR": tmp_path / "home", "UV_TOOL_BIN_DIR": tmp_path / "bin", "UV_CACHE_DIR": tmp_path / "cache"}
    uv = [sys.executable, "-m", "uv", "tool", "install", "--offline", "--no-index", "--find-links", wheels]
    run(*uv, "--python", sys.executable, file_of(built, "*.whl"), **places)
    assert run(tmp_path / "bin" / "qanat", "token").startswith("qanat1-")


def test_lintian_finds_nothing(built: Path) -> None:
    long_only()
    lintian = require_program("lintian")
    assert run(lintian, "--allow-root", "--fail-on", "error,warning", file_of(built, "*.deb")) == ""


def fresh_debian(directory: Path, built: Path) -> Path:
    """Make a Debian in which nothing is installed but what the package asks for and the tests need."""
    mmdebstrap, root = require_program("mmdebstrap"), directory / "debian"
    more = "python3,ca-certificates,procps,man-db,systemd,cron"
    run(mmdebstrap, "--variant=apt", f"--include={more}", "bookworm", root, "http://deb.debian.org/debian")
    (root / "qanat.deb").write_bytes(file_of(built, "*.deb").read_bytes())
    return root


INSTALLED = """\
rm -rf /etc/qanat /var/lib/qanat
dpkg -i {deb} >/dev/null
id -u qanat >/dev/null
qanat --version
init() {{ qanat init /etc/qanat --listen 127.0.0.1:18443 >/dev/null; }}
init
for role in server client; do qanat service install --manager cron -c /etc/qanat/$role.yaml; done
qanat service status
for role in server client; do
    pid=$(cat /var/lib/qanat/qanat-$role.pid)
    test "$(stat -c %U /proc/$pid)" = qanat
done
runuser -u qanat -- env STATE_DIRECTORY=/var/lib/qanat qanat wait -c /etc/qanat/client.yaml --timeout 60
python3 - <<END
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:18080/healthz", timeout=60).read())
END
man --where qanat qanat-server qanat.yaml
systemd-analyze verify --man=no qanat-server.service qanat-client.service qanat-client@office.service
dpkg --remove qanat 2>&1
for process in /proc/[0-9]*; do
    if tr '\\0' ' ' <$process/cmdline | grep /usr/bin/qanat; then echo it runs still; exit 1; fi
done
test -z "$(ls /etc/cron.d | grep qanat)"
test -e /etc/qanat/server.key
test ! -e /usr/lib/qanat
dpkg --purge qanat >/dev/null
test ! -e /etc/qanat
test ! -e /var/lib/qanat
echo nothing is left
"""


def test_the_debian_package_runs_a_service_and_leaves_nothing_running(built: Path, tmp_path: Path) -> None:
    with copy_of_this_machine(tmp_path) as root:
        said = run_in(root, INSTALLED.format(deb=file_of(built, "*.deb")))
    assert "started qanat-server as process" in said
    assert "ok" in said
    assert "stopped qanat-client" in said
    assert said.endswith("nothing is left\n")


UNDER_SYSTEMD = """\
dpkg -i /qanat.deb
qanat init /etc/qanat --listen 127.0.0.1:18443
for role in server client; do qanat service install -c /etc/qanat/$role.yaml; done
qanat wait -c /etc/qanat/client.yaml --timeout 60
systemctl status --no-pager qanat-client | grep 'Status: "connected to '
pid=$(systemctl show -p MainPID --value qanat-server)
test "$(stat -c %U /proc/$pid)" = qanat
grep 'CapEff:.0000000000000000' /proc/$pid/status
if nsenter -t $pid -m touch /usr/written || nsenter -t $pid -m touch /etc/qanat/written; then exit 1; fi
nsenter -t $pid -m touch /var/lib/qanat/written
systemctl reload qanat-server
mkdir /run/systemd/system/qanat-server.service.d
printf '[Service]\\nWatchdogSec=5\\n' >/run/systemd/system/qanat-server.service.d/soon.conf
systemctl daemon-reload
systemctl restart qanat-server
sleep 12
test "$(systemctl show -p NRestarts --value qanat-server)" = 0
kill -STOP $(systemctl show -p MainPID --value qanat-server)
for second in $(seq 60); do
    test "$(systemctl show -p NRestarts --value qanat-server)" = 0 || break
    sleep 1
done
test "$(systemctl show -p NRestarts --value qanat-server)" = 1
qanat wait -c /etc/qanat/client.yaml --timeout 90
apt-get remove -y -qq qanat
test -z "$(systemctl list-units --all --no-legend 'qanat*')"
test -z "$(find /etc/systemd /run/systemd/system -name 'qanat*.service')"
if grep -z '/usr/bin/qana[t]' /proc/[0-9]*/cmdline; then exit 1; fi
echo all is well
"""


def test_the_debian_package_under_systemd_in_a_fresh_debian(built: Path, tmp_path: Path) -> None:
    long_only()
    root = fresh_debian(tmp_path, built)
    assert boot_in(root, UNDER_SYSTEMD).endswith("all is well\n")


def test_the_debian_package_in_a_fresh_debian(built: Path, tmp_path: Path) -> None:
    long_only()
    root = fresh_debian(tmp_path, built)
    script = INSTALLED.replace("dpkg -i {deb} >/dev/null", "apt-get install -y -qq /qanat.deb >/dev/null")
    script = script.replace("dpkg --remove qanat", "apt-get remove -y qanat").replace("{{", "{").replace("}}", "}")
    assert run_in(root, script).endswith("nothing is left\n")


def test_every_command_and_key_has_its_manual(tmp_path: Path) -> None:
    mandoc = require_program("mandoc")
    pages = write_manuals(tmp_path)
    assert {page.name for page in pages} == {"qanat.1", "qanat.yaml.5", *(f"qanat-{name}.1" for name in COMMANDS)}
    assert run(mandoc, "-T", "lint", "-W", "warning", *pages) == ""
    client = run(mandoc, "-T", "utf8", tmp_path / "man1" / "qanat-client.1").replace("\b", "")
    assert "-token-file" in client
    keys = (tmp_path / "man5" / "qanat.yaml.5").read_text()
    for key in ("token\\-file".replace("\\-", "_"), "resume_for", "allow_connect", "initial_window"):
        assert f"\\fB{key}\\fR" in keys


COMPLETE = 'source "$1"; COMP_WORDS=("${@:2}"); COMP_CWORD=$(($# - 2)); _qanat; printf "%s\\n" "${COMPREPLY[@]}"'


def test_bash_completes_commands_options_and_choices(tmp_path: Path) -> None:
    script = tmp_path / "qanat"
    write_bash(script)

    def complete(*words: str) -> set[str]:
        return set(run("bash", "-c", COMPLETE, "bash", script, *words).split())

    assert complete("qanat", "se") == {"server", "service"}
    assert complete("qanat", "client", "--tok") == {"--token-file"}
    assert complete("qanat", "service", "un") == {"uninstall"}
    assert complete("qanat", "service", "install", "--manager", "s") == {"systemd", "supervisor"}


def test_zsh_takes_the_completion(tmp_path: Path) -> None:
    zsh = require_program("zsh")
    script = tmp_path / "_qanat"
    write_zsh(script)
    assert run(zsh, "-f", "-n", script) == ""
    # compinit finds the function by its first line; outside of a terminal no more can be asked.
    loaded = f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -d {tmp_path}/dump; echo $_comps[qanat]"
    assert run(zsh, "-f", "-c", loaded) == "_qanat\n"


def test_the_packaged_units_are_those_in_deploy_with_other_paths() -> None:
    for role in ("server", "client"):
        ours = (ROOT / "deploy" / f"qanat-{role}.service").read_text()
        lines = set(unit(role).splitlines()) - set(ours.replace("/usr/local/bin", "/usr/bin").splitlines())
        assert {line.partition("=")[0] for line in lines} == {"Documentation", "ConditionPathExists"}


def test_a_package_says_who_answers_for_it() -> None:
    assert maintainer({"DEBFULLNAME": "Jo Doe", "DEBEMAIL": "jo@example.com"}) == "Jo Doe <jo@example.com>"
    assert maintainer({}).endswith("@example.invalid>")
    for wrong in ({"DEBEMAIL": "nobody"}, {"DEBFULLNAME": "Doe, Jo"}, {"DEBFULLNAME": "Jo\nDepends: x"}):
        with pytest.raises(ValueError, match="DEBFULLNAME"):
            maintainer(wrong)


@pytest.fixture
def image(wheels: Path, tmp_path: Path) -> Path:
    """The root file system that the Dockerfile makes, without building it."""
    require_program("apt-get")
    own = build_wheel(tmp_path / "own")
    every = sorted([read(own), *read_all(wheels)], key=lambda wheel: wheel.name)
    lay_out(every, tmp_path / "context", on_debian=True)
    return tmp_path / "context" / "root"


READ_ONLY = """\
mount --bind {root} {root} && mount -o remount,ro,bind {root} &&
mount -t tmpfs -o uid={user},gid={user} tmpfs {state} &&
exec setpriv --no-new-privs chroot --userspec={user}:{user} {root} /usr/bin/python3 -I /usr/bin/qanat {words}
"""


def test_the_image_runs_read_only_without_root_or_a_shell(image: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can enter another root")
    assert not [path for name in ("sh", "bash", "dash", "busybox") for path in image.glob(f"**/bin/{name}")]
    unshare = require_program("unshare")

    def inside(words: str) -> str:
        script = READ_ONLY.format(root=image, state=image / "var" / "lib", user=USER, words=words)
        return run(unshare, "--mount", "/bin/sh", "-c", script, STATE_DIRECTORY="/var/lib", SHELL="/nonexistent")

    (image / "var" / "lib").mkdir(parents=True, exist_ok=True)
    assert inside("--version").startswith("qanat ")
    assert "Wrote /var/lib/office/server.yaml" in inside("init /var/lib/office")


def test_the_image_is_built_twice_with_the_same_bytes(wheels: Path, tmp_path: Path) -> None:
    long_only()
    require_program("buildah")
    for name in ("one", "two"):
        build(["oci"], wheels, tmp_path / name)
    (one,), (two,) = ((tmp_path / name).glob("*.oci.tar") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert bill_of_materials_validator().validate_str(Path(f"{one}.cdx.json").read_text()) is None
    config = read_manifest(one)["config"]
    assert config["User"] == f"{USER}:{USER}"
    with tarfile.open(one) as archive:
        sizes = [member.size for member in archive.getmembers() if member.name.startswith("blobs/")]
    assert max(sizes) < 40_000_000


def test_a_manual_in_the_package_is_compressed_without_a_time(built: Path, tmp_path: Path) -> None:
    run("dpkg-deb", "-x", file_of(built, "*.deb"), tmp_path)
    page = (tmp_path / "usr/share/man/man1/qanat.1.gz").read_bytes()
    assert page[4:8] == bytes(4)  # MTIME, RFC 1952 section 2.3
    assert b".SH NAME" in gzip.decompress(page)
