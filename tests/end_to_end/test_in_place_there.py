"""Disks of a domain on another host get new images in place, all or none of them (operations.in_place_there).

VBACKUP_KILLS=1 breaks the link, and kills vbackup, at every step.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.daemon import wait_for
from tests.end_to_end.chains import levels
from tests.end_to_end.killed_there import striking
from tests.end_to_end.test_full_in_place import lose_bitmaps
from tests.end_to_end.test_offline import write
from tests.end_to_end.test_rollback import EVERY
from tests.filesystem import loop_device
from tests.hosts import Hypervisor
from tests.lab import DiskSpec, compare, domain_xml, qemu_io
from vbackup.images import restoring
from vbackup.images.there import Writing
from vbackup.repository import in_place_journal
from vbackup.repository.in_place_journal import Step

if TYPE_CHECKING:
    from tests.conftest import Command

RECORDS = "/var/lib/vbackup/half-restored"


class Off:
    """Domain ``web`` there, which is off. Since its first backup all disks were written, and vda and vdb lost their
    bitmaps. libvirt knows vdb by a symbolic link."""

    def __init__(self, hypervisor: Hypervisor, command: Command, repository: Path, tmp_path: Path) -> None:
        self.hypervisor, self.command, self.repository = hypervisor, command, repository
        self.paths = [hypervisor.images / f"{dev}.qcow2" for dev in ("vda", "vdb", "vdc")]
        specs = [DiskSpec(path, dev=path.stem, size="8M") for path in self.paths]
        for spec in specs:
            spec.create()
            write(spec.path, "write -P 1 0 2M")
        (links := hypervisor.images / "links").mkdir(mode=0o755)
        (links / "vdb.qcow2").symlink_to(self.paths[1])
        specs[1] = DiskSpec(links / "vdb.qcow2", dev="vdb", size="8M")
        self.uuid = hypervisor.define(domain_xml("web", [spec.xml() for spec in specs])).handle.uuid
        self.first = self.backup()["id"]
        self.restored = self.restore_beside(self.first, tmp_path / "first")
        for path in self.paths:
            write(path, "write -P 3 1M 4M")
        for path in self.paths[:2]:
            lose_bitmaps(path)
        self.copies = {path: tmp_path / path.name for path in self.paths}
        for path, copy in self.copies.items():
            copy.write_bytes(path.read_bytes())

    @property
    def roll(self) -> tuple[Any, ...]:
        return "-c", self.hypervisor.uri, "-q", "restore", "web", self.first, "-r", self.repository, "--in-place"

    def backup(self) -> Any:
        back = ("-c", self.hypervisor.uri, "-q", "backup", "web", "-r", self.repository, "--json")
        return self.command(*back).document

    def restore_beside(self, backup: str, output: Path) -> Path:
        self.command("-q", "restore", "web", backup, "-r", self.repository, "--output", output)
        return output

    def is_restored(self, *devs: str, as_in: Path | None = None) -> None:
        for dev in devs or ("vda", "vdb", "vdc"):
            compare(self.hypervisor.images / f"{dev}.qcow2", (as_in or self.restored) / f"{dev}.qcow2")

    def is_as_before(self) -> None:
        for path, copy in self.copies.items():
            compare(path, copy)

    def is_either(self) -> None:
        """Each image is the old one or the restored one, but for one that is half rolled back."""
        for path in self.paths[:2]:
            try:
                compare(path, self.copies[path])
            except AssertionError:
                self.is_restored(path.stem)

    def undo(self) -> None:
        for path, copy in self.copies.items():
            path.write_bytes(copy.read_bytes())

    def names(self) -> list[str]:
        assert (self.hypervisor.images / "links" / "vdb.qcow2").is_symlink()
        return sorted(path.name for path in self.hypervisor.images.iterdir() if path.name != "links")

    def step(self) -> Step | None:
        entry = in_place_journal.read(self.repository / self.uuid)
        if entry is not None:
            assert (entry.host, entry.uri) == (self.hypervisor.name, self.hypervisor.uri)
        return None if entry is None else entry.step

    def has_record(self) -> bool:
        with suppress(AssertionError):
            return self.uuid in self.hypervisor.run("ls", RECORDS).split()
        return False


@pytest.fixture
def off(hypervisor: Hypervisor, command: Command, repository: Path, tmp_path: Path) -> Off:
    return Off(hypervisor, command, repository, tmp_path)


def test_disks_get_new_images_and_the_chain_goes_on(off: Off, command: Command, tmp_path: Path) -> None:
    vda, vdb, vdc = off.paths
    vda.chmod(0o640)
    os.chown(vda, 4711, 4712)
    os.setxattr(vda, "user.label", b"theirs")
    inode = vdc.stat().st_ino
    done = {disk["dev"]: disk for disk in command(*off.roll, "--json").document["disks"]}
    assert {dev: (disk["backup"], disk["kept"]) for dev, disk in done.items()} == dict.fromkeys(done, (off.first, None))
    assert {dev for dev, disk in done.items() if "missing from the image" in (disk["full"] or "")} == {"vda", "vdb"}
    off.is_restored()
    assert (vda.stat().st_mode & 0o777, vda.stat().st_uid, vda.stat().st_gid) == (0o640, 4711, 4712)
    assert os.getxattr(vda, "user.label") == b"theirs"
    assert vdc.stat().st_ino == inode
    assert (off.names(), off.step(), off.has_record()) == (["vda.qcow2", "vdb.qcow2", "vdc.qcow2"], None, False)
    write(vda, "write -P 4 6M 64k")
    second = off.backup()
    assert set(levels(second).values()) == {"incremental"}
    assert {disk["base"] for disk in second["disks"]} == {off.first}
    off.is_restored(as_in=off.restore_beside(second["id"], tmp_path / "second"))
    # The old image is kept, and one that is lost is made again.
    before = tmp_path / "before.qcow2"
    before.write_bytes(vda.read_bytes())
    lose_bitmaps(vda)
    vdb.unlink()
    command(*off.roll, "--keep-old", "--no-checkpoint")
    kept = vda.with_name(f"vda.qcow2.before-{off.first}")
    compare(kept, before)
    off.is_restored()
    assert off.names() == ["vda.qcow2", kept.name, "vdb.qcow2", "vdc.qcow2"]
    lose_bitmaps(vda)
    assert f"{kept} already exists on root@hv1" in command(*off.roll, status=7).stderr
    off.hypervisor.host.domain("web").domain.create()


def test_refused_before_a_disk_is_changed(
    off: Off, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vda = off.paths[0]
    with qemu_io(vda):
        assert f"has the image {vda} open" in command(*off.roll, status=8).stderr
    with monkeypatch.context() as patch:
        patch.setattr(restoring, "needed_bytes", lambda *_: 1 << 60)
        assert "on root@hv1 has" in command(*off.roll, status=7).stderr
    if subprocess.run(["chattr", "+i", str(vda)], check=False).returncode == 0:  # not on every filesystem
        said = command(*off.roll, status=5).stderr
        subprocess.run(["chattr", "-i", str(vda)], check=True)
        assert f"in place on root@hv1: {vda} is immutable" in said
        assert f"virsh -c {off.hypervisor.uri} undefine web" in said
    written, refused = Writing.write, []

    def write_and_start(*arguments: Any, **named: Any) -> None:
        written(*arguments, **named)
        with pytest.raises(libvirt.libvirtError, match="lock") as caught:
            off.hypervisor.host.domain("web").domain.create()
        refused.append(caught.value)
        raise OSError("the end")

    with monkeypatch.context() as patch:
        patch.setattr(Writing, "write", write_and_start)
        command(*off.roll, status=None)
    assert refused
    [image] = off.repository.glob("*/*-full/vdb.qcow2")
    whole = image.read_bytes()
    damaged = bytearray(whole)
    for place in range(0, len(damaged), 65536):
        if damaged[place : place + 65536] == b"\1" * 65536:
            damaged[place + 7] ^= 1
    image.write_bytes(damaged)
    assert "vdb" in command(*off.roll, status=6).stderr
    image.write_bytes(whole)
    off.is_as_before()
    assert (off.names(), off.step(), off.has_record()) == (["vda.qcow2", "vdb.qcow2", "vdc.qcow2"], None, False)
    # A block device; a raw file.
    (tmp_path / "device").write_bytes(bytes(8 << 20))
    with loop_device(tmp_path / "device") as loop:
        specs = [
            DiskSpec(loop, format="raw", kind="block", size="8M"),
            DiskSpec(off.hypervisor.images / "vdb.raw", dev="vdb", format="raw", size="8M"),
        ]
        specs[1].create()
        off.hypervisor.define(domain_xml("kinds", [spec.xml() for spec in specs]))
        argv = ("-c", off.hypervisor.uri, "-q", "-r", off.repository)
        command("backup", "kinds", *argv)
        subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 3 1M 1M", specs[1].path], check=True)
        said = command("restore", "kinds", "--in-place", *argv, status=5).stderr
        assert f"{loop} is a block device, on which the old content could not be kept" in said
        assert specs[1].path.read_bytes()[1 << 20] == 3
        command("restore", "kinds", "--in-place", "--disk", "vdb", *argv)
        assert specs[1].path.read_bytes() == bytes(8 << 20)


#: Step, number and when (tests.end_to_end.killed_there), and where the restore stands in the journal then.
POINTS = [
    ("make", 2, "after", Step.WRITING),
    ("record", 2, "before", Step.WRITING),
    ("adopt", 2, "before", Step.WRITING),
    ("roll", 1, "before", Step.ROLLING),
    ("put", 1, "after", Step.EXCHANGING),
    ("remove", 1, "after", Step.EXCHANGING),
    ("record", 1, "after", Step.WRITING),
    ("attributes", 1, "after", Step.WRITING),
    ("half", 1, "after", Step.ROLLING),
    ("put", 2, "after", Step.EXCHANGING),
    ("remove", 2, "after", Step.EXCHANGING),
    ("whole", 1, "before", None),
]


def ended_by_the_next(off: Off, step: Step | None, *, is_undone: bool) -> None:
    """Each image is the old one or the restored one, whole, and the next run ends it; no file is left over."""
    wait_for(lambda: not off.hypervisor.processes("qemu-storage-daemon"), "the end of the daemon there")
    wait_for(lambda: not [name for name in off.names() if name.startswith(".vbackup-")], "the helper's cleaning up")
    now = off.step()
    assert now in (step, None) if is_undone else now is step
    off.is_either()
    if step is not Step.WRITING:
        assert off.has_record()
    if now in (Step.ROLLING, Step.EXCHANGING):
        back = ("-c", off.hypervisor.uri, "-q", "backup", "web", "-r", off.repository)
        assert (
            f"'vbackup restore web {off.first} --in-place -c {off.hypervisor.uri}'"
            in off.command(*back, status=5).stderr
        )
    off.command(*off.roll)
    off.is_restored()
    assert (off.names(), off.step(), off.has_record()) == (["vda.qcow2", "vdb.qcow2", "vdc.qcow2"], None, False)


def test_link_that_breaks_at_any_step(off: Off, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number, when, step in POINTS if EVERY == 1 else (POINTS[0], POINTS[4]):
        if (name, when) == ("record", "before"):
            continue  # it does not need the link
        off.undo()
        with monkeypatch.context() as patch:
            patch.setattr(*striking(name, number, when, lambda: off.hypervisor.kill("sshd: root")))
            said = off.command(*off.roll, status=None)
        is_done = (name, number, when) in (("remove", 2, "after"), ("whole", 1, "before"))
        assert (said.status == 0) == is_done, said.stderr
        assert "root@hv1" in said.stderr
        ended_by_the_next(off, step, is_undone=True)
    assert {disk["base"] for disk in off.backup()["disks"]} == {off.first}


@pytest.mark.long
def test_vbackup_that_is_killed_at_any_step(off: Off) -> None:
    for name, number, when, step in POINTS if EVERY == 1 else (POINTS[1], POINTS[3]):
        off.undo()
        argv = [sys.executable, "-m", "tests.end_to_end.killed_there", name, str(number), when, "--", *off.roll]
        done = subprocess.run([*map(str, argv)], capture_output=True, text=True, check=False)
        assert done.returncode == -9, done.stderr
        ended_by_the_next(off, step, is_undone=False)
    assert {disk["base"] for disk in off.backup()["disks"]} == {off.first}
