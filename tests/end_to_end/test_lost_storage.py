"""The storage of the repository goes away: unplugged in mid-job, unreadable at a restore, or with the power.

It is a real ext4 that answers every read, write and fsync with EIO from one moment on, and has only what had reached
the disk when it is mounted again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import wait_for
from tests.end_to_end.chains import Chain, levels, reasons
from tests.filesystem import Ext4
from tests.unit import builders
from vbackup import files
from vbackup.errors import StorageError
from vbackup.files import digest
from vbackup.qemu import jobs, qemu_img
from vbackup.repository import repository
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.lab import Lab

EIO = "Input/output error"


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Ext4]:
    directory = tmp_path / "storage"
    directory.mkdir()
    made = Ext4(directory)
    made.mount()
    yield made
    made.unmount()


@pytest.fixture
def chain(lab: Lab, command: Command, storage: Ext4, tmp_path: Path) -> Chain:
    """A machine whose two disks are full, with a repository on that storage."""
    command("init", "-r", storage.path / "repository")
    made = Chain(lab, command, storage.path / "repository", tmp_path)
    for spec in made.specs:
        made.machine.write(spec.dev, "write -P 1 0 8M")
    return made


def entries(chain: Chain) -> list[str]:
    return sorted(path.name for path in (chain.repository / chain.uuid).iterdir())


def expect_one_sentence(stderr: str) -> None:
    assert len(stderr.splitlines()) == 1, stderr
    assert EIO in stderr


def test_repository_lost_in_the_middle_of_a_backup(
    chain: Chain, storage: Ext4, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = chain.backup()
    for dev in ("vda", "vdb"):
        chain.machine.write(dev, "write -P 2 0 8M")
    before = chain.machine.state()
    query = jobs.query

    def lose_when_copying(monitor: Any) -> dict[str, jobs.Job]:
        known = query(monitor)
        if any(0 < one.done_bytes < one.total_bytes for one in known.values()):
            storage.lose()
        return known

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "query", lose_when_copying)
        failed = chain.run("--speed", "2M", status=7)
    expect_one_sentence(failed.stderr)
    assert "QEMU could not write its image to the repository" in failed.stderr
    assert json.loads(failed.stdout)["status"] == 7
    assert chain.machine.state() == before
    assert chain.machine.execute("query-status")["status"] == "running"
    chain.machine.write("vda", "write -P 3 1M 64k")

    # While it is away nothing is done, and each command says so.
    output = chain.tmp_path / "out"
    at = ("-r", chain.repository)
    for argv in (("list",), ("show", "bases"), ("restore", "bases", "--output", output)):
        expect_one_sentence(chain.command("-q", *argv, *at, status=7).stderr)
    expect_one_sentence(chain.run(status=7).stderr)
    assert not output.exists()
    assert chain.machine.state() == before

    # What was good before is still good, and the chain goes on.
    storage.bring_back()
    assert [one["id"] for one in chain.command("list", *at, "--json").document["backups"]] == [full["id"]]
    assert set(levels(chain.backup()).values()) == {"incremental"}
    assert not [name for name in entries(chain) if name.endswith(".partial")]


def test_repository_lost_in_the_middle_of_a_restore(
    chain: Chain, storage: Ext4, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.backup()
    convert = qemu_img.convert

    def lose_and_convert(*arguments: Any, **more: Any) -> None:
        storage.lose()
        convert(*arguments, **more)

    output = chain.tmp_path / "out"
    argv = ("-q", "restore", "bases", "-r", chain.repository, "--output", output)
    with monkeypatch.context() as patch:
        patch.setattr(qemu_img, "convert", lose_and_convert)
        refused = chain.command(*argv, status=7).stderr
    expect_one_sentence(refused)
    assert f"Cannot copy {chain.repository}" in refused
    assert not output.exists()
    storage.bring_back()
    chain.command(*argv)


@contextmanager
def bad_block(image: Path, directory: Path, *, offset: int) -> Iterator[None]:
    """An image of which one sector cannot be read: a storage daemon exports it with FUSE over its own name."""
    # "none": the rule is for every request, not for those of one step of a format driver.
    rule = {"event": "none", "iotype": "read", "errno": 5, "once": False, "sector": offset // 512}
    moved = directory / "moved.qcow2"
    shutil.copy(image, moved)
    node = {"driver": "blkdebug", "node-name": "bad", "image": {"driver": "file", "filename": str(moved)}}
    export = {"type": "fuse", "id": "export", "node-name": "bad", "mountpoint": str(image)}
    argv = ["qemu-storage-daemon", "--blockdev", json.dumps({**node, "inject-error": [rule]})]
    before = image.stat().st_dev
    with subprocess.Popen([*argv, "--export", json.dumps(export)], stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: process.poll() is not None or image.stat().st_dev != before, "the export")
            if process.poll() is not None:
                assert process.stderr is not None
                pytest.skip(f"nothing can be exported here: {process.stderr.read().strip()}")
            yield
        finally:
            process.terminate()


def test_image_with_a_bad_block_is_told_and_nothing_is_restored(chain: Chain, command: Command, tmp_path: Path) -> None:
    done = chain.backup()
    image = chain.repository / chain.uuid / done["id"] / "vdb.qcow2"
    output = chain.tmp_path / "out"
    argv = ("-q", "restore", "bases", "-r", chain.repository, "--output", output)
    with bad_block(image, tmp_path, offset=4 << 20):
        assert command("list", "-r", chain.repository, "--json").document["broken"] == []
        refused = command(*argv, status=6)
        assert len(refused.stderr.splitlines()) == 1, refused.stderr
        assert f"the image {image} of backup {done['id']} was altered or is damaged" in refused.stderr
        assert "cannot be read" in refused.stderr
        assert not output.exists()
        command(*argv, "--disk", "vda")
        shutil.rmtree(output)
    command(*argv)


def test_backup_whose_contents_were_lost_after_the_rename_is_no_base(
    chain: Chain, storage: Ext4, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On storage that does not keep what it has promised to: a directory with its name, and files without content."""
    kept = [chain.backup()["id"], chain.backup()["id"]]
    fsync = files.fsync

    def promise(path: Path) -> None:
        if path.name == chain.uuid:
            fsync(path)

    with monkeypatch.context() as patch:
        patch.setattr(repository, "fsync", promise)
        lost = chain.run().document["id"]
        storage.lose()
    storage.bring_back()
    assert (chain.repository / chain.uuid / lost / "manifest.json").stat().st_size == 0
    at = ("-r", chain.repository)
    listed = chain.command("list", *at, "--json", status=6).document
    assert [one["id"] for one in listed["backups"]] == kept
    assert [(one["id"], "is it truncated?" in one["reason"]) for one in listed["broken"]] == [(lost, True)]
    output = ("--output", chain.tmp_path / "out")
    assert lost in chain.command("-q", "restore", "bases", *at, "--backup", lost, *output, status=6).stderr
    chain.command("-q", "restore", "bases", *at, "--backup", kept[1], "--output", chain.tmp_path / "kept")

    # Its commit had the bitmap removed that the one before would be the base with.
    refused = chain.run("--level", "incremental", status=6).stderr
    assert f"Backup {lost} is broken" in refused
    again = chain.backup()
    assert set(levels(again).values()) == {"full"}
    assert all(f"checkpoint {kept[1]} is missing" in reason for reason in reasons(again).values())


