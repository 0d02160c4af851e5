"""A prune decides about all backups first, and what it does is what a dry run showed."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import NOON, UUID, Recorder, backup, commit, copy, image, incremental
from vbackup.errors import BusyError, ChainError, InterruptedBySignalError, NeededError, StorageError
from vbackup.model import EXCLUDED, Backup, LeftOut, Level
from vbackup.operations import prune
from vbackup.operations.prune import PruneRequest, Pruning
from vbackup.operations.prune_merges import Carried
from vbackup.repository import protection, readers, removal
from vbackup.repository.catalogue import Catalogue
from vbackup.repository.protection import Protection
from vbackup.repository.repository import Repository
from vbackup.repository.retention import Rules
from vbackup.stop import Stop

#: A chain of four, and one of three.
ONE = backup(1)
TWO = incremental(2, ONE)
THREE = incremental(3, TWO)
FOUR = incremental(4, THREE)
FIVE = backup(5)
SIX = incremental(6, FIVE)
SEVEN = incremental(7, SIX)
ALL = (ONE, TWO, THREE, FOUR, FIVE, SIX, SEVEN)
LAST = Rules(last=1)


@pytest.fixture
def paths(repo: Repository) -> dict[str, Path]:
    return {one.id: commit(repo, one) for one in ALL}


@dataclass(frozen=True)
class FakeMerge:
    """What a consolidation plans: each removed backup gives its data to the next one."""

    heirs: Mapping[str, Sequence[str]]
    extra_bytes: int = 1000
    kept: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not self.heirs

    def sentences(self) -> list[str]:
        return [f"{one} goes into {', '.join(heirs)}." for one, heirs in self.heirs.items()]

    def document(self) -> dict[str, Any]:
        return {"heirs": dict(self.heirs)}


@dataclass
class FakeConsolidator:
    """Merges in name only, and remembers what it saw."""

    repository: Repository
    log: list[str] = field(default_factory=list)
    seen: Catalogue | None = None
    error: Exception | None = None
    stay: Mapping[str, str] = field(default_factory=dict)
    busy: Mapping[str, str] = field(default_factory=dict)

    def plan(self, catalogue: Catalogue, remove: Collection[str]) -> FakeMerge:
        self.log.append("plan")
        self.seen = catalogue
        if self.error is not None:
            raise self.error
        return FakeMerge(
            {
                one.id: [each.id for each in catalogue.history.backups if each.parent == one.id]
                for one in catalogue.history.backups
                if one.id in remove
            }
        )

    def carry_out(self, merge: Any) -> Carried:
        self.log.append("carry out")
        for one in merge.heirs:
            if one not in self.stay:
                assert removal.take_away(self.repository.directory(UUID, one))
        heirs = {one: heirs for one, heirs in merge.heirs.items() if one not in self.stay}
        return Carried(replace(merge, heirs=heirs), self.stay, self.busy)


def run(
    repo: Repository,
    rules: Rules = LAST,
    *,
    consolidator: FakeConsolidator | None = None,
    recorder: Recorder | None = None,
    stop: Stop | None = None,
    **more: Any,
) -> Pruning:
    return prune.run(
        PruneRequest(UUID, rules, **more),
        repository=repo,
        consolidator=consolidator,
        reporter=recorder or Recorder(),
        stop=stop or Stop(),
    )


def left(repo: Repository) -> list[str]:
    catalogue = repo.catalogue(UUID)
    assert not catalogue.broken
    return [one.id for one in catalogue.history.backups]


def names_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def why(pruning: Pruning, one: Backup) -> tuple[str, ...]:
    (line,) = (line for line in pruning.lines if line.id == one.id)
    return line.reasons


def remove(*ones: Backup) -> dict[str, Any]:
    return {"rules": Rules(), "remove": tuple(one.id for one in ones)}


# by rules


def test_only_what_nothing_kept_depends_on_goes_without_consolidation(repo: Repository, paths: dict[str, Path]) -> None:
    done = run(repo)
    assert left(repo) == [FIVE.id, SIX.id, SEVEN.id]
    assert [line.id for line in done.lines] == list(paths)
    assert why(done, FIVE) == why(done, SIX) == (f"{SEVEN.id} depends on it",)
    assert why(done, SEVEN) == ("last #1", "newest", "the next incremental of vda starts from it")
    assert not removal.removed(repo.path / UUID)


def test_dry_run_shows_what_the_run_does_and_does_nothing(repo: Repository, paths: dict[str, Path]) -> None:
    before = {path.name: names_in(path) for path in paths.values()}
    shown = run(repo, dry_run=True)
    assert {path.name: names_in(path) for path in paths.values()} == before
    assert run(repo) == shown


def test_backups_on_which_kept_ones_depend_give_their_data(repo: Repository, paths: dict[str, Path]) -> None:
    consolidator = FakeConsolidator(repo)
    done = run(repo, consolidator=consolidator)
    assert consolidator.log == ["plan", "carry out"]
    assert consolidator.seen is not None
    # What nothing depends on has gone by then.
    assert [one.id for one in consolidator.seen.history.backups] == [FIVE.id, SIX.id, SEVEN.id]
    heirs = {line.id: line.heirs for line in done.lines if line.heirs}
    assert heirs == {FIVE.id: (SIX.id,), SIX.id: (SEVEN.id,)}
    assert not paths[FIVE.id].exists()
    assert [one.id for one in repo.catalogue(UUID).history.backups] == [SEVEN.id]
    alone = sum(line.size_bytes for line in done.removed if not line.heirs)
    assert done.freed_bytes == alone + done.merged_bytes
    assert -1000 < done.merged_bytes < sum(line.size_bytes for line in done.removed if line.heirs)


def test_backup_that_could_not_be_merged_after_all_is_told(repo: Repository, paths: dict[str, Path]) -> None:
    done = run(repo, consolidator=FakeConsolidator(repo, stay={FIVE.id: "it is in use"}))
    assert why(done, FIVE) == ("it is in use",)
    assert FIVE.id not in [line.id for line in done.removed]
    assert SIX.id in [line.id for line in done.removed]
    assert done.merge is not None
    assert done.merge.sentences() == [f"{SIX.id} goes into {SEVEN.id}."]  # only what was done
    assert paths


def test_chain_that_was_not_shortened_is_told(repo: Repository, paths: dict[str, Path]) -> None:
    recorder = Recorder()
    done = run(repo, consolidator=FakeConsolidator(repo, busy={SEVEN.id: "it is in use"}), recorder=recorder)
    assert done.busy == {SEVEN.id: "it is in use"}
    assert f"Backup {SEVEN.id} did not become a full: it is in use." in recorder.warnings
    assert paths


def test_dry_run_that_finished_what_a_killed_run_left_says_so(repo: Repository, paths: dict[str, Path]) -> None:
    assert not run(repo, dry_run=True).has_recovered
    (repo.path / UUID / f".merge-{SEVEN.id}").mkdir()
    assert run(repo, dry_run=True).has_recovered
    assert paths


def test_dry_run_with_consolidation_shows_the_same(repo: Repository, paths: dict[str, Path]) -> None:
    consolidator = FakeConsolidator(repo)
    shown = run(repo, consolidator=consolidator, dry_run=True)
    assert "carry out" not in consolidator.log
    assert all(path.exists() for path in paths.values())
    assert run(repo, consolidator=FakeConsolidator(repo)) == shown


def test_nothing_is_removed_if_there_is_no_room_to_merge(repo: Repository, paths: dict[str, Path]) -> None:
    with pytest.raises(StorageError, match="no room"):
        run(repo, consolidator=FakeConsolidator(repo, error=StorageError("no room")))
    assert left(repo) == list(paths)


def test_second_prune_removes_nothing(repo: Repository, paths: dict[str, Path]) -> None:
    rules = Rules(hourly=2, daily=2)
    first = run(repo, rules)
    assert first.removed
    second = run(repo, rules)
    assert not second.removed
    assert [line.id for line in second.lines] == [line.id for line in first.lines if line.is_kept]
    assert paths


def test_rest_of_a_killed_prune_is_deleted_by_the_next(repo: Repository, paths: dict[str, Path]) -> None:
    assert removal.take_away(paths[FOUR.id])
    run(repo, dry_run=True)
    assert not removal.removed(repo.path / UUID)
    assert left(repo) == [one.id for one in ALL if one is not FOUR]


class StopAfter(Stop):
    """Is asked to stop when it has been looked at this often."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def check(self) -> None:
        self.times -= 1
        if self.times < 0:
            self.request(15)
        super().check()


