"""Images that a domain which is off does not have to itself: they are read where they may not be written.

Templates of other domains, images that cannot be written, and storage on which another host may have them open.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import wait_for
from tests.end_to_end.chains import END_BYTES
from tests.filesystem import loop_device
from tests.lab import DiskSpec, Lab, Machine, compare, domain_xml, qemu_img_info, qemu_io
from vbackup.domain import access, file_contents
from vbackup.domain.access import file_system_of
from vbackup.qemu import jobs

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome

CLONES = ("clone-1", "clone-2", "clone-3")


def write(path: Path, *commands: str) -> None:
    argv = ["qemu-io", "-f", "qcow2", *(word for one in commands for word in ("-c", one)), str(path)]
    subprocess.run(argv, check=True, capture_output=True)


def bitmaps(path: Path) -> list[str]:
    return [one["name"] for one in qemu_img_info(path)["format-specific"]["data"].get("bitmaps", [])]


class Backups:
    """The command in one repository; restores are compared with copies of the images."""

    def __init__(self, lab: Lab, command: Command, repository: Path, tmp_path: Path) -> None:
        self.lab, self.command, self.repository, self.tmp_path = lab, command, repository, tmp_path
        self._count = 0

    def __call__(self, *words: str, status: int | None = 0) -> Outcome:
        return self.command("-c", self.lab.uri, "-q", "backup", *words, "-r", self.repository, "--json", status=status)

    def compare(self, domain: str, image: Path) -> None:
        """Restore the newest backup, and compare it with the disk as it is."""
        self._count += 1
        output, copy = self.tmp_path / f"restored-{self._count}", self.tmp_path / f"copy-{self._count}.qcow2"
        self.command("-q", "restore", domain, "-r", self.repository, "--output", output)
        subprocess.run(["qemu-img", "convert", "-U", "-O", "qcow2", str(image), str(copy)], check=True)
        compare(output / "vda.qcow2", copy)


@pytest.fixture
def backups(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Backups:
    return Backups(lab, command, repository, tmp_path)


@pytest.fixture
def template(lab: Lab, tmp_path: Path) -> Machine:
    spec = DiskSpec(tmp_path / "template.qcow2")
    spec.create()
    write(spec.path, "write -P 1 0 4M")
    return lab.define(domain_xml("template", [spec.xml()]))


def clone(lab: Lab, name: str, directory: Path) -> Machine:
    spec = DiskSpec(directory / f"{name}.qcow2", backing=directory / "template.qcow2")
    spec.create()
    write(spec.path, f"write -P {ord(name[-1])} 1M 256k")
    return lab.define(domain_xml(name, [spec.xml()]))


def only_disk(document: dict[str, Any]) -> dict[str, Any]:
    (disk,) = document["disks"]
    return disk  # type: ignore[no-any-return]


# what cannot be written


def test_template_of_a_running_clone_is_read_and_says_why(
    lab: Lab, backups: Backups, template: Machine, tmp_path: Path
) -> None:
    clone(lab, "clone-1", tmp_path).handle.domain.create()
    image = tmp_path / "template.qcow2"
    for level in ("auto", "full", "copy"):
        disk = only_disk(backups("template", "--level", level).document)
        assert (disk["level"], disk["bitmap"]) == ("copy" if level == "copy" else "full", None)
        if level != "copy":
            assert "without a bitmap, so no incremental can start from it" in disk["reason"]
            assert f"its image {image} is open in qemu-system" in disk["reason"]
        backups.compare("template", image)
    refused = backups("template", "--level", "incremental", status=6)
    assert f"its image {image} is open in qemu-system" in refused.stderr
    assert "has been started" not in refused.stderr
    assert bitmaps(image) == []
    # Of the clone itself the usual: its image is its own.
    assert only_disk(backups("clone-1").document)["bitmap"] is not None


@contextlib.contextmanager
def immutable(path: Path) -> Iterator[Path]:
    if subprocess.run(["chattr", "+i", str(path)], capture_output=True, check=False).returncode != 0:
        pytest.skip("no chattr here")
    try:
        yield path
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


@contextlib.contextmanager
def read_only_mount(path: Path) -> Iterator[Path]:
    """Its directory is mounted over itself, read-only."""
    directory = path.parent
    if subprocess.run(["mount", "--bind", str(directory), str(directory)], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(directory)], check=True)
        yield path
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.parametrize(
    ("unwritable", "said"), [(immutable, "Operation not permitted"), (read_only_mount, "Read-only file system")]
)
def test_image_that_cannot_be_written_is_read_and_says_why(
    lab: Lab, backups: Backups, tmp_path: Path, unwritable: Any, said: str
) -> None:
    spec = DiskSpec(tmp_path / "images" / "vda.qcow2")
    spec.path.parent.mkdir()
    spec.create()
    write(spec.path, "write -P 1 0 4M")
    lab.define(domain_xml("fixed", [spec.xml()]))
    before = only_disk(backups("fixed").document)
    assert before["bitmap"] is not None
    with unwritable(spec.path):
        for level in ("auto", "full", "copy"):
            disk = only_disk(backups("fixed", "--level", level).document)
            assert disk["bitmap"] is None
            if level != "copy":
                assert f"cannot be written ({said})" in disk["reason"]
            backups.compare("fixed", spec.path)
        assert f"cannot be written ({said})" in backups("fixed", "--level", "incremental", status=6).stderr
    # The bitmap of the first is still there, and nothing else was ever written.
    done = only_disk(backups("fixed").document)
    assert (done["level"], done["copied_bytes"]) == ("incremental", END_BYTES)


def test_image_that_somebody_writes_is_busy_and_says_who(lab: Lab, backups: Backups, template: Machine) -> None:
    """It was never started: nothing says that it was."""
    image = backups.tmp_path / "template.qcow2"
    with qemu_io(image) as writer:
        refused = backups("template", status=8)
        assert f"The image {image} is open in qemu-io (pid {writer.pid})" in refused.stderr
        assert "started" not in refused.stderr


# a template and its clones, all off


@pytest.mark.parametrize("how", [("--parallel", "4"), ("--group",)], ids=["parallel", "group"])
def test_template_and_clones_that_are_off_are_backed_up_together(
    lab: Lab, backups: Backups, template: Machine, tmp_path: Path, how: Sequence[str]
) -> None:
    for name in CLONES:
        clone(lab, name, tmp_path)
    domains = ["template", *CLONES]
    for night in range(3):
        done = backups(*domains, *how).document
        disks = {one["name"]: only_disk(one["backup"]) for one in done["domains"]}
        assert sorted(disks) == sorted(domains)
        for name in domains:
            backups.compare(name, tmp_path / f"{name}.qcow2")
        for name in CLONES:
            assert disks[name]["level"] == ("incremental" if night else "full")
            write(tmp_path / f"{name}.qcow2", f"write -P {night + 7} {night + 2}M 64k")
        if how == ("--group",):
            # All are open at once, so that nobody can write to what they share.
            assert disks["template"]["level"] == "full"
            assert "also used by domain clone-1 of the same group" in disks["template"]["reason"]
        else:
            assert disks["template"]["level"] == ("incremental" if night else "full")


def test_bitmaps_of_a_template_are_told_from_what_somebody_writes_there(
    lab: Lab, backups: Backups, template: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each night they change its size and time. It is read once for all clones and nights, until it was overwritten."""
    image, reads = tmp_path / "template.qcow2", []
    really = file_contents._content

    def content(*arguments: Any, **more: Any) -> str:
        reads.append(1)
        return really(*arguments, **more)

    monkeypatch.setattr(file_contents, "_content", content)
    for name in CLONES[:2]:
        clone(lab, name, tmp_path)
    for night in range(3):
        for name in ("template", *CLONES[:2]):
            disk = only_disk(backups(name).document)
            assert disk["level"] == ("incremental" if night else "full")
        for name in CLONES[:2]:
            backups.compare(name, tmp_path / f"{name}.qcow2")
            write(tmp_path / f"{name}.qcow2", f"write -P {night + 7} {night + 2}M 64k")
    assert len(reads) == 1
    before = image.stat()
    write(image, "write -P 9 3M 64k")
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    backups("template")  # whose bitmap does not show it either: it is off, and somebody else wrote
    for name in CLONES[:2]:
        disk = only_disk(backups(name).document)
        assert disk["level"] == "full"
        assert f"had {image} below, which was " in disk["reason"]
        backups.compare(name, tmp_path / f"{name}.qcow2")
    assert len(reads) == 2


