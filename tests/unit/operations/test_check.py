"""What check says of a repository: every fault with its severity, and nothing of one without."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.recorded import Recorded, story
from tests.unit.builders import UUID, Recorder
from vbackup.errors import Status
from vbackup.operations import check
from vbackup.operations.check import Checked
from vbackup.repository import manifest, place, verification
from vbackup.repository.inspection import Kind, Severity
from vbackup.repository.verification import Damage, Verdict, Verification
from vbackup.stop import Stop


def checked(recorded: Recorded) -> Checked:
    return check.run(None, repository=recorded.repository, reporter=Recorder(), stop=Stop())


def test_repository_without_trouble(recorded: Recorded) -> None:
    found = checked(recorded)
    assert [trouble.sentence for trouble in found.troubles] == []
    assert (found.status, len(found.domains), found.domains[0].backups) == (Status.DONE, 1, 4)


def flip(name: str, position: int) -> Callable[[Path], None]:
    def harm(directory: Path) -> None:
        with (directory / name).open("r+b") as file:
            file.seek(position, os.SEEK_END if position < 0 else os.SEEK_SET)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))

    return harm


DAMAGE: dict[str, tuple[Callable[[Path], None], Kind]] = {
    "image missing": (lambda directory: (directory / "vda.qcow2").unlink(), Kind.IMAGE),
    "image truncated": (lambda directory: os.truncate(directory / "vda.qcow2", 5000), Kind.IMAGE),
    "size in the header": (flip("vda.qcow2", 28), Kind.STRUCTURE),
    "L1 table": (flip("vda.qcow2", 3 * 65536 + 5), Kind.STRUCTURE),
    "refcount table": (flip("vda.qcow2", 65536 + 6), Kind.STRUCTURE),
    "list": (flip("vda.blocks", 100), Kind.LIST),
    "list missing": (lambda directory: (directory / "vda.blocks").unlink(), Kind.LIST),
    "domain.xml": (flip("domain.xml", 5), Kind.FILE),
    "nvram missing": (lambda directory: (directory / "nvram").unlink(), Kind.FILE),
    "manifest": (lambda directory: (directory / "manifest.json").write_text("{"), Kind.MANIFEST),
}


@pytest.mark.parametrize(("harm", "kind"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found_with_the_backups_that_it_concerns(
    recorded: Recorded, harm: Callable[[Path], None], kind: Kind
) -> None:
    one, other = recorded.backups[0], recorded.backups[1]
    harm(recorded.path(one).parent)
    found = checked(recorded)
    assert found.status is Status.CHAIN
    first = next(trouble for trouble in found.troubles if trouble.kind is kind)
    assert (first.severity, first.backup, first.uuid) == (Severity.DAMAGE, one.id, UUID)
    assert one.id in first.affected
    if kind in (Kind.IMAGE, Kind.STRUCTURE, Kind.LIST):
        assert other.id in first.affected
        assert [trouble.kind for trouble in found.troubles] == [kind]  # the same is not told of those above it
    if kind is Kind.MANIFEST:
        assert {trouble.kind for trouble in found.troubles} == {Kind.MANIFEST, Kind.CHAIN}
    assert "vbackup check --repair" in first.sentence


def test_list_of_another_disk_is_found(recorded: Recorded) -> None:
    directory = recorded.path(recorded.backups[0]).parent
    shutil.copyfile(directory / "vdb.blocks", directory / "vda.blocks")
    assert [trouble.kind for trouble in checked(recorded).troubles] == [Kind.LIST]


def test_image_of_another_disk_is_found(recorded: Recorded) -> None:
    directory = recorded.path(recorded.backups[0]).parent
    for name, other in (("vda.qcow2", "x"), ("vdb.qcow2", "vda.qcow2"), ("x", "vdb.qcow2")):
        (directory / name).rename(directory / other)
    assert {trouble.dev for trouble in checked(recorded).troubles} == {"vda", "vdb"}
    assert checked(recorded).status is Status.CHAIN


def test_backup_that_others_depend_on_is_gone(recorded: Recorded) -> None:
    shutil.rmtree(recorded.path(recorded.backups[1]).parent)
    found = checked(recorded)
    assert {trouble.kind for trouble in found.troubles} == {Kind.CHAIN}
    assert {trouble.backup for trouble in found.troubles} == {one.id for one in recorded.backups[2:]}


def test_result_of_a_verify_counts(recorded: Recorded) -> None:
    one = recorded.backups[1]
    damage = Damage("vda", f"{one.id}/vda.qcow2", 0, 65536, "content")
    verification.write(
        recorded.path(one).parent, Verification(datetime.now(timezone.utc), Verdict.DAMAGED, 100.0, 1, (damage,))
    )
    [trouble] = checked(recorded).troubles
    assert (trouble.kind, trouble.backup) == (Kind.CONTENT, one.id)


WARNINGS: dict[str, tuple[Callable[[Path], object], Kind]] = {
    "file of nobody": (lambda top: (top / UUID / "notes.txt").write_text(""), Kind.UNKNOWN),
    "file at the top": (lambda top: (top / "notes.txt").write_text(""), Kind.UNKNOWN),
    "names": (lambda top: (top / UUID / "domain.json").write_text("["), Kind.NAMES),
    "mode of a file": (lambda top: (top / UUID / "domain.json").chmod(0o640), Kind.MODE),
    "mode of the repository": (lambda top: top.chmod(0o755), Kind.MODE),
    "stage": (lambda top: (top / UUID / "20261124T100000Z-full.partial").mkdir(0o700), Kind.UNFINISHED),
    "merge": (lambda top: (top / UUID / ".merge-20261124T100000Z-full").mkdir(0o700), Kind.UNFINISHED),
    "temporary file": (lambda top: (top / UUID / ".domain.json.4194999").touch(0o600), Kind.LEFTOVER),
}


@pytest.mark.parametrize(("harm", "kind"), WARNINGS.values(), ids=WARNINGS)
def test_what_hinders_no_restore_is_a_warning(recorded: Recorded, harm: Callable[[Path], object], kind: Kind) -> None:
    harm(recorded.repository.path)
    for path in recorded.repository.path.rglob("notes.txt"):
        path.chmod(0o600)
    found = checked(recorded)
    assert [(trouble.severity, trouble.kind) for trouble in found.troubles] == [(Severity.WARNING, kind)]
    assert found.status is Status.DONE


def test_backup_of_the_future_is_a_warning(recorded: Recorded) -> None:
    one = recorded.backups[-1]
    later = replace(one, time=datetime.now(timezone.utc) + timedelta(days=2))
    recorded.path(one, "manifest.json").write_text(manifest.dump(later))
    [trouble] = checked(recorded).troubles
    assert (trouble.severity, trouble.kind) == (Severity.WARNING, Kind.CLOCK)


@pytest.mark.parametrize(
    ("free_bytes", "status"), [(1 << 20, Status.STORAGE), (40 << 30, Status.DONE), (500 << 30, Status.DONE)]
)
def test_room_that_runs_out_is_told(
    recorded: Recorded, free_bytes: int, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = place.look(recorded.repository)
    monkeypatch.setattr(place, "look", lambda _repository: replace(at, free_bytes=free_bytes, size_bytes=1 << 40))
    found = checked(recorded)
    assert found.status is status
    assert [trouble.kind for trouble in found.troubles] == ([Kind.SPACE] if free_bytes < 500 << 30 else [])


def test_nothing_of_an_image_is_read_but_its_tables(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    from vbackup.qemu.qcow2_layer import Qcow2Layer

    def refuse(*_args: object) -> memoryview:
        raise AssertionError("data was read")

    monkeypatch.setattr(Qcow2Layer, "read", refuse)
    assert checked(recorded).troubles == ()


def test_old_repository_is_looked_through(tmp_path: Path) -> None:
    """Of versions without block lists."""
    recorded = story(tmp_path / "old", has_lists=False)
    assert checked(recorded).troubles == ()
    os.truncate(recorded.path(recorded.backups[0]), 100)
    assert checked(recorded).status is Status.CHAIN


def test_marker_with_another_schema_is_a_warning(recorded: Recorded) -> None:
    path = recorded.repository.path / "vbackup.json"
    marker = json.loads(path.read_text())
    path.write_text(json.dumps({**marker, "schema": "other"}))
    assert [trouble.severity for trouble in checked(recorded).troubles] == [Severity.WARNING]
