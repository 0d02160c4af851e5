"""The journal of a backup: what it records at each step, and what can be read back after its process has died."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.daemon import wait_for
from tests.unit.builders import NOON, UUID, image
from tests.unit.builders import backup as a_backup
from tests.unit.fake_domain import FakeDomain, run
from vbackup.errors import ChainError, NewerJournalError, NoSpaceError
from vbackup.model import Consistency, FreezeMark, Group, GroupMember
from vbackup.repository import journal, writer
from vbackup.repository.journal import Entry, Journal, Step
from vbackup.repository.repository import Repository
from vbackup.repository.writer import Writer


def test_journal_of_a_full_disk_stops_the_backup_before_anything_is_begun(
    domain: FakeDomain,
    repo: Repository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = domain.qemu.state()

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.os, "write", full)
    with pytest.raises(NoSpaceError):
        run(domain, repo)
    monkeypatch.undo()
    assert domain.qemu.state() == before


def test_spread_of_a_group_is_known_from_the_start_of_its_jobs(tmp_path: Path) -> None:
    group = Group("0123456789ab", (GroupMember("web", UUID, "x"), GroupMember("db", "other", "y")))
    draft = a_backup(1, group=group)
    with Journal(tmp_path) as written:
        written.begin(draft)
        written.moment(draft.time, guest_was_stopped=False)
        before = journal.read(tmp_path, backup_id=draft.id, domain_uuid=UUID)
        written.started(replace(draft, frozen_ms=7, group=replace(group, spread_ms=12.5)))
    after = journal.read(tmp_path, backup_id=draft.id, domain_uuid=UUID)
    assert before is not None
    assert after is not None
    assert (before.draft.group, after.draft.group) == (group, replace(group, spread_ms=12.5))


DRAFT = a_backup(1, image("vda"), image("vdb"))


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    for one in DRAFT.disks:
        (tmp_path / one.file).touch()
    return tmp_path


def read(stage: Path) -> Entry:
    entry = journal.read(stage, backup_id=DRAFT.id, domain_uuid=UUID)
    assert entry is not None
    return entry


def write(stage: Path, last: Step) -> None:
    """Write all steps up to that one."""
    started = replace(DRAFT, time=NOON, consistency=Consistency.FILESYSTEM, frozen_ms=7)
    with Journal(stage) as written:
        steps: dict[Step, Callable[[], None]] = {
            Step.BEGIN: lambda: written.begin(DRAFT),
            Step.TARGETS: lambda: written.targets([one.file for one in DRAFT.disks]),
            Step.MOMENT: lambda: written.moment(NOON, guest_was_stopped=True),
            Step.STARTED: lambda: written.started(started),
            Step.COPIED: lambda: written.copied({"vda": 1, "vdb": 2}),
            Step.FLUSHED: written.flushed,
            Step.STREAMED: written.streamed,
        }
        for step in Step:
            steps[step]()
            if step is last:
                break


@pytest.mark.parametrize("last", Step)
def test_each_step_is_read_back_with_all_that_is_known_by_then(stage: Path, last: Step) -> None:
    write(stage, last)
    entry = read(stage)
    reached = list(Step)[: list(Step).index(last) + 1]
    assert (entry.step, entry.writer) == (last, Writer.this())
    assert list(entry.images) == (
        [one.file for one in DRAFT.disks] if Step.TARGETS in reached and last is not Step.STREAMED else []
    )
    assert entry.guest_was_stopped == (Step.MOMENT in reached)
    assert entry.draft.time == (NOON if Step.MOMENT in reached else DRAFT.time)
    is_started = Step.STARTED in reached
    assert (entry.draft.consistency, entry.draft.frozen_ms) == (
        (Consistency.FILESYSTEM, 7) if is_started else (DRAFT.consistency, 0)
    )
    assert [one.copied_bytes for one in entry.draft.disks] == (
        [1, 2] if Step.COPIED in reached else [one.copied_bytes for one in DRAFT.disks]
    )


def test_incomplete_last_line_is_a_step_that_never_began(stage: Path) -> None:
    write(stage, Step.COPIED)
    text = (stage / "journal").read_text()
    begin = text.rindex('{"step": "copied"')
    for end in range(begin, len(text)):
        (stage / "journal").write_text(text[:end])
        assert read(stage).step is Step.STARTED


def test_incomplete_first_line_is_no_journal(stage: Path) -> None:
    write(stage, Step.BEGIN)
    text = (stage / "journal").read_text()
    for end in (0, 1, len(text) - 1):
        (stage / "journal").write_text(text[:end])
        assert journal.read(stage, backup_id=DRAFT.id, domain_uuid=UUID) is None
    (stage / "journal").unlink()
    assert journal.read(stage, backup_id=DRAFT.id, domain_uuid=UUID) is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("vbackup.journal/1", "vbackup.manifest/1", r"does not begin as a journal that this vbackup reads"),
        ('"step": "started"', '"step": "ended"', "'ended' is not a valid Step"),
        ('"consistency": "filesystem"', '"consistency": "perfect"', "perfect"),
        ('"frozen_ms": 7', '"frozen_ms": -7', "frozen_ms"),
        ('"vdb": 2', '"vdc": 2', "vdb"),
        (DRAFT.id, "20261201T120000Z-full", "20261201T120000Z-full"),
        (UUID, "f0000000-0000-4000-8000-000000000009", "f0000000-0000-4000-8000-000000000009"),
        ('{"step": "moment"', "{", "line cannot be read"),
    ],
    ids=["schema", "step", "consistency", "frozen", "disk", "backup", "domain", "JSON"],
)
def test_damaged_journal_is_refused(stage: Path, old: str, new: str, said: str) -> None:
    write(stage, Step.FLUSHED)
    text = (stage / "journal").read_text()
    assert old in text
    (stage / "journal").write_text(text.replace(old, new))
    with pytest.raises(ChainError, match=said):
        read(stage)


def test_journal_of_a_newer_version_is_not_taken_for_a_damaged_one(stage: Path) -> None:
    write(stage, Step.FLUSHED)
    text = (stage / "journal").read_text()
    (stage / "journal").write_text(text.replace("vbackup.journal/1", "vbackup.journal/2"))
    with pytest.raises(
        NewerJournalError, match=r"has format vbackup\.journal/2, .* use the newer vbackup that began it"
    ):
        read(stage)


def test_journal_is_for_its_owner_only_and_on_the_disk_before_the_step(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    with Journal(stage) as written:
        written.begin(DRAFT)
        assert synced == [(stage / "journal").stat().st_size]
    assert stat.S_IMODE((stage / "journal").stat().st_mode) == 0o600


def test_images_of_a_copied_stage_are_not_those_of_qemu(stage: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    write(stage, Step.STARTED)
    copy = tmp_path_factory.mktemp("copy") / "stage"
    shutil.copytree(stage, copy)
    assert read(stage).is_of(stage)
    assert not read(copy).is_of(copy)
    (stage / "vdb.qcow2").unlink()
    assert not read(stage).is_of(stage)


def test_stage_of_hard_links_is_a_copy_too(stage: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As rsnapshot makes them: the files are the same, the directory is not."""
    write(stage, Step.STARTED)
    copy = tmp_path_factory.mktemp("copy") / "stage"
    shutil.copytree(stage, copy, copy_function=os.link)
    assert not read(copy).is_of(copy)


