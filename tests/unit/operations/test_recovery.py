"""A run that dies at any step of its journal, and what the next one makes of it: finished or undone, exactly once."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import UUID, Recorder
from tests.unit.fake_domain import END_BYTES, FakeDomain, partial, run
from vbackup import machine, names
from vbackup.errors import BusyError, CopiedError, DomainNotFoundError, HostUnreachableError, NewerJournalError
from vbackup.model import Backup, Consistency, Level
from vbackup.operations import adopt, forget, recovery
from vbackup.operations.recovery import Recovered, Remedy
from vbackup.process import Process
from vbackup.qemu import jobs
from vbackup.repository import journal
from vbackup.repository.journal import Journal, Step
from vbackup.repository.repository import Repository, Stage
from vbackup.repository.writer import Writer
from vbackup.stop import Stop


class _KilledError(BaseException):
    """SIGKILL: nothing is undone."""


class Killer:
    """Ends a run as SIGKILL would: what it has made stays, in the repository and in QEMU."""

    def __init__(self, domain: FakeDomain, repo: Repository, tmp_path: Path) -> None:
        self._domain, self._repo, self._saved = domain, repo, tmp_path / "saved"

    def strike(self) -> None:
        for stage in self._repo.path.glob("*/*.partial"):
            # Moved, as a copy is none that QEMU writes to.
            self._saved.mkdir(exist_ok=True)
            stage.rename(self._saved / stage.name)
        for path in self._repo.path.glob("*/domain.json"):
            shutil.copy(path, self._saved)

        def dead(*_args: Any, **_kwargs: Any) -> Any:
            raise HostUnreachableError("qemu:///system", "its process is dead, so it undoes nothing")

        self._domain.qemu.execute = dead  # type: ignore[method-assign]
        raise _KilledError

    def kill(
        self, arm: Callable[[pytest.MonkeyPatch], None], make: Callable[[], object] | None = None, **request: Any
    ) -> None:
        """Run a backup, or ``make``, that ``arm`` lets die."""
        execute = self._domain.qemu.execute
        with pytest.MonkeyPatch.context() as patch:
            arm(patch)
            with pytest.raises(_KilledError):
                make() if make is not None else run(self._domain, self._repo, **request)
        self._domain.qemu.execute = execute  # type: ignore[method-assign]
        for stage in self._saved.glob("*"):
            there = self._repo.path / UUID / stage.name
            there.parent.mkdir(exist_ok=True)
            shutil.rmtree(there, ignore_errors=True)
            stage.rename(there)

    def at(self, step: Step, when: str, make: Callable[[], object] | None = None, **request: Any) -> None:
        """Die just before a step of the journal is written, or just after."""
        write = Journal._write

        def write_and_die(self_: Journal, wanted: Step, members: Mapping[str, Any]) -> None:
            if wanted is step and when == "before":
                self.strike()
            write(self_, wanted, members)
            if wanted is step:
                self.strike()

        self.kill(lambda patch: patch.setattr(Journal, "_write", write_and_die), make, **request)


@pytest.fixture
def killer(domain: FakeDomain, repo: Repository, tmp_path: Path) -> Killer:
    return Killer(domain, repo, tmp_path)


def backups(repo: Repository) -> tuple[Backup, ...]:
    return repo.catalogue(UUID).history.backups


def assert_clean(domain: FakeDomain, repo: Repository) -> None:
    state = domain.qemu.state()
    assert (state["jobs"], state["fdsets"], partial(repo)) == ([], [], [])
    assert not [name for name in state["nodes"] if name.startswith("vbackup-")]
    history = repo.catalogue(UUID).history
    for dev, bitmaps in domain.bitmaps().items():
        assert set(map(names.parse_bitmap, bitmaps)) == set(history.base_bitmaps(dev))
        assert all(bitmaps.values())


#: The steps after which the jobs are in QEMU, or have ended well.
FINISHED = {(Step.STARTED, "before"), (Step.STARTED, "after"), (Step.COPIED, "before"), (Step.COPIED, "after")}
FINISHED |= {(Step.FLUSHED, "before"), (Step.FLUSHED, "after")}
POINTS = [(step, when) for step in Step if step is not Step.STREAMED for when in ("before", "after")]


@pytest.mark.parametrize("level", [Level.FULL, Level.INCREMENTAL, Level.DIFFERENTIAL])
@pytest.mark.parametrize(("step", "when"), POINTS, ids=str)
def test_next_backup_finishes_or_undoes(
    domain: FakeDomain,
    repo: Repository,
    killer: Killer,
    step: Step,
    when: str,
    level: Level,
) -> None:
    base = run(domain, repo)
    domain.write()
    killer.at(step, when, level=level)
    domain.write(1024 * 1024)
    recorder = Recorder()
    last = run(domain, repo, recorder)
    assert_clean(domain, repo)
    made = backups(repo)
    if (step, when) in FINISHED:
        assert [one.level for one in made] == [Level.FULL, level, Level.INCREMENTAL]
        assert last.parent == made[1].id
        assert {disk.copied_bytes for disk in last.disks} == {65536 + END_BYTES}
        assert any("Finished backup" in told for told in recorder.steps)
    else:
        assert (made, last.parent) == ((base, last), base.id)
        assert {disk.copied_bytes for disk in last.disks} == {2 * 65536 + END_BYTES}
    assert recorder.warnings == []


@pytest.mark.parametrize(("step", "when"), POINTS, ids=str)
def test_recovery_that_is_killed_itself_is_gone_on_with(
    domain: FakeDomain,
    repo: Repository,
    killer: Killer,
    step: Step,
    when: str,
) -> None:
    """At every step that it writes, or while it undoes."""
    run(domain, repo)
    domain.write()
    killer.at(Step.STARTED, "after")
    if step in (Step.COPIED, Step.FLUSHED):
        killer.at(step, when)
    else:
        killer.kill(lambda patch: patch.setattr(jobs, "query", lambda _monitor: killer.strike()))
    run(domain, repo)
    assert_clean(domain, repo)
    assert len(backups(repo)) == 3


def test_killed_in_the_middle_of_the_commit(domain: FakeDomain, repo: Repository, killer: Killer) -> None:
    commit = Stage.commit

    def half(self: Stage, backup: Backup, **given: Any) -> None:
        self.write("manifest.json", b"{torn")
        killer.strike()
        commit(self, backup, **given)

    killer.kill(lambda patch: patch.setattr(Stage, "commit", half))
    run(domain, repo)
    assert_clean(domain, repo)
    assert len(backups(repo)) == 2


def test_committed_backup_has_no_journal(domain: FakeDomain, repo: Repository) -> None:
    done = run(domain, repo)
    names_there = {path.name for path in (repo.path / UUID / done.id).iterdir()}
    images = {f"{dev}.{suffix}" for dev in ("vda", "vdb") for suffix in ("qcow2", "blocks")}
    assert names_there == {"manifest.json", "domain.xml", "live.xml", *images}


def test_moment_that_is_not_known_for_certain_is_crash_consistent(
    domain: FakeDomain,
    repo: Repository,
    killer: Killer,
) -> None:
    domain.agent_connected = True
    killer.at(Step.STARTED, "before")
    run(domain, repo)
    assert [one.consistency for one in backups(repo)] == [Consistency.CRASH, Consistency.FILESYSTEM]


def test_failed_job_is_undone(domain: FakeDomain, repo: Repository, killer: Killer) -> None:
    target = names.Naming(repo.id).target_node("vdb")
    domain.qemu.fail_job(target, "Input/output error")
    killer.at(Step.STARTED, "after")
    for _ in range(3):
        jobs.query(domain.qemu)  # the fake's jobs go on when somebody asks
    [found] = recover(domain, repo)
    assert (found.remedy, found.reason) == (Remedy.UNDO, "a job had failed: Input/output error")
    domain.qemu.recover(target)
    run(domain, repo)
    assert_clean(domain, repo)


def test_job_that_fails_while_it_is_finished_is_undone(domain: FakeDomain, repo: Repository, killer: Killer) -> None:
    target = names.Naming(repo.id).target_node("vdb")
    domain.qemu.fail_job(target, "Input/output error", after_bytes=8 * 1024 * 1024)
    killer.at(Step.STARTED, "after")
    recorder = Recorder()
    [found] = recover(domain, repo, recorder)
    assert found.remedy is Remedy.UNDO
    assert any("could not be finished and was undone" in told for told in recorder.warnings)
    domain.qemu.recover(target)
    run(domain, repo)
    assert_clean(domain, repo)


def recover(domain: FakeDomain, repo: Repository, recorder: Recorder | None = None, **more: Any) -> list[Recovered]:
    return recovery.run(
        UUID,
        host=domain,
        repository=repo,
        reporter=recorder or Recorder(),
        stop=Stop(),
        **more,  # type: ignore[arg-type]
    )


def test_recover_on_request(domain: FakeDomain, repo: Repository, killer: Killer) -> None:
    killer.at(Step.STARTED, "after")
    before = domain.qemu.state()
    planned = recover(domain, repo, dry_run=True)
    assert [(one.remedy, one.reason) for one in planned] == [(Remedy.FINISH, "its jobs survived in QEMU")]
    assert (domain.qemu.state(), len(partial(repo))) == (before, 1)
    assert recover(domain, repo) == planned
    assert len(backups(repo)) == 1
    assert recover(domain, repo) == []
    assert_clean(domain, repo)


def copy_of(repo: Repository, tmp_path: Path, *, stages: bool = True) -> Repository:
    ignore = None if stages else shutil.ignore_patterns("*.partial")
    shutil.copytree(repo.path, tmp_path / "copy", ignore=ignore)
    return Repository.open(tmp_path / "copy")


@pytest.mark.parametrize("step", [Step.BEGIN, Step.TARGETS, Step.STARTED, Step.COPIED, Step.FLUSHED])
def test_copy_of_a_repository_does_not_touch_the_backup_of_the_other(
    domain: FakeDomain, repo: Repository, killer: Killer, tmp_path: Path, step: Step
) -> None:
    """Job and journal have the same names, but QEMU writes to the images of the first."""
    base = run(domain, repo)
    domain.write()
    killer.at(step, "after")
    other, before = copy_of(repo, tmp_path), domain.qemu.state()
    for dry_run in (True, False):
        with pytest.raises(CopiedError, match="--adopt"):
            recover(domain, other, dry_run=dry_run)
    with pytest.raises(CopiedError, match="--adopt"):
        run(domain, other)
    assert (domain.qemu.state(), len(partial(other))) == (before, 1)
    run(domain, repo)
    assert_clean(domain, repo)
    assert backups(repo)[0] == base
    bitmaps = domain.bitmaps()
    with pytest.raises(CopiedError, match="is a copy: the repository was copied in the middle"):
        run(domain, other)
    [found] = recover(domain, other, abort=True)
    assert (found.remedy, "its images are copies" in found.reason) == (Remedy.UNDO, True)
    assert (domain.bitmaps(), partial(other)) == (bitmaps, [])
    assert run(domain, other).level is Level.INCREMENTAL
    assert bitmaps["vda"].keys() <= domain.bitmaps()["vda"].keys()
    assert run(domain, repo).level is Level.INCREMENTAL


def test_copy_without_the_stage_is_refused_while_qemu_has_images_of_the_original_open(
    domain: FakeDomain, repo: Repository, killer: Killer, tmp_path: Path
) -> None:
    killer.at(Step.STARTED, "after")
    other, before = copy_of(repo, tmp_path, stages=False), domain.qemu.state()
    for act in (run, recover):
        with pytest.raises(BusyError, match=r"Another copy of repository .* is backing up domain web"):
            act(domain, other)
    request = forget.ForgetRequest("web", other.id)
    with pytest.raises(BusyError, match="Another copy of repository"):
        forget.run(request, host=domain, repository=other, reporter=Recorder(), stop=Stop())  # type: ignore[arg-type]
    assert domain.qemu.state() == before
    [found] = recover(domain, repo)
    assert found.remedy is Remedy.FINISH


def test_copies_of_a_repository_go_on_side_by_side(domain: FakeDomain, repo: Repository, tmp_path: Path) -> None:
    """Neither removes what the other starts from."""
    run(domain, repo)
    other = copy_of(repo, tmp_path)
    for one in (repo, other, repo, other, other, repo, repo):
        domain.write()
        made = run(domain, one)
        assert made.level is Level.INCREMENTAL
        assert {disk.copied_bytes for disk in made.disks if disk.dev == "vda"} == {65536 + END_BYTES}
    (_, *_, newest), (_, *_, others_newest) = backups(repo), backups(other)
    recorder = Recorder()

    def forget_all(*, by_id: bool) -> forget.Forgotten:
        request = forget.ForgetRequest("web", other.id, is_by_id=by_id)
        return forget.run(request, host=domain, repository=other, reporter=recorder, stop=Stop())  # type: ignore[arg-type]

    done = forget_all(by_id=False)
    assert {claim.checkpoint for claim in done.removed} == {others_newest.id}
    assert {kept.reason for kept in done.kept} == {
        "another copy of this repository made it, or this one before it was moved"
    }
    assert all("with --repository-id instead of -r" in warning for warning in recorder.warnings)
    assert run(domain, repo).parent == newest.id
    forget_all(by_id=True)
    assert domain.bitmaps() == {"vda": {}, "vdb": {}}


def test_stage_of_an_earlier_boot_of_this_host_is_discarded_if_its_files_have_other_numbers(
    domain: FakeDomain, repo: Repository, killer: Killer, tmp_path: Path
) -> None:
    """Some filesystems number their files again at every mount; QEMU has nothing of that time any more."""
    killer.at(Step.STARTED, "after")
    other = copy_of(repo, tmp_path)
    recover(domain, repo)
    [stage] = other.path.glob("*/*.partial")
    boot_id = Process.this().boot_id
    text = (stage / "journal").read_text().replace(boot_id, "00000000-0000-4000-8000-000000000000")
    (stage / "journal").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "_machine_id", lambda: "another")
        with pytest.raises(CopiedError):
            recover(domain, other, presume_dead=True)
        patch.setattr(machine, "_machine_id", lambda: read(stage).writer.machine_id or "none")
        [found] = recover(domain, other)
    assert (found.remedy, partial(other)) == (Remedy.UNDO, [])


def read(stage: Path) -> journal.Entry:
    entry = journal.read(stage, backup_id=stage.name[: -len(".partial")], domain_uuid=UUID)
    assert entry is not None
    return entry


def test_run_that_finishes_a_backup_is_its_writer_from_then_on(
    domain: FakeDomain, repo: Repository, killer: Killer, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer.at(Step.STARTED, "after")
    [stage] = repo.path.glob("*/*.partial")
    dead = replace(read(stage).writer, host="dead")
    (stage / "journal").write_text((stage / "journal").read_text().replace(f'"{os.uname().nodename}"', '"dead"'))
    assert read(stage).writer == dead
    seen: list[Writer] = []
    copied = Journal.copied

    def look(self: Journal, given: Mapping[str, int]) -> None:
        seen.append(read(stage).writer)
        copied(self, given)

    monkeypatch.setattr(Journal, "copied", look)
    recover(domain, repo)
    assert seen == [Writer.this()]


@pytest.mark.parametrize("lost", [False, True], ids=["there", "libvirt has not the domain"])
def test_backup_that_a_living_process_makes_is_not_recovered(
    domain: FakeDomain, repo: Repository, killer: Killer, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """The lock does nothing there, or is another host's own."""
    killer.at(Step.STARTED, "after")
    [stage] = repo.path.glob("*/*.partial")
    text = (stage / "journal").read_text().replace(Process.this().boot_id, "00000000-0000-4000-8000-000000000000")
    (stage / "journal").write_text(text.replace(f'"{os.uname().nodename}"', '"other"'))
    before = domain.qemu.state()
    with pytest.MonkeyPatch.context() as patch:
        if lost:
            patch.setattr(domain, "domain", lambda _name: (_ for _ in ()).throw(DomainNotFoundError("web", "x", "y")))
        for abort in (False, True):
            with pytest.raises(
                BusyError, match=r"is being made by process .* on host other, which was last seen at work"
            ):
                recover(domain, repo, abort=abort)
    with pytest.raises(BusyError, match="on host other"):
        run(domain, repo)
    assert (domain.qemu.state(), stage.exists()) == (before, True)
    [found] = recover(domain, repo, presume_dead=True)
    assert found.remedy is Remedy.FINISH


