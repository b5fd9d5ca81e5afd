"""Promises of the known-hosts file."""

from __future__ import annotations

import base64
import multiprocessing
import os
import stat
import threading
from pathlib import Path

import pytest

from qanat.base.errors import RefusedError, UsageError
from qanat.client.known_hosts import KnownHosts


def fingerprint(seed: int) -> str:
    return "SHA256:" + base64.b64encode(bytes([seed]) * 32).decode().rstrip("=")


ONE, TWO = fingerprint(1), fingerprint(2)


@pytest.fixture
def known(tmp_path: Path) -> KnownHosts:
    return KnownHosts(tmp_path / "known_hosts")


def test_a_server_is_trusted_on_first_use_and_recognized_afterwards(known: KnownHosts) -> None:
    assert not known.check("tunnel.example.com:443", ONE)
    known.remember("tunnel.example.com:443", ONE)
    assert known.check("tunnel.example.com:443", ONE)
    assert KnownHosts(known.path).check("Tunnel.Example.COM:443", ONE)


def test_asking_alone_records_nothing(known: KnownHosts) -> None:
    assert not known.check("tunnel.example.com:443", ONE)
    assert list(known.path.parent.iterdir()) == []


def test_a_changed_key_is_refused_loudly_with_the_line_to_delete(known: KnownHosts) -> None:
    known.remember("other.example.com:443", TWO)
    known.remember("tunnel.example.com:443", ONE)
    with pytest.raises(RefusedError) as caught:
        known.check("tunnel.example.com:443", TWO)
    assert caught.value.final
    text = str(caught.value)
    number = next(n for n, line in enumerate(known.path.read_text().splitlines(), 1) if line.startswith("tunnel."))
    assert "THE SERVER'S KEY HAS CHANGED" in text
    for expected in (str(known.path), f"line {number}", f"delete line {number}", ONE, TWO, "tunnel.example.com:443"):
        assert expected in text


def test_a_refused_key_is_not_remembered(known: KnownHosts) -> None:
    known.remember("tunnel.example.com:443", ONE)
    before = known.path.read_bytes()
    with pytest.raises(RefusedError):
        known.remember("tunnel.example.com:443", TWO)
    assert known.path.read_bytes() == before
    assert known.check("tunnel.example.com:443", ONE)


def test_deleting_the_line_as_told_lets_the_new_key_in(known: KnownHosts) -> None:
    known.remember("tunnel.example.com:443", ONE)
    lines = known.path.read_text().splitlines(keepends=True)
    known.path.write_text("".join(line for line in lines if not line.startswith("tunnel.")))
    known.remember("tunnel.example.com:443", TWO)
    assert known.check("tunnel.example.com:443", TWO)


def test_the_same_name_on_another_port_is_another_server(known: KnownHosts) -> None:
    known.remember("tunnel.example.com:443", ONE)
    assert not known.check("tunnel.example.com:8443", TWO)
    known.remember("[2001:db8::1]:443", TWO)
    assert known.check("[2001:DB8::1]:443", TWO)


def test_remembering_twice_leaves_one_line(known: KnownHosts) -> None:
    known.remember("tunnel.example.com:443", ONE)
    before = known.path.read_bytes()
    known.remember("tunnel.example.com:443", ONE)
    assert known.path.read_bytes() == before


