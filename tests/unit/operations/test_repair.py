"""Real images are damaged and repaired: afterwards they are, byte for byte, what the backup recorded.

All steps are here: repair_work, repair_merges, repair_files, repair_backups and repair_images.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.recorded import BLOCK, MIB, Recorded, Write, story
from tests.unit.builders import NOON, UUID, Recorder
from vbackup.errors import BusyError
from vbackup.files import digest_of
from vbackup.model import Level, MachineFile, MachineKind
from vbackup.operations import check, repair, verify
from vbackup.operations.repair import Repair
from vbackup.operations.verify import VerifyRequest
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.repository import (
    backup_repair,
    filesystem,
    image_repair,
    manifest,
    notes,
    quarantine,
    readers,
    verification,
)
from vbackup.repository.block_sources import extent_of
from vbackup.repository.repository import MARKER, Repository
from vbackup.repository.verification import Damage, Verdict, Verification
from vbackup.stop import Stop

#: Of the disks of the story, in the end.
SIZE_BYTES = 9 * MIB + 3 * 512


def damaged(recorded: Recorded) -> list[str]:
    """What check says of damage."""
    checked = check.run([UUID], repository=recorded.repository, reporter=Recorder(), stop=Stop())
    return [trouble.sentence for trouble in checked.troubles if trouble.severity.value == "damage"]


def repaired(recorded: Recorded, *copies: Repository, dry_run: bool = False) -> list[Repair]:
    return repair.run(
        UUID, repository=recorded.repository, copies=copies, reporter=Recorder(), stop=Stop(), dry_run=dry_run
    )


def verified(recorded: Recorded) -> list[str]:
    """The damaged backups."""
    return verify.run(
        VerifyRequest(is_forced=True), UUID, repository=recorded.repository, reporter=Recorder(), stop=Stop()
    ).damaged


def copied(recorded: Recorded) -> Repository:
    path = recorded.repository.path.with_name("copy")
    shutil.copytree(recorded.repository.path, path)
    return Repository.open(path)


def assert_all_is_as_it_was(recorded: Recorded, tmp_path: Path) -> None:
    assert damaged(recorded) == []
    assert verified(recorded) == []
    for (backup_id, dev), content in recorded.contents.items():
        image = recorded.repository.directory(UUID, backup_id) / f"{dev}.qcow2"
        raw = tmp_path / "flat.raw"
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
        assert raw.read_bytes() == content
        leftovers = [path.name for path in image.parent.iterdir() if path.name.startswith(".")]
        assert leftovers == []


def spoil(path: Path, block: int, *, length: int = 100) -> None:
    """Overwrite a part of a block where it is in the image."""
    with Qcow2Layer(path) as layer:
        extent = extent_of(layer, (0, block))
        assert extent is not None
        assert extent.offset is not None
        offset = extent.offset + (block - extent.start) * BLOCK
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(length)
        file.seek(offset)
        file.write(bytes(byte ^ 0x55 for byte in old))


def test_repository_without_trouble_is_left_alone(recorded: Recorded) -> None:
    before = {path: path.lstat().st_mtime_ns for path in recorded.repository.path.rglob("*") if path.name != "lock"}
    assert repaired(recorded) == []
    after = {path: path.lstat().st_mtime_ns for path in recorded.repository.path.rglob("*") if path.name != "lock"}
    assert {path for path in before if before[path] != after.get(path)} <= {recorded.repository.path / UUID}


def test_damaged_block_is_copied_from_an_image_of_another_backup(recorded: Recorded, tmp_path: Path) -> None:
    """Another backup of the domain has the same block, in another place and compressed."""
    recorded.add({"vda": [Write(6 * MIB, BLOCK, 1, is_packed=True)]}, size_bytes=SIZE_BYTES)
    path = recorded.path(recorded.backups[0])
    spoil(path, 2)
    assert len(verified(recorded)) > 1
    [done] = repaired(recorded)
    assert done.is_done
    assert "1 block" in done.what
    assert_all_is_as_it_was(recorded, tmp_path)


def test_damaged_block_of_which_there_is_only_one_needs_a_copy(recorded: Recorded, tmp_path: Path) -> None:
    recorded.add({"vda": [Write(6 * MIB, 3000, 77)]}, size_bytes=SIZE_BYTES)
    other = copied(recorded)
    path = recorded.path(recorded.backups[-1])
    before = path.read_bytes()
    spoil(path, 96)
    spoiled = path.read_bytes()
    verified(recorded)
    [failed] = repaired(recorded)
    assert not failed.is_done
    assert "--from" in failed.what
    assert path.read_bytes() == spoiled
    [done] = repaired(recorded, other)
    assert done.is_done
    assert path.read_bytes() == before
    kept = recorded.repository.path / quarantine.NAME / "replaced" / path.relative_to(recorded.repository.path)
    assert kept.read_bytes() == spoiled
    assert_all_is_as_it_was(recorded, tmp_path)


@pytest.mark.parametrize("has_copy", [True, False])
@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_damaged_compressed_block_is_compressed_again(
    recorded: Recorded, tmp_path: Path, compression: str, has_copy: bool
) -> None:
    """From a copy it is taken as it is; otherwise it has to fit in the place that it had."""
    recorded.add(
        {"vda": [Write(6 * MIB + n * BLOCK, BLOCK, 1, is_packed=True) for n in range(3)]},
        size_bytes=SIZE_BYTES,
        compression=compression,
    )
    copies = [copied(recorded)] if has_copy else []
    path = recorded.path(recorded.backups[-1])
    spoil(path, 97, length=20)
    verified(recorded)
    assert [one.is_done for one in repaired(recorded, *copies)] == [True]
    assert_all_is_as_it_was(recorded, tmp_path)


def test_dry_run_changes_nothing(recorded: Recorded) -> None:
    recorded.add({"vda": [Write(6 * MIB, BLOCK, 1)]}, size_bytes=SIZE_BYTES)
    spoil(recorded.path(recorded.backups[0]), 2)
    recorded.path(recorded.backups[1], "vda.blocks").unlink()
    (recorded.repository.path / UUID / "domain.json").unlink()
    recorded.path(recorded.backups[0]).chmod(0o644)
    verified(recorded)
    before = {
        p: (p.lstat().st_mode, p.read_bytes() if p.is_file() else b"") for p in recorded.repository.path.rglob("*")
    }
    would = repaired(recorded, dry_run=True)
    assert len(would) == 4
    assert all("would be" in one.what for one in would)
    after = {
        p: (p.lstat().st_mode, p.read_bytes() if p.is_file() else b"") for p in recorded.repository.path.rglob("*")
    }
    assert after == before


def header(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8)
        file.write(b"\xff" * 8)


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


WHOLE: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "header": header,
    "longer": lambda path: os.truncate(path, path.stat().st_size + 512),
    "link": link,
}


@pytest.mark.parametrize("harm", WHOLE.values(), ids=WHOLE)
def test_image_that_is_unusable_is_taken_from_a_copy(
    recorded: Recorded, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    other = copied(recorded)
    harm(recorded.path(recorded.backups[1]))
    assert damaged(recorded) != []
    assert [one.is_done for one in repaired(recorded, other)] == [True]
    assert_all_is_as_it_was(recorded, tmp_path)


def test_damage_of_the_copy_is_not_taken_over(recorded: Recorded, tmp_path: Path) -> None:
    """Half of the image is damaged here, half in the copy: together they are whole."""
    recorded.add({"vda": [Write(6 * MIB, 3000, 77), Write(7 * MIB, 3000, 78)]}, size_bytes=SIZE_BYTES)
    other = copied(recorded)
    path = recorded.path(recorded.backups[-1])
    spoil(path, 96)
    spoil(other.path / path.relative_to(recorded.repository.path), 112)
    verified(recorded)
    assert [one.is_done for one in repaired(recorded, other)] == [True]
    assert_all_is_as_it_was(recorded, tmp_path)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"vbblocks")])
def test_list_is_made_again_from_the_image_that_proves_it(
    recorded: Recorded, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    path = recorded.path(recorded.backups[1], "vda.blocks")
    before = path.read_bytes()
    harm(path)
    assert "block list" in damaged(recorded)[0]
    assert [one.is_done for one in repaired(recorded)] == [True]
    assert path.read_bytes() == before
    assert_all_is_as_it_was(recorded, tmp_path)


def test_list_of_a_damaged_image_is_not_made_again_but_taken_from_a_copy(recorded: Recorded, tmp_path: Path) -> None:
    """A list of what is there now would bless the damage."""
    other = copied(recorded)
    image = recorded.path(recorded.backups[0])
    spoil(image, 1)
    image.with_suffix(".blocks").unlink()
    assert [one.is_done for one in repaired(recorded)] == [False]
    assert not image.with_suffix(".blocks").exists()
    assert all(one.is_done for one in repaired(recorded, other))
    assert_all_is_as_it_was(recorded, tmp_path)


def test_list_is_copied_in_pieces_and_compared(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a full of 1 TiB has 512 MiB; what the storage made of it is read again."""
    other = copied(recorded)
    image = recorded.path(recorded.backups[0])
    target = image.with_suffix(".blocks")
    good = target.read_bytes()
    spoil(image, 1)
    target.unlink()

    def refuse(path: Path) -> bytes:
        raise AssertionError(f"all of {path} was read at once")

    really = image_repair.copy

    def other_content(source: Path, staged: Path, **more: object) -> None:
        really(source, staged, **more)  # type: ignore[arg-type]
        with staged.open("r+b") as file:
            file.seek(100)
            file.write(b"\xdd\xdd")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        patched.setattr(image_repair, "copy", other_content)
        assert [one.is_done for one in repaired(recorded, other)] == [False]
    assert not target.exists()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        assert all(one.is_done for one in repaired(recorded, other))
    assert target.read_bytes() == good


