"""Where the room goes: hard links once, heirs of an image by disk."""

from __future__ import annotations

import os

from tests.unit.builders import UUID, backup, image, incremental
from tests.unit.listed import commit_listed
from vbackup.model import Level
from vbackup.operations import usage
from vbackup.operations.usage import BackupUsage, UsageRequest
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

ONE = backup(1, image("vda"), image("vdb"))
KIB64 = 64 * 1024


def measured(repo: Repository) -> dict[str, BackupUsage]:
    found = usage.run(UsageRequest((UUID,)), repository=repo, stop=Stop())
    return {one.id: one for one in found.domains[0].backups}


def test_data_that_one_of_several_heirs_needs_is_not_freed(repo: Repository) -> None:
    two = incremental(2, ONE, "vda")
    three = backup(3, image("vda", level=Level.DIFFERENTIAL, base=ONE.id), level=Level.DIFFERENTIAL)
    directory = commit_listed(repo, ONE, {"vda": {0: 1, 1: 1, 2: 1, 3: 1}, "vdb": {0: 1}})
    size = ONE.disks[0].file_size_bytes
    for dev in ("vda", "vdb"):
        (directory / f"{dev}.qcow2").write_bytes(b"x" * size)
    commit_listed(repo, two, {"vda": {0: 1, 1: 1, 2: 1}})
    before = measured(repo)[ONE.id]
    commit_listed(repo, three, {"vda": {2: 0, 3: 1}})
    after = measured(repo)[ONE.id]
    assert before.freed_bytes is not None
    assert after.freed_bytes is not None
    allocated = (directory / "vda.qcow2").stat().st_blocks * 512
    # Three of four blocks, then one; vdb, on which nothing depends, is freed as a whole.
    assert before.room.own_bytes - before.freed_bytes == allocated - round(allocated * 3 / 4)
    assert after.room.own_bytes - after.freed_bytes == allocated - round(allocated / 4)


def test_hard_link_counts_where_it_is_met_first(repo: Repository) -> None:
    directory = commit_listed(repo, ONE, {"vda": {}, "vdb": {}})
    (directory / "vda.qcow2").write_bytes(b"x" * ONE.disks[0].file_size_bytes)
    other = commit_listed(repo, backup(2, image("vda"), image("vdb")), {"vda": {}, "vdb": {}})
    (other / "vda.qcow2").unlink()
    os.link(directory / "vda.qcow2", other / "vda.qcow2")
    one, two = measured(repo).values()
    assert one.room.own_bytes > two.room.own_bytes + 2 * KIB64
