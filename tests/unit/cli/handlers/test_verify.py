"""What ``vbackup verify`` prints, how it ends, and which arguments it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.recorded import BLOCK, Recorded, flip_block
from tests.unit.builders import UUID
from vbackup.errors import InterruptedBySignalError, StorageError
from vbackup.operations import verify
from vbackup.operations.verify import Verified, VerifyRequest

if TYPE_CHECKING:
    from tests.conftest import Command

OTHER_UUID = "f0000000-0000-4000-8000-000000000002"


def test_good_repository_is_one_line_for_each_domain(command: Command, recorded: Recorded) -> None:
    done = command("verify", "--all", "-r", recorded.repository.path)
    assert done.stdout.startswith("Domain web: 4 backups, all good (7 images, ")
    assert done.stdout.splitlines()[-1].startswith("Verified in ")
    done = command("-q", "verify", "web", "-r", recorded.repository.path)
    assert (done.stdout, done.stderr) == ("", "")


def test_damage_is_a_warning_a_line_and_status_6(command: Command, recorded: Recorded) -> None:
    flip_block(recorded.path(recorded.backups[0]), 2)
    done = command("verify", "web", "-r", recorded.repository.path, status=6)
    assert "4 backups, 2 damaged" in done.stdout
    assert f"  {recorded.backups[0].id}: disk vda" in done.stdout
    assert f"Damaged bytes of the disk: {2 * BLOCK} to {3 * BLOCK - 1}" in done.stderr
    assert done.stderr.splitlines()[-1] == "vbackup: 2 of 4 backups damaged."
    assert "2 damaged" in command("-q", "verify", "web", "-r", recorded.repository.path, status=6).stdout


def test_document_has_all_of_it(command: Command, recorded: Recorded) -> None:
    flip_block(recorded.path(recorded.backups[0]), 2)
    document = command("verify", "web", "-r", recorded.repository.path, "--json", status=6).document
    assert document["schema"] == "vbackup.verify/1"
    assert document["damaged"] == 2
    [domain] = document["domains"]
    assert (domain["name"], domain["images"], domain["kept"]) == ("web", 7, True)
    assert [one["verdict"] for one in domain["backups"]] == ["damaged", "damaged", "good", "good"]
    [damage] = domain["damage"]
    assert damage["ranges"] == [{"start_bytes": 2 * BLOCK, "length_bytes": BLOCK}]
    assert (damage["dev"], damage["kind"], damage["backup"]) == ("vda", "content", recorded.backups[0].id)
    assert damage["affected"] == [one.id for one in recorded.backups[:2]]
    assert damage["unaffected"] == [one.id for one in recorded.backups[2:]]


def test_backup_is_found_without_its_domain(command: Command, recorded: Recorded) -> None:
    one = recorded.backups[1].id
    argv = ("verify", "--backup", one, "-r", recorded.repository.path, "--json")
    [domain] = command(*argv).document["domains"]
    assert [each["id"] for each in domain["backups"]] == [one]
    assert "No backup 'gone'" in command("verify", "--backup", "gone", "-r", recorded.repository.path, status=6).stderr
    shutil.copytree(recorded.repository.path / UUID, recorded.repository.path / OTHER_UUID)
    assert "Several domains have a backup" in command(*argv[:-1], status=2).stderr


def test_broken_backup_is_a_failure_and_the_others_are_verified(command: Command, recorded: Recorded) -> None:
    recorded.path(recorded.backups[3]).unlink()
    done = command("verify", "--all", "-r", recorded.repository.path, status=6)
    assert "4 backups, 1 damaged" in done.stdout
    assert "vbackup: 1 of 4 backups damaged." in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Give a domain, or --all"),
        (("web", "--all"), "Give domains or --all, not both"),
        (("web", "--domain", "other"), "Two domains given"),
        (("",), "The domain name is empty"),
        (("--all", "--backup", "x"), "--backup is about a backup of one domain"),
        (("web", "--sample", "0"), "is not a percentage above 0 and up to 100"),
        (("web", "--sample", "101"), "is not a percentage above 0 and up to 100"),
        (("web", "--sample", "few"), "is not a percentage above 0 and up to 100"),
        (("web", "--parallel", "0"), "is not a number from 1"),
        (("web", "--speed", "quick"), "is not a rate"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    command: Command, recorded: Recorded, words: tuple[str, ...], said: str
) -> None:
    assert said in command("verify", *words, "-r", recorded.repository.path, status=2).stderr


def test_patterns_and_unknown_names(command: Command, recorded: Recorded) -> None:
    assert "Domain web" in command("verify", "w*", "-r", recorded.repository.path).stdout
    assert "No domain 'mail'" in command("verify", "mail", "-r", recorded.repository.path, status=4).stderr
    assert "No domain 'm*'" in command("verify", "m*", "-r", recorded.repository.path, status=4).stderr


def test_unknown_disk_is_told_with_those_there_are(command: Command, recorded: Recorded) -> None:
    done = command("verify", "web", "--disk", "vdz", "-r", recorded.repository.path, status=5)
    assert "the backups have vda, vdb" in done.stderr


def test_domain_that_cannot_be_verified_is_one_of_several(
    command: Command, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(recorded.repository.path / UUID, recorded.repository.path / OTHER_UUID)
    really = verify.run

    def run(request: VerifyRequest, uuid: str, **more: Any) -> Verified:
        if uuid == OTHER_UUID:
            raise StorageError("Cannot read it.")
        return really(request, uuid, **more)

    monkeypatch.setattr(verify, "run", run)
    done = command("verify", "--all", "-r", recorded.repository.path, "--json", status=3)
    assert "1 of 2 domains failed" in done.stderr
    good, failed = done.document["domains"]
    assert (good["uuid"], failed["uuid"], failed["error"]["error"]) == (UUID, OTHER_UUID, "StorageError")


def test_empty_repository_has_nothing_to_verify(command: Command, repository: Path) -> None:
    assert command("verify", "--all", "-r", repository).stdout == f"No domains in {repository} yet.\n"


def test_signal_ends_it_with_its_status(command: Command, recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_more: object) -> None:
        raise InterruptedBySignalError(2)

    monkeypatch.setattr(verify, "run", interrupted)
    command("verify", "--all", "-r", recorded.repository.path, status=130)


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (("verify", "--all"), 7),
        (("verify", "web"), 7),
        (("verify", "we*"), 7),
        (("list",), 7),
        (("list", "--all"), 7),
        (("list", "web"), 7),
        (("show", "web"), 7),
        (("usage",), 7),
        (("usage", "web"), 7),
        (("check",), 7),
        (("check", "web"), 7),
        (("check", "--repair"), 7),
        (("prune", "--all", "--keep-last", "1"), 3),
        (("prune", "web", "--keep-last", "1"), 7),
        (("consolidate", "web", "--max-chain", "1"), 7),
        (("restore", "web", "--output", "out"), 7),
        (("protect", "web", "ID"), 7),
        (("note", "web", "ID", "text"), 7),
        (("diff", "web", "ID", "ID"), 7),
        (("mount", "web", "out", "--foreground"), 7),
        (("serve", "web", "--nbd", "socket"), 7),
        (("recover", "--adopt"), 7),
    ],
)
def test_domain_behind_a_link_is_refused_by_every_command(
    command: Command, recorded: Recorded, tmp_path: Path, argv: tuple[str, ...], status: int
) -> None:
    """Not one ends as if there were nothing, reads what is behind it, or writes there."""
    place, behind = recorded.repository.path / UUID, tmp_path / "behind"
    place.rename(behind)
    place.symlink_to(behind)
    before = {path: path.lstat().st_mtime_ns for path in behind.rglob("*")}
    argv = tuple(recorded.backups[0].id if word == "ID" else word for word in argv)
    argv = tuple(str(tmp_path / word) if word in ("out", "socket") else word for word in argv)
    done = command(*argv, "-r", recorded.repository.path, status=status)
    assert f"{place} is a symbolic link" in done.stdout + done.stderr
    assert "mount --bind" in done.stdout + done.stderr
    assert {path: path.lstat().st_mtime_ns for path in behind.rglob("*")} == before
