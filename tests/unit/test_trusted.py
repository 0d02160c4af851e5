"""What others could change is found on the whole way to it; tests/unit/scripts/test_finding.py has more of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vbackup.trusted import Doubt, doubt


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "programs" / "tell"
    path.parent.mkdir(mode=0o755)
    path.touch(mode=0o755)
    return path


def test_what_only_its_owner_can_change_is_trusted(program: Path) -> None:
    seen: set[Path] = set()
    assert doubt(program, seen) is None
    assert seen == set(program.parents)


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_file_and_directory_that_others_can_write_are_named(program: Path, mode: int) -> None:
    for path in (program, program.parent):
        before = path.stat().st_mode
        path.chmod(mode)
        assert doubt(program) == Doubt(path, "can be written by others than its owner")
        path.chmod(before)


def test_sticky_directory_is_trusted_on_the_way_and_not_at_its_end(program: Path) -> None:
    program.parent.chmod(0o1777)
    assert doubt(program) is None
    found = doubt(program.parent)
    assert found is not None
    assert found.path == program.parent


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
def test_another_owner_is_named(program: Path) -> None:
    os.chown(program.parent, 65534, 65534)
    assert doubt(program) == Doubt(program.parent, "belongs to nobody, and neither to root nor to the caller")


def test_links_are_followed_step_by_step(program: Path, tmp_path: Path) -> None:
    way = tmp_path / "way"
    way.mkdir()
    way.chmod(0o777)
    (way / "tell").symlink_to(program)
    (tmp_path / "tell").symlink_to("way/../way/tell")
    found = doubt(tmp_path / "tell")
    assert found is not None
    assert found.path == way


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        doubt(tmp_path / "none")
