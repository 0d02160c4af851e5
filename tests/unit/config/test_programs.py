"""A program that others can change is refused with the place of its key, and so the whole configuration is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vbackup.config import loading
from vbackup.errors import ConfigError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
REPOSITORY = "[repository.main]\npath = '/srv/backup'\n[job.a]\n"


def program(path: Path, mode: int = 0o755) -> Path:
    """A program."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


def faults(directory: Path, text: str) -> list[tuple[int, str]]:
    """Line and text of the faults of a configuration."""
    path = directory / "x.toml"
    path.write_text(REPOSITORY + text)
    path.chmod(0o644)
    loaded = loading.load([path])
    assert {one.path for one in loaded.faults} <= {str(path)}
    # Nobody who is content with what can be read runs it, either.
    is_of_notifier = any("'notify." in one.fault for one in loaded.faults)
    assert ("a" in loaded.config.notifiers) == ("[notify.a]" in text and not is_of_notifier)
    return [(one.line, one.fault) for one in loaded.faults]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[notify.a]\nmail-to = 'root'\nsendmail = '{}'\n", "notify.a.sendmail"),
        ("[notify.a]\n\nping = {{ command = ['{}', 'x'] }}\n", "notify.a.ping.command"),
        ("[notify.a]\n[notify.a.apprise]\ncommand = '{}'\n", "notify.a.apprise.command"),
        (
            "[target.t]\nurl = '/t'\ncopy.identity = 'command:{} -d key'\nverify.sample = '1'\n",
            "target.t.copy.identity",
        ),
    ],
)
def test_program_that_others_can_write_is_refused_where_it_is_named(tmp_path: Path, text: str, key: str) -> None:
    path = program(tmp_path / "programs" / "tell")
    assert faults(tmp_path, text.format(path)) == []
    path.chmod(0o757)
    [(line, fault)] = faults(tmp_path, text.format(path))
    assert line == 6
    assert fault == (
        f"{path}, the program of '{key}', is not run: {path} can be written by others than its owner, so somebody else"
        f" decides what vbackup runs. Run 'chown root {path}' and 'chmod go-w {path}', or give another program."
    )
    path.chmod(0o755)
    path.parent.chmod(0o775)
    [(_, fault)] = faults(tmp_path, text.format(path))
    assert f"not run: {path.parent} can be written by others" in fault
    with pytest.raises(ConfigError, match=r"x\.toml:6: .* is not run"):
        loading.read([tmp_path / "x.toml"])


@needs_root
def test_program_of_another_user_is_refused(tmp_path: Path) -> None:
    path = program(tmp_path / "tell")
    os.chown(path, 65534, 65534)
    [(_, fault)] = faults(tmp_path, f"[notify.a]\nping = {{ command = '{path}' }}\n")
    assert f"{path} belongs to nobody, and neither to root nor to the caller" in fault


def test_program_of_the_path_is_found_where_it_is_and_links_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = program(tmp_path / "real" / "tell", mode=0o757)
    (tmp_path / "bin").mkdir(mode=0o755)
    (tmp_path / "bin" / "tell").symlink_to(real)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    [(_, fault)] = faults(tmp_path, "[notify.a]\nping = { command = 'tell' }\n")
    assert f"{tmp_path}/bin/tell, the program of" in fault
    assert f"not run: {real} can be written" in fault


def test_program_that_does_not_exist_and_one_in_an_open_directory_with_the_sticky_bit(tmp_path: Path) -> None:
    """Who runs the first one says so; in the second one's directory, others cannot replace it."""
    assert faults(tmp_path, f"[notify.a]\nping = {{ command = '{tmp_path}/none' }}\n") == []
    assert faults(tmp_path, "[notify.a]\nping = { command = 'surely-no-program' }\n") == []
    path = program(tmp_path / "open" / "tell")
    path.parent.chmod(0o1777)
    assert faults(tmp_path, f"[notify.a]\nping = {{ command = '{path}' }}\n") == []


def test_relative_program_is_looked_for_where_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path / "tell", mode=0o757)
    monkeypatch.chdir("/usr")
    [(_, fault)] = faults(tmp_path, f"[notify.a]\nping = {{ command = '{str(path)[1:]}' }}\n")
    assert fault.startswith(f"{path}, the program of")
