"""Tokens and certificates: what admits, and what is refused before anybody can connect."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from multidict import CIMultiDict

from tests import certificates
from vbackup.errors import StorageError
from vbackup.http import access
from vbackup.http.access import Token

SECRET = "0123456789abcdef-token"


@pytest.mark.parametrize(
    ("headers", "admits"),
    [
        ({"Authorization": f"Bearer {SECRET}"}, True),
        ({"authorization": f"bearer  {SECRET}"}, True),
        ({"X-Kubevirt-Export-Token": SECRET}, True),
        ({}, False),
        ({"Authorization": SECRET}, False),
        ({"Authorization": "Bearer"}, False),
        ({"Authorization": "Bearer "}, False),
        ({"Authorization": f"Bearer {SECRET}x"}, False),
        ({"Authorization": f"Bearer {SECRET[:-1]}"}, False),
        ({"Authorization": f"Basic {SECRET}"}, False),
        ({"Authorization": "Bearer \udcff\u00e4"}, False),
        ({"x-kubevirt-export-token": ""}, False),
    ],
)
def test_token_admits_who_has_it(headers: dict[str, str], admits: bool) -> None:
    assert Token(SECRET.encode()).admits(CIMultiDict(headers)) is admits


def test_token_is_read_and_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    token = access.read_token(path)
    assert token.admits({"Authorization": f"Bearer {SECRET}"})
    assert SECRET not in str(vars(token))


@pytest.mark.parametrize("content", ["", "short", "has a blank in it, has it", "\0" * 32, "\u00e4" * 32, "a" * 4097])
def test_token_that_is_none_is_refused_without_its_words(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(StorageError, match="one line of 16 to 4096") as caught:
        access.read_token(path)
    assert not content or content not in str(caught.value)


def test_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(SECRET)
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(StorageError, match="with mode 0600"):
            access.read_token(path)
    with pytest.raises(StorageError, match="No such file"):
        access.read_token(tmp_path / "none")


def test_certificates_are_loaded(tmp_path: Path) -> None:
    directory = certificates.make(tmp_path / "pki")
    context = access.server_context(directory, verify_peer=True)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert access.server_context(directory, verify_peer=False).verify_mode is ssl.CERT_NONE


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"it needs server-cert\.pem and server-key\.pem\."):
        access.server_context(tmp_path, verify_peer=False)
    directory = certificates.make(tmp_path / "pki")
    (directory / "server-key.pem").write_text("nonsense")
    with pytest.raises(StorageError, match="cannot be used"):
        access.server_context(directory, verify_peer=False)
    directory = certificates.make(tmp_path / "pki")
    (directory / "ca-cert.pem").unlink()
    with pytest.raises(StorageError, match=r"and ca-cert\.pem of the clients"):
        access.server_context(directory, verify_peer=True)