@pytest.mark.parametrize("name", ["domain.xml", "nvram"])
def test_further_file_is_taken_from_another_backup_that_has_the_same(
    recorded: Recorded, tmp_path: Path, name: str
) -> None:
    path = recorded.path(recorded.backups[0], name)
    path.write_bytes(b"altered")
    damage = Damage(None, f"{recorded.backups[0].id}/{name}", 0, 0, "file")
    verification.write(path.parent, Verification(NOON, Verdict.DAMAGED, 100, 1, (damage,)))
    assert damaged(recorded) != []
    assert [one.is_done for one in repaired(recorded)] == [True]
    assert_all_is_as_it_was(recorded, tmp_path)
    result = verification.read(path.parent)
    assert result is not None
    assert (result.verdict, result.damage) == (Verdict.GOOD, ())


def test_large_file_of_the_machine_is_taken_from_a_copy_too(recorded: Recorded) -> None:
    one = recorded.backups[0]
    data = bytes(3 * 1024 * 1024) + b"initrd"
    path = recorded.path(one, "initrd")
    path.write_bytes(data)
    machine = (MachineFile(MachineKind.INITRD, len(data), digest_of(data), "/initrd"),)
    recorded.path(one, "manifest.json").write_text(manifest.dump(replace(one, machine=machine)))
    other = copied(recorded)
    path.write_bytes(data[1:])
    assert [str(path) in sentence for sentence in damaged(recorded)] == [True]
    assert all(each.is_done for each in repaired(recorded, other))
    assert path.read_bytes() == data
    assert damaged(recorded) == []


