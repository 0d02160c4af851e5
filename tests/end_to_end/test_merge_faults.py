"""What goes on around a merge in place: readers, restores, and a run that was killed or could not go on."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trees import State, Tree, raw_digest
from tests.unit.builders import Recorder
from vbackup.errors import BusyError, StorageError
from vbackup.images import merge as images_merge
from vbackup.operations import consolidation, verify
from vbackup.operations import prune as prune_operation
from vbackup.operations.consolidation import ConsolidateRequest, Done
from vbackup.operations.prune import PruneRequest, Pruning
from vbackup.operations.prune_merges import Consolidation
from vbackup.operations.verify import VerifyRequest
from vbackup.repository import block_list, filesystem, merge_journal, merge_stage, merging, readers
from vbackup.repository.merging import Way
from vbackup.repository.retention import Rules
from vbackup.stop import Stop

SIZE = 1024 * 1024
STATE = State.of(SIZE, {n: (n + 1, n + 1) for n in range(12)})


def chain(path: Path, count: int = 3) -> tuple[Tree, list[str]]:
    """A full and increments; the last one also has a block that no other has."""
    one, state = Tree(path), STATE
    ids = [one.backup({"vda": state})]
    for number in range(1, count):
        state = state.changed({number % 12: (50 + number,) * 2, 13: (number % 200 + 1, 9)})
        ids.append(one.backup({"vda": state}, {"vda": ids[-1]}))
    return one, ids


def prune(one: Tree, remove: Sequence[str], way: Way = Way.AUTO) -> Done:
    with one.repository.lock(one.uuid):
        plan = consolidation.plan(one.repository.catalogue(one.uuid), remove, repository=one.repository, way=way)
        return consolidation.carry_out(plan, repository=one.repository, reporter=Recorder(), stop=Stop())


def recover(one: Tree) -> list[str]:
    with one.repository.lock(one.uuid):
        return consolidation.recover(one.repository, one.uuid, reporter=Recorder(), stop=Stop())


def killed(work: Callable[[], object], *, after: str) -> None:
    """Run ``work`` in a child process that ends itself after that function of images.merge."""
    pid = os.fork()
    if pid == 0:
        call = getattr(images_merge, after)

        def die(*arguments: object, **named: object) -> None:
            call(*arguments, **named)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(images_merge, after, die)
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_image_that_another_kept_backup_still_needs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two heirs one is in use for too long; its reader ends before the other is merged in place."""
    monkeypatch.setattr(merge_stage, "PATIENCE_S", 0.2)
    one = Tree(tmp_path / "repository")
    full = one.backup({"vda": STATE})
    first = one.backup({"vda": STATE.changed({1: (50, 50)})}, {"vda": full})
    second = one.backup({"vda": STATE.changed({2: (60, 60)})}, {"vda": full})
    reader = readers.reading([one.directory / first, one.directory / full])
    before = consolidation._Run._check_before

    def late(*arguments: object) -> None:
        reader.__exit__(None, None, None)
        before(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(consolidation._Run, "_check_before", late)
    with one.repository.lock(one.uuid):
        plan = consolidation.plan(one.repository.catalogue(one.uuid), [full], repository=one.repository)
        reader.__enter__()
        done = consolidation.carry_out(plan, repository=one.repository, reporter=Recorder(), stop=Stop())
    assert done.removed == ()
    assert set(done.busy) == {first, second}
    assert first in done.busy[second]
    one.check()
    assert one.ids() == [full, first, second]
    monkeypatch.undo()
    assert recover(one) == []
    assert prune(one, [full]).removed == (full,)
    one.check()


def test_wait_for_a_reader_is_told_and_is_as_long_for_all_as_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, ids = chain(tmp_path / "repository", 4)
    monkeypatch.setattr(merge_stage, "PATIENCE_S", 0.4)
    monkeypatch.setattr(readers, "users", lambda path: f"process 7 (vbackup mount of {path.name})")
    recorder = Recorder()
    wanted = [(backup_id, "vda") for backup_id in ids[1:]]
    with one.repository.lock(one.uuid), readers.reading([one.directory / backup_id for backup_id in ids[2:]]):
        history = one.repository.catalogue(one.uuid).history
        place = consolidation.place(one.directory)
        plan = merging.independence(history, wanted, way=Way.COPY, place=place)
        began = time.monotonic()
        done = consolidation.carry_out(plan, repository=one.repository, reporter=recorder, stop=Stop())
    waits = [step for step in recorder.steps if "aiting" in step]
    assert waits == [f"Waiting up to 0 s for process 7 (vbackup mount of {ids[3]}), which reads backup {ids[3]}."]
    assert done.merged == (ids[1],)
    assert set(done.busy) == set(ids[2:])
    assert "process 7 (vbackup mount" in done.busy[ids[2]]
    assert time.monotonic() - began < 30
    one.check()


def test_wait_for_a_reader_that_ends_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, ids = chain(tmp_path / "repository", 2)
    reader = readers.reading([one.directory / ids[1]])
    reader.__enter__()
    recorder = Recorder()
    step = recorder.step

    def end(message: str) -> None:
        step(message)
        if message.startswith("Waiting up to 30 s for "):
            reader.__exit__(None, None, None)

    monkeypatch.setattr(recorder, "step", end)
    request = ConsolidateRequest(one.uuid, backup_id=ids[1])
    done = consolidation.run(request, repository=one.repository, reporter=recorder, stop=Stop())
    assert (done.merged, done.busy) == ((ids[1],), {})
    one.check()


def test_kept_backups_are_restored_after_a_kill_in_place(tmp_path: Path) -> None:
    """The documents promise it: nothing has to be recovered first."""
    one, ids = chain(tmp_path / "repository")
    killed(lambda: prune(one, ids[:1], Way.IN_PLACE), after="commit")
    assert one.ids() == ids[1:]
    for backup_id in ids[1:]:
        one.check_restore(backup_id, tmp_path / backup_id)
    recover(one)
    one.check()


def test_verify_after_a_kill_in_place_reports_no_damage(tmp_path: Path) -> None:
    """The image that is written is not what its list says, and that is no damage: it is not read until it is whole."""
    one, ids = chain(tmp_path / "repository")
    killed(lambda: prune(one, ids[:1], Way.IN_PLACE), after="commit")
    reporter = Recorder()
    done = verify.run(VerifyRequest(), one.uuid, repository=one.repository, reporter=reporter, stop=Stop())
    assert (done.damage, done.damaged, done.images) == ((), [], 2)
    assert any("vbackup recover" in warning and ids[0] in warning for warning in reporter.warnings)
    recover(one)
    again = verify.run(VerifyRequest(), one.uuid, repository=one.repository, reporter=Recorder(), stop=Stop())
    assert {each.verdict.value for each in again.results.values()} == {"good"}


def test_recovery_asks_for_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of what it writes may be there already; QEMU says it if there is none."""
    one, ids = chain(tmp_path / "repository")
    killed(lambda: prune(one, ids[:1], Way.IN_PLACE), after="commit")
    abilities = filesystem.abilities
    monkeypatch.setattr(filesystem, "abilities", lambda directory: replace(abilities(directory), free_bytes=1000))
    assert "Finished the merge" in recover(one)[-1]
    one.check()


def in_limits(soft: int, hard: int, work: Callable[[], object]) -> int:
    """Run ``work`` in a child process that may have so many files open; return its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # what other tests' fixtures have open
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            work()
            status = 0
        except StorageError as err:
            status = 7 if "open files" in str(err) else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_long_chain_is_merged_in_place_with_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_list, "_SMALL_BYTES", 0)  # lists stay open, as those of large disks do
    one, ids = chain(tmp_path / "repository", 40)
    assert in_limits(64, 64, lambda: prune(one, ids[:-1], Way.IN_PLACE)) == 7
    assert one.ids() == ids  # refused before anything was written
    assert not (one.directory / merge_journal.NAME).exists()
    assert in_limits(64, 4096, lambda: prune(one, ids[:-1], Way.IN_PLACE)) == 0
    one.check()
    assert one.ids() == ids[-1:]


