"""Secrets are read where the configuration says they are, if nobody else can, and no message has anything of them."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from vbackup.config import secrets
from vbackup.config.model import Secret
from vbackup.errors import SecretError

WORD = "hunter2-and-more"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with a secret."""
    path = tmp_path / "secret"
    path.write_text(f"{WORD}\nand a second line\n")
    path.chmod(0o600)
    return path


def refused(secret: Secret, timeout_s: float = 5.0, **environ: str) -> str:
    with pytest.raises(SecretError) as caught:
        secrets.read(secret, timeout_s, environ=environ)
    assert WORD not in str(caught.value)
    assert WORD not in str(caught.value.evidence())
    return str(caught.value)


# Files


def test_first_line_of_a_file_is_the_secret(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert secrets.read(Secret(file=file), 5) == WORD
    assert WORD not in caplog.text


def test_symbolic_link_to_a_file_of_ones_own_is_followed(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file)
    assert secrets.read(Secret(file=tmp_path / "link"), 5) == WORD


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_file_that_others_can_read_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert f"others can read it: run 'chmod 600 {file}'" in refused(Secret(file=file))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_file_of_somebody_else_is_refused(file: Path) -> None:
    os.chown(file, 1, 0)
    assert "it belongs to daemon" in refused(Secret(file=file))


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "loop").symlink_to("loop")
    for name, said in (("fifo", "FIFO"), ("missing", "No such file"), (".", "directory"), ("loop", "cannot be read")):
        assert said in refused(Secret(file=tmp_path / name))
    assert "cannot be read" in refused(Secret(file=Path("/a\0b")))


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "empty"), (b"\nx\n", "empty"), (b"\xff\n", "not UTF-8"), (b"a\x1bb\n", "cannot be printed")],
)
def test_content_that_is_no_secret_is_refused(file: Path, data: bytes, said: str) -> None:
    file.write_bytes(data)
    assert said in refused(Secret(file=file))


def test_line_ends_of_windows_do_not_count(file: Path) -> None:
    file.write_bytes(f"{WORD}\r\nx".encode())
    assert secrets.read(Secret(file=file), 5) == WORD


# Credentials of systemd


def test_credential_lies_in_the_directory_of_the_service(file: Path) -> None:
    file.chmod(0o440)  # as systemd shows the mask of its access list
    assert secrets.read(Secret(credential="secret"), 5, environ={"CREDENTIALS_DIRECTORY": str(file.parent)}) == WORD
    file.chmod(0o444)
    assert "others can read it" in refused(Secret(credential="secret"), CREDENTIALS_DIRECTORY=str(file.parent))


@pytest.mark.parametrize("name", ["../secret", "a/b", "", "..", "a b", "a\0", "a:b"])
def test_name_that_leads_elsewhere_is_refused(file: Path, name: str) -> None:
    (file.parent / "below").mkdir()
    directory = str(file.parent / "below")
    assert "cannot be the name" in refused(Secret(credential=name), CREDENTIALS_DIRECTORY=directory)


def test_credential_outside_of_a_service_says_what_is_missing() -> None:
    assert "LoadCredential=ping:FILE" in refused(Secret(credential="ping"))


# Commands


def test_first_line_that_a_command_prints_is_the_secret() -> None:
    assert secrets.read(Secret(command=("printf", f"{WORD}\nmore")), 5) == WORD


def test_command_gets_its_words_as_they_are() -> None:
    assert secrets.read(Secret(command=("echo", "$HOME", "a  b", "; true")), 5) == "$HOME a  b ; true"


def test_command_that_fails_is_refused() -> None:
    said = refused(Secret(command=("sh", "-c", f"echo {WORD}; exit 3")))
    assert said == "The secret from command 'sh' cannot be used: it failed with status 3."
    assert "cannot be run (No such file" in refused(Secret(command=("/nowhere/program",)))
    assert "cannot be run" in refused(Secret(command=("a\0b",)))


@pytest.mark.parametrize("script", ["sleep 60", "sleep 60 & echo x", "trap '' TERM; while :; do sleep 1; done"])
def test_command_that_does_not_end_is_ended(script: str) -> None:
    begun = time.monotonic()
    assert "did not end within 0.3 s" in refused(Secret(command=("sh", "-c", script)), 0.3)
    assert time.monotonic() - begun < 10


def test_command_that_prints_without_end_takes_no_memory() -> None:
    assert "did not end within" in refused(Secret(command=("yes", WORD)), 0.5)


def test_command_that_prints_much_can_end() -> None:
    assert secrets.read(Secret(command=("sh", "-c", f"echo {WORD}; head -c 1000000 /dev/zero")), 20) == WORD


def test_command_is_named_without_its_arguments() -> None:
    assert secrets.describe(Secret(command=("pass", "show", WORD))) == "command 'pass'"
    assert secrets.describe(Secret(file=Path("/x"))) == "file /x"
    assert secrets.describe(Secret(credential="ping")) == "credential 'ping'"
