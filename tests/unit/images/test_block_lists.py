"""Large images are listed early, once, and again if something writes to them afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID, Recorder
from tests.unit.fake_domain import FakeDomain, partial, run
from vbackup.errors import NoSpaceError, StorageError
from vbackup.images import block_lists, targets
from vbackup.images.writeback import Writeback
from vbackup.model import Backup, BlocksRecord
from vbackup.report import Phase
from vbackup.repository import block_list, block_scan, repository
from vbackup.repository.repository import Repository


class Phases(Recorder):
    """Remembers the last progress of each disk in each phase."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[Phase, dict[str, tuple[int, int]]] = {}

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        self.last.setdefault(phase, {})[dev] = (done_bytes, total_bytes)


def listed_now(repo: Repository, one: Backup, dev: str) -> BlocksRecord:
    """What the list of an image would be now; the one that is there has to be the same."""
    directory = repo.directory(UUID, one.id)
    again = directory / "again.blocks"
    algorithm = block_list.best_algorithm()
    record = block_scan.make(directory / f"{dev}.qcow2", again, algorithm=algorithm, check=lambda: None)
    assert again.read_bytes() == (directory / f"{dev}.blocks").read_bytes()
    return record


def test_large_images_are_listed_once_while_they_are_put_on_the_disk(
    domain: FakeDomain, repo: Repository, early: list[Path]
) -> None:
    done = run(domain, repo)
    assert sorted(path.name for path in early) == ["vda.qcow2", "vdb.qcow2"]
    assert [image.blocks for image in done.disks] == [listed_now(repo, done, dev) for dev in ("vda", "vdb")]


def test_image_that_qemu_writes_to_when_it_closes_it_is_listed_again(
    domain: FakeDomain, repo: Repository, early: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    close = targets.close_all_in_qemu

    def close_and_write(*args: Any, **more: Any) -> list[str]:
        closed = close(*args, **more)
        for path in repo.path.glob("*/*.partial/vda.qcow2"):
            with path.open("r+b") as file:
                file.seek(4096)  # in the cluster of the header
                file.write(b"at the last moment")
        return closed

    monkeypatch.setattr(targets, "close_all_in_qemu", close_and_write)
    done = run(domain, repo)
    assert sorted(path.name for path in early) == ["vda.qcow2", "vda.qcow2", "vdb.qcow2"]
    assert done.disks[0].blocks == listed_now(repo, done, "vda")


@pytest.mark.parametrize("early_bytes", [0, 1 << 40])
def test_list_that_takes_long_has_a_progress_of_its_own(
    domain: FakeDomain, repo: Repository, early_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_lists, "EARLY_LIST_BYTES", early_bytes)
    monkeypatch.setattr(block_lists, "REPORT_S", 0.0)
    done = run(domain, repo, recorder := Phases())
    assert recorder.last[Phase.CHECK] == {
        image.dev: (image.file_size_bytes, image.file_size_bytes) for image in done.disks
    }


def test_list_that_is_done_at_once_has_none(domain: FakeDomain, repo: Repository) -> None:
    run(domain, repo, recorder := Phases())
    assert Phase.CHECK not in recorder.last


def test_flush_that_fails_does_not_wait_for_the_lists(
    domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of a large image takes minutes, and is of no use then."""
    monkeypatch.setattr(block_lists, "EARLY_LIST_BYTES", 0)
    listing, gave_up = threading.Event(), threading.Event()

    def make(_image: Path, _path: Path, *, check: Callable[[], None], **_more: object) -> BlocksRecord:
        listing.set()
        deadline = time.monotonic() + 20
        try:
            while time.monotonic() < deadline:
                check()
        except StorageError:
            gave_up.set()
            raise
        raise AssertionError("nobody told it to give up")

    def finish(_writeback: Writeback) -> None:
        assert listing.wait(20)
        raise NoSpaceError("No room for the last of the images.")

    monkeypatch.setattr(block_scan, "make", make)
    monkeypatch.setattr(Writeback, "finish", finish)
    with pytest.raises(NoSpaceError, match="No room for the last"):
        run(domain, repo)
    assert gave_up.is_set()
    assert partial(repo) == []


def test_no_room_for_a_list_leaves_nothing_of_the_backup(
    domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_args: object, **_more: object) -> None:
        path.write_bytes(b"vbbl")
        raise NoSpaceError("No room for the list.")

    monkeypatch.setattr(block_list, "write", full)
    with pytest.raises(NoSpaceError, match="No room for the list"):
        run(domain, repo)
    assert partial(repo) == []
    assert repo.catalogue(UUID).history.backups == ()


def test_lists_are_put_on_the_disk_before_the_backup_has_its_name(
    domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    rename = Path.rename

    def fsync(path: Path) -> None:
        synced.append(path.name)

    def renamed(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            assert {"vda.blocks", "vdb.blocks", "manifest.json"} <= {*synced}
            synced.append("renamed")
        return rename(path, target)

    monkeypatch.setattr(repository, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", renamed)
    run(domain, repo)
    assert "renamed" in synced