def test_the_file_is_the_users_own_and_no_temporary_file_stays(tmp_path: Path) -> None:
    known = KnownHosts(tmp_path / "state" / "known_hosts")
    known.remember("tunnel.example.com:443", ONE)
    assert stat.S_IMODE(known.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(known.path.parent.stat().st_mode) == 0o700
    assert {p.name for p in known.path.parent.iterdir()} == {"known_hosts", "known_hosts.lock"}


def test_comments_empty_lines_and_a_missing_last_newline_are_kept(known: KnownHosts) -> None:
    known.path.write_text(f"# mine\n\nother.example.com:443 {TWO}")
    known.path.chmod(0o600)
    known.remember("tunnel.example.com:443", ONE)
    assert known.path.read_text() == f"# mine\n\nother.example.com:443 {TWO}\ntunnel.example.com:443 {ONE}\n"


@pytest.mark.parametrize("line", ["garbage", "a:1 SHA256:short", "a:1 MD5:x", f"a:1 {ONE} x", "\xff\xfe"])
def test_a_line_that_cannot_be_read_is_not_passed_over(known: KnownHosts, line: str) -> None:
    known.path.write_bytes(b"# first\n" + line.encode("latin-1") + b"\n")
    known.path.chmod(0o600)
    with pytest.raises(UsageError, match="line 2"):
        known.check("tunnel.example.com:443", ONE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_that_another_user_put_there_is_refused(known: KnownHosts) -> None:
    known.remember("tunnel.example.com:443", ONE)
    os.chown(known.path, 65534, 65534)
    with pytest.raises(UsageError, match="can be changed by others"):
        known.check("tunnel.example.com:443", ONE)


def test_what_is_no_file_of_known_hosts_neither_blocks_nor_fills_the_memory(known: KnownHosts) -> None:
    known.path.parent.mkdir(exist_ok=True)
    os.mkfifo(known.path, 0o600)
    with pytest.raises(UsageError, match="cannot read"):
        known.check("tunnel.example.com:443", ONE)
    known.path.unlink()
    known.path.touch(0o600)
    os.truncate(known.path, 1 << 40)
    with pytest.raises(UsageError, match="something else"):
        known.check("tunnel.example.com:443", ONE)


def test_a_file_that_others_can_change_is_refused_with_the_cure(known: KnownHosts) -> None:
    known.remember("tunnel.example.com:443", ONE)
    known.path.chmod(0o666)
    with pytest.raises(UsageError, match=f"chmod 600 {known.path}"):
        known.check("tunnel.example.com:443", ONE)


def test_a_place_that_cannot_be_written_is_said_with_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    known = KnownHosts(tmp_path / "file" / "known_hosts")
    with pytest.raises(UsageError, match="state_dir"):
        known.remember("tunnel.example.com:443", ONE)


@pytest.mark.parametrize("host", ["", "a b:1", "a\n:1", "#a:1"])
def test_a_host_that_would_break_the_file_is_refused(known: KnownHosts, host: str) -> None:
    with pytest.raises(UsageError):
        known.remember(host, ONE)
    with pytest.raises(UsageError):
        known.remember("a:1", "SHA256:short")


def test_threads_that_remember_at_once_lose_nothing(known: KnownHosts) -> None:
    start = threading.Barrier(8)

    def remember(number: int) -> None:
        start.wait(30)
        KnownHosts(known.path).remember(f"host{number}:443", ONE)

    threads = [threading.Thread(target=remember, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(known.check(f"host{n}:443", ONE) for n in range(8))


def _remember_some(path: Path, first: int) -> None:
    for number in range(first, first + 5):
        KnownHosts(path).remember(f"host{number}:443", ONE)


@pytest.mark.skipif(os.name == "nt", reason="fork is not there")
def test_processes_that_remember_at_once_lose_nothing(known: KnownHosts) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_remember_some, args=(known.path, 5 * n)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
        process.close()
    assert all(known.check(f"host{n}:443", ONE) for n in range(15))


def test_a_place_that_cannot_be_written_is_said_before_anything_is_dialed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot read .*state_dir"):
        KnownHosts(tmp_path / "file" / "known_hosts").check_usable(["a:1"])
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "else")
    with pytest.raises(UsageError, match=r"cannot write .*state_dir"):
        KnownHosts(tmp_path / "link" / "known_hosts").check_usable(["a:1"])


def test_what_is_known_already_need_not_be_written(known: KnownHosts, monkeypatch: pytest.MonkeyPatch) -> None:
    known.remember("a.example.com:443", ONE)

    def read_only(path: object, flags: int, mode: int = 0o777) -> int:
        raise OSError(30, "Read-only file system")

    known.check_usable(["A.example.com:443"])
    before = sorted(known.path.parent.iterdir())
    known.check_usable(["b.example.com:443"])
    assert sorted(known.path.parent.iterdir()) == before  # trying leaves nothing behind
    monkeypatch.setattr("qanat.base.private_files.Draft.__init__", read_only)
    known.check_usable(["a.example.com:443"])
    with pytest.raises(UsageError, match="Read-only file system"):
        known.check_usable(["a.example.com:443", "b.example.com:443"])


def test_a_file_system_without_locks_is_no_reason_to_trust_nobody(
    known: KnownHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    known.remember("a.example.com:443", ONE)
    assert known.check("a.example.com:443", ONE)