# what another host may have open


@contextlib.contextmanager
def fuse_export(backing: Path, mount_point: Path) -> Iterator[Path]:
    """A file on a FUSE filesystem: to vbackup as good as sshfs or GlusterFS."""
    mount_point.touch()
    nodes = {"driver": "file", "node-name": "n", "filename": str(backing), "locking": "off"}
    export = {"type": "fuse", "id": "e", "node-name": "n", "mountpoint": str(mount_point), "writable": True}
    argv = [
        "qemu-storage-daemon",
        "--blockdev",
        json.dumps(nodes),
        "--export",
        json.dumps({**export, "growable": True}),
    ]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as daemon:
        try:
            wait_for(
                lambda: daemon.poll() is not None or (file_system_of(str(mount_point)) or "").startswith("fuse"),
                "the FUSE export",
            )
            if daemon.poll() is not None:
                assert daemon.stderr is not None
                pytest.skip(f"no FUSE here: {daemon.stderr.read()}")
            yield mount_point
        finally:
            daemon.terminate()


@pytest.fixture(params=["block", "fuse"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DiskSpec]:
    """A qcow2 image on storage where file locks may not reach other hosts."""
    backing = tmp_path / "storage"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(backing), "16M"], check=True)
    write(backing, "write -P 1 0 1M")
    with backing.open("r+b") as file:
        file.truncate(32 << 20)
    if request.param == "block":
        with loop_device(backing) as device:
            yield DiskSpec(device, kind="block")
    else:
        with fuse_export(backing, tmp_path / "exported") as path:
            yield DiskSpec(path)


