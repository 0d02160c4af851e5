"""Whole backups into a stream on the fake QEMU: what they leave, in success and when the reader of the stream goes.

What is in the stream, and what becomes of a backup afterwards, is tested with vbackup.operations.stream_restore and
stream_end.
"""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.builders import UUID, Recorder
from tests.unit.fake_domain import END_BYTES, SIZE_BYTES, FakeDomain, partial
from tests.unit.operations.test_recovery import Killer
from vbackup.errors import BaseError, ConsumerGoneError, StorageError, UsageError
from vbackup.model import Backup, Level
from vbackup.operations import stream_backup, stream_end
from vbackup.operations.backup import BackupRequest
from vbackup.operations.stream_backup import StreamRequest
from vbackup.repository.journal import Journal, Step
from vbackup.repository.repository import Repository
from vbackup.scripts.runner import DomainScripts, Settings
from vbackup.stop import Stop


@pytest.fixture
def stage(tmp_path: Path) -> Repository:
    return stream_backup.opened_stage(tmp_path / "stage")


def back_up(
    domain: FakeDomain,
    stage: Repository,
    job: str,
    write: Callable[[bytes | memoryview], object] = lambda _data: None,
    *,
    level: Level = Level.AUTO,
    falls_back: bool = False,
    begun: str | None = None,
    since: str | None = None,
    recorder: Recorder | None = None,
    scripts: DomainScripts | None = None,
) -> Backup:
    return stream_backup.run(
        StreamRequest(BackupRequest("web", level), job, falls_back=falls_back, begun=begun, since=since),
        write,
        host=domain,  # type: ignore[arg-type]
        stage=stage,
        reporter=recorder or Recorder(),
        stop=Stop(),
        scripts=scripts,
    )


def commit(stage: Repository, job: str) -> str | None:
    return stream_end.commit("web", job, stage=stage, reporter=Recorder(), stop=Stop()).backup_id


def history(stage: Repository) -> list[str]:
    return [one.id for one in stage.catalogue(UUID).history.backups]


def copied(one: Backup) -> set[int]:
    return {disk.copied_bytes for disk in one.disks}


def test_stream_has_the_manifest_first_and_all_files(domain: FakeDomain, stage: Repository) -> None:
    written = io.BytesIO()
    made = back_up(domain, stage, "1", written.write)
    written.seek(0)
    with tarfile.open(fileobj=written, mode="r|") as archive:
        names = [member.name for member in archive]
    files = [
        "manifest.json",
        "domain.xml",
        "live.xml",
        "vda.blocks",
        "vda.qcow2",
        "vdb.blocks",
        "vdb.qcow2",
        "SHA256SUMS",
    ]
    assert names == [f"{UUID}/{made.id}/{file}" for file in files]


def test_stream_is_no_base_until_its_commit(domain: FakeDomain, stage: Repository) -> None:
    one = back_up(domain, stage, "1")
    assert (one.level, history(stage)) == (Level.FULL, [])
    assert commit(stage, "1") == one.id
    assert history(stage) == [one.id]
    domain.write()
    two = back_up(domain, stage, "2")
    assert (two.level, two.parent, copied(two)) == (Level.INCREMENTAL, one.id, {65536 + END_BYTES})
    domain.write(1024 * 1024)
    again = back_up(domain, stage, "3")  # nobody committed the second
    assert (again.parent, copied(again)) == (one.id, {2 * 65536 + END_BYTES})
    assert partial(stage) == [f"{again.id}.partial"]


def test_only_records_stay_of_what_was_streamed(domain: FakeDomain, stage: Repository) -> None:
    one = back_up(domain, stage, "1")
    kept = {path.name for path in stage.stage_path(UUID, one.id).iterdir()}
    assert kept == {"manifest.json", "stream.json", "journal"}
    commit(stage, "1")
    assert {path.name for path in stage.directory(UUID, one.id).iterdir()} == {"manifest.json", "stream.json"}


def test_qemu_has_the_bitmaps_of_all_bases_and_nothing_else(domain: FakeDomain, stage: Repository) -> None:
    for job in "1234":
        back_up(domain, stage, job)
        state = domain.qemu.state()
        assert (state["jobs"], state["fdsets"]) == ([], [])
        # The full, the newest that was committed, and the one that waits.
        assert {len(bitmaps) for bitmaps in domain.bitmaps().values()} == {min(int(job), 3)}
        commit(stage, job)


