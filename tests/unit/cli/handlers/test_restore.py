"""``vbackup restore`` refuses what it cannot restore, each with its own exit status, and says what comes next."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import UUID, backup, use_libvirt
from vbackup.api.hosts import Hosts
from vbackup.model import MachineFile, MachineKind
from vbackup.operations import restore
from vbackup.operations.restored_domain import DefinedDomain, DefineRequest
from vbackup.operations.restored_machine import Placed
from vbackup.repository import verify

if TYPE_CHECKING:
    from tests.conftest import Command


ONE = replace(backup(1), domain_name="-web")


@pytest.fixture
def restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A restore that has succeeded, into a directory whose parent is closed."""
    output = tmp_path / "with space"
    done = restore.Restored(
        ONE,
        {"vda": output / "vda.qcow2"},
        {"vda": ONE.id},
        output / "domain.xml",
        closed=(tmp_path, output),
        left_out=(),
        shared=(),
    )
    monkeypatch.setattr(restore, "run", lambda *_args, **_more: done)
    return output


@pytest.mark.parametrize("user", [0, 1000])
def test_restore_ends_with_what_comes_next(
    command: Command, filled: Path, restored: Path, user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    arguments = ("restore", "web", "-r", filled, "--output", restored)
    lines = command("-c", "qemu:///system", *arguments).stdout.splitlines()
    assert lines[lines.index("To run it:") + 1 :] == [
        *(
            [f"  chmod o+x {restored.parent} '{restored}'  # or QEMU, as another user, cannot enter them"]
            if user == 0
            else []
        ),
        f"  virsh -c qemu:///system define '{restored}/domain.xml'",
        "  virsh -c qemu:///system start --domain=-web",
    ]
    assert command(*arguments, "--json").document["closed"] == [str(restored.parent), str(restored)]


def test_whole_machine_comes_with_what_it_still_needs(
    command: Command, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    tpm = MachineFile(MachineKind.TPM, 1, "sha256:t", "/swtpm")
    seed = MachineFile(MachineKind.MEDIUM, 1, "sha256:s", "/seed", "sda")
    done = restore.Restored(
        replace(ONE, autostart=True, machine=(tpm, seed)),
        {"vda": tmp_path / "vda.qcow2"},
        {"vda": ONE.id},
        tmp_path / "domain.xml",
        closed=(),
        left_out=(),
        shared=(),
        machine=(Placed(tpm, tmp_path / "a b"), Placed(seed, tmp_path / "sda.medium")),
        tpm_place=Path("/var/lib/libvirt/swtpm/uuid/tpm2"),
    )
    monkeypatch.setattr(restore, "run", lambda *_args, **_more: done)
    arguments = ("restore", "web", "-r", filled, "--output", tmp_path)
    lines = command(*arguments).stdout.splitlines()
    assert lines[1 : lines.index("To run it:")] == [
        f"  {tmp_path}/{name}" for name in ("vda.qcow2", "a b", "sda.medium", "domain.xml")
    ]
    assert lines[lines.index("To run it:") + 1 :] == [
        "  mkdir -p /var/lib/libvirt/swtpm/uuid/tpm2",
        f"  cp -rT '{tmp_path}/a b' /var/lib/libvirt/swtpm/uuid/tpm2  # the TPM's state, while no domain uses it",
        f"  virsh define {tmp_path}/domain.xml",
        "  virsh autostart --domain=-web  # as the original had it",
        "  virsh start --domain=-web",
    ]
    document = command(*arguments, "--json").document
    assert (document["autostart"], document["tpm_place"]) == (True, "/var/lib/libvirt/swtpm/uuid/tpm2")
    assert [(one["kind"], one["dev"], one["path"]) for one in document["machine"]] == [
        ("tpm", None, f"{tmp_path}/a b"),
        ("medium", "sda", f"{tmp_path}/sda.medium"),
    ]


def test_success_is_quiet(command: Command, filled: Path, restored: Path) -> None:
    for arguments in (
        ("restore", "web", "-r", filled, "--output", restored),
        ("init", "-r", restored.parent / "new"),
        ("recover", "-r", filled, "--adopt"),
    ):
        outcome = command("-q", *arguments)
        assert (outcome.stdout, outcome.stderr) == ("", "")


def test_time_before_all_backups_is_status_six(command: Command, filled: Path, tmp_path: Path) -> None:
    command("restore", "web", "-r", filled, "--output", tmp_path / "out", "--at", "2001-01-01", status=6)
    assert not (tmp_path / "out").exists()


def test_unknown_disk_of_a_backup_is_status_five(command: Command, filled: Path, tmp_path: Path) -> None:
    outcome = command("restore", "web", "-r", filled, "--output", tmp_path / "out", "--disk", "vdz", status=5)
    assert "Disk vdz" in outcome.stderr
    assert "it has vda" in outcome.stderr


def test_unwritable_output_is_found_before_an_image_is_read(
    command: Command, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "check_chains", lambda *_args, **_more: pytest.fail("the images were read"))
    (tmp_path / "file").touch()
    outcome = command("restore", "web", "-r", filled, "--output", tmp_path / "file" / "out", status=7)
    assert f"Cannot write to {tmp_path}/file/out: Not a directory" in outcome.stderr


def test_existing_output_is_status_seven(command: Command, filled: Path, tmp_path: Path) -> None:
    (tmp_path / "vda.qcow2").touch()
    outcome = command("restore", "web", "-r", filled, "--output", tmp_path, status=7)
    assert "vbackup never overwrites" in outcome.stderr
    assert (tmp_path / "vda.qcow2").stat().st_size == 0


def test_missing_link_is_status_six(command: Command, filled: Path, tmp_path: Path) -> None:
    (filled / UUID / ONE.id / "vda.qcow2").unlink()
    outcome = command("restore", "web", "-r", filled, "--output", tmp_path / "out", status=6)
    assert f"the image of backup {ONE.id} is missing" in outcome.stderr


def test_empty_output_is_not_the_working_directory(
    command: Command, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a script passes whose variable is not set."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "the path is empty" in command("restore", "web", "-r", filled, "--output", "", status=2).stderr
    assert not list(Path().iterdir())


# a domain that libvirt has then


@pytest.mark.parametrize(("option", "started"), [("--define", False), ("--start", True)])
def test_defined_domain_is_reported(
    command: Command, filled: Path, restored: Path, monkeypatch: pytest.MonkeyPatch, option: str, started: bool
) -> None:
    asked = []

    def run(request: restore.RestoreRequest, **_more: object) -> restore.Restored:
        asked.append(request.define)
        return replace(done, defined=DefinedDomain("-new", UUID, started=started))

    done = restore.run(None, repository=None, reporter=None, stop=None)  # type: ignore[arg-type]
    monkeypatch.setattr(restore, "run", run)
    use_libvirt(monkeypatch, None)
    arguments = ("restore", "web", "-r", filled, "--output", restored, option, "--name=-new")
    lines = command(*arguments).stdout.splitlines()
    state = "defined and started" if started else "defined"
    start = [] if started else ["To run it:", "  virsh start --domain=-new"]
    assert lines[-1 - len(start) :] == [f"Domain -new (UUID {UUID}) is {state}.", *start]
    assert asked == [DefineRequest("-new", started)]
    document = command(*arguments, "--json").document
    assert {name: document[name] for name in ("defined", "name", "uuid", "started")} == {
        "defined": True,
        "name": "-new",
        "uuid": UUID,
        "started": started,
    }


def test_restore_without_define_needs_no_libvirt(
    command: Command, filled: Path, restored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hosts, "one", lambda _hosts: pytest.fail("libvirt was asked"))
    document = command("restore", "web", "-r", filled, "--output", restored, "--json").document
    assert {name: document[name] for name in ("defined", "name", "uuid", "started")} == {
        "defined": False,
        "name": ONE.domain_name,
        "uuid": ONE.domain_uuid,
        "started": False,
    }


def test_places_and_speed_of_disks_are_passed_on(
    command: Command, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[restore.RestoreRequest] = []

    def run(request: restore.RestoreRequest, **_more: object) -> restore.Restored:
        seen.append(request)
        paths = {"vda": Path("/dev/vg/web"), "vdb": tmp_path / "vdb.qcow2"}
        ids = dict.fromkeys(paths, ONE.id)
        return restore.Restored(
            ONE, paths, ids, tmp_path / "domain.xml", closed=(), left_out=(), shared=(), devices=("vda",)
        )

    monkeypatch.setattr(restore, "run", run)
    argv = ("restore", "web", "-r", filled, "--output", tmp_path, "--speed", "2M")
    document = command(*argv, "--disk", "vda=/dev/vg/web,vdb", "--json").document
    [request] = seen
    assert request.destinations == {"vda": Path("/dev/vg/web")}
    assert (request.wanted.disks, request.speed_bytes_s) == (("vda", "vdb"), 2 << 20)
    assert [(disk["type"], disk["format"], disk["volume"]) for disk in document["disks"]] == [
        ("block", "raw", None),
        ("file", "qcow2", None),
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--name", "new"), "--name is for a domain that libvirt defines: give --define, too"),
        (("--define", "--name", "a/b"), "'a/b' cannot be the name of a domain"),
        (("--define", "--name", " "), "cannot be the name of a domain"),
        (("--define", "--name", "x" * 248), "at most 247 bytes"),
        (("--define", "--name", "a\nb"), "no control characters"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(
    command: Command, filled: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    outcome = command("restore", "web", "-r", filled, "--output", tmp_path / "out", *options, status=2)
    assert said in outcome.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--define", "--name=new", "--start"])
def test_domain_in_place_is_not_defined(command: Command, filled: Path, option: str) -> None:
    outcome = command("restore", "web", "-r", filled, "--in-place", option, status=2)
    assert f"{option.partition('=')[0]} is for a restore with --output" in outcome.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--disk", "vda="), "give the name of a disk and a path"),
        (("--disk", "=/dev/x"), "give the name of a disk and a path"),
        (("--disk", "vda=/a", "vda"), "vda is given twice"),
        (("--disk", "vda", "vda=/a"), "vda is given twice"),
        (("--disk", "vda=/a", "vdb=/a"), "vda and vdb would both be written to /a"),
        (("--keep-old",), "--keep-old is for a restore with --in-place"),
    ],
)
def test_places_that_make_no_sense_are_status_two(
    command: Command, filled: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    argv = ("restore", "web", "-r", filled, "--output", tmp_path / "out", *options)
    assert said in command(*argv, status=2).stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [("--pool", "p"), ("--format", "raw"), ("--disk", "vda=/a")])
def test_in_place_has_no_other_place(command: Command, filled: Path, options: tuple[str, ...]) -> None:
    assert "in place" in command("restore", "web", "-r", filled, "--in-place", *options, status=2).stderr.replace(
        "-", " "
    )
