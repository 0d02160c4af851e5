"""What ``vbackup verify --boot`` and ``--fsck`` print, how they end, what they refuse; the work itself is a fake."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.recorded import Recorded
from tests.unit.builders import NOON, UUID, use_libvirt
from vbackup.errors import UnsuitableError
from vbackup.operations import boot_test, fsck
from vbackup.operations.boot_test import Booted, BootRequest
from vbackup.operations.fsck import Checked, FsckRequest
from vbackup.repository import boot_result, fsck_result
from vbackup.repository.boot_result import BootResult
from vbackup.repository.fsck_result import CheckedFileSystem, FsckResult

if TYPE_CHECKING:
    from tests.conftest import Command

OTHER_UUID = "f0000000-0000-4000-8000-000000000002"


class Answers:
    """What the operation was asked for, and what it answers."""

    def __init__(self) -> None:
        self.requests: list[BootRequest] = []
        self.result = BootResult(NOON, True, "The guest booted: its agent answered after 7 s.", remarks=("tpm: gone",))
        self.error: UnsuitableError | None = None

    def run(self, request: BootRequest, uuid: str, *, repository: Any, **_: Any) -> Booted:
        self.requests.append(request)
        if self.error is not None and uuid == UUID:
            raise self.error
        backup = repository.catalogue(UUID).find(request.backup_id)
        directory = repository.directory(uuid, backup.id)
        result = boot_result.write(directory, self.result, b"picture")
        return Booted(uuid, "web", backup, result, directory, is_kept=True)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    made = Answers()
    monkeypatch.setattr(boot_test, "run", made.run)
    use_libvirt(monkeypatch, None)
    return made


def test_good_one_is_a_line_with_its_picture(command: Command, recorded: Recorded, answers: Answers) -> None:
    newest = recorded.backups[-1].id
    done = command("verify", "web", "--boot", "-r", recorded.repository.path)
    assert done.stdout.splitlines() == [
        f"Domain web, backup {newest}: booted. The guest booted: its agent answered after 7 s.",
        f"  Its screen: {recorded.repository.path}/{UUID}/{newest}/boot.png",
    ]
    assert answers.requests == [BootRequest()]
    assert command("-q", "verify", "web", "--boot", "-r", recorded.repository.path).stdout == ""
    assert "Boot test:   booted, " in command("show", "web", newest, "-r", recorded.repository.path).stdout


def test_bad_one_is_status_6_with_what_helps(command: Command, recorded: Recorded, answers: Answers) -> None:
    answers.result = BootResult(NOON, False, "No agent.", remarks=("tpm: gone",), console_end="a\nKernel panic\n")
    done = command("-q", "verify", "web", "--boot", "-r", recorded.repository.path, status=6)
    assert "failed. No agent." in done.stdout
    assert "  The last line of its console: Kernel panic\n" in done.stdout
    assert "  Not in the copy: tpm: gone\n" in done.stdout
    assert done.stderr == "vbackup: 1 of 1 backup did not boot.\n"
    assert command("verify", "web", "-r", recorded.repository.path).status == 0  # the backup is as good as before


def test_options_reach_the_test(command: Command, recorded: Recorded, answers: Answers) -> None:
    one = recorded.backups[0].id
    words = ("--boot-exec", "true", "--boot-console", "login:", "--boot-screen", "--boot-timeout", "90s")
    more = ("--boot-memory", "512M", "--backup", one, "--disk", "vda")
    document = command("verify", "--boot", *words, *more, "-r", recorded.repository.path, "--json").document
    assert answers.requests == [BootRequest(one, ("vda",), "true", "login:", True, 90.0, 512 << 20)]
    [domain] = document["domains"]
    assert (document["schema"], document["not_booted"], document["damaged"]) == ("vbackup.verify/1", 0, 0)
    assert (domain["uuid"], domain["boot"]["backup"], domain["boot"]["verdict"]) == (UUID, one, "booted")


def test_domain_that_cannot_be_tested(command: Command, recorded: Recorded, answers: Answers) -> None:
    answers.error = UnsuitableError("It has no screen.")
    assert "It has no screen." in command("verify", "web", "--boot", "-r", recorded.repository.path, status=5).stderr
    shutil.copytree(recorded.repository.path / UUID, recorded.repository.path / OTHER_UUID)
    done = command("verify", "--all", "--boot", "-r", recorded.repository.path, "--json", status=3)
    assert "1 of 2 domains failed" in done.stderr
    assert [one.get("error", {}).get("error") for one in done.document["domains"]] == [None, "UnsuitableError"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--boot", "--fsck"), "not both"),
        (("--fsck", "--force"), "--force is about reading the images, which --fsck does not do"),
        (("--fsck", "--boot-exec", "true"), "--boot-exec needs --boot"),
        (("--boot", "--sample", "5"), "--sample is about reading the images"),
        (("--boot", "--force"), "--force is about reading the images"),
        (("--boot-exec", "true"), "--boot-exec needs --boot"),
        (("--boot-screen",), "--boot-screen needs --boot"),
        (("--boot", "--boot-exec", ""), "the command is empty"),
        (("--boot", "--boot-exec", "it's"), "cannot be told apart"),
        (("--boot", "--boot-console", "("), "is not a regular expression"),
        (("--boot", "--boot-console", "x*"), "a console on which nothing is"),
        (("--boot", "--boot-timeout", "soon"), "is not a time"),
        (("--boot", "--boot-memory", "1M"), "from 16M up"),
        (("--boot", "--boot-timeout", "0"), "'0' is not more than 0 seconds"),
        (("--boot", "--boot-timeout", "0m0s"), "'0m0s' is not more than 0 seconds"),
    ],
)
def test_arguments_that_make_no_sense(
    command: Command, recorded: Recorded, answers: Answers, words: tuple[str, ...], said: str
) -> None:
    assert said in command("verify", "web", *words, "-r", recorded.repository.path, status=2).stderr
    assert answers.requests == []


@pytest.mark.parametrize("state", ["clean", "damaged"])
def test_file_systems_are_listed(
    command: Command, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    systems = (CheckedFileSystem("vda/1", "ext4", state, "bad\n block" if state == "damaged" else ""),)
    requests: list[FsckRequest] = []

    def run(request: FsckRequest, uuid: str, *, repository: Any, **_: Any) -> Checked:
        requests.append(request)
        backup = repository.catalogue(uuid).find(request.backup_id)
        result = FsckResult(NOON, ("vda",), systems, 1.5)
        fsck_result.write(repository.directory(uuid, backup.id), result)
        return Checked(uuid, "web", backup, result, is_kept=True)

    monkeypatch.setattr(fsck, "run", run)
    path, one = recorded.repository.path, recorded.backups[0].id
    status = 6 if state == "damaged" else 0
    done = command("verify", "web", "--fsck", "--backup", one, "--disk", "vda", "-r", path, status=status)
    assert requests == [FsckRequest(one, ("vda",))]
    assert done.stdout.splitlines() == [
        f"Domain web, backup {one}: 1 file system: 1 {state}.",
        f"  vda/1 (ext4): {state}" + ": bad block" * (state == "damaged"),
    ]
    assert ("1 of 1 backup have damaged" in done.stderr) == (state == "damaged")
    document = command("verify", "web", "--fsck", "-r", path, "--json", status=status).document
    assert document["damaged"] == status / 6
    assert document["domains"][0]["fsck"]["file_systems"][0]["state"] == state
    assert f"Fsck:        {state}, " in command("show", "web", one, "-r", path).stdout


def test_libvirt_of_another_host_is_refused(recorded: Recorded) -> None:
    class Remote:
        is_local, real_uri = False, "qemu+ssh://there/system"

    unused: Any = None
    with pytest.raises(UnsuitableError, match="another host"):
        boot_test.run(BootRequest(), UUID, host=Remote(), repository=unused, reporter=unused, stop=unused)  # type: ignore[arg-type]