@pytest.mark.parametrize("after_bytes", [0, 1, 5000])
def test_reader_that_goes_costs_nothing(domain: FakeDomain, stage: Repository, after_bytes: int) -> None:
    one = back_up(domain, stage, "1")
    commit(stage, "1")
    before = domain.bitmaps()
    domain.write()
    left = after_bytes

    def write(data: bytes | memoryview) -> None:
        nonlocal left
        left -= len(data)
        if left < 0:
            raise ConsumerGoneError

    recorder = Recorder()
    with pytest.raises(ConsumerGoneError):
        back_up(domain, stage, "2", write, recorder=recorder)
    assert (domain.bitmaps(), partial(stage), history(stage), recorder.warnings) == (before, [], [one.id], [])
    assert copied(back_up(domain, stage, "3")) == {65536 + END_BYTES}


@pytest.mark.parametrize("is_written", [False, True])
def test_run_that_dies_while_it_sends_is_undone_by_the_next(
    domain: FakeDomain, stage: Repository, tmp_path: Path, is_written: bool
) -> None:
    """Its images are complete, but whoever read them does not know that."""
    one = back_up(domain, stage, "1")
    commit(stage, "1")
    domain.write()
    killer = Killer(domain, stage, tmp_path)
    streamed = Journal.streamed

    def die(written: Journal) -> None:
        if is_written:
            streamed(written)
        killer.strike()

    killer.kill(lambda patch: patch.setattr(Journal, "streamed", die), lambda: back_up(domain, stage, "2"))
    [dead] = stage.unfinished(UUID)
    recorder = Recorder()
    three = back_up(domain, stage, "3", recorder=recorder)
    assert (three.parent, copied(three)) == (one.id, {65536 + END_BYTES})
    why = ": its stream was never committed" if is_written else ", which was interrupted: its stream did not end"
    assert f"Undid backup {dead}{why}." in recorder.steps
    assert partial(stage) == [f"{three.id}.partial"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", Step, ids=str)
def test_run_that_dies_at_any_step_is_undone_by_the_next(
    domain: FakeDomain, stage: Repository, tmp_path: Path, step: Step, when: str
) -> None:
    """Also where its jobs go on in QEMU: nobody would read its stream."""
    one = back_up(domain, stage, "1")
    commit(stage, "1")
    domain.write()
    killer = Killer(domain, stage, tmp_path)
    killer.at(step, when, make=lambda: back_up(domain, stage, "2"))
    domain.write(1024 * 1024)
    recorder = Recorder()
    three = back_up(domain, stage, "3", recorder=recorder)
    assert (three.parent, copied(three), recorder.warnings) == (one.id, {2 * 65536 + END_BYTES}, [])
    state = domain.qemu.state()
    assert (state["jobs"], state["fdsets"], partial(stage)) == ([], [], [f"{three.id}.partial"])
    assert not [name for name in state["nodes"] if name.startswith("vbackup-")]
    assert {len(bitmaps) for bitmaps in domain.bitmaps().values()} == {2}


def test_differential_starts_from_the_last_full_that_was_asked_for(domain: FakeDomain, stage: Repository) -> None:
    full = back_up(domain, stage, "1", level=Level.FULL)
    commit(stage, "1")
    domain.write()
    back_up(domain, stage, "2")
    commit(stage, "2")
    domain.write(1024 * 1024)
    three = back_up(domain, stage, "3", level=Level.DIFFERENTIAL)
    assert (three.level, three.parent, copied(three)) == (Level.DIFFERENTIAL, full.id, {2 * 65536 + END_BYTES})


def test_full_that_a_director_calls_an_incremental_is_no_base_of_its_differential(
    domain: FakeDomain, stage: Repository
) -> None:
    """It restores its last full job and the differential, and nothing in between."""
    back_up(domain, stage, "1", level=Level.FULL)
    commit(stage, "1")
    domain.qemu.resize(domain.qemu.top("virtio-disk0"), SIZE_BYTES // 2)
    domain.qemu.resize(domain.qemu.top("virtio-disk0"), SIZE_BYTES)
    two = back_up(domain, stage, "2")
    assert [disk.level for disk in two.disks] == [Level.FULL, Level.INCREMENTAL]
    commit(stage, "2")
    three = back_up(domain, stage, "3", level=Level.DIFFERENTIAL, falls_back=True)
    assert (three.level, three.parent) == (Level.FULL, None)


def test_differential_without_a_base_is_refused_unless_it_may_be_a_full(domain: FakeDomain, stage: Repository) -> None:
    with pytest.raises(BaseError):
        back_up(domain, stage, "1", level=Level.DIFFERENTIAL)
    assert back_up(domain, stage, "1", level=Level.DIFFERENTIAL, falls_back=True).level is Level.FULL


def test_full_in_place_of_a_differential_is_no_failure_of_a_backup(
    domain: FakeDomain, stage: Repository, tmp_path: Path
) -> None:
    """The scripts of the user run once: around the full."""
    back_up(domain, stage, "1", level=Level.FULL)
    commit(stage, "1")
    for alias in ("virtio-disk0", "virtio-disk1"):
        domain.qemu.bitmaps(domain.qemu.top(alias)).clear()
    for phase in ("pre-backup", "post-backup", "on-failure"):
        (tmp_path / "scripts.d" / f"{phase}.d").mkdir(parents=True)
        (tmp_path / "scripts.d" / f"{phase}.d" / "10-x").symlink_to("/bin/true")
    recorder = Recorder()
    scripts = DomainScripts(
        Settings(tmp_path / "scripts.d", is_wanted=True), reporter=recorder, stop=Stop(), work="backup", domain="web"
    )
    two = back_up(domain, stage, "2", level=Level.DIFFERENTIAL, falls_back=True, recorder=recorder, scripts=scripts)
    assert two.level is Level.FULL
    assert any("This backup is a full, in place of the differential." in told for told in recorder.warnings)
    assert [outcome.document()["phase"] for outcome in scripts.outcomes] == ["pre-backup", "post-backup"]


TIMES = [f"2026.11.23.{hour:02}.00.00" for hour in range(24)]


def test_backup_whose_job_has_failed_after_all_is_no_base(domain: FakeDomain, stage: Repository) -> None:
    """The director's catalog could not be written: its last good job is the one before."""
    ids = []
    for number in range(3):
        domain.write(number * 1024 * 1024)
        since = TIMES[number - 1] if number else None
        ids.append(back_up(domain, stage, str(number), begun=TIMES[number], since=since).id)
        commit(stage, str(number))
    domain.write(5 * 1024 * 1024)
    recorder = Recorder()
    since = TIMES[1][:-2] + "07"  # the job was made a moment before it began
    four = back_up(domain, stage, "4", begun=TIMES[4], since=since, recorder=recorder)
    assert (four.parent, copied(four)) == (ids[1], {2 * 65536 + END_BYTES})
    assert [warning.split()[1] for warning in recorder.warnings] == [ids[2]]
    assert history(stage) == ids[:2]


@pytest.mark.parametrize(("first", "second"), [(TIMES[0], None), (None, TIMES[0])])
def test_chain_is_kept_in_one_place(
    domain: FakeDomain, stage: Repository, first: str | None, second: str | None
) -> None:
    """A director and restic: an incremental in one of them could not be restored with what is in the other."""
    back_up(domain, stage, "1", begun=first)
    commit(stage, "1")
    for level in (Level.AUTO, Level.FULL):
        with pytest.raises(UsageError, match=r"is the stage of .* which keeps backup .* \(job 1\).* --stage"):
            back_up(domain, stage, "2", level=level, begun=second)
    assert (len(history(stage)), partial(stage)) == (1, [])


@pytest.mark.parametrize("since", [TIMES[2], TIMES[3]])
def test_backups_that_the_director_knows_stay(domain: FakeDomain, stage: Repository, since: str) -> None:
    """Its job began at the moment at which it was made, or has waited for another one."""
    ids = []
    for number in range(2):
        ids.append(back_up(domain, stage, str(number), begun=TIMES[2 * number]).id)
        commit(stage, str(number))
    recorder = Recorder()
    assert back_up(domain, stage, "2", begun=TIMES[4], since=since, recorder=recorder).parent == ids[1]
    assert (recorder.warnings, history(stage)) == ([], ids)


def test_full_whose_job_has_failed_after_all_is_no_base_of_a_differential(
    domain: FakeDomain, stage: Repository
) -> None:
    for number, level in enumerate([Level.FULL, Level.AUTO, Level.FULL]):
        back_up(domain, stage, str(number), level=level, begun=TIMES[number])
        commit(stage, str(number))
    first, second, unknown = history(stage)
    one = back_up(domain, stage, "4", level=Level.DIFFERENTIAL, falls_back=True, begun=TIMES[4], since=TIMES[0])
    assert (one.level, one.parent, history(stage)) == (Level.DIFFERENTIAL, first, [first, second])
    assert unknown.endswith("-full")


def test_stage_is_no_repository_and_a_repository_no_stage(stage: Repository, repo: Repository) -> None:
    with pytest.raises(StorageError, match="is a stage of streams"):
        Repository.open(stage.path)
    with pytest.raises(StorageError, match="is a repository and not a stage"):
        stream_backup.opened_stage(repo.path)
    assert stream_backup.opened_stage(stage.path).id == stage.id


def test_stage_is_made_once_by_jobs_that_begin_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(4)

    def opened(_number: int) -> str:
        start.wait(10)
        return stream_backup.opened_stage(tmp_path / "new" / "stage").id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(opened, range(4)))) == 1
