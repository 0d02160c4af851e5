"""What is known of a backup besides its manifest, and what its chain takes."""

from __future__ import annotations

from tests.unit.builders import NOON, UUID, backup, commit, copy, image, incremental
from vbackup.model import Level
from vbackup.repository import condition, notes, protection, verification
from vbackup.repository.condition import ChainSize, State
from vbackup.repository.protection import Protection
from vbackup.repository.repository import Repository
from vbackup.repository.verification import Verdict, Verification

ONE = backup(1, image("vda"), image("vdb"))
TWO = incremental(2, ONE, "vda", "vdb")
KIB196 = 200704


def test_chain_takes_all_images_that_it_depends_on() -> None:
    three = backup(
        3, image("vda", level=Level.INCREMENTAL, base=TWO.id), image("vdc"), image("vdd", base="20200101T000000Z-full")
    )
    sizes = condition.chain_sizes([ONE, TWO, three, copy(4)])
    assert sizes[TWO.id, "vdb"] == ChainSize(2, 2 * KIB196)
    assert sizes[three.id, "vda"] == ChainSize(3, 3 * KIB196)
    assert sizes[three.id, "vdc"] == ChainSize(1, KIB196)
    assert (three.id, "vdd") not in sizes
    assert sizes[copy(4).id, "vda"] == ChainSize(1, KIB196)


def test_what_is_beside_the_manifest_is_read(repo: Repository) -> None:
    directory = commit(repo, ONE)
    commit(repo, TWO)
    before = condition.read(repo.catalogue(UUID), repo.path / UUID)
    assert [each.states for each in before.values()] == [[State.UNVERIFIED]] * 2
    assert (before[TWO.id].chain_images, before[TWO.id].chain_size_bytes) == (2, 4 * KIB196)
    verification.write(directory, Verification(NOON, Verdict.GOOD, 100.0, 1))
    protection.protect(directory, Protection(NOON, "audit"))
    notes.write(directory, "before the upgrade")
    known = condition.read(repo.catalogue(UUID), repo.path / UUID)[ONE.id]
    assert known.states == [State.GOOD, State.PROTECTED]
    assert (known.note, known.protection) == ("before the upgrade", Protection(NOON, "audit"))
    (directory / "vdb.qcow2").unlink()
    known = condition.read(repo.catalogue(UUID), repo.path / UUID)[ONE.id]
    assert known.states == [State.BROKEN, State.PROTECTED]


def test_every_verdict_is_a_state(repo: Repository) -> None:
    directory = commit(repo, ONE)
    for verdict in Verdict:
        verification.write(directory, Verification(NOON, verdict, 1.0, 1))
        [known] = condition.read(repo.catalogue(UUID), repo.path / UUID).values()
        assert known.state.value == verdict.value
