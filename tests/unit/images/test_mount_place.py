"""The directory of a mount is made or taken if it is empty, and left as it was; only what is ours is removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.builders import Recorder
from vbackup.errors import BusyError, StorageError
from vbackup.images import mount_lock, mount_place


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_directory_is_made_and_removed_at_the_end(tmp_path: Path, recorder: Recorder) -> None:
    with mount_place.prepared(tmp_path / "m", reporter=recorder) as place:
        assert place == (tmp_path / "m").resolve()
        assert place.stat().st_mode & 0o777 == 0o700
        with mount_place.created(place, "vda") as path:
            assert path == place / "vda.raw"
            assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_mode & 0o777 == 0
        assert names(place) == [mount_lock.NAME, "vda.raw"]
    assert not (tmp_path / "m").exists()
    (tmp_path / "m").mkdir()
    with mount_place.prepared(tmp_path / "m", reporter=recorder):
        pass
    assert names(tmp_path / "m") == []
    with mount_place.prepared(tmp_path / "n", reporter=recorder) as place:
        (place / "somebody's").touch()
    assert names(tmp_path / "n") == ["somebody's"]
    assert recorder.warnings == []


def test_directory_that_a_killed_mount_had_made_goes_with_the_next(tmp_path: Path, recorder: Recorder) -> None:
    def killed(directory: Path) -> None:
        pid = os.fork()
        if pid == 0:
            with mount_place.prepared(directory, reporter=recorder) as place:
                with mount_place.created(place, "vda"):
                    pass
                os._exit(0)
        os.waitpid(pid, 0)

    (tmp_path / "there").mkdir()
    for name in ("there", "new"):
        killed(tmp_path / name)
        assert names(tmp_path / name) == [mount_lock.NAME, "vda.raw"]
        with mount_place.prepared(tmp_path / name, reporter=recorder):
            pass
    assert names(tmp_path) == ["there"]
    assert names(tmp_path / "there") == []


def test_place_inside_of_a_mount_is_refused_before_it_is_made(tmp_path: Path, recorder: Recorder) -> None:
    with mount_place.prepared(tmp_path / "m", reporter=recorder) as place:
        pid = os.fork()
        if pid == 0:
            try:
                mount_place.prepared(tmp_path / "m" / "sub", reporter=recorder).__enter__()
            except BusyError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert names(place) == [mount_lock.NAME]


def test_directory_that_was_made_goes_with_a_failure(tmp_path: Path, recorder: Recorder) -> None:
    def fail(directory: Path) -> None:
        with mount_place.prepared(directory, reporter=recorder) as place, mount_place.created(place, "vda"):
            raise StorageError("x")

    (tmp_path / "there").mkdir()
    for directory in (tmp_path / "new", tmp_path / "there"):
        with pytest.raises(StorageError, match="x"):
            fail(directory)
    assert names(tmp_path) == ["there"]
    assert names(tmp_path / "there") == []


def test_directory_that_has_anything_is_left_alone(tmp_path: Path, recorder: Recorder) -> None:
    (tmp_path / "vda.raw").touch()  # not ours: there is no lock
    with pytest.raises(StorageError, match=r"not empty: it has vda\.raw"):
        mount_place.prepared(tmp_path, reporter=recorder).__enter__()
    assert names(tmp_path) == ["vda.raw"]


def test_what_a_killed_mount_has_left_is_removed_and_nothing_else(tmp_path: Path, recorder: Recorder) -> None:
    for name in (mount_lock.NAME, "vda.raw", "vdb.raw"):
        (tmp_path / name).touch()
    with mount_place.prepared(tmp_path, reporter=recorder) as place:
        assert names(place) == [mount_lock.NAME]
    assert "was removed" in recorder.warnings[0]

    (tmp_path / mount_lock.NAME).touch()
    (tmp_path / "vda.raw").write_text("somebody's")
    (tmp_path / "vdb.raw").symlink_to("vda.raw")
    with pytest.raises(StorageError, match="not empty"):
        mount_place.prepared(tmp_path, reporter=recorder).__enter__()
    assert (tmp_path / "vda.raw").read_text() == "somebody's"
    assert (tmp_path / "vdb.raw").is_symlink()


def test_place_without_a_mount_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No backup is mounted"):
        mount_place.refuse_unmounted(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="not a directory"):
        mount_place.refuse_unmounted(tmp_path / "file")
    with pytest.raises(StorageError, match=r"No backup is mounted at .*/nothing, which is not there"):
        mount_place.refuse_unmounted(tmp_path / "nothing")
    (tmp_path / mount_lock.NAME).touch()
    assert mount_place.refuse_unmounted(tmp_path) == tmp_path.resolve()


@pytest.mark.parametrize("path", ["file", "missing/m"])
def test_unusable_path_is_refused(path: str, tmp_path: Path, recorder: Recorder) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"not a directory|create it first"):
        mount_place.prepared(tmp_path / path, reporter=recorder).__enter__()