def test_shared_storage_is_only_read_unless_it_is_said_to_be_ours(
    lab: Lab, backups: Backups, command: Command, shared: DiskSpec
) -> None:
    lab.define(domain_xml("shared", [shared.xml()]))
    for level in ("auto", "full"):
        disk = only_disk(backups("shared", "--level", level).document)
        assert (disk["level"], disk["bitmap"]) == ("full", None)
        assert "so it is only read; if this host alone uses it, --exclusive" in disk["reason"]
        backups.compare("shared", shared.path)
    refused = backups("shared", "--level", "incremental", status=6)
    assert f"its image {shared.path} is " in refused.stderr
    assert "--exclusive" in refused.stderr
    assert bitmaps(shared.path) == []

    assert only_disk(backups("shared", "--exclusive").document)["level"] == "full"
    write(shared.path, "write -P 2 2M 64k")
    disk = only_disk(backups("shared", "--exclusive").document)
    assert (disk["level"], disk["copied_bytes"]) == ("incremental", 65536 + END_BYTES)
    backups.compare("shared", shared.path)
    names = bitmaps(shared.path)
    assert len(names) == 3

    # No other command writes to it either.
    connected = ("-c", lab.uri)
    forgotten = command(*connected, "forget", "shared", "-r", backups.repository, "--json")
    assert forgotten.document["removed"] == []
    assert {"--exclusive" in one["reason"] for one in forgotten.document["kept"]} == {True}
    planned = command(*connected, "forget", "shared", "-r", backups.repository, "--dry-run", "--json")
    assert len(planned.document["kept"]) == 3
    for change in (("add", "shared", "mine", "--persistent"), ("remove", "shared", names[0], "--force")):
        refused = command(*connected, "bitmap", *change, status=5)
        assert "Disk vda: its bitmaps cannot be changed now: its image" in refused.stderr
    assert bitmaps(shared.path) == names
    listed = command(*connected, "bitmap", "list", "shared", "--json").document
    assert sorted(one["name"] for one in listed["bitmaps"]) == sorted(names)
    actions = backups.tmp_path / "actions.json"
    add = {"node": "$disk:vda", "name": "mine", "persistent": True}
    actions.write_text(json.dumps([{"type": "block-dirty-bitmap-add", "data": add}]))
    refused = command(*connected, "transaction", "shared", actions, status=5)
    assert "Disk vda: no bitmap can be stored in it now: its image" in refused.stderr
    raw = backups.tmp_path / "from.raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", str(raw), "16M"], check=True)
    copy = {"job-id": "j", "device": "$disk:vda", "target": "$disk:vdb", "sync": "full"}
    actions.write_text(json.dumps([{"type": "blockdev-backup", "data": copy}]))
    refused = command("transaction", actions, "--image", f"raw:{raw}", shared.path, status=5)
    assert "Disk vdb: nothing can be written to it now: its image" in refused.stderr
    assert bitmaps(shared.path) == names
    done = command(*connected, "forget", "shared", "-r", backups.repository, "--exclusive", "--json")
    assert len(done.document["removed"]) == 3
    assert bitmaps(shared.path) == []


