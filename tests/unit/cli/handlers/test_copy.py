"""``vbackup copy``, and the commands that read a target: what they print, refuse, and end with.

These are also the tests of cli.copies, cli.copies_verify and cli.copies_prune, and of the handler of ``vbackup fetch``.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.trees import State, Tree, raw_digest
from tests.unit.builders import backup, commit
from vbackup.model import Backup
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command

SIZE = 256 * 1024


def chain(path: Path, count: int) -> Tree:
    tree = Tree(path)
    state, last = State.of(SIZE, {0: (1, 1)}), None
    for number in range(count):
        state = state.changed({number % 4: (number + 1, number + 7)})
        last = tree.backup({"vda": state}, {"vda": last})
    return tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return chain(tmp_path / "repo", 3)


def ids(backups: list[Backup]) -> list[str]:
    return [one.id for one in backups]


def test_there_and_back(command: Command, tree: Tree, tmp_path: Path) -> None:
    target, cache, repo = tmp_path / "target", tmp_path / "cache", tree.repository.path
    at = ("--from", target, "--cache", cache)
    done = command("copy", "web", "-r", repo, "--to", target, "--json").document
    [domain] = done["domains"]
    assert [one["id"] for one in domain["copied"]] == tree.ids()
    assert {disk["form"] for one in domain["copied"] for disk in one["disks"]} == {"as-it-is"}
    assert "Copied 0 of 3 backups; 0 B sent." in command("copy", "--all", "-r", repo, "--to", target).stdout
    listed = command("list", "web", *at, "--json").document
    assert [one["id"] for one in listed["backups"]] == tree.ids()
    assert "3" in command("list", *at).stdout
    shown = command("show", "web", *at, "--json").document
    assert shown["path"] == f"{target}/{tree.uuid}/{tree.ids()[-1]}"
    assert shown["chains"] == {"vda": tree.ids()[::-1]}
    verified = command("verify", "web", *at, "--json").document
    assert (verified["domains"][0]["verified"], verified["domains"][0]["damaged"]) == (tree.ids(), [])
    command("restore", "web", *at, "--output", tmp_path / "out", "-q")
    assert raw_digest(tmp_path / "out" / "vda.qcow2") == tree.states[tree.ids()[-1]]["vda"].digest
    fetched = command("fetch", *at, "-r", tmp_path / "new", "--json").document
    assert fetched["domains"][0]["fetched"] == tree.ids()
    assert "3 were there" in command("fetch", *at, "-r", tmp_path / "new").stdout
    for path in (repo, tmp_path / "new"):
        assert command("check", "-r", path, "--json").document["findings"] == []
    assert "Copied 0 of 3" in command("copy", "web", "-r", tmp_path / "new", "--to", target).stdout
    assert [path.name for path in cache.glob("*/*")] == ["manifests"]


def test_fetch_without_a_backup_that_cannot_be_read_says_so(command: Command, tree: Tree, tmp_path: Path) -> None:
    command("copy", "web", "-r", tree.repository.path, "--to", tmp_path / "target", "-q")
    (tmp_path / "target" / tree.uuid / tree.ids()[-1] / "manifest.json").write_text("damaged")
    at = ("--from", tmp_path / "target", "--cache", tmp_path / "cache")
    done = command("fetch", *at, "-r", tmp_path / "new", "--json", status=6)
    assert done.document["domains"][0]["fetched"] == tree.ids()[:2]
    assert tree.ids()[-1] in done.stderr


def test_cache_in_which_others_can_write_is_refused(command: Command, tree: Tree, tmp_path: Path) -> None:
    """Whoever puts manifests there decides what is restored."""
    target, cache = tmp_path / "target", tmp_path / "cache"
    command("copy", "web", "-r", tree.repository.path, "--to", target, "-q")
    at = ("--from", target, "--cache", cache)
    command("list", *at)
    [of_target] = cache.iterdir()
    assert (cache.stat().st_mode & 0o777, of_target.stat().st_mode & 0o777) == (0o700, 0o700)
    of_target.chmod(0o777)
    assert "Others can replace" in command("list", *at, status=7).stderr


def test_one_new_of_thirty_takes_less_than_two_seconds(command: Command, tmp_path: Path) -> None:
    tree = chain(tmp_path / "repo", 29)
    words = ("copy", "web", "-r", tree.repository.path, "--to", tmp_path / "target")
    command(*words, "-q")
    last = tree.ids()[-1]
    tree.backup({"vda": tree.states[last]["vda"].changed({2: (200, 201)})}, {"vda": last})
    started = time.monotonic()
    assert "Copied 1 of 30 backups" in command(*words).stdout
    assert time.monotonic() - started < 2


def test_prune_at_the_target(command: Command, tree: Tree, tmp_path: Path) -> None:
    target, cache = tmp_path / "target", tmp_path / "cache"
    command("copy", "web", "-r", tree.repository.path, "--to", target, "--full-every", "2", "-q")
    words = ("prune", "web", "--at", target, "--keep-last", "1", "--cache", cache)
    assert "Would remove 2 of 3 backups" in command(*words, "--dry-run").stdout
    done = command(*words, "--json").document
    assert [(one["id"], one["action"]) for one in done["domains"][0]["backups"]] == [
        *((one, "remove") for one in tree.ids()[:2]),
        (tree.ids()[2], "keep"),
    ]
    assert ids(list(Repository.open(tree.repository.path).catalogue(tree.uuid).history.backups)) == tree.ids()
    text = command("copy", "web", "-r", tree.repository.path, "--to", target).stdout
    assert "Copied 0 of 1 backups; 2 older than the newest there; 0 B sent." in text
    assert "Removed 0 of 1" in command(*words).stdout


def test_damage_is_status_6(command: Command, tree: Tree, tmp_path: Path) -> None:
    target, cache = tmp_path / "target", tmp_path / "cache"
    command("copy", "web", "-r", tree.repository.path, "--to", target, "-q")
    path = target / tree.uuid / tree.ids()[1] / "vda.qcow2"
    path.write_bytes(path.read_bytes() + b"x")
    text = command("verify", "--all", "--from", target, "--cache", cache, status=6).stdout
    assert text.count("Damaged: ") == 2
    assert "1 of 3 backups are as they were sent" in text
    failed = command("restore", "web", "--from", target, "--cache", cache, "--output", tmp_path / "out", status=6)
    assert "is not what its manifest says" in failed.stderr
    assert not (tmp_path / "out").exists()


def test_fetch_of_what_cannot_be_read_is_status_6(command: Command, tree: Tree, tmp_path: Path) -> None:
    target = tmp_path / "target"
    command("copy", "web", "-r", tree.repository.path, "--to", target, "-q")
    (target / tree.uuid / tree.ids()[2] / "manifest.json").write_text("{}")
    words = ("fetch", "--from", target, "--cache", tmp_path / "cache", "-r", tmp_path / "new")
    [domain] = command(*words, "--json", status=6).document["domains"]
    assert domain["fetched"] == tree.ids()[:2]
    assert [one["id"] for one in domain["unreadable"]] == tree.ids()[2:]


@pytest.mark.parametrize("fault", ["altered", "missing"])
def test_fetch_goes_on_past_an_object_that_is_damaged(command: Command, tree: Tree, tmp_path: Path, fault: str) -> None:
    """A full follows, on which nothing before it has an effect."""
    target, new = tmp_path / "target", tmp_path / "new"
    state = tree.states[tree.ids()[2]]["vda"]
    full = tree.backup({"vda": state.changed({3: (9, 9)})})
    tree.backup({"vda": state.changed({3: (8, 8)})}, {"vda": full})
    first, second, third, *good = tree.ids()
    command("copy", "web", "-r", tree.repository.path, "--to", target, "-q")
    image = target / tree.uuid / second / "vda.qcow2"
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)
    if fault == "missing":
        image.unlink()
    words = ("fetch", "--from", target, "--cache", tmp_path / "cache", "-r", new)
    done = command(*words, "--json", status=6)
    [domain] = done.document["domains"]
    assert domain["fetched"] == [first, *good]
    assert [one["id"] for one in domain["unreadable"]] == [second, third]
    why, because = (one["reason"] for one in domain["unreadable"])
    assert f"{second}/vda.qcow2" in why
    assert fault in why
    assert because == f"Disk vda: it depends on backup {second}, which was not fetched."
    for one in (second, third):
        assert done.stderr.count(f"Backup {one} of web was not fetched: ") == 1
    assert command("check", "-r", new, "--json").document["findings"] == []
    command("restore", "web", "-r", new, "--output", tmp_path / "out", "-q")
    assert raw_digest(tmp_path / "out" / "vda.qcow2") == tree.states[good[-1]]["vda"].digest
    again = command(*words, status=6)
    assert "Fetched 0 backups" in again.stdout
    assert "3 were there. 2 could not be fetched, as the warnings say." in again.stdout
    shutil.copy(tree.image(second), image)
    assert command(*words, "--json").document["domains"][0]["fetched"] == [second, third]
    assert [one.id for one in Repository.open(new).catalogue(tree.uuid).history.backups] == tree.ids()


def test_fetch_into_the_repository_that_was_copied_is_refused(command: Command, tree: Tree, tmp_path: Path) -> None:
    repo, target = tree.repository.path, tmp_path / "target"
    command("copy", "web", "-r", repo, "--to", target, "-q")
    words = ("fetch", "--from", target, "--cache", tmp_path / "cache", "-r", repo)
    assert "give a new or empty directory" in command(*words, status=7).stderr


def test_hints_name_the_target(command: Command, tree: Tree, tmp_path: Path) -> None:
    target, cache = tmp_path / "target", tmp_path / "cache"
    command("copy", "web", "-r", tree.repository.path, "--to", target, "-q")
    at, none = ("--from", target, "--cache", cache), "20200101T000000Z-full"
    pruned = ("--at", target, "--cache", cache)
    for words in (
        ("list", "nosuch", *at),
        ("show", "nosuch", *at),
        ("verify", "nosuch", *at),
        ("restore", "nosuch", *at, "--output", tmp_path / "out"),
        ("fetch", "nosuch", *at, "-r", tmp_path / "new"),
        ("prune", "nosuch", *pruned, "--keep-last", "1"),
    ):
        said = command(*words, status=4).stderr
        assert f"No domain 'nosuch' in {target}; 'vbackup list --from {target}' lists them." in said
    for words in (
        ("show", "web", none, *at),
        ("verify", "web", "--backup", none, *at),
        ("restore", "web", none, *at, "--output", tmp_path / "out"),
        ("prune", "web", *pruned, "--remove", none),
    ):
        said = command(*words, status=6).stderr
        assert f"'vbackup list DOMAIN --from {target}' lists them." in said
        assert str(cache) not in said


def test_target_of_another_repository_has_its_status_whatever_the_number_of_domains(
    command: Command, tree: Tree, tmp_path: Path
) -> None:
    target, other = tmp_path / "target", chain(tmp_path / "other", 1)
    command("copy", "web", "-r", tree.repository.path, "--to", target, "-q")
    second = "11111111-2222-4333-8444-555555555555"
    commit(other.repository, backup(1, domain_uuid=second, domain_name="db"))
    words = ("copy", "--all", "-r", other.repository.path, "--to")
    said = command(*words, target, status=7).stderr
    assert "has the copies of another repository" in said
    assert "2 of 2 domains failed." in said
    (other.repository.path / second).rename(tmp_path / "away")
    (other.repository.path / second).symlink_to(tmp_path / "away")
    assert "1 of 2 domains failed." in command(*words, tmp_path / "mine", status=3).stderr


def test_no_more_than_the_last_directory_is_made(command: Command, tree: Tree, tmp_path: Path) -> None:
    """A disk that is not mounted would be missed by nobody, and the copies fill another."""
    words = ("copy", "web", "-r", tree.repository.path, "--to")
    for more in (("--dry-run",), ()):
        assert (
            f"no directory {tmp_path}/disk in which"
            in command(*words, tmp_path / "disk" / "copies", *more, status=7).stderr
        )
    assert not (tmp_path / "disk").exists()
    (tmp_path / "disk").mkdir()
    assert "Would copy 3 of 3" in command(*words, tmp_path / "disk" / "copies", "--dry-run").stdout
    assert list((tmp_path / "disk").iterdir()) == []
    assert "Copied 3 of 3" in command(*words, tmp_path / "disk" / "copies").stdout


def test_broken_backups_are_status_6_and_the_others_are_copied(command: Command, tree: Tree, tmp_path: Path) -> None:
    tree.image(tree.ids()[2]).unlink()
    done = command("copy", "web", "-r", tree.repository.path, "--to", tmp_path / "target", "--json", status=6)
    assert [one["id"] for one in done.document["domains"][0]["copied"]] == tree.ids()[:2]
    assert [one["id"] for one in done.document["domains"][0]["skipped"]] == tree.ids()[2:]


@pytest.mark.parametrize("version", [0, 2])
def test_target_of_another_format_is_status_7(command: Command, tree: Tree, tmp_path: Path, version: int) -> None:
    target = tmp_path / "target"
    command("copy", "web", "-r", tree.repository.path, "--to", target, "-q")
    marker = target / "vbackup.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "version": version}))
    at = ("--from", target, "--cache", tmp_path / "cache")
    for words in (("list", *at), ("fetch", *at, "-r", tmp_path / "new"), ("restore", "web", *at, "--output", "out")):
        assert f"target format {version}" in command(*words, status=7).stderr
    command("copy", "web", "-r", tree.repository.path, "--to", target, status=7)


def test_what_is_no_target_is_status_7(command: Command, tree: Tree, tmp_path: Path) -> None:
    repo, other = tree.repository.path, tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"x")
    assert "not empty: it has 'cat.jpg'" in command("copy", "web", "-r", repo, "--to", other, status=7).stderr
    assert "is a repository" in command("copy", "web", "-r", repo, "--to", repo, status=7).stderr
    assert "not a target" in command("list", "--from", other, "--cache", tmp_path / "cache", status=7).stderr
    assert "mounted" in command("list", "--from", tmp_path / "nothing", status=7).stderr
    command("copy", "web", "-r", repo, "--to", tmp_path / "target", "-q")
    assert "--from" in command("list", "-r", tmp_path / "target", status=7).stderr


@pytest.mark.parametrize(
    "words",
    [
        ("copy", "-r", "repo", "--to", "target"),
        ("copy", "web", "--all", "-r", "repo", "--to", "target"),
        ("copy", "web", "-r", "repo"),
        ("copy", "web", "-r", "repo", "--to", ""),
        ("verify", "--from", "target"),
        ("verify", "web", "--from", "target", "--sample", "0"),
        ("verify", "web", "--from", "target", "--boot"),
        ("restore", "web", "--from", "target", "--in-place"),
        ("restore", "web", "--from", "target", "--output", "out", "--live"),
        ("prune", "--at", "target", "--keep-last", "1"),
        ("prune", "web", "--at", "target"),
        ("prune", "web", "--at", "target", "--keep-last", "1", "--max-chain", "3"),
        ("prune", "web", "-r", "repo", "--keep-last", "1", "--take-over"),
        ("list", "-r", "repo", "--cache", "cache"),
        ("fetch", "-r", "repo"),
    ],
)
def test_usage(command: Command, words: tuple[str, ...]) -> None:
    command(*words, status=2)


def test_dry_run_makes_nothing(command: Command, tree: Tree, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    text = command("copy", "web", "-r", tree.repository.path, "--to", target, "--dry-run").stdout
    assert "Would copy 3 of 3 backups" in text
    assert list(target.iterdir()) == []
    assert not (tree.repository.path / "copies").exists()
