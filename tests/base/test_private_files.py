"""Promises of files that are ours: who may read them, where a looser mode is right, and how they are written whole."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from qanat.base import private_files
from qanat.base.private_files import (
    Exposure,
    open_regular,
    read_exposure,
    reading_hint,
    replace_file,
    write_exposure,
    write_new,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("x")
    return path


def exposure(path: Path) -> Exposure | None:
    with open_regular(path) as file:
        return read_exposure(file, path)


def another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be somebody else than who owns the files of this test, as far as judging them goes."""
    monkeypatch.setattr(os, "geteuid", lambda: 54321)


def on_a_file_system(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(private_files, "_file_system", lambda device: kind)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can own what others read, or give a file away")


# --- who can read it --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_what_only_its_owner_can_read_is_private(secret: Path, mode: int) -> None:
    secret.chmod(mode)
    assert exposure(secret) is None


@pytest.mark.parametrize("mode", [0o640, 0o440, 0o604, 0o644, 0o620, 0o660, 0o610])
def test_our_own_file_that_others_can_open_is_not_and_chmod_cures_it(secret: Path, mode: int) -> None:
    secret.chmod(mode)
    assert exposure(secret) == Exposure(mode, f"chmod 600 {secret}")


@needs_root
@pytest.mark.parametrize(("mode", "private"), [(0o440, True), (0o640, True), (0o444, False), (0o460, False)])
def test_what_root_lets_our_group_read_is_private(
    secret: Path, mode: int, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes' fsGroup, and a systemd credential, whose access list shows as the group's bits."""
    secret.chmod(mode)
    another_user(monkeypatch)
    found = exposure(secret)
    assert (found is None) == private
    if found is not None:
        assert "chmod 600" not in found.cure  # which this user cannot do
        assert "defaultMode: 0440" in found.cure


@needs_root
def test_what_a_third_user_owns_is_not_and_the_cure_says_chown(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(secret, 12345, 12345)
    secret.chmod(0o440)
    another_user(monkeypatch)
    found = exposure(secret)
    assert found is not None
    assert "chown 54321" in found.cure


@needs_root
def test_roots_own_file_on_a_read_only_mount_may_be_read_by_its_group(
    secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret.chmod(0o440)
    assert exposure(secret) is not None
    real = os.fstatvfs

    def read_only(descriptor: int) -> os.statvfs_result:
        values = list(real(descriptor))
        values[8] |= os.ST_RDONLY
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "fstatvfs", read_only)
    assert exposure(secret) is None


def test_what_systemd_made_for_this_service_is_private_whatever_its_mode(
    secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret.chmod(0o444)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secret.parent))
    assert exposure(secret) is None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secret.parent / "elsewhere"))
    assert exposure(secret) is not None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "")
    assert exposure(secret) is not None


def test_a_link_into_the_credentials_counts_and_one_out_of_them_does_not(
    secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret.chmod(0o444)
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "out").symlink_to(secret)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    assert exposure(tmp_path / "credentials" / "out") is not None
    (tmp_path / "credentials" / "inside").write_text("x")
    (tmp_path / "in").symlink_to(tmp_path / "credentials" / "inside")
    assert exposure(tmp_path / "in") is None


@pytest.mark.parametrize(("mode", "private"), [(0o444, True), (0o644, True), (0o664, False), (0o646, False)])
def test_what_containers_mount_as_a_secret_is_private_when_others_cannot_change_it(
    secret: Path, mode: int, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret.chmod(mode)
    monkeypatch.setattr(private_files, "_SECRETS", secret.parent)
    assert (exposure(secret) is None) == private


@pytest.mark.parametrize("outcome", ["refused", "nothing"])
def test_where_chmod_has_no_effect_a_file_of_ours_is_private(
    secret: Path, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fchmod(descriptor: int, mode: int) -> None:
        if outcome == "refused":
            raise PermissionError(errno.EPERM, "Operation not permitted")

    secret.chmod(0o777)
    on_a_file_system(monkeypatch, "vfat")
    monkeypatch.setattr(os, "fchmod", fchmod)
    assert exposure(secret) is None
    on_a_file_system(monkeypatch, "ext4")
    assert exposure(secret) is not None


def test_where_chmod_has_an_effect_after_all_the_file_stays_as_it_was(
    secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9p and CIFS have modes with some options."""
    secret.chmod(0o644)
    on_a_file_system(monkeypatch, "9p")
    assert exposure(secret) == Exposure(0o644, f"chmod 600 {secret}")
    assert secret.stat().st_mode & 0o777 == 0o644


def test_the_type_of_a_file_system_is_found(tmp_path: Path) -> None:
    assert private_files._file_system(Path("/proc/self").stat().st_dev) == "proc"
    assert private_files._file_system(os.makedev(0, 0)) == ""


# --- who can change it ------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "safe"), [(0o600, True), (0o644, True), (0o664, False), (0o666, False)])
def test_what_others_can_write_can_be_changed_by_them(secret: Path, mode: int, safe: bool) -> None:
    secret.chmod(mode)
    with open_regular(secret) as file:
        assert (write_exposure(file, secret) is None) == safe


@needs_root
def test_what_another_user_owns_can_be_changed_by_him(secret: Path) -> None:
    secret.chmod(0o600)
    os.chown(secret, 12345, 12345)
    with open_regular(secret) as file:
        found = write_exposure(file, secret)
    assert found is not None
    assert "chown" in found.cure


# --- opening and writing ----------------------------------------------------------------------------


def test_what_cannot_be_read_has_a_hint_at_what_to_do(tmp_path: Path) -> None:
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    assert f"(uid {os.geteuid()}) must be able to read it" in reading_hint(denied, tmp_path)
    for path, hint in ((tmp_path / "none", "correct the path"), (tmp_path, "name a file that can be read")):
        with pytest.raises(OSError) as caught:
            open_regular(path)
        assert hint in reading_hint(caught.value, path)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"it is not a file|Is a directory"):
            open_regular(path)


def test_a_new_file_is_ours_alone_and_never_replaces_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    old = os.umask(0)
    try:
        assert write_new(path, b"first")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not write_new(path, b"second")
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"first", ["key"])


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(b"old")
    replace_file(path, b"new" * 100_000)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"new" * 100_000, ["hosts"])


def test_a_disk_that_is_full_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "hosts"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    for write in (replace_file, write_new):
        with pytest.raises(OSError, match="No space left"):
            write(path, b"new")
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["hosts"])


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_hard_links_a_new_file_still_replaces_none(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: object, target: object) -> None:
        if os.path.lexists(str(target)):
            raise FileExistsError(errno.EEXIST, "File exists")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    path, won = tmp_path / "key", []
    start = threading.Barrier(8)

    def contend(text: bytes) -> None:
        start.wait(30)
        if write_new(path, text):
            won.append(text)

    threads = [threading.Thread(target=contend, args=(b"%d" % number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert won == [path.read_bytes()]
    assert os.listdir(tmp_path) == ["key"]