@pytest.mark.parametrize("times", range(1, 7))
def test_stopped_prune_leaves_whole_backups_and_is_finished_by_the_next(
    repo: Repository, paths: dict[str, Path], times: int
) -> None:
    with suppress(InterruptedBySignalError):
        run(repo, stop=StopAfter(times))
    assert left(repo)[-3:] == [FIVE.id, SIX.id, SEVEN.id]
    run(repo)
    assert left(repo) == [FIVE.id, SIX.id, SEVEN.id]
    assert not removal.removed(repo.path / UUID)
    assert paths


#: What changes something on the disk.
CALLS = ("rename", "unlink", "rmdir", "fsync")


def killed_at(repo: Repository, step: int) -> bool:
    """Prune in a child process that dies just before its ``step``-th change; False if it ended before that."""
    child = os.fork()
    if child == 0:
        changes = itertools.count()

        def mortal(really: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **more: Any) -> Any:
                if next(changes) == step:
                    os._exit(9)  # without any clean-up, as after SIGKILL
                return really(*arguments, **more)

            return call

        for name in CALLS:
            setattr(os, name, mortal(getattr(os, name)))
        try:
            run(repo)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 9


def test_prune_that_is_killed_anywhere_is_finished_by_the_next(repo: Repository) -> None:
    """Every kept backup has its files at every moment, and what is there is never broken."""
    points = 0
    while True:
        shutil.rmtree(repo.path / UUID, ignore_errors=True)
        paths = [commit(repo, one) for one in ALL]
        was_killed = killed_at(repo, points)
        assert left(repo)[-3:] == [FIVE.id, SIX.id, SEVEN.id]
        assert all(names_in(path) == ["manifest.json", "vda.qcow2"] for path in paths if path.exists())
        run(repo)
        assert left(repo) == [FIVE.id, SIX.id, SEVEN.id]
        assert not removal.removed(repo.path / UUID)
        if not was_killed:
            break
        points += 1
    print(f"killed at {points} points")
    assert points >= 4 * (1 + 2 + 1)