def test_manifest_is_taken_from_a_copy_whose_digests_fit(recorded: Recorded, tmp_path: Path) -> None:
    other = copied(recorded)
    path = recorded.path(recorded.backups[1], "manifest.json")
    path.write_text("{")
    assert damaged(recorded) != []
    assert [one.is_done for one in repaired(recorded, other)] == [True]
    assert_all_is_as_it_was(recorded, tmp_path)


@pytest.mark.parametrize("loses_digest", [True, False])
def test_altered_manifest_of_a_copy_is_not_taken(recorded: Recorded, loses_digest: bool) -> None:
    """Its lists are those that are here, but it says something else of the rest."""
    other = copied(recorded)
    one = recorded.backups[1]
    twin = other.directory(UUID, one.id) / "manifest.json"
    members = json.loads(twin.read_text())
    members["files"]["domain.xml"] = members["files"]["domain.xml"][:-8] + "00000000"
    if loses_digest:
        del members["digest"]
    twin.write_text(json.dumps(members))
    recorded.path(one, "manifest.json").write_text("{")
    assert not [each.what for each in repaired(recorded, other) if "was taken from" in each.what]


@pytest.mark.parametrize("has_lists", [True, False])
def test_manifest_without_a_digest_is_taken_if_all_that_it_records_is_here(tmp_path: Path, has_lists: bool) -> None:
    """Those of older versions have none."""
    recorded = story(tmp_path / "repo", has_lists=has_lists)
    one = recorded.backups[1]
    path = recorded.path(one, "manifest.json")
    members = json.loads(path.read_text())
    del members["digest"]
    path.write_text(json.dumps(members))
    other = copied(recorded)
    path.write_text("{")
    assert [each.is_done for each in repaired(recorded, other)] == [True]
    assert_all_is_as_it_was(recorded, tmp_path)
    path.write_text("{")
    with recorded.path(one).open("r+b") as file:
        file.write(b"\xff")
    if not has_lists:
        assert not [each.what for each in repaired(recorded, other) if "was taken from" in each.what]


