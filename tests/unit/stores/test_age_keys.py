"""Keys of age: which are used, and what is said of the others, without showing a secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import age
from vbackup.stores import age_keys, bech32
from vbackup.stores.age_keys import Identity

SECRET = bech32.encode("age-secret-key-", bytes(range(32))).upper()


def test_keys_are_those_of_age_keygen(tmp_path: Path) -> None:
    pair = age.key_pair(tmp_path)
    [line] = [line for line in pair.path.read_text().splitlines() if not line.startswith("#")]
    assert str(age_keys.identity(line).recipient) == pair.recipient
    assert age_keys.recipient(pair.recipient) == age_keys.identity(line).recipient


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (SECRET, "secret key.*age-keygen -y"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI", "SSH key.*age-keygen"),
        ("ssh-rsa AAAAB3NzaC1yc2E", "SSH key"),
        (bech32.encode("age1yubikey", bytes(33)), r"plugin.*\(yubikey\)"),
        (bech32.encode("age1pq", bytes(1216)), r"another kind than X25519 \(pq\)"),
        (bech32.encode("age", bytes(31)), "no X25519 recipient"),
        (bech32.encode("bc", bytes(32)), "no X25519 recipient"),
        (bech32.encode("age", bytes(32))[:-1] + "2", "begins with age1.*checksum"),
        ("somebody@example.org", "begins with age1"),
    ],
)
def test_recipient_that_cannot_be_used(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        age_keys.recipient(text)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (bech32.encode("age", bytes(32)), "recipient, which can only seal"),
        ("AGE-PLUGIN-YUBIKEY-1QQQQQQQQQQ", "plugin"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "SSH key"),
        (SECRET[:-1] + ("Q" if SECRET[-1] != "Q" else "P"), "checksum"),
        (bech32.encode("age-secret-key-", bytes(31)).upper(), "X25519"),
        ("hunter2", "AGE-SECRET-KEY-1"),
    ],
)
def test_identity_that_cannot_be_used(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        age_keys.identity(text)
    assert text[5:] not in str(raised.value)


def test_secret_is_in_no_repr() -> None:
    identity = Identity(bytes(range(32)))
    assert not re.search(r"\\x|key=", repr(identity))