def test_hard_linked_copy_of_a_repository_is_not_written(tmp_path: Path) -> None:
    """``cp -al`` is how many people take a snapshot of a repository."""
    one, ids = chain(tmp_path / "repository", 2)
    subprocess.run(["cp", "-al", tmp_path / "repository", tmp_path / "copy"], check=True)
    with pytest.raises(StorageError, match=r"another name.*--consolidate auto or copy"):
        prune(one, ids[:1], Way.IN_PLACE)
    assert prune(one, ids[:1]).removed == (ids[0],)
    one.check()
    assert raw_digest(tmp_path / "copy" / one.uuid / ids[0] / "vda.qcow2") == one.states[ids[0]]["vda"].digest


@pytest.mark.parametrize("error", [BusyError("It is open in another process."), StorageError("No daemon.")])
def test_backup_stays_restorable_if_nothing_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    one, ids = chain(tmp_path / "repository", 2)

    def fail(*_arguments: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr(images_merge, "commit", fail)
    if isinstance(error, BusyError):
        assert prune(one, ids[:1], Way.IN_PLACE).kept.keys() == {ids[0]}
    else:
        with pytest.raises(StorageError):
            prune(one, ids[:1], Way.IN_PLACE)
    assert one.ids() == ids
    assert not (one.directory / merge_journal.NAME).exists()
    one.check()


def test_backup_stays_hidden_if_something_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, ids = chain(tmp_path / "repository", 2)
    commit = images_merge.commit

    def fail(*arguments: object, **named: object) -> None:
        commit(*arguments, **named)  # type: ignore[arg-type]
        raise BusyError("It is open in another process.")

    monkeypatch.setattr(images_merge, "commit", fail)
    with pytest.raises(BusyError, match="vbackup recover"):
        prune(one, ids[:1], Way.IN_PLACE)
    assert one.ids() == ids[1:]
    one.check(lists=False)
    monkeypatch.undo()
    recover(one)
    one.check()


def test_backup_made_a_full_has_a_checkpoint_that_the_domain_has(tmp_path: Path) -> None:
    """The domain has the bitmaps of the newest backup and of the last full: one of these, and never its own."""
    one, ids = chain(tmp_path / "repository", 4)
    before = one.repository.catalogue(one.uuid).history
    for backup_id, of in ((ids[2], ids[0]), (ids[3], None)):
        request = ConsolidateRequest(one.uuid, backup_id=backup_id)
        consolidation.run(request, repository=one.repository, reporter=Recorder(), stop=Stop())
        image = one.get(backup_id).image("vda")
        assert image is not None
        assert image.checkpoint == of
        after = one.repository.catalogue(one.uuid).history
        assert after.last_full("vda") == one.get(backup_id)
        if of is not None:
            assert image.bitmap == before.get(of).disks[0].bitmap
            assert after.base_bitmaps("vda") == before.base_bitmaps("vda")
            assert after.checkpoints == {of}
    one.check()


@pytest.mark.parametrize("exchanges", [True, False])
def test_result_of_a_verify_does_not_outlive_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    one, ids = chain(tmp_path / "repository", 2)
    abilities = filesystem.abilities
    monkeypatch.setattr(filesystem, "abilities", lambda directory: replace(abilities(directory), exchanges=exchanges))
    verify.run(VerifyRequest(), one.uuid, repository=one.repository, reporter=Recorder(), stop=Stop())
    assert (one.directory / ids[1] / "verified.json").exists()
    prune(one, ids[:1])
    assert not (one.directory / ids[1] / "verified.json").exists()
    one.check()


def test_prune_tells_which_chain_it_did_not_shorten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_stage, "PATIENCE_S", 0.1)
    one, ids = chain(tmp_path / "repository", 4)
    consolidator = Consolidation(one.repository, Way.AUTO, Recorder(), Stop(), max_chain=2)
    request = PruneRequest(one.uuid, Rules(last=9))

    def run() -> Pruning:
        return prune_operation.run(
            request, repository=one.repository, consolidator=consolidator, reporter=Recorder(), stop=Stop()
        )

    with readers.reading([one.directory / ids[2]]):
        done = run()
    assert done.busy.keys() == {ids[2]}
    assert done.merge is not None
    assert done.merge.sentences() == []
    done = run()
    assert not done.busy
    assert done.merge is not None
    assert done.merge.sentences() == [f"Disk vda: {ids[2]} becomes a full, so that no chain has more than 2 images."]