def test_what_cannot_be_used_goes_to_the_quarantine_and_nothing_is_lost(recorded: Recorded, tmp_path: Path) -> None:
    """The other backups are found and restored as before."""
    recorded.add({"vda": [Write(0, MIB, 9)], "vdb": [Write(0, MIB, 8)]}, level=Level.FULL, size_bytes=SIZE_BYTES)
    last = recorded.backups[-1]
    gone = recorded.backups[0]
    files = {p.relative_to(recorded.repository.path): p.read_bytes() for p in recorded.repository.path.rglob("*.qcow2")}
    recorded.path(gone, "manifest.json").write_text("{")
    repaired(recorded)
    assert [one.id for one in recorded.repository.catalogue(UUID).history.backups] == [last.id]
    assert damaged(recorded) == []
    store = recorded.repository.path / quarantine.NAME
    assert {p.relative_to(store): p.read_bytes() for p in store.rglob("*.qcow2")} == {
        path: data for path, data in files.items() if path.parts[1] != last.id
    }
    # What QEMU needs is beside each other there, too.
    image = store / UUID / recorded.backups[1].id / "vda.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, tmp_path / "raw"], check=True)
    assert (tmp_path / "raw").read_bytes() == recorded.contents[recorded.backups[1].id, "vda"]


def test_backup_that_is_protected_or_being_read_stays(recorded: Recorded) -> None:
    one, other = recorded.backups[0], recorded.backups[1]
    for each in recorded.backups:
        recorded.path(each, "manifest.json").write_text("{")
    recorded.path(one, "protected").write_text("{}")
    with readers.reading([recorded.path(other).parent]):
        done = repaired(recorded)
    assert [each.what for each in done if not each.is_done] == [
        f"Backup {one.id} cannot be restored now, but stays where it is: it is protected.",
        f"Backup {other.id} cannot be restored now, but stays where it is: it is being read.",
    ]
    assert recorded.path(one).exists()
    assert recorded.path(other).exists()


def test_backup_of_a_newer_vbackup_is_not_put_away(recorded: Recorded) -> None:
    path = recorded.path(recorded.backups[-1], "manifest.json")
    path.write_text(path.read_text().replace("vbackup.manifest/1", "vbackup.manifest/2"))
    [failed] = repaired(recorded)
    assert "a newer vbackup made it" in failed.what
    assert path.exists()


