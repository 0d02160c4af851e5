"""Whole backups on the fake QEMU: what they leave, in success and wherever they are struck.

The bytes are the end-to-end tests' business. Here every single command of a backup fails in every way
once; after that the earlier checkpoints must be as they were, and the same command must succeed.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any

import pytest

from tests.fake_qemu import MIB, FakeQemu
from tests.unit.builders import UUID, Recorder, bitmap_of
from tests.unit.fake_domain import END_BYTES, SIZE_BYTES, FakeDomain, FakePassthrough, partial, run, shrink_and_grow
from vbackup import names
from vbackup.engine import survey
from vbackup.errors import (
    BaseError,
    BusyError,
    DiskError,
    DomainGoneError,
    InterruptedBySignalError,
    NoSpaceError,
    QmpError,
    QuiesceError,
    ScriptError,
    StorageError,
    UnsafeScriptError,
    UnsuitableError,
    VbackupError,
)
from vbackup.model import Backup, Consistency, FreezeMark, Level, Quiesce
from vbackup.operations import backup
from vbackup.operations.backup import BackupRequest
from vbackup.repository import notes
from vbackup.repository.journal import Journal
from vbackup.repository.repository import Repository
from vbackup.scripts.finding import ScriptPhase
from vbackup.scripts.runner import DomainScripts, Settings
from vbackup.stop import Stop

# success


def test_first_backup_is_a_full_of_all_disks(domain: FakeDomain, repo: Repository) -> None:
    one = run(domain, repo)
    assert (one.level, one.parent, one.sequence, one.consistency) == (Level.FULL, None, 1, Consistency.CRASH)
    assert [(disk.dev, disk.level, disk.base, disk.copied_bytes) for disk in one.disks] == [
        ("vda", Level.FULL, None, SIZE_BYTES),
        ("vdb", Level.FULL, None, SIZE_BYTES),
    ]
    assert [left.dev for left in one.left_out] == ["hda"]
    assert repo.catalogue(UUID).history.backups == (one,)


def test_next_backup_copies_what_was_written_since(domain: FakeDomain, repo: Repository) -> None:
    one = run(domain, repo)
    domain.write()
    two = run(domain, repo)
    assert (two.level, two.parent, two.sequence) == (Level.INCREMENTAL, one.id, 2)
    assert [(disk.base, disk.copied_bytes) for disk in two.disks] == [(one.id, 65536 + END_BYTES)] * 2


def test_clock_that_steps_back_and_stands_still_breaks_no_chain(
    domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are free ones; the sequence shows what depends on what, and what is newest."""

    class Clock(datetime):
        shown = datetime(2026, 11, 24, 12, 0, 0, tzinfo=timezone.utc)

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return cls.shown.astimezone(tz)

    for module in (survey, backup):
        monkeypatch.setattr(module, "datetime", Clock)
    one, two = run(domain, repo), run(domain, repo)
    Clock.shown -= timedelta(days=1)
    three = run(domain, repo)
    Clock.shown += timedelta(days=1)
    domain.write()
    four = run(domain, repo)
    made = [one, two, three, four]
    assert [names.stamp_of(each.id) for each in made] == [
        "20261124T120000Z",
        "20261124T120001Z",
        "20261123T120000Z",
        "20261124T120002Z",
    ]
    assert [each.parent for each in made] == [None, one.id, two.id, three.id]
    catalogue = repo.catalogue(UUID)
    assert list(catalogue.history.backups) == made
    assert catalogue.broken == ()
    assert catalogue.find() == four
    assert [link.backup for link in catalogue.history.links(four.id, "vda")] == made[::-1]
    assert four.disks[0].copied_bytes == 65536 + END_BYTES


def test_only_the_checkpoints_stay_in_qemu(domain: FakeDomain, repo: Repository) -> None:
    before = domain.qemu.state()
    one, two, three = (run(domain, repo) for _ in range(3))
    assert two.id not in str(domain.bitmaps())
    assert domain.bitmaps() == {dev: {bitmap_of(kept, dev): True for kept in (one, three)} for dev in ("vda", "vdb")}
    assert {**domain.qemu.state(), "bitmaps": {}} == before


def test_bitmap_persists_where_the_image_keeps_it(domain: FakeDomain, repo: Repository) -> None:
    run(domain, repo)
    persistent = {
        alias: [one.persistent for one in domain.qemu.bitmaps(domain.qemu.top(alias)).values()]
        for alias in ("virtio-disk0", "virtio-disk1")
    }
    assert persistent == {"virtio-disk0": [True, True], "virtio-disk1": [False, False]}


