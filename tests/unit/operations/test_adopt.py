"""A copy of a repository gets a new id; what was begun in it, and not copied, has to be recovered first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.builders import UUID, Recorder
from tests.unit.fake_domain import FakeDomain, partial, run
from tests.unit.operations.test_recovery import Killer, recover
from vbackup.errors import ChainError, CopiedError
from vbackup.model import Level
from vbackup.operations import adopt
from vbackup.repository.journal import Step
from vbackup.repository.repository import Repository


def test_adopted_copy_never_touches_qemu_and_its_next_backup_is_a_full(
    domain: FakeDomain, repo: Repository, tmp_path: Path
) -> None:
    run(domain, repo)
    killer = Killer(domain, repo, tmp_path)
    killer.at(Step.STARTED, "after")
    shutil.copytree(repo.path, tmp_path / "copy")
    copy, before, recorder = Repository.open(tmp_path / "copy"), domain.qemu.state(), Recorder()
    with pytest.raises(CopiedError, match="--adopt"):
        recover(domain, copy)
    adopted = adopt.run(copy, reporter=recorder)
    assert domain.qemu.state() == before
    assert adopted.former_id == repo.id != adopted.repository_id
    [(uuid, discarded)] = adopted.discarded
    assert (uuid, partial(copy)) == (UUID, [])
    assert [discarded in step for step in recorder.steps] == [True]
    assert recover(domain, repo)  # the original goes on
    own = Repository.open(tmp_path / "copy")
    assert own.id == adopted.repository_id
    made = run(domain, own)
    assert made.level is Level.FULL
    assert {disk.reason.partition(" belongs to ")[2] for disk in made.disks} == {
        f"repository {repo.id}, of which this one was a copy"
    }
    assert run(domain, repo).level is Level.INCREMENTAL
    assert run(domain, own).level is Level.INCREMENTAL


def test_backup_that_was_begun_here_is_not_left_behind(domain: FakeDomain, repo: Repository, tmp_path: Path) -> None:
    """Its jobs are in QEMU under the id that the repository would give up."""
    Killer(domain, repo, tmp_path).at(Step.STARTED, "after")
    with pytest.raises(ChainError, match=f"so it is no copy; 'vbackup recover {UUID}' deals with it"):
        adopt.run(repo, reporter=Recorder())
    assert Repository.open(repo.path).id == repo.id
    assert len(partial(repo)) == 1
