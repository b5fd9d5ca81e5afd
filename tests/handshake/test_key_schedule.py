"""The key schedule: the standard's own vectors, and what every key hangs on."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from qanat.base.errors import LocalError
from qanat.handshake import key_schedule
from qanat.handshake.keys import ClientKey, ServerIdentity
from qanat.handshake.messages import AUTH_LABEL, SESSION_LABEL, Auth, AuthPlaintext, SessionKey
from tests.support.handshake.scenario import NAME, OTHER_TOKEN, TOKEN, complete, make_client, make_server


def test_extract_and_expand_give_what_rfc_5869_lists() -> None:
    """Appendix A.1, whose 42 bytes are cut to the one block that is used here."""
    prk = key_schedule.extract(bytes.fromhex("000102030405060708090a0b0c"), b"\x0b" * 22)
    assert prk.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    block = key_schedule.expand(prk, bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"))
    assert block.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


@pytest.mark.parametrize("length", [1, 12, 32])
def test_extract_and_expand_agree_with_another_implementation(length: int) -> None:
    other = HKDF(hashes.SHA256(), length, salt=b"salt", info=b"qanat/1 key").derive(b"material")
    assert key_schedule.expand(key_schedule.extract(b"salt", b"material"), b"qanat/1 key", length) == other


@pytest.mark.parametrize("length", [0, 33, -1])
def test_expand_never_gives_less_than_asked(length: int) -> None:
    with pytest.raises(LocalError):
        key_schedule.expand(bytes(32), b"info", length)


def test_no_input_of_the_keys_can_be_left_out() -> None:
    """Each of token, transcript and both secrets changes every key and the proof."""
    k_tok, transcript, client_secret, server_secret = (bytes([n]) * 32 for n in range(4))
    usual = key_schedule.session_secrets(k_tok, transcript, client_secret, server_secret)
    changed = bytes([9]) * 32
    others = [
        key_schedule.session_secrets(changed, transcript, client_secret, server_secret),
        key_schedule.session_secrets(k_tok, changed, client_secret, server_secret),
        key_schedule.session_secrets(k_tok, transcript, changed, server_secret),
        key_schedule.session_secrets(k_tok, transcript, client_secret, changed),
    ]
    for name in ("server_proof", "c2s", "s2c", "resume", "split"):
        assert len({getattr(secrets, name) for secrets in [usual, *others]}) == 5


def test_moving_bytes_between_messages_changes_the_transcript() -> None:
    assert key_schedule.transcript_hash(b"ab", b"c", b"d", b"e") != key_schedule.transcript_hash(
        b"a", b"bc", b"d", b"e"
    )
    assert key_schedule.client_proof(bytes(32), b"ab", b"c", b"d") != key_schedule.client_proof(
        bytes(32), b"a", b"bc", b"d"
    )


def test_no_secret_shows_when_secrets_are_printed() -> None:
    secrets = key_schedule.session_secrets(bytes(32), bytes(32), bytes(32), bytes(32))
    assert repr(secrets) == "SessionSecrets()"


class TestForwardSecrecy:
    """Who recorded a session and later steals everything that lasts still cannot read it."""

    def test_token_and_server_key_together_do_not_open_a_recorded_session(
        self, identity: ServerIdentity, client_key: ClientKey, other_client_key: ClientKey
    ) -> None:
        server, client = make_server(identity), make_client(client_key)
        m1 = server.start()
        m2, m3 = client.receive(m1)
        server.receive(m2)
        (m4,) = server.receive(m3)
        client.receive(m4)
        recorded = SessionKey.decode(m4)
        inside = identity.decrypt(Auth.decode(m2).ciphertext, AUTH_LABEL)
        assert inside is not None
        client_secret = AuthPlaintext.decode(inside).client_secret
        k_tok = key_schedule.token_key(NAME, TOKEN)
        transcript = key_schedule.transcript_hash(m1, m2, m3, recorded.encode_before_proof())

        def derive(server_secret: bytes) -> bytes:
            return key_schedule.session_secrets(k_tok, transcript, client_secret, server_secret).c2s

        # Nothing that lasts opens M4 …
        assert identity.decrypt(recorded.ciphertext, SESSION_LABEL) is None
        assert other_client_key.decrypt(recorded.ciphertext, SESSION_LABEL) is None
        for guess in (b"", bytes(32), client_secret, TOKEN, transcript):
            assert derive(guess) != client.result.c2s
        # … and it is the ephemeral key alone that was missing.
        server_secret = client_key.decrypt(recorded.ciphertext, SESSION_LABEL)
        assert server_secret is not None
        assert derive(server_secret) == client.result.c2s

    def test_breaking_rsa_alone_is_not_enough_without_the_token(
        self, identity: ServerIdentity, client_key: ClientKey
    ) -> None:
        result, _ = complete(make_client(client_key), make_server(identity))
        # Whoever breaks RSA has both secrets and the transcript; the keys also hang on the token.
        known = (result.transcript, bytes(32), bytes(32))
        right = key_schedule.session_secrets(key_schedule.token_key(NAME, TOKEN), *known)
        wrong = key_schedule.session_secrets(key_schedule.token_key(NAME, OTHER_TOKEN), *known)
        other_name = key_schedule.session_secrets(key_schedule.token_key("other", TOKEN), *known)
        assert len({right.c2s, wrong.c2s, other_name.c2s}) == 3
        assert len({right.server_proof, wrong.server_proof, other_name.server_proof}) == 3
