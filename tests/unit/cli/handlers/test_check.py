"""``vbackup check`` prints what is wrong with what to do; its status is that of the worst."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.recorded import Recorded, story
from tests.unit.builders import UUID
from vbackup.repository import block_list

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return story(tmp_path_factory.mktemp("told") / "repo")


@pytest.fixture
def path(told: Recorded, tmp_path: Path) -> Path:
    shutil.copytree(told.repository.path, tmp_path / "repo")
    return tmp_path / "repo"


def test_clean_repository(command: Command, path: Path) -> None:
    outcome = command("check", "-r", path, "--progress", "none")
    first, last = outcome.stdout.splitlines()
    assert first.startswith("Storage: ")
    assert last == ("1 domain, 4 backups, 7 images: no damage found (data was not read: 'vbackup verify' does that).")
    assert command("check", "web", "-q", "-r", path).stdout == ""


def test_damage_is_status_six_and_warnings_alone_are_none(command: Command, told: Recorded, path: Path) -> None:
    (path / UUID / "domain.json").chmod(0o644)
    assert "Warning: web: Other users" in command("check", "-r", path, status=0).stdout
    os.truncate(path / UUID / told.backups[0].id / "vda.qcow2", 100)
    outcome = command("check", "-q", "-r", path, status=6)
    assert "Damage: web: Disk vda: the image" in outcome.stdout
    assert "has 100 bytes" in outcome.stdout


def test_document_has_all(command: Command, told: Recorded, path: Path) -> None:
    image = path / UUID / told.backups[0].id / "vda.qcow2"
    image.unlink()
    document = command("check", "-r", path, "--json", status=6).document
    assert document["schema"] == "vbackup.check/1"
    assert document["storage"]["free_bytes"] > 0
    [finding] = document["findings"]
    assert (finding["severity"], finding["kind"], finding["dev"]) == ("damage", "image", "vda")
    assert finding["affected"] == [one.id for one in told.backups]
    assert (finding["path"], document["status"]) == (str(image), 6)


def test_repair_tells_what_it_did_and_the_status_is_that_of_the_end(
    command: Command, told: Recorded, path: Path
) -> None:
    copy = path.with_name("copy")
    shutil.copytree(path, copy)
    image = path / UUID / told.backups[0].id / "vda.qcow2"
    image.unlink()
    assert "would be repaired" in command("check", "--repair", "--dry-run", "--from", copy, "-r", path, status=6).stdout
    outcome = command("check", "--repair", "--from", copy, "-r", path)
    assert f"The image {image} was repaired" in outcome.stdout
    assert "no damage found" in outcome.stdout
    assert image.exists()


def test_what_cannot_be_repaired_is_told(command: Command, told: Recorded, path: Path) -> None:
    (path / UUID / told.backups[-1].id / "vda.qcow2").unlink()
    outcome = command("check", "--repair", "--json", "-r", path, status=6)
    [repair] = outcome.document["repairs"]
    assert (repair["done"], "--from" in repair["what"]) == (False, True)


@pytest.mark.parametrize(
    "words",
    [("--from", "/tmp"), ("--dry-run",), ("", "--repair"), ("a", "--domain", "b")],
)
def test_wrong_usage(command: Command, path: Path, words: tuple[str, ...]) -> None:
    assert command("check", *words, "-r", path, status=2).stderr.startswith("vbackup: ")


def test_repository_itself_is_no_copy(command: Command, path: Path) -> None:
    assert "is the repository itself" in command("check", "--repair", "--from", path, "-r", path, status=2).stderr


def test_unknown_domain_and_copy(command: Command, path: Path) -> None:
    command("check", "nosuch", "-r", path, status=4)
    command("check", "--repair", "--from", path.parent, "-r", path, status=7)


def test_busy_domain_is_status_eight(command: Command, told: Recorded, path: Path) -> None:
    from vbackup.repository.repository import Repository

    with Repository.open(path).lock(UUID):
        outcome = command("check", "--repair", "-r", path, status=8)
    assert "Another vbackup is working" in outcome.stderr
    assert "no damage found" in command("check", "-r", path).stdout


def test_unfinished_backup_needs_libvirt_only_if_there_is_one(command: Command, path: Path) -> None:
    (path / UUID / "20261124T100000Z-full.partial").mkdir(0o700)
    outcome = command("check", "--repair", "-c", "nosuch:///system", "-r", path)
    assert "Not repaired: The unfinished backups were left: Cannot reach libvirt" in outcome.stdout
    assert "'vbackup recover" in outcome.stdout


COMMANDS = (("check",), ("verify", "web"), ("restore", "web", "--output", "OUT"))


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("package", ["zstandard", "blake3"])
def test_package_that_is_missing_is_named_and_is_no_damage(
    command: Command, path: Path, package: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second backup is compressed with zstd; all lists are of BLAKE3."""
    if package == "blake3":
        if block_list.best_algorithm().name != "blake3":
            pytest.skip("blake3 is not installed")
        monkeypatch.setattr(block_list, "_KNOWN", {2: block_list.algorithm_of("sha256:", where="here")})
    else:
        monkeypatch.setitem(sys.modules, "zstandard", None)
    given = [str(path.with_name("out")) if word == "OUT" else word for word in words]
    outcome = command(*given, "-r", path, "--progress", "none", status=1)
    assert f"python3-{package}" in outcome.stderr
    assert "damage" not in outcome.stdout + outcome.stderr
    assert not [kept for kept in path.rglob("verified.json") if "damaged" in kept.read_text()]


def test_package_is_not_needed_where_nothing_is_compressed(
    command: Command, told: Recorded, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    out = path.with_name("out")
    command("restore", "web", "--backup", told.backups[0].id, "--output", out, "-r", path)
    assert (out / "vda.qcow2").exists()


def test_backups_that_were_put_away_are_told_and_taken_back(command: Command, told: Recorded, path: Path) -> None:
    """Also if the domain has nothing else: with a directory of its own, or without."""
    for one in told.backups:
        (path / UUID / one.id / "manifest.json").write_text("{")
    outcome = command("check", "--repair", "-r", path, status=6)
    assert "Damage: web: 4 backups are in the quarantine" in outcome.stdout
    assert "no damage found" not in outcome.stdout
    command("check", "web", "-r", path, status=6)
    shutil.rmtree(path / UUID)
    command("check", "--repair", "--from", told.repository.path, "-r", path)
    command("check", "web", "-r", path)


def test_some_that_were_put_away_are_a_warning(command: Command, told: Recorded, path: Path) -> None:
    (path / UUID / told.backups[-1].id / "manifest.json").write_text("{")
    outcome = command("check", "--repair", "-r", path)
    assert "Warning: web: 1 backup is in the quarantine" in outcome.stdout
