"""The server's key file: made once, whole, for one pair of eyes."""

from __future__ import annotations

import os
import re
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from qanat.base.errors import UsageError
from qanat.handshake.identity import load_or_create_identity
from qanat.handshake.keys import ServerIdentity, fingerprint_of


def write_private(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_the_first_start_makes_a_key_that_only_its_owner_can_read(tmp_path: Path) -> None:
    path = tmp_path / "server.key"
    made = load_or_create_identity(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert load_or_create_identity(path).fingerprint == made.fingerprint
    assert os.listdir(tmp_path) == ["server.key"]


def test_a_loose_umask_does_not_loosen_the_key(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load_or_create_identity(tmp_path / "server.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "server.key").stat().st_mode) == 0o600


def test_servers_that_start_at_once_end_with_one_key(tmp_path: Path) -> None:
    path = tmp_path / "server.key"
    fingerprints: list[str] = []
    threads = [
        threading.Thread(target=lambda: fingerprints.append(load_or_create_identity(path).fingerprint))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fingerprints) == 4
    assert len(set(fingerprints)) == 1
    assert os.listdir(tmp_path) == ["server.key"]


def test_a_missing_key_is_not_made_when_nobody_asked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no server key"):
        load_or_create_identity(tmp_path / "server.key", create=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o602, 0o620])
def test_a_key_that_others_can_read_or_change_is_refused(tmp_path: Path, identity: ServerIdentity, mode: int) -> None:
    path = write_private(tmp_path / "server.key", identity.to_pem(), mode)
    with pytest.raises(UsageError, match="by other users") as caught:
        load_or_create_identity(path)
    assert "chmod 600" in caught.value.hint


def foreign_keys() -> dict[str, bytes]:
    weak = rsa.generate_private_key(65537, 1024)
    curve = ec.generate_private_key(ec.SECP256R1())
    return {
        "rsa-1024": weak.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "rsa-2048": rsa.generate_private_key(65537, 2048).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        "ec": curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "encrypted": weak.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
        "empty": b"",
        "garbage": os.urandom(3000),
        "text": b"this is not a key\n",
        "half": b"-----BEGIN PRIVATE KEY-----\nMIIG\n-----END PRIVATE KEY-----\n",
        "huge": b"A" * 1_000_000,
    }


def test_a_key_file_that_is_garbage_or_another_kind_of_key_is_refused_and_kept(tmp_path: Path) -> None:
    for name, content in foreign_keys().items():
        path = write_private(tmp_path / name, content)
        with pytest.raises(UsageError):
            load_or_create_identity(path)
        assert path.read_bytes() == content, name


def test_a_key_cut_short_by_a_full_disk_is_refused(tmp_path: Path, identity: ServerIdentity) -> None:
    pem = identity.to_pem()
    path = write_private(tmp_path / "server.key", pem[: len(pem) // 2])
    with pytest.raises(UsageError):
        load_or_create_identity(path)


def test_something_that_is_not_a_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name in ("directory", "fifo"):
        with pytest.raises(UsageError):
            load_or_create_identity(tmp_path / name)


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="missing") as caught:
        load_or_create_identity(tmp_path / "missing" / "server.key")
    assert "directory" in caught.value.hint


def test_a_fingerprint_looks_like_openssh_s(identity: ServerIdentity) -> None:
    assert re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", identity.fingerprint)
    assert fingerprint_of(identity.spki) == identity.fingerprint


def test_the_file_is_pkcs8_that_other_programs_read(identity: ServerIdentity) -> None:
    key = load_pem_private_key(identity.to_pem(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == 3072


def test_no_key_shows_when_an_identity_is_printed(identity: ServerIdentity) -> None:
    assert "PRIVATE" not in repr(identity)
