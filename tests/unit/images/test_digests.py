"""Large images are digested early, once, and again if something writes to them afterwards."""

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
from vbackup.files import digest_of
from vbackup.images import digests, targets
from vbackup.images.writeback import Writeback
from vbackup.model import Backup
from vbackup.report import Phase
from vbackup.repository.repository import Repository


class Phases(Recorder):
    """Remembers the last progress of each disk in each phase."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[Phase, dict[str, tuple[int, int]]] = {}

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        self.last.setdefault(phase, {})[dev] = (done_bytes, total_bytes)


def digest_now(repo: Repository, one: Backup, dev: str) -> str:
    image = one.image(dev)
    assert image is not None
    return digest_of((repo.directory(UUID, one.id) / image.file).read_bytes())


def test_large_images_are_digested_once_while_they_are_put_on_the_disk(
    domain: FakeDomain, repo: Repository, early: list[Path]
) -> None:
    done = run(domain, repo)
    assert sorted(path.name for path in early) == ["vda.qcow2", "vdb.qcow2"]
    assert [image.digest for image in done.disks] == [digest_now(repo, done, dev) for dev in ("vda", "vdb")]


def test_image_that_qemu_writes_to_when_it_closes_it_is_digested_again(
    domain: FakeDomain, repo: Repository, early: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    close = targets.close_all_in_qemu

    def close_and_write(*args: Any) -> list[str]:
        closed = close(*args)
        for path in repo.path.glob("*/*.partial/vda.qcow2"):
            with path.open("ab") as file:
                file.write(b"at the last moment")
        return closed

    monkeypatch.setattr(targets, "close_all_in_qemu", close_and_write)
    done = run(domain, repo)
    assert sorted(path.name for path in early) == ["vda.qcow2", "vda.qcow2", "vdb.qcow2"]
    assert done.disks[0].digest == digest_now(repo, done, "vda")


@pytest.mark.parametrize("early_bytes", [0, 1 << 40])
def test_digest_that_takes_long_has_a_progress_of_its_own(
    domain: FakeDomain, repo: Repository, early_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "EARLY_DIGEST_BYTES", early_bytes)
    monkeypatch.setattr(digests, "REPORT_S", 0.0)
    done = run(domain, repo, recorder := Phases())
    assert recorder.last[Phase.CHECK] == {
        image.dev: (image.file_size_bytes, image.file_size_bytes) for image in done.disks
    }


def test_digest_that_is_done_at_once_has_none(domain: FakeDomain, repo: Repository) -> None:
    run(domain, repo, recorder := Phases())
    assert Phase.CHECK not in recorder.last


def test_flush_that_fails_does_not_wait_for_the_digests(
    domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest of a large image takes minutes, and is of no use then."""
    monkeypatch.setattr(digests, "EARLY_DIGEST_BYTES", 0)
    digesting, gave_up = threading.Event(), threading.Event()

    def digest(_path: Path, *, check: Callable[[], None], progress: object) -> str:
        assert progress
        digesting.set()
        deadline = time.monotonic() + 20
        try:
            while time.monotonic() < deadline:
                check()
        except StorageError:
            gave_up.set()
            raise
        return "sha256:"

    def finish(_writeback: Writeback) -> None:
        assert digesting.wait(20)
        raise NoSpaceError("No room for the last of the images.")

    monkeypatch.setattr(digests, "digest", digest)
    monkeypatch.setattr(Writeback, "finish", finish)
    with pytest.raises(NoSpaceError, match="No room for the last"):
        run(domain, repo)
    assert gave_up.is_set()
    assert partial(repo) == []
