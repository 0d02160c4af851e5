"""``vbackup diff`` prints what differs between two backups, in sum and as ranges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import UUID, backup, commit, image, incremental
from tests.unit.listed import commit_listed
from vbackup.repository import block_list
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command

KIB64 = 65536
ONE = backup(1, image("vda"), image("vdb"))
TWO = incremental(2, ONE, "vda", "vdb")
THREE = backup(3, *incremental(3, TWO).disks, image("vdc"), level=TWO.level, parent=TWO.id)


@pytest.fixture
def listed(repository: Path) -> Path:
    """Three backups: data changes, becomes zeros, and comes; vdb is only in the first two, vdc only in the last."""
    repo = Repository.open(repository)
    commit_listed(repo, ONE, {"vda": {0: 1, 1: 1, 2: 1, 9: 0}, "vdb": {0: 1}})
    commit_listed(repo, TWO, {"vda": {0: 2, 1: 1, 2: 0, 8: 0}, "vdb": {}})
    commit_listed(repo, THREE, {"vda": {3: 5}, "vdc": {7: 7}})
    return repository


def test_sums_of_each_disk_are_printed(command: Command, listed: Path) -> None:
    lines = command("diff", "web", ONE.id, TWO.id, "-r", listed).stdout.splitlines()
    assert lines[0] == f"Domain web ({UUID})"
    assert (lines[1].split()[:2], lines[2].split()[:2]) == (["From", ONE.id], ["to", TWO.id])
    assert lines[3].split("  ")[0] == "DISK"
    assert lines[4].split() == ["vda", "128.0", "KiB", "64.0", "KiB", "0", "B", "16.0", "MiB"]
    assert lines[5].split() == ["vdb", "0", "B", "0", "B", "0", "B", "16.0", "MiB"]
    assert max(map(len, lines)) <= 80


def test_newest_is_compared_with_if_no_other_is_named(command: Command, listed: Path) -> None:
    document = command("diff", ONE.id, "-r", listed, "--json").document
    assert document["schema"] == "vbackup.diff/1"
    assert (document["before"]["id"], document["after"]["id"]) == (ONE.id, THREE.id)
    assert document["domain"] == {"name": "web", "uuid": UUID}
    size = 16 * 1024 * 1024
    assert document["disks"] == [
        {
            "dev": "vda",
            "before_size_bytes": size,
            "after_size_bytes": size,
            "changed_bytes": 3 * KIB64,
            "to_zeros_bytes": KIB64,
            "from_zeros_bytes": KIB64,
            "undecided_bytes": 0,
        },
        {"dev": "vdc", "before_size_bytes": None, "after_size_bytes": size, **dict.fromkeys(ALL_SUMS)},
        {"dev": "vdb", "before_size_bytes": size, "after_size_bytes": None, **dict.fromkeys(ALL_SUMS)},
    ]
    assert f"(only in {THREE.id})" in command("diff", ONE.id, "-r", listed).stdout


ALL_SUMS = ("changed_bytes", "to_zeros_bytes", "from_zeros_bytes", "undecided_bytes")


def test_ranges_are_listed_on_request(command: Command, listed: Path) -> None:
    extents = [
        {"dev": "vda", "start": 0, "length": KIB64, "kind": "data"},
        {"dev": "vda", "start": 2 * KIB64, "length": KIB64, "kind": "zero"},
        {"dev": "vda", "start": 3 * KIB64, "length": KIB64, "kind": "new"},
    ]
    document = command("diff", ONE.id, THREE.id, "-r", listed, "--json", "--extents").document
    assert document["extents"] == extents
    lines = command("diff", ONE.id, THREE.id, "-r", listed, "--extents").stdout.splitlines()
    assert [line.split() for line in lines[lines.index("") + 1 :]] == [
        ["DISK", "START", "LENGTH", "NOW"],
        *([str(value) for value in one.values()] for one in extents),
    ]
    same = command("diff", ONE.id, ONE.id, "-r", listed, "--json", "--extents").document
    assert same["extents"] == []


def test_backwards_is_the_other_way_round(command: Command, listed: Path) -> None:
    document = command("diff", THREE.id, ONE.id, "-r", listed, "--disk", "vda", "--json", "--extents").document
    assert [one["kind"] for one in document["extents"]] == ["data", "new", "zero"]
    assert [one["dev"] for one in document["disks"]] == ["vda"]


def test_digests_of_two_kinds_decide_nothing(command: Command, repository: Path) -> None:
    if block_list.best_algorithm().name == "sha256":
        pytest.skip("there is no other algorithm here")
    repo = Repository.open(repository)
    commit_listed(repo, ONE, {"vda": {0: 1, 1: 1}, "vdb": {}}, algorithm=block_list.algorithm_of("sha256:", where=""))
    commit_listed(repo, TWO, {"vda": {0: 1, 2: 1}, "vdb": {}})
    outcome = command("diff", ONE.id, "-r", repository)
    assert "UNDECIDED" in outcome.stdout
    assert "may have changed or not" in outcome.stdout
    disk = command("diff", ONE.id, "-r", repository, "--json").document["disks"][0]
    assert [disk[name] for name in ALL_SUMS] == [KIB64, 0, KIB64, KIB64]


def test_bad_words_are_told(command: Command, listed: Path) -> None:
    assert "No backup given to start from; " in command("diff", "-r", listed, status=2).stderr
    assert "from: 'web' is no backup id; " in command("diff", "web", "-r", listed, status=2).stderr
    command("diff", "", ONE.id, "-r", listed, status=2)
    assert "3 are given" in command("diff", ONE.id, ONE.id, ONE.id, "-r", listed, status=2).stderr
    newest = command("diff", "web", THREE.id, "-r", listed, status=2).stderr
    assert f"give {TWO.id} {THREE.id}" in newest
    command("diff", "nosuch", ONE.id, "-r", listed, status=4)
    for words in (("web", "20200101T000000Z-full"), ("20200101T000000Z-full",), (ONE.id, "20200101T000000Z-full")):
        assert "vbackup list DOMAIN" in command("diff", *words, "-r", listed, status=6).stderr
    assert "they have vda, vdb" in command("diff", ONE.id, TWO.id, "--disk", "vdx", "-r", listed, status=5).stderr


def test_id_that_several_domains_have_needs_the_domain(command: Command, listed: Path) -> None:
    other = "f0000000-0000-4000-8000-000000000002"
    commit_listed(Repository.open(listed), replace(ONE, domain_uuid=other, domain_name="db"), {"vda": {}, "vdb": {}})
    stderr = command("diff", ONE.id, TWO.id, "-r", listed, status=2).stderr
    assert f"db ({other})" in stderr
    command("diff", "web", ONE.id, TWO.id, "-r", listed)
    command("diff", "--domain", UUID, ONE.id, TWO.id, "-r", listed)


def test_backup_without_lists_is_told_with_what_makes_them(command: Command, listed: Path) -> None:
    older = backup(4, image("vda"))
    commit(Repository.open(listed), older)
    stderr = command("diff", ONE.id, "-r", listed, status=6).stderr
    assert f"'vbackup verify web --backup {older.id}' makes one" in stderr


@pytest.mark.parametrize("extents", [(), ("--extents",)])
def test_damaged_list_is_told_before_anything_is_printed(
    command: Command, listed: Path, extents: tuple[str, ...]
) -> None:
    path = listed / UUID / TWO.id / "vda.blocks"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    outcome = command("diff", ONE.id, "-r", listed, "--json", *extents, status=6)
    assert outcome.document["schema"] == "vbackup.error/1"
    path.unlink()
    assert command("diff", ONE.id, "-r", listed, *extents, status=6).stdout == ""
