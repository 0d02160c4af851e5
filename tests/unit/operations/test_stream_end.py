"""What becomes of a stream: committed or undone, each as often as somebody says so, and only the one that is meant."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID, Recorder
from tests.unit.fake_domain import END_BYTES, FakeDomain, partial
from tests.unit.operations.test_stream_backup import back_up, commit, copied, history, stage
from vbackup.errors import BusyError, ChainError, DomainNotFoundError, StreamNotPendingError
from vbackup.model import Level
from vbackup.operations import stream_end
from vbackup.operations.stream_end import Ended
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

__all__ = ["stage"]


def abort(domain: FakeDomain, stage: Repository, job: str, *, recorder: Recorder | None = None) -> Ended:
    host: Any = nullcontext(domain)
    reporter = recorder or Recorder()
    return stream_end.abort("web", job, connect=lambda: host, stage=stage, reporter=reporter, stop=Stop())


def test_commit_may_be_repeated(domain: FakeDomain, stage: Repository) -> None:
    one = back_up(domain, stage, "1")
    assert stream_end.commit("web", "1", stage=stage, reporter=Recorder(), stop=Stop()) == Ended(
        UUID, "1", one.id, True
    )
    assert stream_end.commit(UUID, "1", stage=stage, reporter=Recorder(), stop=Stop()) == Ended(
        UUID, "1", one.id, False
    )


def test_abort_may_be_repeated_and_leaves_the_base(domain: FakeDomain, stage: Repository) -> None:
    one = back_up(domain, stage, "1")
    commit(stage, "1")
    before = domain.bitmaps()
    domain.write()
    two = back_up(domain, stage, "2")
    recorder = Recorder()
    assert abort(domain, stage, "2", recorder=recorder) == Ended(UUID, "2", two.id, True)
    assert recorder.steps == [f"Undid backup {two.id}, as asked for."]  # nothing has interrupted it
    assert (domain.bitmaps(), partial(stage), history(stage)) == (before, [], [one.id])
    assert abort(domain, stage, "2") == Ended(UUID, "2", None, False)
    assert copied(back_up(domain, stage, "3")) == {65536 + END_BYTES}


def test_word_is_about_the_backup_that_waits(domain: FakeDomain, stage: Repository) -> None:
    """A director whose catalog was made again counts its jobs from 1: a commit must not find the first of that name."""
    one = back_up(domain, stage, "1")
    commit(stage, "1")
    domain.write()
    two = back_up(domain, stage, "1")
    assert abort(domain, stage, "1") == Ended(UUID, "1", two.id, True)
    three = back_up(domain, stage, "1")
    assert commit(stage, "1") == three.id
    assert (history(stage), partial(stage)) == ([one.id, three.id], [])
    assert commit(stage, "1") == three.id


def test_abort_before_anything_was_made_has_nothing_to_undo(domain: FakeDomain, stage: Repository) -> None:
    assert abort(domain, stage, "1") == Ended("web", "1", None, False)


def test_commit_of_what_was_undone_is_refused(domain: FakeDomain, stage: Repository) -> None:
    back_up(domain, stage, "1")
    abort(domain, stage, "1")
    with pytest.raises(DomainNotFoundError, match="sent from this stage"):  # nothing was ever kept of the domain
        commit(stage, "1")
    back_up(domain, stage, "2")
    commit(stage, "2")
    back_up(domain, stage, "3")
    abort(domain, stage, "3")
    for job in ("1", "3", "4"):
        with pytest.raises(StreamNotPendingError, match="does not wait for a commit"):
            commit(stage, job)


def test_abort_of_what_was_committed_is_refused(domain: FakeDomain, stage: Repository) -> None:
    back_up(domain, stage, "1")
    commit(stage, "1")
    with pytest.raises(ChainError, match="was committed"):
        abort(domain, stage, "1")
    assert len(history(stage)) == 1


def test_name_that_is_used_again_is_that_of_the_backup_that_waits(domain: FakeDomain, stage: Repository) -> None:
    ids = []
    for _ in range(2):
        domain.write()
        ids.append(back_up(domain, stage, "nightly").id)
        assert commit(stage, "nightly") == ids[-1]
    assert history(stage) == ids
    three = back_up(domain, stage, "nightly")
    assert abort(domain, stage, "nightly") == Ended(UUID, "nightly", three.id, True)
    assert history(stage) == ids


def test_late_word_about_a_job_does_nothing_to_the_next_one(domain: FakeDomain, stage: Repository) -> None:
    """A director said it eight seconds after the next job had begun."""
    back_up(domain, stage, "1")
    two = back_up(domain, stage, "2")
    assert not abort(domain, stage, "1").is_done
    with pytest.raises(StreamNotPendingError):
        commit(stage, "1")
    assert commit(stage, "2") == two.id


def test_late_word_while_the_next_backup_runs_waits_for_nothing(domain: FakeDomain, stage: Repository) -> None:
    back_up(domain, stage, "1")
    commit(stage, "1")
    with stage.lock(UUID):
        assert not abort(domain, stage, "7").is_done
        with pytest.raises(StreamNotPendingError):
            commit(stage, "7")


def test_word_about_the_stream_itself_does_not_pass_a_lock(domain: FakeDomain, stage: Repository) -> None:
    back_up(domain, stage, "1")
    with stage.lock(UUID):
        with pytest.raises(BusyError):
            commit(stage, "1")
        with pytest.raises(BusyError):
            abort(domain, stage, "1")
    assert commit(stage, "1") is not None


def test_copy_of_a_stage_commits_nothing(domain: FakeDomain, stage: Repository, tmp_path: Path) -> None:
    import shutil

    back_up(domain, stage, "1")
    copy = Repository.open(Path(shutil.copytree(stage.path, tmp_path / "copy")), is_stage=True)
    with pytest.raises(StreamNotPendingError):
        commit(copy, "1")


def test_records_are_kept_as_long_as_a_base_needs_them(domain: FakeDomain, stage: Repository) -> None:
    """Those of the newest backup, and of the one before it: its job may have failed after all."""
    levels = [Level.FULL, Level.AUTO, Level.AUTO, Level.DIFFERENTIAL, Level.AUTO, Level.FULL, Level.AUTO]
    kept = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 3, 4], [0, 3, 4, 5], [5, 6]]
    ids = []
    for job, level in enumerate(levels):
        domain.write()
        ids.append(back_up(domain, stage, str(job), level=level).id)
        commit(stage, str(job))
        assert history(stage) == [ids[number] for number in kept[job]]
    assert sorted(path.name for path in (stage.path / UUID).iterdir() if path.is_dir()) == ids[5:]
