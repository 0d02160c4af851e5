"""Settings of a target: from a file that only its owner reads, over the environment; never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from vbackup.errors import StorageError, UsageError
from vbackup.stores import settings


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_file_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-environment")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    path = write(tmp_path / "keys", "# a comment\n\nAWS_ACCESS_KEY_ID = of-the-file \nAWS_SECRET_ACCESS_KEY='a=b'\n")
    found = settings.read(path)
    assert found["AWS_ACCESS_KEY_ID"] == "of-the-file"
    assert found["AWS_SECRET_ACCESS_KEY"] == "a=b"
    assert found["AWS_REGION"] == "eu-west-1"
    assert found.own == {"AWS_ACCESS_KEY_ID": "of-the-file", "AWS_SECRET_ACCESS_KEY": "a=b"}
    assert settings.read(None)["AWS_ACCESS_KEY_ID"] == "of-the-environment"


def test_text_form_has_no_values(tmp_path: Path) -> None:
    found = settings.read(write(tmp_path / "keys", "AWS_SECRET_ACCESS_KEY=hidden\n"))
    assert repr(found) == "Settings(AWS_SECRET_ACCESS_KEY)"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(StorageError, match="chmod 600"):
        settings.read(write(tmp_path / "keys", "A=b\n", mode))


@pytest.mark.parametrize("text", ["hidden\n", "a-b=hidden\n", "=hidden\n"])
def test_line_that_is_no_setting_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="Line 2") as raised:
        settings.read(write(tmp_path / "keys", "A=b\n" + text))
    assert "hidden" not in str(raised.value)


def test_what_is_no_file_with_settings(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        settings.read(tmp_path / "nothing")
    with pytest.raises(UsageError, match="too large"):
        settings.read(write(tmp_path / "large", "A=b\n" * 20_000))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "binary").chmod(0o600)
    with pytest.raises(UsageError, match="not a text file"):
        settings.read(tmp_path / "binary")