def test_what_cannot_be_deleted_is_an_error_after_all_is_done(
    repo: Repository, paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", refuse)
        with pytest.raises(StorageError, match=r"their room is not free.*Operation not permitted"):
            run(repo)
    assert left(repo) == [FIVE.id, SIX.id, SEVEN.id]
    recorder = Recorder()
    run(repo, recorder=recorder)
    assert not recorder.warnings
    assert not removal.removed(repo.path / UUID)
    assert paths


# what stays


def test_protected_backup_stays_with_what_it_depends_on(repo: Repository, paths: dict[str, Path]) -> None:
    protection.protect(paths[TWO.id], Protection(NOON))
    done = run(repo)
    assert left(repo) == [ONE.id, TWO.id, FIVE.id, SIX.id, SEVEN.id]
    assert why(done, TWO) == ("protected",)
    assert why(done, ONE) == (f"{TWO.id} depends on it",)


def test_protected_backup_takes_no_place_of_another(repo: Repository, paths: dict[str, Path]) -> None:
    protection.protect(paths[SEVEN.id], Protection(NOON))
    done = run(repo)
    assert why(done, SIX) == ("last #1",)


def test_chain_that_is_read_stays(repo: Repository, paths: dict[str, Path]) -> None:
    with readers.reading([paths[ONE.id], paths[TWO.id]]):
        done = run(repo)
    assert left(repo) == [ONE.id, TWO.id, FIVE.id, SIX.id, SEVEN.id]
    assert why(done, ONE) == why(done, TWO) == ("in use: another vbackup is reading it",)
    run(repo)
    assert left(repo) == [FIVE.id, SIX.id, SEVEN.id]


def test_chain_that_is_read_from_the_middle_of_a_prune_on_stays(
    repo: Repository, paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore of THREE begins when FOUR has been removed."""
    really = removal.take_away

    with ExitStack() as stack:

        def take_away(directory: Path) -> bool:
            is_gone = really(directory)
            if directory == paths[FOUR.id]:
                stack.enter_context(readers.reading([paths[one.id] for one in (ONE, TWO, THREE)]))
            return is_gone

        monkeypatch.setattr(removal, "take_away", take_away)
        recorder = Recorder()
        done = run(repo, recorder=recorder)
        assert left(repo) == [one.id for one in ALL if one is not FOUR]
    assert [line.id for line in done.removed] == [FOUR.id]
    assert why(done, THREE) == ("in use: another vbackup is reading it",)
    assert why(done, ONE) == (f"{THREE.id} depends on it",)
    assert f"Backup {THREE.id} stays" in recorder.warnings[0]


def test_nothing_is_merged_from_under_a_reader(
    repo: Repository, paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup that would be removed alone is being read by then, and depends on one that gives its data away."""
    other = incremental(8, FIVE)
    directory = commit(repo, other)
    commit(repo, incremental(9, SEVEN))
    consolidator = FakeConsolidator(repo)
    really = removal.take_away
    with ExitStack() as stack, monkeypatch.context() as patched:

        def take_away(path: Path) -> bool:
            if path == directory:
                stack.enter_context(readers.reading([directory]))
            return really(path)

        patched.setattr(removal, "take_away", take_away)
        done = run(repo, consolidator=consolidator)
    assert "carry out" not in consolidator.log
    assert left(repo) == [FIVE.id, SIX.id, SEVEN.id, other.id, incremental(9, SEVEN).id]
    assert [line.id for line in done.lines if line.is_kept] == left(repo)
    assert done.merge is None
    run(repo, consolidator=consolidator)
    assert consolidator.log[-1] == "carry out"


def test_broken_backups_count_for_no_rule_and_stay(repo: Repository, paths: dict[str, Path]) -> None:
    (paths[SEVEN.id] / "manifest.json").write_text("{")
    (paths[FOUR.id] / "vda.qcow2").unlink()
    done = run(repo)
    assert not done.removed
    assert why(done, SIX)[0] == "last #1"
    assert why(done, SEVEN)[0].startswith("broken, so it counts for no rule: ")
    assert why(done, FOUR)[0].startswith("broken, so it counts for no rule: ")
    # With its image back, FOUR is whole: all that it depends on is still there.
    assert why(done, THREE) == (f"{FOUR.id}, which is broken, depends on it",)
    assert why(done, ONE) == (f"{THREE.id} depends on it",)
    assert [line.id for line in done.lines] == list(paths)
    assert done.lines[-1].time is None


def test_newest_of_each_disk_stays(repo: Repository) -> None:
    one = backup(1, image("vda"), image("vdb"))
    two = replace(incremental(2, one, "vda"), left_out=(LeftOut("vdb", EXCLUDED),))
    three = replace(backup(3, image("vda")), left_out=(LeftOut("vdb", EXCLUDED),))
    for each in (one, two, three):
        commit(repo, each)
    done = run(repo)
    assert left(repo) == [one.id, three.id]
    assert "the next incremental of vdb starts from it" in why(done, one)


def test_copy_that_is_newest_does_not_free_the_base_of_the_next(repo: Repository) -> None:
    for each in (ONE, copy(2)):
        commit(repo, each)
    done = run(repo)
    assert why(done, ONE) == ("the next incremental of vda starts from it",)
    assert not done.removed


def test_last_full_stays_if_differentials_start_from_it(repo: Repository) -> None:
    two, three = (
        backup(number, image(level=Level.DIFFERENTIAL, base=ONE.id), level=Level.DIFFERENTIAL) for number in (2, 3)
    )
    for each in (ONE, two, three):
        commit(repo, each)
    done = run(repo, consolidator=FakeConsolidator(repo))
    assert why(done, ONE) == ("the next differential of vda starts from it",)
    assert left(repo) == [ONE.id, three.id]


# by name


def test_named_backup_goes_and_no_other(repo: Repository, paths: dict[str, Path]) -> None:
    done = run(repo, **remove(FOUR))
    assert left(repo) == [one.id for one in ALL if one is not FOUR]
    assert why(done, FOUR) == ("asked for",)
    assert why(done, ONE) == ("not asked for",)
    run(repo, **remove(ONE, TWO, THREE))
    assert left(repo) == [FIVE.id, SIX.id, SEVEN.id]
    assert paths


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (SEVEN, "the next incremental of vda starts from it; it is the newest"),
        (TWO, "protected .*'vbackup unprotect 20261123T140000Z-incremental'"),
        (THREE, f"{FOUR.id} depends on it.*--consolidate never"),
    ],
    ids=["newest", "protected", "needed"],
)
def test_named_backup_that_has_to_stay_is_refused_with_what_needs_it(
    repo: Repository, paths: dict[str, Path], one: Backup, said: str
) -> None:
    protection.protect(paths[TWO.id], Protection(NOON, "why"))
    with pytest.raises(NeededError, match=said) as raised:
        run(repo, **remove(FOUR, one) if one is not THREE else remove(one))
    assert raised.value.status == 6
    assert left(repo) == list(paths)