def test_note_is_in_the_backup_from_the_beginning(domain: FakeDomain, repo: Repository) -> None:
    with_note, without = run(domain, repo, note="before the upgrade"), run(domain, repo)
    assert notes.read(repo.directory(UUID, with_note.id)) == "before the upgrade"
    assert notes.read(repo.directory(UUID, without.id)) is None
    assert not repo.catalogue(UUID).broken


def test_copy_leaves_the_chain_as_it_was(domain: FakeDomain, repo: Repository) -> None:
    one = run(domain, repo)
    domain.write()
    before = domain.bitmaps()
    run(domain, repo, level=Level.COPY)
    assert domain.bitmaps() == before
    assert run(domain, repo).parent == one.id


def test_differential_goes_back_to_the_full(domain: FakeDomain, repo: Repository) -> None:
    one = run(domain, repo)
    domain.write()
    run(domain, repo)
    domain.write(MIB)
    three = run(domain, repo, level=Level.DIFFERENTIAL)
    assert three.parent == one.id
    assert [disk.copied_bytes for disk in three.disks] == [2 * 65536 + END_BYTES] * 2


def test_two_repositories_do_not_disturb_each_other(domain: FakeDomain, repo: Repository, tmp_path: Path) -> None:
    other = Repository.create(tmp_path / "other")
    run(domain, repo)
    domain.write()
    assert run(domain, other).level is Level.FULL
    assert [disk.copied_bytes for disk in run(domain, repo).disks] == [65536 + END_BYTES] * 2


def test_changes_before_and_after_an_external_snapshot_are_both_copied(domain: FakeDomain, repo: Repository) -> None:
    run(domain, repo)
    domain.write()
    domain.qemu.snapshot("virtio-disk0", "/images/vda.snap")
    domain.paths["vda"] = "/images/vda.snap"
    domain.write(MIB)
    two = run(domain, repo)
    assert [(disk.dev, disk.level, disk.copied_bytes) for disk in two.disks] == [
        ("vda", Level.INCREMENTAL, 2 * 65536 + END_BYTES),
        ("vdb", Level.INCREMENTAL, 2 * 65536 + END_BYTES),
    ]


def test_disk_whose_bitmap_is_lost_gets_a_full_and_the_others_do_not(domain: FakeDomain, repo: Repository) -> None:
    one = run(domain, repo)
    domain.qemu.bitmaps(domain.qemu.top("virtio-disk1")).clear()
    two = run(domain, repo)
    assert [(disk.dev, disk.level, disk.base) for disk in two.disks] == [
        ("vda", Level.INCREMENTAL, one.id),
        ("vdb", Level.FULL, None),
    ]
    assert "gone" in two.disks[1].reason
    assert {disk.level for disk in run(domain, repo).disks} == {Level.INCREMENTAL}


def test_only_wanted_disks_are_backed_up(domain: FakeDomain, repo: Repository) -> None:
    one = run(domain, repo, disks=("vdb",))
    assert [disk.dev for disk in one.disks] == ["vdb"]
    assert {left.dev for left in one.left_out} == {"vda", "hda"}
    assert domain.bitmaps()["vda"] == {}


def test_filesystems_are_frozen_for_the_transaction_alone(domain: FakeDomain, repo: Repository) -> None:
    domain.agent_connected = True
    one = run(domain, repo, freeze_limit_s=7)
    assert one.consistency is Consistency.FILESYSTEM
    sent = [sent.command for sent in domain.qemu.sent]
    begin = sent.index("watchdog: freezing, 7 s")
    assert sent[begin : begin + 5] == [
        "watchdog: freezing, 7 s",
        "guest-fsfreeze-freeze",
        "transaction",
        "guest-fsfreeze-thaw",
        "watchdog: thawed",
    ]


def test_watchdog_lives_from_before_the_plan_to_the_end_of_the_freeze(domain: FakeDomain, repo: Repository) -> None:
    domain.agent_connected = True
    run(domain, repo)
    sent = [sent.command for sent in domain.qemu.sent]
    assert "query-named-block-nodes" in sent[sent.index("watchdog: start") :]  # the plan asks for them
    assert "query-jobs" in sent[sent.index("watchdog: let go") :]  # the copying is not its business
    assert sent[-1] == "watchdog: close"
    assert [sent.count(f"watchdog: {what}") for what in ("start", "let go", "close")] == [1, 1, 1]


