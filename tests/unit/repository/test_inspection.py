"""What tests/unit/operations/test_check.py does not show of the looking through a domain."""

from __future__ import annotations

import pytest

from tests.unit.builders import UUID, backup, commit, incremental
from vbackup.repository import in_place_journal, inspection
from vbackup.repository.in_place_journal import Step
from vbackup.repository.inspection import Kind, Trouble
from vbackup.repository.repository import Repository


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [
        (".domain.json.4194304", True),
        (".manifest.json.1", True),
        (".verified.json.77", True),
        (".vda.blocks.123", True),
        (".boot.json.9", True),
        (".boot.png.9", True),
        (".in-place.json.25", True),
        (".restored.json.25", True),
        (".fsck.json.25", True),
        (".audit.json.25", True),
        (".note.5", True),
        (".protected.5", True),
        (".domain.json", False),
        (".bashrc.1", False),
        ("domain.json.1", False),
        (".a/../b.json.1", False),
    ],
)
def test_temporary_files_are_known_by_their_names(name: str, is_ours: bool) -> None:
    assert bool(inspection.TEMPORARY.fullmatch(name)) is is_ours


def test_link_is_not_followed(repo: Repository) -> None:
    commit(repo, backup(1))
    outside = repo.path.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("")
    (repo.path / UUID / "link").symlink_to(outside)
    paths = [path for path, _ in inspection.walk(repo.path / UUID)]
    assert repo.path / UUID / "link" in paths
    assert not any("secret" in str(path) for path in paths)
    found = inspection.inspect(repo, UUID, check=lambda: None)
    assert Kind.UNKNOWN in {trouble.kind for trouble in found.troubles}


def test_image_that_is_missing_is_told_once_with_all_that_need_it(repo: Repository) -> None:
    chain = [backup(1)]
    for number in range(2, 6):
        chain.append(incremental(number, chain[-1]))
    for one in chain:
        commit(repo, one)
    (repo.directory(UUID, chain[1].id) / "vda.qcow2").unlink()
    found = inspection.inspect(repo, UUID, check=lambda: None)
    [missing] = [trouble for trouble in found.troubles if trouble.kind is Kind.IMAGE]
    assert missing.affected == tuple(one.id for one in chain[1:])
    assert not [trouble for trouble in found.troubles if trouble.kind is Kind.CHAIN]


def test_sentence_has_what_else_is_concerned_and_what_to_do() -> None:
    trouble = Trouble(
        inspection.Severity.DAMAGE, Kind.IMAGE, "It is gone.", "Get it back.", backup="a", affected=("a", "b", "c")
    )
    assert trouble.sentence == "It is gone. It concerns b, c, too. Get it back."
    many = tuple("abcdefgh")
    assert (
        "It concerns b, c, d, e and 3 more, too."
        in Trouble(inspection.Severity.DAMAGE, Kind.IMAGE, "Gone.", "Get it.", backup="a", affected=many).sentence
    )


def test_inspection_ends_when_it_is_told_to(repo: Repository) -> None:
    commit(repo, backup(1))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inspection.inspect(repo, UUID, check=stop)


@pytest.mark.parametrize("step", Step)
def test_restore_in_place_that_was_interrupted_is_told(repo: Repository, step: Step) -> None:
    commit(repo, backup(1))

    def told() -> list[Trouble]:
        found = inspection.inspect(repo, UUID, check=lambda: None)
        return [trouble for trouble in found.troubles if trouble.kind is Kind.UNFINISHED]

    assert told() == []
    in_place_journal.write(repo.path / UUID, step, backup=backup(1).id, disks=[], rolled=("vdb",))
    [pending] = told()  # its writer is this process, which does no restore
    assert f"A restore in place to backup {backup(1).id} was interrupted" in pending.what
    assert ("others as before" in pending.what) is (step is not Step.WRITING)
    assert f"'vbackup restore {UUID}" in pending.remedy
    uri = "qemu+ssh://root@hv1/system"
    in_place_journal.write(repo.path / UUID, step, backup=backup(1).id, disks=[], host="hv1", uri=uri)
    [pending] = told()
    assert f" --in-place -c {uri}' ends it" in pending.remedy
    pending.path.write_text("{") if pending.path else None
    assert "is damaged" in told()[0].what