def test_unknown_named_backup_is_refused(repo: Repository, paths: dict[str, Path]) -> None:
    with pytest.raises(ChainError, match="No backup 'x' of this domain"):
        run(repo, rules=Rules(), remove=(FOUR.id, "x"))
    assert left(repo) == list(paths)


def test_named_backup_that_is_read_is_busy(repo: Repository, paths: dict[str, Path]) -> None:
    with readers.reading([paths[FOUR.id]]), pytest.raises(BusyError, match="is being read"):
        run(repo, **remove(FOUR))
    assert left(repo) == list(paths)


def test_named_backup_gives_its_data(repo: Repository, paths: dict[str, Path]) -> None:
    consolidator = FakeConsolidator(repo)
    done = run(repo, consolidator=consolidator, **remove(TWO))
    assert [line.heirs for line in done.removed] == [(THREE.id,)]
    assert not paths[TWO.id].exists()


def test_broken_backup_goes_if_it_is_named(repo: Repository, paths: dict[str, Path]) -> None:
    (paths[FOUR.id] / "manifest.json").unlink()
    run(repo, **remove(FOUR))
    assert not paths[FOUR.id].exists()
    (paths[TWO.id] / "vda.qcow2").unlink()
    for consolidator in (None, FakeConsolidator(repo)):
        with pytest.raises(NeededError, match=f"{THREE.id}, which is broken, depends on it"):
            run(repo, consolidator=consolidator, **remove(TWO))
    run(repo, **remove(TWO, THREE))
    assert left(repo) == [ONE.id, FIVE.id, SIX.id, SEVEN.id]