class PowerLossError(Exception):
    """The moment from which nothing is done any more."""


class Power:
    """Goes off before or after the ``at``-th operation that a commit relies on; counts them."""

    def __init__(self, storage: Ext4, *, at: int | None, when: str) -> None:
        self.storage, self.at, self.when = storage, at, when
        self.told: list[str] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "unlink")):
                patch.setattr(owner, name, self._wrap(name, getattr(owner, name)))
            yield

    def _wrap(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **more: Any) -> Any:
            self.told.append(name)
            struck = len(self.told) == self.at
            if struck and self.when == "before":
                self._go_off()
            result = operation(*arguments, **more)
            if struck:
                self._go_off()
            return result

        return act

    def _go_off(self) -> None:
        self.storage.lose()
        raise PowerLossError


def make(repo: Repository, number: int) -> None:
    """Commit a backup with an image and a domain.xml, as vbackup.engine.finish does."""
    content = bytes([number]) * 300_000
    backup = builders.backup(number)
    with repo.lock(builders.UUID), repo.stage(builders.UUID, backup.id) as stage:
        files = {"domain.xml": stage.write("domain.xml", b"<domain/>")}
        stage.write("journal", b"{}\n")
        known = {"file_size_bytes": len(content), "digest": stage.write("vda.qcow2", content)}
        backup = builders.backup(number, builders.image(**known), files=files)
        repo.remember_name(builders.UUID, backup.domain_name)
        stage.commit(backup)


def expect_whole(repo: Repository, numbers: set[int]) -> None:
    """All backups that are listed are those, and every byte of them is there."""
    catalogue = repo.catalogue(builders.UUID)
    assert (catalogue.broken, {one.sequence for one in catalogue.history.backups}) == ((), numbers)
    for backup in catalogue.history.backups:
        path = repo.directory(builders.UUID, backup.id)
        image = backup.image("vda")
        assert image is not None
        assert digest(path / "vda.qcow2", check=lambda: None) == image.digest
        assert files.digest_of((path / "domain.xml").read_bytes()) == backup.files["domain.xml"]


def test_power_lost_at_any_step_of_the_commit_leaves_all_of_it_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    storage = Ext4(tmp_path / "first", size_mib=8)
    storage.mount()
    try:
        make(Repository.create(storage.path / "repository"), 1)
        storage.unmount()
        pristine = storage.image.read_bytes()
        storage.mount()
        counting = Power(storage, at=None, when="")
        with counting.watched():
            make(Repository.open(storage.path / "repository"), 2)
        expect_whole(Repository.open(storage.path / "repository"), {1, 2})
        renamed = max(number for number, name in enumerate(counting.told, 1) if name == "rename")
        flushed = renamed + 1  # then a backup may be reported as done
        assert counting.told[renamed:] == ["fsync", "unlink"]
        seen = set()
        for at in range(1, len(counting.told) + 1):
            for when in ("before", "after"):
                storage.unmount()
                storage.image.write_bytes(pristine)
                storage.mount()
                # The clean-up of what was struck meets the same storage, and its error comes on top.
                with pytest.raises((PowerLossError, StorageError)), Power(storage, at=at, when=when).watched():
                    make(Repository.open(storage.path / "repository"), 2)
                storage.bring_back()
                repo = Repository.open(storage.path / "repository")
                there = {one.sequence for one in repo.catalogue(builders.UUID).history.backups}
                expect_whole(repo, there)
                assert there in ({1}, {1, 2})
                if at > flushed or (at, when) == (flushed, "after"):
                    assert there == {1, 2}
                seen.add(len(there))
        assert seen == {1, 2}
    finally:
        storage.unmount()