def test_guest_that_is_resumed_before_the_moment_is_frozen_and_the_journal_knows(
    domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was paused when the backup began."""
    domain.agent_connected = True
    states = iter(["paused"])
    marks: list[FreezeMark] = []
    moment = Journal.moment

    def noted(self: Journal, *args: Any, freeze_mark: FreezeMark, **more: Any) -> None:
        marks.append(freeze_mark)
        moment(self, *args, freeze_mark=freeze_mark, **more)

    monkeypatch.setattr(domain, "halted", lambda: next(states, None))
    monkeypatch.setattr(Journal, "moment", noted)
    assert run(domain, repo).consistency is Consistency.FILESYSTEM
    assert marks == [FreezeMark.MARKED]


def test_watchdog_is_ended_when_the_backup_fails(domain: FakeDomain, repo: Repository) -> None:
    domain.agent_connected = True
    with pytest.raises(DiskError):
        run(domain, repo, disks=("vdz",))
    assert domain.qemu.sent[-1].command == "watchdog: close"


@pytest.mark.parametrize("why", ["no agent", "nobody wants it", "off", "dry run"])
def test_no_watchdog_is_started_where_nothing_will_be_frozen(domain: FakeDomain, repo: Repository, why: str) -> None:
    domain.agent_connected = why != "no agent"
    domain.is_off = why == "off"
    if why == "dry run":
        backup.dry_run(
            BackupRequest("web"), host=domain, repository=repo, reporter=Recorder(), stop=Stop()  # type: ignore[arg-type]
        )  # fmt: skip
    else:
        run(domain, repo, quiesce=Quiesce.NO if why == "nobody wants it" else Quiesce.AUTO)
    assert not [sent for sent in domain.qemu.sent if sent.command.startswith("watchdog")]


def test_dry_run_leaves_nothing(domain: FakeDomain, repo: Repository) -> None:
    run(domain, repo)
    before, bitmaps, files = domain.qemu.state(), domain.bitmaps(), sorted(repo.path.rglob("*"))
    made = backup.dry_run(
        BackupRequest("web"), host=domain, repository=repo, reporter=Recorder(), stop=Stop()  # type: ignore[arg-type]
    )  # fmt: skip
    assert made.level is Level.INCREMENTAL
    assert (domain.qemu.state(), domain.bitmaps(), sorted(repo.path.rglob("*"))) == (before, bitmaps, files)


def test_first_dry_run_leaves_no_directory(domain: FakeDomain, repo: Repository) -> None:
    backup.dry_run(
        BackupRequest("web"), host=domain, repository=repo, reporter=Recorder(), stop=Stop()  # type: ignore[arg-type]
    )  # fmt: skip
    assert repo.uuids() == []


# a domain that is off


def test_domain_that_is_off_has_nothing_to_freeze(domain: FakeDomain, repo: Repository) -> None:
    domain.is_off = True
    one = run(domain, repo, quiesce=Quiesce.REQUIRED)
    assert (one.consistency, one.frozen_ms) == (Consistency.OFFLINE, 0)
    assert "guest-ping" not in [sent.command for sent in domain.qemu.sent]


def test_saved_memory_makes_the_disks_those_of_a_crash(domain: FakeDomain, repo: Repository) -> None:
    domain.is_off = domain.has_saved_memory = True
    recorder = Recorder()
    assert run(domain, repo, recorder).consistency is Consistency.CRASH
    assert [warning for warning in recorder.warnings if "managed save" in warning]


def test_chain_goes_on_from_on_to_off_and_back(domain: FakeDomain, repo: Repository) -> None:
    one = run(domain, repo)
    for is_off in (True, False, True):
        domain.is_off = is_off
        domain.qemu.write(domain.qemu.top("virtio-disk0"), 0, 4096)
        two = run(domain, repo, disks=("vda",))
        assert [(disk.base, disk.copied_bytes) for disk in two.disks] == [(one.id, 65536 + END_BYTES)]
        one = two


def test_raw_disk_of_a_domain_that_is_off_gets_no_checkpoint(domain: FakeDomain, repo: Repository) -> None:
    first = run(domain, repo)
    domain.is_off = True
    domain.qemu.bitmaps(domain.qemu.top("virtio-disk1")).clear()  # they ended with QEMU
    one = run(domain, repo)
    vda, vdb = one.disks
    assert vda.bitmap is not None
    assert (vdb.level, vdb.bitmap) == (Level.FULL, None)
    assert vdb.reason == "QEMU keeps no bitmap in a raw image while the domain is off"
    assert domain.bitmaps()["vdb"] == {}
    with pytest.raises(BaseError, match=r"Disk vdb.*no bitmap in a raw image"):
        run(domain, repo, level=Level.INCREMENTAL)
    domain.is_off = False
    two = run(domain, repo)
    assert [(disk.level, disk.base) for disk in two.disks] == [(Level.INCREMENTAL, one.id), (Level.FULL, None)]
    assert first.id in two.disks[1].reason
    assert {disk.base for disk in run(domain, repo).disks} == {two.id}


# the user's scripts


class Scripts:
    """Scripts that each note their phase, how many transactions were sent by then, and what they get."""

    def __init__(self, directory: Path, domain: FakeDomain, *, stop: Stop | None = None, timeout_s: float = 20) -> None:
        self.directory, self.recorder, self.stop = directory, Recorder(), stop or Stop()
        self._domain, self._timeout_s = domain, timeout_s
        directory.mkdir(mode=0o755)

    def write(self, rpath: str, text: str = "echo $VBACKUP_PHASE $VBACKUP_BACKUP_ID $VBACKUP_LEVEL") -> None:
        path = self.directory / rpath
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def opened(self) -> DomainScripts:
        settings = Settings(self.directory, timeout_s=self._timeout_s)
        return DomainScripts(settings, reporter=self.recorder, stop=self.stop, work="backup", domain="web")

    @property
    def said(self) -> list[str]:
        return [line.partition(": ")[2] for line in self.recorder.steps if " script " in line]


@pytest.fixture
def scripts(domain: FakeDomain, tmp_path: Path) -> Scripts:
    made = Scripts(tmp_path / "scripts.d", domain)
    for phase in ScriptPhase:
        made.write(f"{phase.directory}/50-note")
    return made


def test_scripts_run_around_a_backup(domain: FakeDomain, repo: Repository, scripts: Scripts) -> None:
    domain.agent_connected = True
    own = scripts.opened()
    made = run(domain, repo, scripts.recorder, scripts=own)
    phases = ["pre-backup", "post-freeze", "post-thaw", "post-backup"]
    assert scripts.said == [f"{phase} {made.id} full" for phase in phases]
    assert [(one.script.phase.value, one.failure) for one in own.outcomes] == [(phase, None) for phase in phases]


def test_scripts_get_the_plan_and_the_result(
    domain: FakeDomain, repo: Repository, scripts: Scripts, tmp_path: Path
) -> None:
    domain.agent_connected = True
    for phase in ScriptPhase:
        scripts.write(f"{phase.directory}/50-note", f"cat >> {tmp_path}/given")
    made = run(domain, repo, scripts.recorder, scripts=scripts.opened())
    given = [json.loads(line) for line in (tmp_path / "given").read_text().splitlines()]
    assert sorted(one["schema"] for one in given) == ["vbackup.backup/1"] + ["vbackup.plan/1"] * 3
    assert {one["id"] for one in given} == {made.id}


def test_frozen_guest_has_its_script_before_the_transaction(
    domain: FakeDomain, repo: Repository, scripts: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain.agent_connected = True
    for phase in (ScriptPhase.POST_FREEZE, ScriptPhase.POST_THAW):
        scripts.write(f"{phase.directory}/50-note", f"echo $VBACKUP_PHASE $VBACKUP_TIMEOUT >> {tmp_path}/order")
    agent = FakePassthrough.agent
    execute = FakePassthrough.execute

    def asked(self: FakePassthrough, command: str, **more: Any) -> Any:
        note(command)
        return agent(self, command, **more)

    def executed(self: FakePassthrough, command: str, *given: Any, **more: Any) -> Any:
        if command == "transaction":
            note(command)
        return execute(self, command, *given, **more)

    def note(command: str) -> None:
        with (tmp_path / "order").open("a") as file:
            file.write(f"{command}\n")

    monkeypatch.setattr(FakePassthrough, "agent", asked)
    monkeypatch.setattr(FakePassthrough, "execute", executed)
    made = run(domain, repo, scripts.recorder, scripts=scripts.opened(), freeze_limit_s=10)
    order = (tmp_path / "order").read_text().splitlines()
    words = [line.split()[0] for line in order]
    begin = words.index("guest-fsfreeze-freeze")
    assert words[begin : begin + 4] == ["guest-fsfreeze-freeze", "post-freeze", "transaction", "guest-fsfreeze-thaw"]
    assert "post-thaw" in words[begin + 4 :]
    assert 4 < float(order[begin + 1].split()[1]) <= 5  # half of the limit
    assert made.consistency is Consistency.FILESYSTEM


def test_late_script_does_not_keep_the_guest_frozen(domain: FakeDomain, repo: Repository, scripts: Scripts) -> None:
    domain.agent_connected = True
    scripts.write("post-freeze.d/60-late", "exec sleep 1000")
    own = scripts.opened()
    made = run(domain, repo, scripts.recorder, scripts=own, freeze_limit_s=1)
    assert made.consistency is Consistency.FILESYSTEM
    assert 500 <= made.frozen_ms < 1000
    late = [one for one in own.outcomes if one.failure is not None]
    assert [one.script.path.name for one in late] == ["60-late"]
    assert "post-thaw" in " ".join(scripts.said)
    assert [text for text in scripts.recorder.warnings if "60-late was killed" in text]


@pytest.mark.parametrize("why", ["no agent", "nobody wants it", "off"])
def test_without_a_freeze_its_scripts_do_not_run(
    domain: FakeDomain, repo: Repository, scripts: Scripts, why: str
) -> None:
    domain.agent_connected = why != "no agent"
    domain.is_off = why == "off"
    quiesce = Quiesce.NO if why == "nobody wants it" else Quiesce.AUTO
    run(domain, repo, scripts.recorder, scripts=scripts.opened(), quiesce=quiesce)
    assert [line.split()[0] for line in scripts.said] == ["pre-backup", "post-backup"]


def test_script_that_fails_before_the_backup_stops_it(domain: FakeDomain, repo: Repository, scripts: Scripts) -> None:
    scripts.write("pre-backup.d/60-no", "exit 1")
    before = domain.qemu.state()
    with pytest.raises(ScriptError):
        run(domain, repo, scripts.recorder, scripts=scripts.opened())
    assert [line.split()[0] for line in scripts.said] == ["pre-backup", "on-failure"]
    assert domain.qemu.state() == before
    assert repo.catalogue(UUID).history.backups == ()
    assert partial(repo) == []


def test_disk_that_changes_while_scripts_run_is_not_backed_up(
    domain: FakeDomain, repo: Repository, scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU would copy the image below the new one."""
    before = DomainScripts.before

    def with_snapshot(self: DomainScripts, *given: Any) -> None:
        before(self, *given)
        domain.qemu.snapshot("virtio-disk0", "/images/new.qcow2")

    monkeypatch.setattr(DomainScripts, "before", with_snapshot)
    with pytest.raises(BusyError, match="Disk vda has other images than when the backup was planned"):
        run(domain, repo, scripts.recorder, scripts=scripts.opened())
    assert repo.catalogue(UUID).history.backups == ()
    assert [line.split()[0] for line in scripts.said] == ["pre-backup", "on-failure"]


def test_script_that_fails_after_the_backup_leaves_it_good(
    domain: FakeDomain, repo: Repository, scripts: Scripts
) -> None:
    scripts.write("post-backup.d/60-no", "exit 1")
    made = run(domain, repo, scripts.recorder, scripts=scripts.opened())
    assert repo.catalogue(UUID).history.backups == (made,)
    assert [text for text in scripts.recorder.warnings if "60-no ended with exit status 1" in text]


def test_thawed_guest_has_its_script_also_when_the_transaction_fails(
    domain: FakeDomain, repo: Repository, scripts: Scripts
) -> None:
    domain.agent_connected = True
    domain.qemu.refuse("transaction", "no")
    with pytest.raises(QmpError):
        run(domain, repo, scripts.recorder, scripts=scripts.opened())
    assert [line.split()[0] for line in scripts.said] == ["pre-backup", "post-freeze", "post-thaw", "on-failure"]


def test_failure_before_the_plan_is_told_too(domain: FakeDomain, repo: Repository, scripts: Scripts) -> None:
    scripts.write("on-failure.d/50-note", "echo $VBACKUP_DOMAIN $VBACKUP_UUID $VBACKUP_STATUS")
    with repo.lock(UUID), pytest.raises(BusyError):
        run(domain, repo, scripts.recorder, scripts=scripts.opened())
    assert scripts.said == [f"web {UUID} 8"]


def test_unsafe_script_of_the_domain_stops_the_backup(domain: FakeDomain, repo: Repository, scripts: Scripts) -> None:
    scripts.write("domains/web/post-backup.d/10-x")
    (scripts.directory / "domains" / "web").chmod(0o777)
    with pytest.raises(UnsafeScriptError):
        run(domain, repo, scripts.recorder, scripts=scripts.opened())
    assert [line.split()[0] for line in scripts.said] == ["on-failure"]
    assert not any(repo.path.glob("*/*"))


def test_scripts_after_the_backup_find_the_domain_unlocked(
    domain: FakeDomain, repo: Repository, scripts: Scripts
) -> None:
    lock = repo.path / UUID / "lock"
    scripts.write("post-backup.d/50-note", f"flock -n {lock} echo free")
    scripts.write("pre-backup.d/50-note", f"flock -n {lock} echo free || echo locked")
    run(domain, repo, scripts.recorder, scripts=scripts.opened())
    assert scripts.said == ["locked", "free"]


# refusals


def expect_nothing_done(
    domain: FakeDomain, repo: Repository, error: type[VbackupError], match: str, **request: Any
) -> None:
    before = domain.qemu.state()
    with pytest.raises(error, match=match):
        run(domain, repo, **request)
    assert domain.qemu.state() == before
    assert partial(repo) == []


def test_domain_that_is_off_on_another_host_is_unsuitable(domain: FakeDomain, repo: Repository) -> None:
    domain.is_off, domain.is_local = True, False
    expect_nothing_done(domain, repo, UnsuitableError, "run vbackup on that host")


def test_image_that_somebody_locks_before_the_job_is_busy(domain: FakeDomain, repo: Repository) -> None:
    domain.is_off = True
    domain.qemu.refuse("transaction", 'Failed to get shared "write" lock')
    expect_nothing_done(domain, repo, BusyError, "Another process.* has the image of one of the disks open.*again")


def test_image_that_somebody_locks_before_the_copy_from_the_fleecing_area_is_busy(
    domain: FakeDomain, repo: Repository, tmp_path: Path
) -> None:
    domain.qemu.refuse("transaction", 'Failed to get shared "write" lock', nth=2)
    expect_nothing_done(domain, repo, BusyError, "Another process has an image open.*again", fleecing=tmp_path)


def test_incremental_by_name_needs_a_base(domain: FakeDomain, repo: Repository) -> None:
    expect_nothing_done(domain, repo, BaseError, "no earlier backup", level=Level.INCREMENTAL)
    assert repo.uuids() == []


def test_unknown_disk_is_told(domain: FakeDomain, repo: Repository) -> None:
    expect_nothing_done(domain, repo, DiskError, "Disk vdz", disks=("vdz",))


def test_freeze_that_is_required_and_fails_stops_the_backup(domain: FakeDomain, repo: Repository) -> None:
    expect_nothing_done(domain, repo, QuiesceError, "no guest agent", quiesce=Quiesce.REQUIRED)


def test_second_backup_at_the_same_time_is_refused(domain: FakeDomain, repo: Repository) -> None:
    with repo.lock(UUID):
        expect_nothing_done(domain, repo, BusyError, "Another vbackup")


def test_backup_is_not_begun_when_its_time_is_over(domain: FakeDomain, repo: Repository) -> None:
    now = datetime.now(timezone.utc)
    expect_nothing_done(domain, repo, BusyError, "was not begun, as the time for that ended at", until=now)
    assert run(domain, repo, until=now + timedelta(hours=1)).level is Level.FULL


def test_disk_that_another_job_has_is_busy(domain: FakeDomain, repo: Repository) -> None:
    domain.qemu.refuse("transaction", "Node 'libvirt-1-format' is busy: block device is in use by block job: commit")
    expect_nothing_done(domain, repo, BusyError, "busy with another block job")


def test_image_that_qemu_cannot_open_is_an_error_of_the_target(domain: FakeDomain, repo: Repository) -> None:
    domain.qemu.refuse("blockdev-add", "Could not dup FD", nth=2)
    expect_nothing_done(domain, repo, StorageError, r"vdb\.qcow2")


# failures


@pytest.mark.parametrize("level", [Level.FULL, Level.INCREMENTAL])
@pytest.mark.parametrize(
    ("message", "error"), [("Input/output error", StorageError), ("No space left on device", NoSpaceError)]
)
def test_failed_job_leaves_base_bitmap_alone(
    domain: FakeDomain, repo: Repository, level: Level, message: str, error: type[VbackupError]
) -> None:
    run(domain, repo)
    domain.write()
    before, bitmaps = domain.qemu.state(), domain.bitmaps()
    domain.qemu.fail_job(names.Naming(repo.id).target_node("vdb"), message)
    with pytest.raises(error, match="Disk vdb"):
        run(domain, repo, level=level)
    assert (domain.qemu.state(), domain.bitmaps(), partial(repo)) == (before, bitmaps, [])
    domain.qemu.recover(names.Naming(repo.id).target_node("vdb"))
    assert [disk.copied_bytes for disk in run(domain, repo).disks] == [65536 + END_BYTES] * 2


def test_what_is_written_during_a_failed_backup_is_in_the_next(domain: FakeDomain, repo: Repository) -> None:
    run(domain, repo)
    domain.write()
    recorder = Recorder(on_progress=lambda: domain.write(4 * MIB))
    domain.qemu.fail_job(names.Naming(repo.id).target_node("vda"), "Input/output error", after_bytes=1)
    with pytest.raises(StorageError):
        run(domain, repo, recorder)
    domain.qemu.recover(names.Naming(repo.id).target_node("vda"))
    assert [disk.copied_bytes for disk in run(domain, repo).disks] == [2 * 65536 + END_BYTES] * 2


def test_job_cancelled_by_the_end_of_qemu_is_told_as_the_end_of_the_domain(
    domain: FakeDomain, repo: Repository
) -> None:
    """The error of the job is seen a moment before QEMU is gone."""

    def end() -> None:
        domain.is_off = True

    domain.qemu.fail_job(names.Naming(repo.id).target_node("vda"), "Operation canceled", after_bytes=1, operation=None)
    with pytest.raises(DomainGoneError):
        run(domain, repo, Recorder(on_progress=end))
    assert partial(repo) == []


def test_guest_that_the_full_repository_stopped_goes_on(domain: FakeDomain, repo: Repository) -> None:
    def stop_guest() -> None:
        domain.io_error = True

    recorder = Recorder(on_progress=stop_guest)
    domain.qemu.fail_job(names.Naming(repo.id).target_node("vda"), "No space left on device", after_bytes=1)
    with pytest.raises(NoSpaceError):
        run(domain, repo, recorder)
    assert not domain.io_error
    assert any("It is running again" in warning for warning in recorder.warnings)


# every command is struck once


def commands_of_a_backup(domain: FakeDomain, repo: Repository, **request: Any) -> int:
    """A full was made and something written; how many commands does the incremental send?"""
    run(domain, repo)
    domain.write()
    domain.qemu.sent.clear()
    run(domain, repo, **request)
    return len(domain.qemu.sent)


def struck(
    domain: FakeDomain, repo: Repository, tmp_path: Path, **request: Any
) -> Iterator[tuple[int, FakeDomain, Repository, Backup]]:
    """For each command of a backup its number, and a new domain with a full of it, written to since."""
    count = commands_of_a_backup(domain, repo, **request)
    assert count > 20
    for nth in range(1, count + 1):
        one, another = Repository.create(tmp_path / f"{nth}"), FakeDomain()
        with another.qemu:
            base = run(another, one)
            another.write()
            yield nth, another, one, base


def striking(
    strike: Callable[[FakeQemu, int], None], *, with_fleecing: bool = False
) -> Callable[[FakeDomain, Repository, Path], None]:
    """A test that strikes at the first command, at the second, and so on."""

    def test(domain: FakeDomain, repo: Repository, tmp_path: Path) -> None:
        request = {"fleecing": tmp_path} if with_fleecing else {}
        for nth, another, one, base in struck(domain, repo, tmp_path, **request):
            strike(another.qemu, nth)
            recorder = Recorder()
            try:
                done: Backup | None = run(another, one, recorder, **request)
            except VbackupError:
                done = None
            check_after_strike(another, one, base, done, recorder, nth)

    return test


def check_after_strike(
    domain: FakeDomain, repo: Repository, base: Backup, done: Backup | None, recorder: Recorder, nth: int
) -> None:
    domain.qemu.heal()
    where = f"at command {nth}"
    assert partial(repo) == [], where
    committed = repo.catalogue(UUID).history.backups
    assert [one.id for one in committed] == [one.id for one in (base, done) if one is not None], where
    for dev, bitmaps in domain.bitmaps().items():
        assert bitmaps.get(bitmap_of(committed[-1], dev)), f"{where}: the base of {dev} is lost"
    state = domain.qemu.state()
    if state["jobs"] or state["fdsets"]:
        assert any("The next backup of this domain tries again" in one for one in recorder.warnings), where
    domain.write(MIB)
    again = run(domain, repo, level=Level.INCREMENTAL)
    assert again.parent == committed[-1].id, where
    assert [disk.copied_bytes for disk in again.disks] == [(1 if done else 2) * 65536 + END_BYTES] * 2, where
    state = domain.qemu.state()
    assert (state["jobs"], state["fdsets"]) == ([], []), where
    ours = {name for of_disk in domain.bitmaps().values() for name in of_disk if names.Naming(repo.id).prefix in name}
    bases = {bitmap_of(one, dev) for one in (base, again) for dev in ("vda", "vdb")}
    assert ours == bases, where


test_connection_lost_before_any_command = striking(lambda qemu, nth: qemu.lose_connection(nth=nth))
test_reply_lost_of_any_command = striking(lambda qemu, nth: qemu.lose_connection(nth=nth, carried_out=True))
test_refusal_of_any_command = striking(
    lambda qemu, nth: qemu.fault(QmpError("any", "GenericError", "refused for the test"), nth=nth)
)
test_reply_lost_of_any_command_with_fleecing = striking(
    lambda qemu, nth: qemu.lose_connection(nth=nth, carried_out=True), with_fleecing=True
)
test_refusal_of_any_command_with_fleecing = striking(
    lambda qemu, nth: qemu.fault(QmpError("any", "GenericError", "refused for the test"), nth=nth), with_fleecing=True
)


def test_signal_at_any_command(domain: FakeDomain, repo: Repository, tmp_path: Path) -> None:
    for nth, another, one, base in struck(domain, repo, tmp_path):
        stop, left, execute = Stop(), iter(range(nth - 1, -1, -1)), another.qemu.execute

        def execute_and_stop(
            *args: Any,
            stop: Stop = stop,
            left: Iterator[int] = left,
            execute: Callable[..., Any] = execute,
            **kwargs: Any,
        ) -> Any:
            if next(left, None) == 0:
                stop.request(signal.SIGTERM)
            return execute(*args, **kwargs)

        another.qemu.execute = execute_and_stop  # type: ignore[method-assign]
        recorder = Recorder()
        try:
            done: Backup | None = run(another, one, recorder, stop=stop)
        except InterruptedBySignalError:
            done = None
        state = another.qemu.state()
        assert (state["jobs"], state["fdsets"], recorder.warnings) == ([], [], []), f"at command {nth}"
        check_after_strike(another, one, base, done, recorder, nth)


def test_end_of_the_domain_at_any_command(domain: FakeDomain, repo: Repository, tmp_path: Path) -> None:
    for nth, another, one, base in struck(domain, repo, tmp_path):
        another.qemu.kill(nth=nth)
        recorder = Recorder()
        try:
            done: Backup | None = run(another, one, recorder)
        except DomainGoneError:
            done = None
        assert partial(one) == []
        committed = [each.id for each in one.catalogue(UUID).history.backups]
        assert committed == [each.id for each in (base, done) if each is not None]
        if done is None:
            assert recorder.warnings == [], f"at command {nth}"
        assert not any("nothing was kept" in each for each in recorder.warnings), recorder.warnings


# a disk that was shrunk and has grown again


def test_disk_that_was_shrunk_meanwhile_gets_a_full(domain: FakeDomain, repo: Repository) -> None:
    run(domain, repo)
    expected = {dev: [(SIZE_BYTES, [SIZE_BYTES // 65536 - 1])] for dev in ("vda", "vdb")}
    assert domain.end_marks() == expected
    shrink_and_grow(domain)
    with pytest.raises(BaseError, match=r"Disk vda: no incremental backup since .*: the disk has been shrunk"):
        run(domain, repo, level=Level.INCREMENTAL)
    two = run(domain, repo)
    assert [disk.level for disk in two.disks] == [Level.FULL, Level.INCREMENTAL]
    assert domain.end_marks() == expected
    assert run(domain, repo).level is Level.INCREMENTAL


def test_unchanged_disk_costs_no_command_for_its_end(domain: FakeDomain, repo: Repository) -> None:
    run(domain, repo)
    domain.qemu.sent.clear()
    two = run(domain, repo)
    assert [disk.copied_bytes for disk in two.disks] == [END_BYTES] * 2
    assert not {"blockdev-backup", "block-dirty-bitmap-add"} & {sent.command for sent in domain.qemu.sent}


@pytest.mark.parametrize("how", ["refused", "lost", "reply lost", "signal"])
def test_failure_at_any_command_forgets_no_shrink(
    domain: FakeDomain, repo: Repository, tmp_path: Path, how: str
) -> None:
    """Whatever was done by then, the next backup does not trust what the disk was before."""
    run(domain, repo)
    shrink_and_grow(domain)
    domain.qemu.sent.clear()
    run(domain, repo)
    for nth in range(1, len(domain.qemu.sent) + 1):
        one, another = Repository.create(tmp_path / f"{nth}"), FakeDomain()
        with another.qemu:
            base = run(another, one)
            shrink_and_grow(another)
            stop = strike(another, how, nth)
            recorder = Recorder()
            with suppress(VbackupError):
                run(another, one, recorder, stop=stop)
            another.qemu.heal()
            last = run(another, one)
            made = one.catalogue(UUID).history.backups
            vda = [each.image("vda") for each in made if each.sequence > base.sequence]
            assert vda[0] is not None
            assert vda[0].level is Level.FULL, f"at command {nth}"
            assert last == made[-1]
            state = another.qemu.state()
            assert (state["jobs"], state["fdsets"], partial(one)) == ([], [], []), f"at command {nth}"
            assert not [node for node in state["nodes"] if node.startswith("vbackup-")], f"at command {nth}"


def strike(domain: FakeDomain, how: str, nth: int) -> Stop:
    stop = Stop()
    if how == "refused":
        domain.qemu.fault(QmpError("any", "GenericError", "refused for the test"), nth=nth)
    elif how == "signal":
        left, execute = iter(range(nth - 1, -1, -1)), domain.qemu.execute

        def execute_and_stop(*args: Any, **kwargs: Any) -> Any:
            if next(left, None) == 0:
                stop.request(signal.SIGTERM)
            return execute(*args, **kwargs)

        domain.qemu.execute = execute_and_stop  # type: ignore[method-assign]
    else:
        domain.qemu.lose_connection(nth=nth, carried_out=how == "reply lost")
    return stop
