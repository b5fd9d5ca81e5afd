"""What `doctor` advises, followed to the letter, cures a path.  All of them are in `python -m benchmarks.doctor`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broken_proxies import BROKEN, Broken
from tests.support.harness import Tunnel
from tests.support.machine.ports import unused_port
from tests.support.machine.processes import run_qanat
from tests.support.machine.programs import require_program
from tests.support.machine.web import HOST, Nginx
from tests.support.seeded_faults import SERVER

CHOSEN = ("nginx: a site with proxy_pass for everything", "Apache: ProxyPass inside a Location")


@pytest.fixture(scope="module")
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    with Tunnel(tmp_path_factory.mktemp("tunnel"), server=SERVER) as tunnel:
        tunnel.start_server()
        yield tunnel


@pytest.mark.slow
@pytest.mark.parametrize("one", [one for one in BROKEN if one.name in CHOSEN], ids=lambda one: one.name)
def test_the_patch_and_a_reload_make_the_path_sound(one: Broken, tunnel: Tunnel, tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)  # Apache's children are nobody in particular
    one.cure(tunnel, tmp_path / "proxy")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("location", "behind", "path"), [("= /hidden", "/tunnel", "/hidden"), ("/x/", "/", "/x/tunnel")]
)
def test_a_path_that_is_rewritten_and_sound_stays_so_with_the_patch(
    location: str, behind: str, path: str, tunnel: Tunnel, tmp_path: Path
) -> None:
    port, file = unused_port(), tmp_path / "site.conf"
    tmp_path.chmod(0o755)
    file.write_text(
        f"server {{\n    listen 127.0.0.1:{port};\n"
        f"    location {location} {{ proxy_pass http://127.0.0.1:{tunnel.port}{behind}; proxy_http_version 1.1;\n"
        '        proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; }\n}\n'
    )
    examine = ("doctor", f"ws://{HOST}:{port}{path}", "--proxy-config", file)
    with Nginx(tmp_path / "nginx", [f"include {file};"], port) as nginx:
        before = run_qanat(*examine)
        assert "body-limit" in before.stdout
        assert "wrong-path" not in before.stdout
        subprocess.run([require_program("patch"), "-p0", "-s", file], input=before.stdout, text=True, check=True)
        nginx.reload()
        after = run_qanat(*examine)
    assert after.returncode == 0, after.stdout


def test_those_that_are_chosen_are_there_and_there_are_enough() -> None:
    names = [one.name for one in BROKEN]
    assert set(CHOSEN) <= set(names)
    assert len(set(names)) == len(names) >= 10
    assert len({one.program for one in BROKEN}) == 5
