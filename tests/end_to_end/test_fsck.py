"""``vbackup verify --fsck`` with libguestfs's appliance: a file system that is whole, and one that is not.

The operation is vbackup.operations.fsck.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.test_mount import daemons, digests
from tests.guest.image import program
from tests.lab import DiskSpec, domain_xml
from vbackup.images import appliance
from vbackup.repository import fsck_result

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.lab import Lab

needs_guestfish = pytest.mark.skipif(shutil.which(appliance.PROGRAM) is None, reason="needs guestfish")


@pytest.fixture
def filled(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Path:
    """A repository with a backup of two disks: vda is whole, and a directory of vdb has lost its inode."""
    disks = []
    (tmp_path / "content" / "directory").mkdir(parents=True)
    (tmp_path / "content" / "directory" / "file").write_bytes(os.urandom(65536))
    for dev in ("vda", "vdb"):
        disk = DiskSpec(tmp_path / f"{dev}.raw", dev, format="raw", size="16M")
        disk.create()
        argv = [os.fspath(program("mkfs.ext4")), "-q", "-F", "-d", os.fspath(tmp_path / "content")]
        subprocess.run([*argv, os.fspath(disk.path)], check=True)
        disks.append(disk)
    ruin = [os.fspath(program("debugfs")), "-w", "-R", "clri /directory", os.fspath(disks[1].path)]
    subprocess.run(ruin, check=True, capture_output=True)
    lab.define(domain_xml("web", [disk.xml() for disk in disks]))
    command("-c", lab.uri, "backup", "web", "-r", repository, "-q")
    return repository


@needs_guestfish
def test_damaged_filesystem_is_told_from_a_whole_one(
    command: Command, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg")  # KVM is there, and hangs, on some test machines
    before = digests(filled)
    document = command("verify", "web", "--fsck", "-r", filled, "--json", status=6).document
    [domain] = document["domains"]
    assert [(one["name"], one["type"], one["state"]) for one in domain["fsck"]["file_systems"]] == [
        ("vda", "ext4", "clean"),
        ("vdb", "ext4", "damaged"),
    ]
    after = {file: kept for file, kept in digests(filled).items() if file.name != fsck_result.NAME}
    assert after == before
    assert daemons(filled) == []
    shown = command("show", "web", "-r", filled).stdout
    assert "2 file systems: 1 clean, 1 damaged. Damaged: vdb (ext4)." in shown
    assert command("check", "-r", filled).status == 0


def test_what_is_missing_is_said(
    command: Command, filled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    done = command("verify", "web", "--fsck", "-r", filled, status=5)
    assert "guestfish is not installed" in done.stderr