def test_broken_backup_gives_no_data(repo: Repository) -> None:
    """Its image of vda is lost; a later backup of vdb alone depends on it and is whole."""
    one = backup(1, image("vda"), image("vdb"))
    two = replace(incremental(2, one, "vdb"), left_out=(LeftOut("vda", EXCLUDED),))
    path = commit(repo, one)
    for each in (two, backup(3)):
        commit(repo, each)
    (path / "vda.qcow2").unlink()
    with pytest.raises(NeededError, match=f"it is broken, and {two.id} depends on it.*Remove {two.id} too"):
        run(repo, consolidator=FakeConsolidator(repo), **remove(one))
    assert path.exists()


# with others


def test_busy_domain_is_told(repo: Repository, paths: dict[str, Path]) -> None:
    with repo.lock(UUID), pytest.raises(BusyError):
        run(repo)
    assert left(repo) == list(paths)


def test_prune_waits_for_the_lock_if_it_may(repo: Repository, paths: dict[str, Path]) -> None:
    stack = ExitStack()
    stack.enter_context(repo.lock(UUID))

    class Releasing(Recorder):
        def step(self, message: str) -> None:
            super().step(message)
            stack.close()

    recorder = Releasing()
    run(repo, recorder=recorder, wait_lock_s=30.0)
    assert "waiting up to 30 s" in recorder.steps[0]
    assert left(repo) == [FIVE.id, SIX.id, SEVEN.id]
    assert paths


def test_filesystem_without_locks_is_a_warning(
    repo: Repository, paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Repository, "locks", lambda *_: False)
    recorder = Recorder()
    run(repo, recorder=recorder)
    assert "does not lock files" in recorder.warnings[0]
    assert paths


def steps(recorder: Recorder) -> Iterator[str]:
    return (step for step in recorder.steps if step.startswith("Removed backup"))


def test_newest_goes_first_so_that_no_backup_is_ever_without_its_base(
    repo: Repository, paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    really = removal.take_away

    def take_away(directory: Path) -> bool:
        is_gone = really(directory)
        assert not repo.catalogue(UUID).broken
        return is_gone

    monkeypatch.setattr(removal, "take_away", take_away)
    recorder = Recorder()
    run(repo, recorder=recorder)
    assert [step.split()[2].rstrip(":") for step in steps(recorder)] == [FOUR.id, THREE.id, TWO.id, ONE.id]
    assert paths