def test_backup_that_another_process_began_meanwhile_is_not_disturbed(
    domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both came past a lock that does nothing, and both look again when each has said that it is there."""
    begin = Journal.begin

    def begin_both(self: Journal, draft: Backup) -> None:
        begin(self, draft)
        other = repo.stage_path(UUID, "20200101T000000Z-full")
        other.mkdir()
        with monkeypatch.context() as patch, Journal(other) as written:
            writer = Writer.this()
            process = replace(writer.process, boot_id="00000000-0000-4000-8000-000000000000")
            patch.setattr(Writer, "this", lambda: replace(writer, process=process, host="other"))
            begin(written, replace(draft, id="20200101T000000Z-full"))

    monkeypatch.setattr(Journal, "begin", begin_both)
    before = domain.qemu.state()
    with pytest.raises(BusyError, match=r"20200101T000000Z-full .* is being made by process .* on host other"):
        run(domain, repo)
    assert (domain.qemu.state(), partial(repo)) == (before, ["20200101T000000Z-full.partial"])


def test_lock_that_does_not_lock_is_told(domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    run(domain, repo, recorder)
    assert recorder.warnings == []
    monkeypatch.setattr(fcntl, "flock", lambda _fd, _operation: None)
    run(domain, repo, recorder)
    assert ["does not lock files" in warning for warning in recorder.warnings] == [True]


def test_abort_undoes_what_could_be_finished(domain: FakeDomain, repo: Repository, killer: Killer) -> None:
    killer.at(Step.COPIED, "after")
    assert [one.remedy for one in recover(domain, repo, abort=True)] == [Remedy.UNDO]
    assert backups(repo) == ()
    assert domain.bitmaps() == {"vda": {}, "vdb": {}}


def test_other_qemu_has_no_jobs_to_finish(domain: FakeDomain, repo: Repository, killer: Killer) -> None:
    killer.at(Step.STARTED, "after")
    jobs.cancel(domain.qemu, list(jobs.query(domain.qemu)))
    [found] = recover(domain, repo)
    assert found.remedy is Remedy.UNDO
    assert "its jobs are gone" in found.reason


@pytest.mark.parametrize(
    ("step", "so_far"),
    [
        (Step.BEGIN, "nothing had been copied"),
        (Step.TARGETS, "nothing had been copied"),
        (Step.MOMENT, "its jobs may have begun"),
        (Step.STARTED, "its jobs were copying"),
        (Step.COPIED, "its jobs had ended well"),
        (Step.FLUSHED, "its images were complete"),
    ],
    ids=lambda value: value.value if isinstance(value, Step) else "",
)
@pytest.mark.parametrize("dry_run", [True, False], ids=["dry run", "recover"])
def test_domain_that_libvirt_does_not_have_any_more(
    domain: FakeDomain,
    repo: Repository,
    killer: Killer,
    monkeypatch: pytest.MonkeyPatch,
    step: Step,
    so_far: str,
    dry_run: bool,
) -> None:
    """It says how far the backup had come: "nothing had been begun" was untrue of one whose jobs copied."""
    killer.at(step, "after")

    def gone(_name: str) -> FakeDomain:
        raise DomainNotFoundError("web", "here", "x")

    monkeypatch.setattr(domain, "domain", gone)
    [found] = recover(domain, repo, dry_run=dry_run)
    assert found.remedy is Remedy.UNDO
    assert found.reason.startswith("libvirt does not have the domain any more")
    assert so_far in found.reason
    assert (partial(repo) == []) == (not dry_run)


@pytest.mark.parametrize("forced", [{"abort": True}, {"presume_dead": True}], ids=str)
def test_backup_of_a_domain_that_only_another_host_has_is_left_to_it(
    domain: FakeDomain, repo: Repository, killer: Killer, monkeypatch: pytest.MonkeyPatch, forced: dict[str, bool]
) -> None:
    """The repository is on shared storage; QEMU there can go on copying without its vbackup."""
    killer.at(Step.STARTED, "after")
    [stage] = repo.path.glob("*/*.partial")
    text = (stage / "journal").read_text().replace(Process.this().boot_id, "00000000-0000-4000-8000-000000000000")
    (stage / "journal").write_text(text.replace(f'"{os.uname().nodename}"', '"other"'))
    os.utime(stage / "journal", (0, 0))  # its writer is dead

    def unknown(name: str) -> FakeDomain:
        raise DomainNotFoundError(name, "at qemu:///system", "'virsh list --all' lists all domains")

    monkeypatch.setattr(domain, "domain", unknown)
    for dry_run in (True, False):
        with pytest.raises(BusyError, match=r"was begun on host other, where QEMU may still copy it"):
            recover(domain, repo, dry_run=dry_run)
    assert stage.exists()
    [found] = recover(domain, repo, **forced)
    assert (found.remedy, partial(repo)) == (Remedy.UNDO, [])


@pytest.mark.parametrize("has_namesake", [False, True], ids=["gone", "replaced"])
@pytest.mark.parametrize("step", [Step.BEGIN, Step.STARTED])
def test_first_backup_of_a_domain_that_libvirt_lost_is_found_by_its_name(
    domain: FakeDomain,
    repo: Repository,
    killer: Killer,
    monkeypatch: pytest.MonkeyPatch,
    step: Step,
    has_namesake: bool,
) -> None:
    killer.at(step, "after")

    def gone(name: str) -> FakeDomain:
        if has_namesake and name == "web":
            return SimpleNamespace(uuid="f0000000-0000-4000-8000-00000000000f")  # type: ignore[return-value]
        raise DomainNotFoundError(name, "at qemu:///system", "'virsh list --all' lists all domains")

    monkeypatch.setattr(domain, "domain", gone)
    assert recovery.uuid_of("web", domain, repo) == UUID  # type: ignore[arg-type]
    [found] = recover(domain, repo)
    assert (found.remedy, repo.uuids()) == (Remedy.UNDO, [])


def test_domain_that_libvirt_has_is_preferred_to_a_former_one_of_the_name(domain: FakeDomain, repo: Repository) -> None:
    former = "f0000000-0000-4000-8000-00000000000f"
    with repo.lock(former), repo.stage(former, "20261123T120000Z-full"):
        repo.remember_name(former, "web")
        assert recovery.uuid_of("web", domain, repo) == former  # type: ignore[arg-type]
        run(domain, repo)
        assert recovery.uuid_of("web", domain, repo) == UUID  # type: ignore[arg-type]
    assert recovery.uuid_of(UUID, domain, repo) == UUID  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its journal is missing or incomplete"),
        ('{"step": "begin", "sch', "its journal is missing or incomplete"),
        ("{}\n", "missing"),
        ('{"step": "begin", "schema": "vbackup.manifest/1"}\n', "does not begin as a journal that this vbackup reads"),
        ("[]\n", "should be an object"),
        ("{" * 100000 + "\n", "cannot be read"),
        ("nonsense\n", "cannot be read"),
    ],
    ids=lambda text: text[:20],
)
def test_journal_that_is_none_is_undone(
    domain: FakeDomain,
    repo: Repository,
    killer: Killer,
    text: str,
    said: str,
) -> None:
    killer.at(Step.STARTED, "after")
    [stage] = repo.path.glob("*/*.partial")
    (stage / "journal").write_text(text)
    [found] = recover(domain, repo)
    assert (found.remedy, said in found.reason) == (Remedy.UNDO, True), found.reason
    run(domain, repo)
    assert_clean(domain, repo)


def test_journal_cannot_have_bitmaps_of_others_removed(domain: FakeDomain, repo: Repository, killer: Killer) -> None:
    top = domain.qemu.top("virtio-disk0")
    add = {"type": "block-dirty-bitmap-add", "data": {"node": top, "name": "theirs"}}
    domain.qemu.execute("transaction", {"actions": [add]})
    killer.at(Step.STARTED, "after")
    [stage] = repo.path.glob("*/*.partial")
    text = (stage / "journal").read_text()
    ours = next(name for name in domain.qemu.bitmaps(top) if name != "theirs")
    (stage / "journal").write_text(text.replace(f'"bitmap": "{ours}"', '"bitmap": "theirs"'))
    recover(domain, repo, abort=True)
    assert "theirs" in domain.qemu.bitmaps(top)


def test_journal_that_is_a_fifo_is_not_waited_for(domain: FakeDomain, repo: Repository, killer: Killer) -> None:
    killer.at(Step.STARTED, "after")
    [stage] = repo.path.glob("*/*.partial")
    (stage / "journal").unlink()
    os.mkfifo(stage / "journal")
    [found] = recover(domain, repo)
    assert (found.remedy, "it is a FIFO" in found.reason) == (Remedy.UNDO, True)
    assert partial(repo) == []


def test_torn_last_line_is_not_acted_upon(domain: FakeDomain, repo: Repository, killer: Killer) -> None:
    killer.at(Step.STARTED, "after")
    [stage] = repo.path.glob("*/*.partial")
    with (stage / "journal").open("a") as file:
        file.write('{"step": "flushed"')
    entry = journal.read(stage, backup_id=stage.name[: -len(".partial")], domain_uuid=UUID)
    assert entry is not None
    assert entry.step is Step.STARTED


@pytest.mark.parametrize("step", [Step.STARTED, Step.FLUSHED])
def test_backup_that_a_newer_vbackup_began_is_left_to_it(
    domain: FakeDomain, repo: Repository, killer: Killer, tmp_path: Path, step: Step
) -> None:
    """Only that one knows what it has done; a journal that is merely damaged is another matter."""
    killer.at(step, "after")
    [stage] = repo.path.glob("*/*.partial")
    text = (stage / "journal").read_text()
    (stage / "journal").write_text(text.replace(journal.SCHEMA, "vbackup.journal/2"))
    before = domain.qemu.state()
    request = forget.ForgetRequest("web", repo.id)
    for act in (
        lambda: run(domain, repo),
        lambda: recover(domain, repo),
        lambda: recover(domain, repo, dry_run=True),
        lambda: recover(domain, repo, abort=True, presume_dead=True),
        lambda: forget.run(request, host=domain, repository=repo, reporter=Recorder(), stop=Stop()),  # type: ignore[arg-type]
        lambda: adopt.run(repo, reporter=Recorder()),
    ):
        with pytest.raises(NewerJournalError, match="use the newer vbackup that began it"):
            act()
    assert (domain.qemu.state(), (stage / "journal").is_file()) == (before, True)
    (stage / "journal").write_text(text)
    recover(domain, repo)
    assert_clean(domain, repo)