def test_backup_on_failing_storage_is_not_put_away(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be readable tomorrow."""
    path = recorded.path(recorded.backups[-1], "manifest.json")
    really = os.open

    def fails(name: str | Path, flags: int, *more: int, **options: Any) -> int:
        if Path(name) == path:
            raise OSError(5, "Input/output error")
        return really(name, flags, *more, **options)

    monkeypatch.setattr(os, "open", fails)
    [failed] = repaired(recorded)
    assert "Input/output error" in failed.what
    assert path.exists()


@pytest.mark.parametrize("dry_run", [True, False])
def test_nothing_is_put_away_while_a_merge_is_half_done(recorded: Recorded, dry_run: bool) -> None:
    """An image that was being written in place is not what was recorded; that says nothing against its backup."""
    (recorded.repository.path / UUID / "merge.json").write_text("{")
    for dev in ("vda", "vdb"):
        os.truncate(recorded.path(recorded.backups[0], f"{dev}.qcow2"), 1000)
    done = repaired(recorded, dry_run=dry_run)
    assert not [one.what for one in done if "quarantine" in one.what or "was moved to" in one.what]
    assert all(recorded.path(one).exists() for one in recorded.backups)
    assert any("stays where it is until" in one.what for one in done)


def test_domain_whose_backups_were_all_put_away_is_still_known(recorded: Recorded, tmp_path: Path) -> None:
    """Its name stays, check says what was lost, and a copy brings all of it back."""
    other = copied(recorded)
    for each in recorded.backups:
        recorded.path(each, "manifest.json").write_text("{")
    repaired(recorded)
    assert recorded.repository.find("web") == UUID
    [lost] = check.run(None, repository=recorded.repository, reporter=Recorder(), stop=Stop()).troubles
    assert (lost.severity.value, lost.kind.value) == ("damage", "quarantined")
    assert set(lost.affected) == {each.id for each in recorded.backups}
    assert all(one.is_done for one in repaired(recorded, other))
    assert recorded.repository.find("web") == UUID
    assert_all_is_as_it_was(recorded, tmp_path)


def test_domain_that_has_backups_in_the_quarantine_only_is_repaired(recorded: Recorded, tmp_path: Path) -> None:
    """Its directory may have been removed."""
    other = copied(recorded)
    for each in recorded.backups:
        recorded.path(each, "manifest.json").write_text("{")
    repaired(recorded)
    shutil.rmtree(recorded.repository.path / UUID)
    assert [
        one.uuid for one in check.run(None, repository=recorded.repository, reporter=Recorder(), stop=Stop()).domains
    ]
    assert repaired(recorded) == []
    assert not (recorded.repository.path / UUID).exists()
    assert all(one.is_done for one in repaired(recorded, other))
    assert_all_is_as_it_was(recorded, tmp_path)


def test_names_are_made_from_the_manifests(recorded: Recorded) -> None:
    (recorded.repository.path / UUID / "domain.json").write_text("[")
    assert [one.is_done for one in repaired(recorded)] == [True]
    assert recorded.repository.find("web") == UUID


def test_modes_are_those_that_vbackup_gives(recorded: Recorded) -> None:
    for path in recorded.repository.path.rglob("*"):
        path.chmod(0o755)
    assert [one.is_done for one in repaired(recorded)] == [True]
    modes = {path.is_dir(): path.stat().st_mode & 0o777 for path in (recorded.repository.path / UUID).rglob("*")}
    assert modes == {True: 0o700, False: 0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owner_is_that_of_the_repository(recorded: Recorded) -> None:
    """QEMU and libvirt give images to their own user when a domain is started from them."""
    path = recorded.path(recorded.backups[0])
    os.chown(path, 64055, 64055)
    assert [one.is_done for one in repaired(recorded)] == [True]
    assert path.stat().st_uid == recorded.repository.path.stat().st_uid


def test_leftovers_of_a_dead_repair_are_removed(recorded: Recorded, tmp_path: Path) -> None:
    recorded.path(recorded.backups[0], ".repaired-vda.qcow2").write_bytes(b"half")
    recorded.path(recorded.backups[0], ".verified.json.4194999").write_bytes(b"{")
    mine = recorded.path(recorded.backups[0], f".vda.blocks.{os.getpid()}")
    mine.write_bytes(b"a verify makes it at this moment")
    mine.chmod(0o600)
    assert len(repaired(recorded)) == 2
    assert mine.exists()
    mine.unlink()
    assert_all_is_as_it_was(recorded, tmp_path)


def test_top_of_the_repository_is_repaired(recorded: Recorded) -> None:
    top = recorded.repository.path
    top.chmod(0o755)
    (top / ".probe-4194999" / "one").mkdir(parents=True)
    (top / f".probe-{os.getpid()}").mkdir()
    assert len(repair.top(recorded.repository, dry_run=True)) == 2
    assert len(repair.top(recorded.repository, dry_run=False)) == 2
    assert top.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in top.glob(".probe-*")] == [f".probe-{os.getpid()}"]


def test_domain_that_another_run_works_on_is_left_alone(recorded: Recorded) -> None:
    with recorded.repository.lock(UUID), pytest.raises(BusyError):
        repaired(recorded)


def test_backup_of_an_older_version_is_taken_from_a_copy_as_a_whole(tmp_path: Path) -> None:
    recorded = story(tmp_path / "repo", has_lists=False)
    other = copied(recorded)
    path = recorded.path(recorded.backups[1])
    os.truncate(path, 1000)
    assert [one.is_done for one in repaired(recorded, other)] == [True]
    assert_all_is_as_it_was(recorded, tmp_path)


def test_what_is_in_the_quarantine_is_taken_back_if_a_copy_can_mend_it(recorded: Recorded, tmp_path: Path) -> None:
    """Whoever repairs without the copy first has lost nothing."""
    other = copied(recorded)
    os.truncate(recorded.path(recorded.backups[0]), 1000)
    os.truncate(recorded.path(recorded.backups[0], "vdb.qcow2"), 1000)
    repaired(recorded)
    assert recorded.repository.catalogue(UUID).history.backups == ()
    assert all(one.is_done for one in repaired(recorded, other))
    assert_all_is_as_it_was(recorded, tmp_path)


# killed in the middle


class Killed(BaseException):
    """SIGKILL: no handler runs that could clean up."""


@pytest.fixture(params=range(31))
def kill(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ends the process, as it were, at the n-th step that changes something; nothing is undone."""
    counted = [0]

    def dying(really: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **more: object) -> object:
            if counted[0] > request.param:
                raise Killed  # and so does every undo
            counted[0] += 1
            if counted[0] > request.param:
                raise Killed
            return really(*args, **more)

        return call

    for target, name in (
        (os, "pwrite"),
        (os, "link"),
        (Path, "replace"),
        (Path, "rename"),
        (Path, "unlink"),
        (filesystem, "copy"),
        (filesystem, "clone"),
        (image_repair, "fsync"),
        (quarantine, "fsync"),
        (Path, "mkdir"),
    ):
        monkeypatch.setattr(target, name, dying(getattr(target, name)))
    return counted


def test_repair_that_is_killed_is_gone_on_with(
    recorded: Recorded, tmp_path: Path, kill: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever: every backup that could be restored before still can be, and the next repair ends it."""
    kill[0] = -10000  # not while it is prepared
    recorded.add({"vda": [Write(6 * MIB, BLOCK, 1)]}, size_bytes=SIZE_BYTES)
    path = recorded.path(recorded.backups[0])
    spoil(path, 2)
    recorded.path(recorded.backups[1], "vda.blocks").unlink()
    damaged_before = set(verified(recorded))
    kill[0] = 0
    with suppress(Killed):
        repaired(recorded)
    monkeypatch.undo()
    assert set(verified(recorded)) <= damaged_before
    assert path.exists()
    repaired(recorded)
    assert_all_is_as_it_was(recorded, tmp_path)


@pytest.mark.parametrize("kill", range(0, 31, 4), indirect=True)
def test_repair_that_is_killed_while_it_brings_a_backup_back_is_gone_on_with(
    recorded: Recorded, tmp_path: Path, kill: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kill[0] = -10000  # not while it is prepared
    other = copied(recorded)
    lost = recorded.path(recorded.backups[1]).parent
    shutil.rmtree(lost)
    # A process that is killed removes nothing.
    monkeypatch.setattr(backup_repair.shutil, "rmtree", lambda *_args, **_options: None)
    kill[0] = 0
    with suppress(Killed):
        repaired(recorded, other)
    monkeypatch.undo()
    if lost.exists():  # then it is whole
        assert verified(recorded) == []
    repaired(recorded, other)
    assert_all_is_as_it_was(recorded, tmp_path)


def test_damaged_results_of_audits_are_written_anew_and_distrust_what_was_there(recorded: Recorded) -> None:
    path = recorded.repository.path / UUID / "audit.json"
    path.write_text("{")
    path.chmod(0o600)

    def findings() -> list[str]:
        checked = check.run([UUID], repository=recorded.repository, reporter=Recorder(), stop=Stop())
        assert checked.status.value == 0
        return [trouble.sentence for trouble in checked.troubles if trouble.kind.value == "audits"]

    (finding,) = findings()
    assert f"{path} cannot be read" in finding
    assert "the next backup of each disk is a full" in finding
    assert [one.is_done for one in repaired(recorded, dry_run=True)] == [True]
    assert path.read_text() == "{"
    (done,) = repaired(recorded)
    assert "rewritten" in done.what
    assert findings() == []
    history = recorded.repository.catalogue(UUID).history
    assert all(history.distrust(backup.id, image.dev) for backup in history.backups for image in backup.disks)
    (kept,) = (recorded.repository.path / quarantine.NAME).rglob("audit.json*")
    assert kept.read_text() == "{"


def test_missing_backup_on_which_others_depend_is_brought_back_from_a_copy(recorded: Recorded, tmp_path: Path) -> None:
    """Two in a row, and what people have said of them."""
    notes.write(recorded.path(recorded.backups[1]).parent, "before the migration")
    other = copied(recorded)
    lost = [recorded.path(one).parent for one in recorded.backups[:2]]
    for path in lost:
        shutil.rmtree(path)
    assert damaged(recorded) != []
    assert [one.what for one in repaired(recorded, other, dry_run=True)] == [
        f"Backup {lost[1].name} would be brought back from {other.directory(UUID, lost[1].name)}."
    ]
    assert not any(path.exists() for path in lost)
    # Without a copy, what depends on them is of no use, and is put away; with one it is taken back.
    assert any("with --from" in one.what for one in repaired(recorded))
    done = [one.what for one in repaired(recorded, other)]
    assert [what for what in done if "brought back" in what] == [
        f"Backup {path.name} was brought back from {other.directory(UUID, path.name)}." for path in reversed(lost)
    ]
    assert_all_is_as_it_was(recorded, tmp_path)
    assert notes.read(lost[1]) == "before the migration"
    assert {path.lstat().st_mode & 0o777 for path in lost[1].iterdir()} == {0o600}


def test_backup_that_lost_all_but_its_name_is_brought_back(recorded: Recorded, tmp_path: Path) -> None:
    other = copied(recorded)
    path = recorded.path(recorded.backups[1]).parent
    for entry in path.iterdir():
        entry.unlink()
    repaired(recorded, other)
    assert_all_is_as_it_was(recorded, tmp_path)
    assert list((recorded.repository.path / quarantine.NAME / UUID / path.name).iterdir()) == []
    assert repaired(recorded, other) == []


def test_image_and_list_that_are_missing_are_brought_back(recorded: Recorded, tmp_path: Path) -> None:
    other = copied(recorded)
    for name in ("vda.qcow2", "vda.blocks"):
        recorded.path(recorded.backups[1], name).unlink()
    assert all(one.is_done for one in repaired(recorded, other))
    assert_all_is_as_it_was(recorded, tmp_path)


@pytest.mark.parametrize("name", ["vda.qcow2", "vda.blocks", "domain.xml", "manifest.json"])
def test_backup_that_is_not_whole_in_the_copy_is_not_brought_back(recorded: Recorded, name: str) -> None:
    other = copied(recorded)
    path = recorded.path(recorded.backups[0]).parent
    shutil.rmtree(path)
    twin = other.directory(UUID, path.name) / name
    if name == "vda.qcow2":
        spoil(twin, 2)
    else:
        data = bytearray(twin.read_bytes())
        data[len(data) // 2] ^= 1
        twin.write_bytes(data)
    [failed] = [one for one in repaired(recorded, other) if not one.is_done]
    assert f"Backup {path.name} is missing" in failed.what
    assert "from a copy: " in failed.what or "with --from" in failed.what
    left = {entry.name for entry in (recorded.repository.path / UUID).iterdir()}
    assert path.name not in left
    assert not [entry for entry in left if entry.startswith(".repaired-")]


def test_backup_of_another_repository_is_not_brought_back(recorded: Recorded) -> None:
    """It may have the same id, as the backups of a group have."""
    other = copied(recorded)
    marker = other.path / MARKER
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "id": "ba9876543210"}))
    shutil.rmtree(recorded.path(recorded.backups[0]).parent)
    [failed] = [one for one in repaired(recorded, Repository.open(other.path)) if not one.is_done]
    assert "is no copy of this repository" in failed.what


def test_stage_of_a_killed_repair_is_removed(recorded: Recorded) -> None:
    stage = recorded.repository.path / UUID / f".repaired-{recorded.backups[0].id}"
    stage.mkdir(mode=0o700)
    (stage / "vda.qcow2").touch(mode=0o600)
    assert [one.what for one in repaired(recorded)] == [f"{stage} was removed."]
    assert not stage.exists()


def lost_journal(recorded: Recorded) -> Path:
    """The journal of an interrupted merge, damaged, and what it had staged."""
    path = recorded.repository.path / UUID / "merge.json"
    path.write_text("{")
    path.chmod(0o600)
    stage = path.with_name(f".merge-{recorded.backups[1].id}")
    stage.mkdir(mode=0o700)
    return path


def test_damaged_journal_of_merges_is_put_away_if_no_image_was_written_to(recorded: Recorded, tmp_path: Path) -> None:
    path = lost_journal(recorded)
    [would] = repaired(recorded, dry_run=True)
    assert "would be moved to the quarantine" in would.what
    assert path.exists()
    done = repaired(recorded)
    assert all(one.is_done for one in done)
    assert (recorded.repository.path / quarantine.NAME / UUID / "merge.json").read_text() == "{"
    assert not [entry for entry in path.parent.iterdir() if "merge" in entry.name]
    assert_all_is_as_it_was(recorded, tmp_path)
    assert repaired(recorded) == []


def test_damaged_journal_of_merges_stays_while_an_image_is_not_as_it_was(recorded: Recorded, tmp_path: Path) -> None:
    """Its tables are the same: what a merge in place writes over a block that is there changes none."""
    for place in (6 * MIB, 7 * MIB):
        recorded.add({"vda": [Write(place, 3000, place // MIB)]}, size_bytes=SIZE_BYTES)
    other = copied(recorded)
    path = lost_journal(recorded)
    spoil(recorded.path(recorded.backups[-2]), 96)
    failed = [one.what for one in repaired(recorded) if not one.is_done]
    assert any(f"{path} is damaged" in what and "vda.qcow2" in what for what in failed)
    assert path.exists()
    assert all(one.is_done for one in repaired(recorded, other))
    assert not path.exists()
    assert_all_is_as_it_was(recorded, tmp_path)
