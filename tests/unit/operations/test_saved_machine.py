"""What of a machine can be read is in its backup, and everything else is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.builders import UUID, Recorder, backup
from vbackup.domain.definition import Further
from vbackup.domain.machine_state import Found, Unsaved
from vbackup.domain.state_files import UnsavedError
from vbackup.files import digest_of
from vbackup.model import Backup, LeftOut, MachineFile, MachineKind
from vbackup.operations import saved_machine
from vbackup.operations.saved_machine import Saved
from vbackup.repository.repository import Repository, Stage
from vbackup.stop import Stop


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    repository = Repository.create(tmp_path / "repository")
    with repository.lock(UUID), repository.stage(UUID, "20261123T120000Z-full") as stage:
        yield stage


def failing(*, is_unexpected: bool, is_too_large: bool = False) -> Iterator[bytes]:
    yield b"half"
    raise UnsavedError("initrd /i changed while it was read", is_unexpected=is_unexpected, is_too_large=is_too_large)


def save(
    stage: Stage,
    recorder: Recorder,
    *found: Found,
    unsaved: tuple[Unsaved, ...] = (),
    earlier: Backup | None = None,
) -> Saved:
    repository = Repository.open(stage.path.parent.parent)
    return saved_machine.save(
        Further({}, (), found, unsaved), stage, earlier=earlier, repository=repository, reporter=recorder, stop=Stop()
    )


def test_files_are_written_with_what_proves_them(stage: Stage, recorder: Recorder) -> None:
    nvram = Found(MachineKind.NVRAM, "/n", lambda: iter([b"vari", b"ables"]))
    seed = Found(MachineKind.MEDIUM, "/s", lambda: iter([b"seed"]), "sda")
    saved = save(stage, recorder, nvram, seed)
    assert saved == Saved(
        (
            MachineFile(MachineKind.NVRAM, 9, digest_of(b"variables"), "/n"),
            MachineFile(MachineKind.MEDIUM, 4, digest_of(b"seed"), "/s", "sda"),
        ),
        (),
    )
    assert (stage.path / "nvram").read_bytes() == b"variables"
    assert (stage.path / "sda.medium").stat().st_mode & 0o777 == 0o600
    assert recorder.warnings == []


@pytest.mark.parametrize("is_unexpected", [False, True])
def test_file_that_cannot_be_read_whole_is_left_out(stage: Stage, recorder: Recorder, is_unexpected: bool) -> None:
    saved = save(stage, recorder, Found(MachineKind.INITRD, "/i", lambda: failing(is_unexpected=is_unexpected)))
    assert saved.files == ()
    assert saved.unsaved == (LeftOut("initrd", "initrd /i changed while it was read", kind="initrd"),)
    assert not (stage.path / "initrd").exists()
    assert [warning.startswith("The initrd is not in the backup: ") for warning in recorder.warnings] == [
        True
    ] * is_unexpected


@pytest.mark.parametrize("is_too_large", [False, True])
def test_medium_that_cannot_be_read_is_a_warning_and_a_large_one_each_night_is_not(
    stage: Stage, recorder: Recorder, is_too_large: bool
) -> None:
    medium = Found(MachineKind.MEDIUM, "/s", lambda: failing(is_unexpected=True, is_too_large=is_too_large), "sda")
    saved = save(stage, recorder, medium)
    assert [(left.kind, left.dev) for left in saved.unsaved] == [("disk", "sda")]
    assert len(recorder.warnings) == (not is_too_large)


@pytest.mark.parametrize(
    ("data", "there", "is_shared"),
    [(b"initrd", b"initrd", True), (b"initrd", b"damage", False), (b"newer!", b"initrd", False), (b"s", b"s", False)],
    ids=["same", "damaged", "another", "small"],
)
def test_large_file_that_the_backup_before_has_takes_no_room_again(
    stage: Stage,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    there: bytes,
    is_shared: bool,
) -> None:
    monkeypatch.setattr(saved_machine, "SHARED_BYTES", 2)
    known = b"s" if data == b"s" else b"initrd"
    earlier = backup(1, machine=(MachineFile(MachineKind.INITRD, len(known), digest_of(known), "/i"),))
    directory = stage.path.parent / earlier.id
    directory.mkdir()
    (directory / "initrd").write_bytes(there)
    saved = save(stage, recorder, Found(MachineKind.INITRD, "/i", lambda: iter([data])), earlier=earlier)
    assert saved.files == (MachineFile(MachineKind.INITRD, len(data), digest_of(data), "/i"),)
    assert (stage.path / "initrd").read_bytes() == data
    assert (stage.path / "initrd").samefile(directory / "initrd") is is_shared
    assert [path.name for path in stage.path.iterdir()] == ["initrd"]


def test_filesystem_without_hard_links_keeps_the_copy(
    stage: Stage, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        raise PermissionError

    (tmp_path / "earlier").write_bytes(b"abc")
    stage.write("initrd", b"abc")
    monkeypatch.setattr(os, "link", refuse)
    stage.share("initrd", tmp_path / "earlier")
    assert (stage.path / "initrd").read_bytes() == b"abc"
    assert not (stage.path / "initrd").samefile(tmp_path / "earlier")
    assert recorder.warnings == []


def test_what_is_had_is_not_left_out_and_what_is_not_has_its_own_reason() -> None:
    planned = (LeftOut("sda", "cdrom"), LeftOut("sdb", "cdrom"), LeftOut("share", "folder", kind="filesystem"))
    files = (
        MachineFile(MachineKind.MEDIUM, 4, "sha256:s", "/s", "sda"),
        MachineFile(MachineKind.NVRAM, 9, "sha256:n", "/n"),
    )
    own = LeftOut("sdb", "cdrom /b is larger than 64 MiB")
    only = LeftOut("vde", "only the definition has it")
    further = Further({}, (only,), autostart=True, loader="/OVMF.fd")
    made = saved_machine.with_machine(backup(1, left_out=planned), Saved(files, (own,)), further)
    assert made.left_out == (planned[2], only, own)
    assert made.machine == files
    assert made.files["nvram"] == "sha256:n", "an older vbackup restores it"
    assert (made.autostart, made.loader) == (True, "/OVMF.fd")