def test_layer_below_on_shared_storage_keeps_its_bitmaps(
    lab: Lab, backups: Backups, command: Command, shared: DiskSpec, tmp_path: Path
) -> None:
    """The overlay is ours, and what is below may be somebody else's too."""
    machine = lab.define(domain_xml("overlaid", [shared.xml()]))
    backups("overlaid", "--exclusive")
    below = bitmaps(shared.path)
    overlay = DiskSpec(tmp_path / "overlay.qcow2", backing=shared.path, size="16M")
    overlay.create()
    lab.remove(machine)
    lab.define(domain_xml("overlaid", [overlay.xml()]).replace("<memory", f"<uuid>{machine.handle.uuid}</uuid><memory"))
    assert only_disk(backups("overlaid").document)["bitmap"] is not None
    forget = ("-c", lab.uri, "-q", "forget", "overlaid", "-r", backups.repository, "--json")
    done = command(*forget).document
    assert [one["file"] for one in done["removed"]] == [str(overlay.path)] * 2
    assert sorted(one["name"] for one in done["kept"]) == sorted(below)
    assert (bitmaps(overlay.path), bitmaps(shared.path)) == ([], below)
    assert len(command(*forget, "--exclusive").document["removed"]) == len(below)
    assert bitmaps(shared.path) == []


def test_image_that_another_host_writes_while_it_is_read_is_no_backup(
    lab: Lab, backups: Backups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as its modification time shows it: that of a block device does not, and that of a FUSE export is "now"."""
    spec = DiskSpec(tmp_path / "vda.qcow2")
    spec.create()
    machine = lab.define(domain_xml("written", [spec.xml()]))
    monkeypatch.setattr(access, "doubt", lambda _image: "is on NFS")
    original = jobs.run

    def write_and_run(*args: Any, **kwargs: Any) -> Any:
        options = f"driver=qcow2,file.driver=file,file.filename={spec.path},file.locking=off"
        argv = ["qemu-io", "--image-opts", "-c", "write -P 1 1M 64k", options]
        subprocess.run(argv, check=True, capture_output=True)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "run", write_and_run)
        refused = backups("written", status=8)
    assert f"The image {spec.path} was changed while it was read: another host has it open" in refused.stderr
    assert not (backups.repository / machine.handle.uuid).exists()
    assert only_disk(backups("written").document)["level"] == "full"


def test_what_another_host_writes_meanwhile_is_not_damaged(lab: Lab, backups: Backups, shared: DiskSpec) -> None:
    """The other host is a process whose locks nobody sees. It allocates clusters where bitmaps would have been put."""
    lab.define(domain_xml("elsewhere", [shared.xml()]))
    protocol = "host_device" if shared.kind == "block" else "file"
    options = f"driver=qcow2,file.driver={protocol},file.filename={shared.path},file.locking=off"
    with subprocess.Popen(
        ["qemu-io", "--image-opts", options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write("write -P 3 4M 64k\nflush\n")
        other.stdin.flush()
        assert "wrote" in other.stdout.readline()
        backups("elsewhere")
        other.communicate("write -P 4 8M 2M\nflush\nquit\n")
    check = subprocess.run(["qemu-img", "check", str(shared.path)], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr
    for pattern, place in ((3, "4M 64k"), (4, "8M 2M"), (1, "0 1M")):
        read = ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -P {pattern} {place}", str(shared.path)]
        assert "verification failed" not in subprocess.run(read, capture_output=True, text=True, check=True).stdout
