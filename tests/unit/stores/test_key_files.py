"""Keys from files and programs: modes, comments, wrong lines; nothing secret in a message."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import age
from vbackup.errors import IdentityError, UsageError
from vbackup.stores import bech32, key_files
from vbackup.stores.age_header import MAX_RECIPIENTS

SECRETS = [bech32.encode("age-secret-key-", bytes([number]) * 32).upper() for number in (1, 2)]
PUBLIC = [bech32.encode("age", bytes([number]) * 32) for number in range(1, 30)]


def test_recipients_of_words_and_files(tmp_path: Path) -> None:
    path = tmp_path / "recipients"
    path.write_text(f"# the safe\n{PUBLIC[1]}\n\n{PUBLIC[0]}  \n")
    assert [str(each) for each in key_files.recipients([PUBLIC[0]], [path])] == PUBLIC[:2]


def test_wrong_recipients(tmp_path: Path) -> None:
    path = tmp_path / "recipients"
    path.write_text(f"{PUBLIC[0]}\nssh-rsa AAAA\n")
    with pytest.raises(UsageError, match="line 2: it is an SSH key"):
        key_files.recipients([], [path])
    with pytest.raises(UsageError, match="No such file"):
        key_files.recipients([], [tmp_path / "missing"])
    path.write_text("# nothing\n")
    with pytest.raises(UsageError, match="no key"):
        key_files.recipients([], [path])
    with pytest.raises(UsageError, match="secret key") as raised:
        key_files.recipients([SECRETS[0]], [])
    assert SECRETS[0] not in str(raised.value)
    with pytest.raises(UsageError, match=str(MAX_RECIPIENTS)):
        key_files.recipients(PUBLIC, [])


def test_identities_of_a_file_and_a_command(tmp_path: Path) -> None:
    path = tmp_path / "my key"
    path.write_text(f"# public key: x\n{SECRETS[0]}\n{SECRETS[1]}\n")
    path.chmod(0o600)
    of_file = key_files.identities([str(path)])
    assert len(of_file) == 2
    assert key_files.identities([f"command:cat '{path}'", str(path)]) == of_file


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_identity_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_text(SECRETS[0])
    path.chmod(mode)
    with pytest.raises(IdentityError, match="0600"):
        key_files.identities([str(path)])


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("/nowhere/key", "cannot be read"),
        ("command:", "no command"),
        ("command:'", "not valid"),
        ("command:/nowhere/program", "cannot be run"),
        ("command:false", "status 1"),
        ("command:true", "no key"),
        (f"command:echo {SECRETS[0][:-1]}", "line 1: "),
    ],
)
def test_identity_that_cannot_be_had(word: str, why: str) -> None:
    with pytest.raises(IdentityError, match=why) as raised:
        key_files.identities([word])
    assert raised.value.status == 6


def test_line_that_is_wrong_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{SECRETS[0]}\n{SECRETS[1][:-2]}\n")
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="line 2") as raised:
        key_files.identities([str(path)])
    assert SECRETS[1][20:40] not in str(raised.value)


def test_identity_file_that_is_encrypted_itself(tmp_path: Path) -> None:
    pair = age.key_pair(tmp_path)
    path = tmp_path / "key.age"
    path.write_bytes(age.sealed(pair.path.read_bytes(), pair))
    path.chmod(0o600)
    with pytest.raises(IdentityError, match=r"command:age -d"):
        key_files.identities([str(path)])
    [identity] = key_files.identities([f"command:age -d -i {pair.path} {path}"])
    assert str(identity.recipient) == pair.recipient


def test_no_file_of_another_kind_is_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    subprocess.run(["mkfifo", fifo], check=True)
    with pytest.raises(IdentityError, match="FIFO"):
        key_files.identities([str(fifo)])
