"""Quick tests without QEMU. Hypothesis looks at fewer examples here than it could, and has no deadline."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.fake_qemu import FakeQemu
from tests.recorded import Recorded, story
from tests.unit.builders import Recorder, backup, commit, image_file, incremental
from tests.unit.fake_domain import SIZE_BYTES, FakeDaemon, FakeDomain, FakePassthrough, FakeWatchdog
from vbackup.domain import access, freeze_turn, offline, source
from vbackup.domain.host import Host
from vbackup.hooks import marks
from vbackup.images import block_lists
from vbackup.model import BlocksRecord, ImageOptions
from vbackup.qemu import backing_chain, qemu_img
from vbackup.repository import block_scan
from vbackup.repository.repository import Repository

settings.register_profile("unit", max_examples=50, deadline=None)
settings.load_profile("unit")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def qemu() -> Iterator[FakeQemu]:
    """A QEMU without disks."""
    with FakeQemu() as made:
        yield made


@pytest.fixture(scope="session")
def empty_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What qemu-img makes, made once."""
    path = tmp_path_factory.mktemp("images") / "empty.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(SIZE_BYTES)], check=True)
    return path


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch, empty_image: Path, tmp_path: Path) -> Iterator[FakeDomain]:
    def create(path: Path, size_bytes: int, *, backing_rpath: str | None, options: ImageOptions) -> None:
        assert size_bytes == SIZE_BYTES
        # Of a backup that was streamed, only the directory is there.
        assert backing_rpath is None or (path.parent / backing_rpath).parent.is_dir()
        assert options == ImageOptions()
        shutil.copyfile(empty_image, path)

    monkeypatch.setattr(qemu_img, "create", create)
    monkeypatch.setattr(os, "fsync", lambda _fd: None)  # hundreds of backups are made here
    # Marks are the host's own, and tests in other processes have the same domain.
    monkeypatch.setattr(marks, "DIRECTORY", tmp_path / "run" / "offline")
    monkeypatch.setattr(freeze_turn, "directory", lambda: tmp_path / "run" / "freeze")
    monkeypatch.setattr(source, "Passthrough", FakePassthrough)
    monkeypatch.setattr(offline, "StorageDaemon", FakeDaemon)
    monkeypatch.setattr(source, "Watchdog", FakeWatchdog)
    monkeypatch.setattr(backing_chain, "images_of", lambda disk, *, volume_path: (image_file(disk),))
    monkeypatch.setattr(access, "doubt", lambda _image: None)
    made = FakeDaemon.domain = FakeWatchdog.domain = FakeDomain()
    with made.qemu:
        yield made


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "repo")


@pytest.fixture
def filled(repository: Path) -> Path:
    """A repository with a full and an incremental of domain web."""
    one = backup(1)
    for made in (one, incremental(2, one)):
        commit(Repository.open(repository), made)
    return repository


@pytest.fixture(scope="session")
def _story(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return story(tmp_path_factory.mktemp("story") / "repository")


@pytest.fixture(scope="session")
def _old_story(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return story(tmp_path_factory.mktemp("old_story") / "repository", has_lists=False)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host without domains: libvirt's own test driver, which checks XML as the others do."""
    path = tmp_path / "node.xml"
    path.write_text("<node/>")
    with Host(f"test://{path}") as made:
        yield made


@pytest.fixture
def recorded(_story: Recorded, tmp_path: Path) -> Recorded:
    """Four backups of real images with known contents (tests.recorded.story)."""
    return _story.copied(tmp_path / "recorded")


@pytest.fixture
def untouched(_story: Recorded) -> Recorded:
    """What ``recorded`` is a copy of; nothing is changed in it."""
    return _story


@pytest.fixture
def recorded_old(_old_story: Recorded, tmp_path: Path) -> Recorded:
    """The same as an older vbackup made them, without block lists."""
    return _old_story.copied(tmp_path / "recorded_old")


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """All images are large; what is listed, in that order."""
    monkeypatch.setattr(block_lists, "EARLY_LIST_BYTES", 0)
    listed: list[Path] = []
    really = block_scan.make

    def make(image: Path, path: Path, **more: Any) -> BlocksRecord:
        listed.append(image)
        return really(image, path, **more)

    monkeypatch.setattr(block_scan, "make", make)
    return listed
