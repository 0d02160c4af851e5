"""Large images are digested early, once, and again if something writes to them afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID
from tests.unit.fake_domain import FakeDomain, partial, run
from vbackup.errors import NoSpaceError, StorageError
from vbackup.files import digest_of
from vbackup.images import digests, targets
from vbackup.images.writeback import Writeback
from vbackup.model import Backup
from vbackup.repository.repository import Repository


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


def test_flush_that_fails_does_not_wait_for_the_digests(
    domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest of a large image takes minutes, and is of no use then."""
    monkeypatch.setattr(digests, "EARLY_DIGEST_BYTES", 0)
    digesting, gave_up = threading.Event(), threading.Event()

    def digest(_path: Path, *, check: Callable[[], None]) -> str:
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
