"""Where the keys of S3 come from, and where a bucket is."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from vbackup.errors import StorageError, UsageError
from vbackup.stores import aws
from vbackup.stores.signing import Keys

OWN = {"AWS_ACCESS_KEY_ID": "own", "AWS_SECRET_ACCESS_KEY": "own-secret"}


@pytest.fixture(name="home")
def aws_home(tmp_path: Path) -> dict[str, str]:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = standard\naws_secret_access_key = standard-secret\n"
        "[offsite]\naws_access_key_id = offsite\naws_secret_access_key = offsite%secret\naws_session_token = token\n"
    )
    (tmp_path / ".aws" / "config").write_text(
        "[default]\nregion = eu-west-1\n[profile offsite]\nregion = eu-central-1\nendpoint_url = https://s3.example.org\n"
    )
    return {"HOME": os.fspath(tmp_path)}


def test_settings_come_before_a_profile(home: dict[str, str]) -> None:
    assert aws.KeySource({**home, **OWN}).current() == Keys("own", "own-secret")
    assert aws.KeySource(home).current() == Keys("standard", "standard-secret")
    assert aws.KeySource({**home, "AWS_PROFILE": "offsite"}).current() == Keys("offsite", "offsite%secret", "token")


def test_endpoint(home: dict[str, str]) -> None:
    assert aws.endpoint({"HOME": "/nonexistent"}).url == "https://s3.us-east-1.amazonaws.com"
    assert aws.endpoint(home) == aws.Endpoint(
        "https://s3.eu-west-1.amazonaws.com", "eu-west-1", is_virtual_hosted=False
    )
    offsite = {**home, "AWS_PROFILE": "offsite"}
    assert aws.endpoint(offsite) == aws.Endpoint("https://s3.example.org", "eu-central-1", is_virtual_hosted=False)
    assert aws.endpoint({**offsite, "AWS_ENDPOINT_URL": "http://127.0.0.1:8333/"}).url == "http://127.0.0.1:8333"
    assert not aws.endpoint({**offsite, "AWS_ENDPOINT_URL": "http://127.0.0.1:8333"}).is_encrypted


@pytest.mark.parametrize(
    "url",
    ["s3.example.org", "ftp://x", "https://", "https://host/bucket", "https://user@host", "https://[", "https://h:x"],
)
def test_what_is_no_endpoint(url: str) -> None:
    with pytest.raises(UsageError, match="not an endpoint"):
        aws.endpoint({"HOME": "/nonexistent", "AWS_ENDPOINT_URL": url})


def test_password_in_an_endpoint_is_not_shown() -> None:
    with pytest.raises(UsageError) as raised:
        aws.endpoint({"HOME": "/nonexistent", "AWS_ENDPOINT_URL": "https://user:hidden@host"})
    assert "hidden" not in str(raised.value)


def test_profile_that_is_not_there(home: dict[str, str]) -> None:
    with pytest.raises(StorageError, match="no profile 'other'"):
        aws.KeySource({**home, "AWS_PROFILE": "other"}).current()


def test_no_keys() -> None:
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID"):
        aws.KeySource({"HOME": "/nonexistent"}).current()


def test_damaged_file_is_not_shown(home: dict[str, str]) -> None:
    (Path(home["HOME"]) / ".aws" / "credentials").write_text("hidden-secret\n")
    with pytest.raises(StorageError, match="malformed") as raised:
        aws.KeySource(home).current()
    assert "hidden" not in str(raised.value)


def program(home: dict[str, str], body: str) -> dict[str, str]:
    path = Path(home["HOME"]) / "print-keys"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    config = Path(home["HOME"]) / ".aws" / "config"
    config.write_text(f"[profile role]\ncredential_process = {path} --as 'a role'\n")
    return {**home, "AWS_PROFILE": "role"}


@pytest.mark.parametrize("zone", ["Z", "+00:00", ""])
def test_keys_that_expire_are_asked_for_again(home: dict[str, str], zone: str) -> None:
    soon = (datetime.now(timezone.utc) + timedelta(minutes=1)).strftime(f"%Y-%m-%dT%H:%M:%S{zone}")
    printed = {"Version": 1, "AccessKeyId": "role", "SecretAccessKey": "x", "SessionToken": "t", "Expiration": soon}
    counter = Path(home["HOME"]) / "counter"
    source = aws.KeySource(program(home, f"echo \"$2\" >> {counter}\necho '{json.dumps(printed)}'"))
    keys = source.current()
    assert (keys.access_key, keys.token) == ("role", "t")
    source.current()
    assert counter.read_text() == "a role\na role\n"


@pytest.mark.parametrize(
    ("body", "words"), [("echo no role >&2; exit 3", "failed: no role"), ("echo secret", "printed no keys")]
)
def test_program_that_fails(home: dict[str, str], body: str, words: str) -> None:
    with pytest.raises(StorageError, match=words):
        aws.KeySource(program(home, body)).current()


@pytest.mark.parametrize("command", ["print 'keys", '""', "#"])
def test_program_that_cannot_be_one(home: dict[str, str], command: str) -> None:
    settings = program(home, "")
    (Path(home["HOME"]) / ".aws" / "config").write_text(f"[profile role]\ncredential_process = {command}\n")
    with pytest.raises(StorageError, match="credential_process"):
        aws.KeySource(settings).current()
