"""A domain that migrated has one chain over its hosts; two machines with one UUID have chains that break off."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.builders import backup, bitmap_of, image, incremental
from vbackup.model import Backup, HostIdentity
from vbackup.repository import hosts
from vbackup.repository.history import History

A, B = HostIdentity("a", "1" * 32), HostIdentity("b", "2" * 32)


def on(host: HostIdentity | None, one: Backup) -> Backup:
    return replace(one, host=host)


FULL = on(A, backup(1))


@pytest.mark.parametrize(
    "backups",
    [
        [],
        [FULL],
        [FULL, on(A, backup(2)), on(A, incremental(3, backup(2)))],
        [FULL, on(B, incremental(2, FULL)), on(B, backup(3))],
        [FULL, on(B, incremental(2, FULL)), on(A, incremental(3, on(B, incremental(2, FULL))))],
        [on(None, backup(1)), on(B, backup(2)), on(None, backup(3))],
        # One of two disks cannot store bitmaps, and gets a full on the other host.
        [FULL, on(B, backup(2, image("vda", base=FULL.id), image("vdb")))],
    ],
    ids=["none", "one", "one host", "migrated", "there and back", "not recorded", "one disk goes on"],
)
def test_chain_that_goes_on_is_of_one_machine(backups: list[Backup]) -> None:
    assert hosts.break_of(backups) is None


@pytest.mark.parametrize(
    "backups",
    [
        [FULL, on(B, backup(2))],
        [FULL, on(A, incremental(2, FULL)), on(B, backup(3)), on(B, incremental(4, backup(3)))],
        # A copy of the machine had the original's bitmaps.
        [FULL, on(B, incremental(2, FULL)), on(A, backup(3))],
        [FULL, on(None, backup(2)), on(B, backup(3))],
        [FULL, on(B, incremental(2, backup(9)))],
    ],
    ids=["a full each", "two chains", "copied with its bitmaps", "not recorded in between", "base is gone"],
)
def test_chain_that_breaks_off_can_be_of_two_machines(backups: list[Backup]) -> None:
    change = hosts.break_of(backups)
    assert change is not None
    assert change.before.host != change.after.host


def failed_over() -> list[Backup]:
    """A standby on B has taken over and was backed up, and so was the original meanwhile."""
    second = on(B, incremental(2, FULL))
    return [FULL, second, on(A, incremental(3, FULL)), on(B, incremental(4, second))]


def test_backup_of_a_disk_that_was_restored_to_the_newest_of_the_other_host_joins_the_chains() -> None:
    apart = failed_over()
    assert hosts.break_of(apart) is not None
    failed_back = [*apart, on(A, incremental(5, apart[-1]))]
    assert hosts.break_of(failed_back) is None
    again = on(B, incremental(6, failed_back[-1]))
    assert hosts.break_of([*failed_back, again, on(A, incremental(7, again))]) is None
    assert hosts.break_of([FULL, on(B, backup(2)), on(B, incremental(3, FULL))]) is None  # the copy was restored


def test_failback_that_is_on_record_joins_the_chains() -> None:
    """The original has got the newest backup of the standby, and was not backed up since, or has got a full."""
    apart = failed_over()
    done = {apart[-1].id}
    assert hosts.break_of(apart, failed_back=done) is None
    assert hosts.break_of([*apart, on(A, backup(5))], failed_back=done) is None
    assert hosts.break_of([FULL, apart[1], on(A, backup(5))], failed_back={apart[1].id}) is None
    for further in (
        [*apart, on(HostIdentity("c", "3" * 32), backup(5))],  # a copy of the machine
        [*apart, on(A, backup(5)), on(B, incremental(6, apart[-1]))],  # the standby runs on
        [on(HostIdentity("c", "3" * 32), backup(9)), *apart],
    ):
        assert hosts.break_of(further, failed_back=done) is not None


def test_what_does_not_start_from_the_newest_of_the_other_host_joins_nothing() -> None:
    apart = failed_over()
    joined = [*apart, on(A, incremental(5, apart[-1]))]
    for further in (
        [*apart, on(A, incremental(5, apart[2]))],  # it goes on alone
        [*apart, on(A, incremental(5, apart[1]))],  # from an older one, which a copy of the machine can have
        [*apart, on(None, incremental(5, apart[-1]))],
        [*apart, on(HostIdentity("c", "3" * 32), incremental(5, apart[-1]))],
        [*joined, on(B, incremental(6, apart[-1]))],  # the standby runs on
    ):
        change = hosts.break_of(further)
        assert change is not None


@pytest.mark.parametrize(
    ("one", "other", "is_other"),
    [
        (A, A, False),
        (A, B, True),
        (A, HostIdentity("a", B.machine_id), True),
        (A, HostIdentity("A.example.com", None), False),
        (HostIdentity("a.example.com", None), HostIdentity("a", None), False),
        (A, HostIdentity("b.example.com", None), True),
    ],
)
def test_host_is_the_same_however_vbackup_reached_it(one: HostIdentity, other: HostIdentity, is_other: bool) -> None:
    """Over a connection from elsewhere libvirt gives its name alone, and with the domain."""
    assert one.is_other_than(other) == other.is_other_than(one) == is_other
    assert (hosts.break_of([on(one, backup(1)), on(other, backup(2))]) is not None) == is_other


def test_hosts_are_in_the_order_of_their_first_backup() -> None:
    backups = [on(B, backup(1)), on(None, backup(2)), on(A, backup(3)), on(B, backup(4))]
    assert hosts.hosts(backups) == [B, A]


@pytest.mark.parametrize(("word", "numbers"), [("a", [3]), ("1" * 32, [3]), ("b", [1, 4]), ("c", []), ("", [])])
def test_host_is_named_by_its_name_or_machine_id(word: str, numbers: list[int]) -> None:
    backups = [on(B, backup(1)), on(None, backup(2)), on(A, backup(3)), on(B, backup(4))]
    assert [one.sequence for one in hosts.of_host(backups, word)] == numbers


def started(history: History, host: HostIdentity, *on_disk: Backup, of_full: bool = False) -> list[tuple[str, bool]]:
    found = hosts.starts(history, host, "vda", of_full=of_full, on_disk={bitmap_of(one) for one in on_disk})
    return [(start.backup.id, start.is_latest) for start in found]


def test_two_machines_go_on_from_their_own_backups() -> None:
    """The newest of all comes first, since a domain that has migrated has its bitmap."""
    second = on(B, backup(2))
    third = on(A, incremental(3, FULL))
    history = History([FULL, second, third])
    assert started(history, A, third) == [(third.id, True)]
    assert started(history, B, second) == [(third.id, True), (second.id, False)]
    assert started(history, B, second, of_full=True) == [(second.id, False)]
    assert started(history, A, FULL, of_full=True) == [(second.id, False), (FULL.id, False)]
    assert started(History([FULL, on(None, backup(2))]), A, FULL) == [(backup(2).id, True)]


def test_history_of_one_host_alone() -> None:
    history = History([FULL, on(B, backup(2)), on(None, backup(3))])
    assert hosts.alone(History([FULL, on(None, backup(2))]), A) is None
    own = hosts.alone(history, A)
    assert own is not None
    assert [one.sequence for one in own.backups] == [1, 3]
