"""What is restored is what the user can mean: the whole machine, of one host, or what was asked for by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.builders import UUID, backup, image, incremental
from vbackup.errors import AmbiguousHostError, ChainError, DiskError, PartialBackupError, VbackupError
from vbackup.model import EXCLUDED, Backup, HostIdentity, LeftOut
from vbackup.repository import choice
from vbackup.repository.catalogue import Broken, Catalogue
from vbackup.repository.choice import Choice, Wanted
from vbackup.repository.history import History

A, B = HostIdentity("a", "1" * 32), HostIdentity("b", "2" * 32)

WHOLE = backup(1, image("vda"), image("vdb"))
PART = replace(incremental(2, WHOLE, "vda"), left_out=(LeftOut("vdb", EXCLUDED), LeftOut("hda", "cdrom")))


def catalogue(*backups: Backup, unreadable: tuple[Broken, ...] = (), incomplete: tuple[Broken, ...] = ()) -> Catalogue:
    return Catalogue(UUID, ("web",), History(backups), unreadable=unreadable, incomplete=incomplete)


def choose(*backups: Backup, **wanted: Any) -> Choice:
    return choice.choose(catalogue(*backups), Wanted(**wanted))


def ids(found: Choice) -> dict[str, str]:
    return {dev: one.id for dev, one in found.disks.items()}


def test_newest_backup_is_chosen_with_all_its_disks() -> None:
    newest = incremental(2, WHOLE, "vda", "vdb")
    found = choose(WHOLE, newest)
    assert (found.backup, ids(found), found.missing, found.other_hosts) == (
        newest,
        {"vda": newest.id, "vdb": newest.id},
        (),
        (),
    )
    assert found.is_of_one_moment


# a backup that leaves out disks


def test_newest_backup_without_a_disk_is_not_taken_for_the_machine() -> None:
    with pytest.raises(PartialBackupError) as caught:
        choose(WHOLE, PART)
    assert (caught.value.missing, caught.value.complete) == (["vdb"], WHOLE.id)
    said = str(caught.value)
    assert f"Backup {PART.id} was made without disk vdb" in said
    assert f"restore it with --backup {WHOLE.id}" in said
    assert all(option in said for option in ("--mixed", "--disk", f"--backup {PART.id}"))


def test_broken_backup_is_not_advised() -> None:
    newer = backup(2, image("vda"), image("vdb"))
    part = replace(incremental(3, newer, "vda"), left_out=(LeftOut("vdb", EXCLUDED),))
    with pytest.raises(PartialBackupError) as caught:
        choice.choose(catalogue(WHOLE, newer, part, incomplete=(Broken(newer.id, "x"),)), Wanted())
    assert caught.value.complete == WHOLE.id


def test_time_at_which_the_newest_backup_is_without_a_disk() -> None:
    with pytest.raises(PartialBackupError):
        choose(WHOLE, PART, at=PART.time)
    assert choose(WHOLE, PART, at=WHOLE.time).backup == WHOLE


def test_without_any_whole_backup_that_is_told() -> None:
    with pytest.raises(PartialBackupError, match=r"No backup has vdb\. Restore only some disks with") as caught:
        choose(replace(PART, disks=(image("vda"),)))
    assert (caught.value.complete, caught.value.never_backed_up) == (None, ["vdb"])
    assert "--mixed" not in str(caught.value)


def test_disks_that_are_in_different_backups_only_can_be_mixed() -> None:
    other = replace(backup(1, image("vdb")), left_out=(LeftOut("vda", EXCLUDED),))
    with pytest.raises(PartialBackupError, match=r"No backup has all disks\. Restore each disk from its"):
        choose(other, replace(backup(2, image("vda")), left_out=(LeftOut("vdb", EXCLUDED),)))


def test_mixed_disk_that_no_backup_has_is_told_with_the_disks_of_all_of_them() -> None:
    with pytest.raises(DiskError, match=f"Disk vdz: no backup up to {PART.id} has such a disk; they have vda, vdb"):
        choose(WHOLE, PART, is_mixed=True, disks=("vdz",))


def test_disk_that_cannot_be_backed_up_or_was_detached_is_not_missing() -> None:
    later = replace(incremental(2, WHOLE, "vda"), left_out=(LeftOut("vdb", "read-only"),))
    assert ids(choose(WHOLE, later)) == {"vda": later.id}


def test_backup_that_was_asked_for_is_restored_without_the_disk() -> None:
    found = choose(WHOLE, PART, backup_id=PART.id)
    assert (ids(found), found.missing) == ({"vda": PART.id}, ("vdb",))


def test_disks_that_were_asked_for_are_enough() -> None:
    found = choose(WHOLE, PART, disks=("vda",))
    assert (ids(found), found.missing) == ({"vda": PART.id}, ())


def test_disk_that_the_newest_backup_does_not_have_is_not_replaced_by_an_older_one() -> None:
    with pytest.raises(DiskError, match=f"it has vda. The newest backup before it that has this disk is {WHOLE.id}"):
        choose(WHOLE, PART, disks=("vdb",))
    with pytest.raises(DiskError, match=r"it has vda\.$"):
        choose(WHOLE, PART, disks=("vdz",))


def test_mixed_restores_each_disk_from_its_newest_backup() -> None:
    found = choose(WHOLE, PART, is_mixed=True)
    assert ids(found) == {"vda": PART.id, "vdb": WHOLE.id}
    assert (found.backup, found.missing, found.is_of_one_moment) == (PART, (), False)
    assert ids(choose(WHOLE, PART, is_mixed=True, disks=("vdb",))) == {"vdb": WHOLE.id}


def test_mixed_takes_nothing_newer_than_the_chosen_backup() -> None:
    later = replace(backup(3, image("vdb")), left_out=(LeftOut("vda", EXCLUDED),))
    assert ids(choose(WHOLE, PART, later, is_mixed=True, backup_id=PART.id)) == {"vda": PART.id, "vdb": WHOLE.id}
    assert ids(choose(WHOLE, PART, later, is_mixed=True)) == {"vdb": later.id, "vda": PART.id}


def test_mixed_tells_of_a_disk_that_no_backup_has() -> None:
    found = choose(replace(PART, disks=(image("vda"),)), is_mixed=True)
    assert (list(found.disks), found.missing) == (["vda"], ("vdb",))


# hosts


def on(host: HostIdentity, one: Backup) -> Backup:
    return replace(one, host=host)


TWO_MACHINES = (on(A, backup(1)), on(B, backup(2)), on(A, backup(3)), on(B, backup(4)))


def test_newest_backup_of_two_machines_with_one_uuid_is_not_guessed() -> None:
    with pytest.raises(AmbiguousHostError) as caught:
        choose(*TWO_MACHINES)
    assert caught.value.newest == {"a": TWO_MACHINES[2].id, "b": TWO_MACHINES[3].id}
    assert "--host (name or machine id), or a backup with --backup." in str(caught.value)
    with pytest.raises(AmbiguousHostError, match=r"Choose one with --host \(name or machine id\)\.$"):
        choose(*TWO_MACHINES, is_mixed=True, backup_id=TWO_MACHINES[1].id)
    with pytest.raises(AmbiguousHostError):
        choose(*TWO_MACHINES, at=TWO_MACHINES[0].time)


@pytest.mark.parametrize(("host", "index"), [("a", 2), (A.machine_id, 2), ("b", 3)])
def test_host_selects_the_newest_of_its_backups(host: str, index: int) -> None:
    found = choose(*TWO_MACHINES, host=host)
    assert found.backup == TWO_MACHINES[index]
    assert found.other_hosts == ({"a": "b", "b": "a"}[found.backup.host.name],)  # type: ignore[union-attr]


def test_host_and_time_together() -> None:
    assert choose(*TWO_MACHINES, host="a", at=TWO_MACHINES[1].time).backup == TWO_MACHINES[0]


def test_backup_that_was_asked_for_is_of_its_host() -> None:
    found = choose(*TWO_MACHINES, backup_id=TWO_MACHINES[2].id)
    assert (found.backup, found.other_hosts) == (TWO_MACHINES[2], ("b",))


def test_migrated_domain_is_restored_and_its_hosts_are_told() -> None:
    full = on(A, backup(1))
    found = choose(full, on(B, incremental(2, full)))
    assert (found.backup.host, found.other_hosts) == (B, ("a",))


def test_host_without_backups_is_told_with_those_that_have() -> None:
    with pytest.raises(ChainError, match="No backup of this domain is of a host 'c'; its hosts: a, b"):
        choose(*TWO_MACHINES, host="c")
    with pytest.raises(ChainError, match="no backup names one"):
        choose(WHOLE, host="c")


def test_newest_backup_that_cannot_be_read_is_not_passed_over() -> None:
    broken = Broken("20991231T000000Z-full", "x")
    with pytest.raises(VbackupError, match="is broken"):
        choice.choose(catalogue(*TWO_MACHINES, unreadable=(broken,)), Wanted(host="a"))


def test_hosts_of_one_name_are_told_apart_by_their_machine_ids() -> None:
    twins = [on(HostIdentity("debian", digit * 32), backup(number)) for number, digit in enumerate("12", start=1)]
    with pytest.raises(AmbiguousHostError, match=f"debian \\(machine id {'1' * 32}\\)"):
        choose(*twins, host="debian")
    assert choose(*twins, host="1" * 32).backup == twins[0]


def test_disks_of_two_machines_are_not_mixed() -> None:
    """Also not below a backup that was asked for."""
    part = replace(on(B, backup(5, image("vda"))), left_out=(LeftOut("vdb", EXCLUDED),))
    with pytest.raises(AmbiguousHostError):
        choose(*TWO_MACHINES, part, backup_id=part.id, is_mixed=True)
    assert choose(*TWO_MACHINES, part, backup_id=part.id, is_mixed=True, host="b").missing == ("vdb",)
