"""Two backups stay as they are while they are compared."""

from __future__ import annotations

from tests.unit.builders import UUID, backup, image, incremental
from tests.unit.listed import commit_listed
from vbackup.operations import diff
from vbackup.operations.diff import DiffRequest
from vbackup.repository import readers
from vbackup.repository.comparison import Kind
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

ONE = backup(1, image("vda"), image("vdb"))
TWO = incremental(2, ONE, "vda", "vdb")


def test_backups_are_in_use_while_they_are_compared(repo: Repository) -> None:
    directories = [commit_listed(repo, one, {"vda": {0: one.sequence}, "vdb": {}}) for one in (ONE, TWO)]
    with diff.run(DiffRequest(UUID, ONE.id), repository=repo, stop=Stop()) as difference:
        assert difference.after.id == TWO.id
        assert all(map(readers.is_in_use, directories))
        with difference.comparison(difference.disks[0]) as comparison:
            assert comparison.totals()[Kind.DATA] == 65536
    assert not any(map(readers.is_in_use, directories))


def test_list_of_an_image_that_is_in_both_chains_is_opened_once(repo: Repository) -> None:
    for one in (ONE, TWO):
        commit_listed(repo, one, {"vda": {0: one.sequence}, "vdb": {}})
    with (
        diff.run(DiffRequest(UUID, TWO.id, ONE.id, disks=("vda",)), repository=repo, stop=Stop()) as difference,
        difference.comparison(difference.disks[0]) as comparison,
    ):
        assert [disk.dev for disk in difference.disks] == ["vda"]
        assert len(comparison._before) == 1
        assert len(comparison._after) == 0
