"""``vbackup restore`` refuses what it cannot restore, each with its own exit status, and says what comes next."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import UUID, backup
from vbackup.model import MachineFile, MachineKind
from vbackup.operations import restore
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