@pytest.mark.parametrize("step", [Step.BEGIN, Step.STARTED])
def test_stage_is_a_copy_from_its_first_step_on_and_not_if_it_was_renamed(
    stage: Path, tmp_path_factory: pytest.TempPathFactory, step: Step
) -> None:
    write(stage, step)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "stage"
    shutil.copytree(stage, elsewhere)
    assert not read(elsewhere).is_of(elsewhere)
    shutil.rmtree(elsewhere)
    stage.rename(elsewhere)
    assert read(elsewhere).is_of(elsewhere)


def test_device_number_may_change_when_the_host_reboots_or_the_file_system_is_mounted_again(stage: Path) -> None:
    write(stage, Step.STARTED)
    entry = read(stage)
    images = {file: f"9{identity}" for file, identity in entry.images.items()}
    moved = replace(entry, images=images, stage=f"9{entry.stage}")
    assert moved.is_of(stage)
    elsewhere = replace(moved, directory="/elsewhere")
    assert not elsewhere.is_of(stage)
    process = replace(entry.writer.process, boot_id="00000000-0000-4000-8000-000000000000")
    assert replace(elsewhere, writer=replace(entry.writer, process=process)).is_of(stage)


def test_journal_of_an_older_version_knows_its_images_only(stage: Path) -> None:
    write(stage, Step.STARTED)
    entry = replace(read(stage), stage=None, directory=None)
    assert entry.is_of(stage)
    assert not replace(entry, images={"vda.qcow2": "1:2"}).is_of(stage)


def test_run_that_goes_on_with_a_backup_is_its_writer(stage: Path) -> None:
    write(stage, Step.STARTED)
    text = (stage / "journal").read_text()
    this = Writer.this()
    (stage / "journal").write_text(text.replace(f'"pid": {this.process.pid},', '"pid": 4194305,'))
    assert read(stage).writer != this
    with Journal(stage) as written:
        written.take_over()
    assert (read(stage).writer, read(stage).step) == (this, Step.STARTED)


def test_run_that_goes_on_removes_the_incomplete_line_of_the_dead_one(stage: Path) -> None:
    """Its own line would be a part of that one, and the journal a damaged one."""
    write(stage, Step.STARTED)
    with (stage / "journal").open("a") as file:
        file.write('{"step": "copi')
    with Journal(stage) as written:
        written.take_over()
        written.copied({"vda": 1, "vdb": 2})
    assert (read(stage).writer, read(stage).step) == (Writer.this(), Step.COPIED)


def test_open_journal_is_touched(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BEAT_S", 0.01)
    with Journal(stage) as written:
        written.begin(DRAFT)
        os.utime(stage / "journal", (0, 0))
        wait_for(lambda: (journal.touched(stage) or 0) > 0, "a sign of life")
    os.utime(stage / "journal", (0, 0))
    assert journal.touched(stage) == 0
    (stage / "journal").unlink()
    assert journal.touched(stage) is None


@pytest.mark.parametrize("mark", FreezeMark)
def test_journal_tells_whether_the_freeze_was_marked(stage: Path, mark: FreezeMark) -> None:
    with Journal(stage) as written:
        written.begin(DRAFT)
        written.moment(NOON, guest_was_stopped=False, freeze_mark=mark)
    assert read(stage).freeze_mark is mark
    text = (stage / "journal").read_text()
    (stage / "journal").write_text(text.replace(f', "freeze": "{mark.value}"', ""))
    assert read(stage).freeze_mark is FreezeMark.UNMARKED  # of an older version
