"""Where changed blocks cannot be trusted, a restore in place makes new images, and exchanges all or none of them
(operations.full_in_place, with the images of this host: operations.in_place_host).

VBACKUP_KILLS=1 kills it at every step.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import wait_for
from tests.end_to_end.chains import Chain, levels
from tests.end_to_end.test_offline import storage_daemons, write
from tests.end_to_end.test_rollback import EVERY, Off, Rolled, compare_content, in_place, start
from tests.filesystem import loop_device
from tests.lab import DiskSpec, domain_xml, qemu_img_info, qemu_io
from tests.unit.builders import Recorder
from vbackup import files
from vbackup.errors import NoSpaceError, UnsuitableError, VbackupError
from vbackup.images import replacement, restoring
from vbackup.operations import restore_in_place
from vbackup.operations.restore_in_place import InPlaceRequest
from vbackup.repository import in_place_journal
from vbackup.repository.choice import Wanted
from vbackup.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Command
    from tests.lab import Lab


@pytest.fixture
def rolled(chain: Chain) -> Rolled:
    return Rolled(chain)


def lose_bitmaps(path: Path) -> None:
    for one in qemu_img_info(path)["format-specific"]["data"].get("bitmaps", []):
        subprocess.run(["qemu-img", "bitmap", "--remove", "-f", "qcow2", str(path), one["name"]], check=True)


def images(rolled: Rolled) -> list[str]:
    """All files beside the images that belong to them."""
    names = [path.name for path in rolled.chain.specs[0].path.parent.iterdir()]
    return sorted(name for name in names if name.lstrip(".").startswith(("vda.qcow2", "vdb.qcow2")))


def test_disk_without_bitmap_gets_a_new_image_and_the_chain_goes_on(rolled: Rolled) -> None:
    vda, vdb = (spec.path for spec in rolled.chain.specs)
    write(vda, "write -P 1 0 2M")
    first = rolled.backup()
    write(vda, "write -P 2 1M 64k")
    rolled.backup()
    write(vda, "write -P 3 4M 128k")
    write(vdb, "write -P 3 4M 128k")
    lose_bitmaps(vda)
    vda.chmod(0o640)
    os.chown(vda, 4711, 4712)
    os.setxattr(vda, "user.label", b"theirs")
    inode = vdb.stat().st_ino
    outcome = in_place(rolled, "--backup", first["id"], "--json")
    document = outcome.document
    one, other = document["disks"][1], document["disks"][0]
    assert (one["dev"], one["backup"], one["kept"]) == ("vda", first["id"], None)
    assert "is missing from the image" in one["full"]
    assert (other["dev"], other["full"]) == ("vdb", None)
    assert "Disk vda: restored in full, in place: checkpoint" in outcome.stderr
    rolled.compare(first["id"])
    assert (vda.stat().st_mode & 0o777, vda.stat().st_uid, vda.stat().st_gid) == (0o640, 4711, 4712)
    assert os.getxattr(vda, "user.label") == b"theirs"
    assert vdb.stat().st_ino == inode
    assert images(rolled) == ["vda.qcow2", "vdb.qcow2"]
    write(vda, "write -P 4 6M 64k")
    third = rolled.backup()
    assert levels(third) == {"vda": "incremental", "vdb": "incremental"}
    assert {disk["base"] for disk in third["disks"]} == {first["id"]}
    rolled.restored(third["id"])


def test_old_image_is_kept_and_a_lost_one_is_made_again(rolled: Rolled, monkeypatch: pytest.MonkeyPatch) -> None:
    vda, vdb = (spec.path for spec in rolled.chain.specs)
    first = rolled.backup()
    write(vda, "write -P 3 4M 128k")
    before = rolled.copy(rolled.chain.specs[0], "before")
    lose_bitmaps(vda)
    vdb.unlink()
    put = replacement.Replacement.put

    def put_and_fail(self: replacement.Replacement) -> None:
        put(self)
        raise OSError(5, "the end")

    with monkeypatch.context() as patch:
        patch.setattr(replacement.Replacement, "put", put_and_fail)
        argv = ("--backup", first["id"], "--keep-old", "--no-checkpoint")
        assert "Run the same command again, which ends it" in in_place(rolled, *argv, status=7).stderr
    inode = vda.stat().st_ino
    outcome = in_place(rolled, *argv)
    kept = vda.with_name(f"vda.qcow2.before-{first['id']}")
    assert vda.stat().st_ino == inode  # it was complete, so it is not made again
    assert f"the old one is {kept}" in outcome.stdout
    compare_content(kept, before)
    rolled.compare(first["id"])
    assert images(rolled) == ["vda.qcow2", kept.name, "vdb.qcow2"]
    lose_bitmaps(vda)
    assert f"{kept} already exists" in in_place(rolled, "--backup", first["id"], status=7).stderr
    assert images(rolled) == ["vda.qcow2", kept.name, "vdb.qcow2"]
    start(rolled)


def test_internal_snapshots_are_not_thrown_away(rolled: Rolled) -> None:
    vda = rolled.chain.specs[0].path
    first = rolled.backup()
    subprocess.run(["qemu-img", "snapshot", "-c", "theirs", str(vda)], check=True)
    lose_bitmaps(vda)
    told = in_place(rolled, "--backup", first["id"]).stderr
    kept = vda.with_name(f"vda.qcow2.before-{first['id']}")
    assert "the old image has internal snapshots" in told
    assert qemu_img_info(kept)["snapshots"][0]["name"] == "theirs"
    rolled.compare(first["id"])


def test_overlay_becomes_independent_and_its_backing_file_stays(rolled: Rolled) -> None:
    vda = rolled.chain.specs[0].path
    write(vda, "write -P 1 0 2M")
    first = rolled.backup()
    below = vda.with_name("below")
    vda.rename(below)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", vda], check=True)
    write(vda, "write -P 3 1M 4M")
    before = below.read_bytes()
    assert "Disk vda: restored in full" in in_place(rolled, "--backup", first["id"]).stderr
    assert "backing-filename" not in qemu_img_info(vda)
    rolled.compare(first["id"])
    assert below.read_bytes() == before
    assert set(levels(rolled.backup()).values()) == {"incremental"}


def test_no_room_or_another_user_of_the_image(rolled: Rolled, monkeypatch: pytest.MonkeyPatch) -> None:
    vda = rolled.chain.specs[0].path
    first = rolled.backup()
    lose_bitmaps(vda)
    write(vda, "write -P 3 4M 128k")
    before = vda.read_bytes()
    with qemu_io(vda):
        in_place(rolled, "--backup", first["id"], status=8)
    with monkeypatch.context() as patch:
        patch.setattr(restoring, "needed_bytes", lambda *_: 1 << 60)
        said = in_place(rolled, "--backup", first["id"], status=7).stderr
    assert f"and needs {1 << 60}. Nothing was written" in said
    assert vda.read_bytes() == before
    assert images(rolled) == ["vda.qcow2", "vdb.qcow2"]


def test_domain_cannot_start_while_its_image_is_made(rolled: Rolled, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rolled.backup()
    lose_bitmaps(rolled.chain.specs[0].path)
    written, said = restoring.Restoring.write, []

    def write_and_start(*arguments: Any, **named: Any) -> None:
        written(*arguments, **named)
        with pytest.raises(Exception, match="lock") as caught:
            start(rolled)
        said.append(str(caught.value))

    monkeypatch.setattr(restoring.Restoring, "write", write_and_start)
    in_place(rolled, "--backup", first["id"], "--disk", "vda")
    assert said
    rolled.compare(first["id"], "vda")


def test_failed_image_leaves_all_as_it_was(rolled: Rolled, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rolled.backup()
    for spec in rolled.chain.specs:
        lose_bitmaps(spec.path)
        write(spec.path, "write -P 3 4M 128k")
    before = [spec.path.read_bytes() for spec in rolled.chain.specs]
    flattened = restoring.flatten

    def spoil(layers: Any, path: Path, *more: Any, **options: Any) -> None:
        flattened(layers, path, *more, **options)
        if "vdb" in path.name:
            write(path, "write -P 9 1M 64k")

    monkeypatch.setattr(restoring, "flatten", spoil)
    assert "does not contain what was written" in in_place(rolled, "--backup", first["id"], status=6).stderr
    assert [spec.path.read_bytes() for spec in rolled.chain.specs] == before
    assert images(rolled) == ["vda.qcow2", "vdb.qcow2"]
    assert in_place_journal.read(rolled.chain.repository / rolled.chain.uuid) is None


class OffHost:
    """What a restore in place asks of libvirt, without it: its threads do not outlive a fork."""

    def __init__(self, rolled: Rolled) -> None:
        self.handle, self.real_uri, self.has_link = Off(rolled), "qemu:///system", False

    def domain(self, _name: str) -> Off:
        return self.handle


def killed(work: Callable[[], None], *, at: int) -> int:
    """Run the work in a child that is killed before or after the step with this number; return its status."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def stepped(function: Any) -> Any:
            def step(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                for after in (False, True):
                    count += 1
                    if count == at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    if not after:
                        done = function(*arguments, **named)
                return done

            return step

        for place, name in (
            (files, "replace_text"),
            (os, "link"),
            (Path, "rename"),
            (Path, "replace"),
            (Path, "unlink"),
            (restoring.Restoring, "write"),
            (replacement.Replacement, "take_attributes"),
        ):
            setattr(place, name, stepped(getattr(place, name)))
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_either(rolled: Rolled, backup: str, copies: dict[str, Path], *, may_lack: bool) -> None:
    """Each image is the old one or the restored one."""
    for spec in rolled.chain.specs:
        if may_lack and not spec.path.exists():
            continue
        try:
            compare_content(spec.path, copies[spec.dev])
        except AssertionError:
            rolled.compare(backup, spec.dev)


@pytest.mark.parametrize("has_links", [True, False], ids=["links", "no links"])
def test_full_restore_killed_at_every_step_is_ended_by_the_next(
    rolled: Rolled, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image is the old one or the restored one, whole, and the next run ends it; no file is left over."""
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(1, "no links")))
    paths = [spec.path for spec in rolled.chain.specs]
    first = rolled.backup()
    for path in paths:
        lose_bitmaps(path)
        write(path, "write -P 3 4M 1M")
    copies = {spec.dev: rolled.copy(spec, "before") for spec in rolled.chain.specs}
    before = {path: path.read_bytes() for path in paths}
    directory = rolled.chain.repository / rolled.chain.uuid
    off: Any = OffHost(rolled)
    request = InPlaceRequest("bases", Wanted(first["id"]))

    def restore(recorder: Recorder) -> Any:
        return restore_in_place.run(
            request, host=off, repository=rolled.repository, reporter=recorder, stop=Stop()
        )  # fmt: skip

    at, seen = 1, set()
    while True:
        for path, content in before.items():
            path.write_bytes(content)
        status = killed(lambda: restore(Recorder()) and None, at=at)
        wait_for(lambda: not storage_daemons(rolled.chain.tmp_path), "the end of the storage daemon")
        if status == 0:
            break
        entry = in_place_journal.read(directory)
        seen.add(entry.step if entry is not None else None)
        is_either(rolled, first["id"], copies, may_lack=not has_links)
        if entry is not None and entry.step is in_place_journal.Step.EXCHANGING:
            refused = rolled.chain.run(status=5).stderr
            assert f"'vbackup restore bases {first['id']} --in-place -c " in refused
        recorder = Recorder()
        restore(recorder)
        rolled.compare(first["id"])
        assert images(rolled) == ["vda.qcow2", "vdb.qcow2"]
        assert in_place_journal.read(directory) is None
        assert not list(directory.glob("in-place*"))
        at += max(1, EVERY // (3 if has_links else 2))
    assert seen == {None, in_place_journal.Step.WRITING, in_place_journal.Step.EXCHANGING}
    third = rolled.backup()
    assert {disk["base"] for disk in third["disks"]} == {first["id"]}
    rolled.restored(third["id"])


def test_disk_that_was_rolled_back_before_another_could_be_replaced_is_no_disk_to_back_up(
    rolled: Rolled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vda is rolled back, vdb gets a new image; the run ends between the two, by SIGKILL and by an error."""
    vda, vdb = (spec.path for spec in rolled.chain.specs)
    first = rolled.backup()
    directory = rolled.chain.repository / rolled.chain.uuid
    off: Any = OffHost(rolled)

    def restore(*disks: str, backup: str = first["id"]) -> Recorder:
        recorder = Recorder()
        restore_in_place.run(
            InPlaceRequest("bases", Wanted(backup, disks=disks)),
            host=off, repository=rolled.repository, reporter=recorder, stop=Stop(),
        )  # fmt: skip
        return recorder

    def end(how: Callable[[], None]) -> None:
        """Come to the exchange, and no further."""
        for path in (vda, vdb):
            write(path, "write -P 3 4M 1M")
        lose_bitmaps(vdb)
        written = in_place_journal.write

        def record(directory: Path, step: in_place_journal.Step, **named: Any) -> None:
            if step is in_place_journal.Step.EXCHANGING:
                how()
            written(directory, step, **named)

        with monkeypatch.context() as patch:
            patch.setattr(in_place_journal, "write", record)
            restore()

    def full() -> None:
        raise NoSpaceError("The repository is full.")

    for kills in (True, False):
        if kills:
            pid = os.fork()
            if pid == 0:
                end(lambda: os.kill(os.getpid(), signal.SIGKILL))
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
            wait_for(lambda: not storage_daemons(rolled.chain.tmp_path), "the end of the storage daemon")
        else:
            with pytest.raises(NoSpaceError, match="is full"):
                end(full)
            assert images(rolled) == ["vda.qcow2", "vdb.qcow2"]
        entry = in_place_journal.read(directory)
        assert entry is not None
        assert (entry.step, entry.rolled) == (in_place_journal.Step.ROLLING, {"vda"})
        rolled.compare(first["id"], "vda")
        assert f"'vbackup restore bases {first['id']} --in-place -c " in rolled.chain.run(status=5).stderr
        present = images(rolled)
        with pytest.raises(VbackupError, match="20200101T000000Z"):
            restore(backup="20200101T000000Z-full")
        assert (images(rolled), in_place_journal.read(directory)) == (present, entry)
        with pytest.raises(UnsuitableError, match="Restore all of them, vda too"):
            restore("vdb")
        assert "may have been rolled back; this run restores all" in restore().steps[0]
        rolled.compare(first["id"])
        assert images(rolled) == ["vda.qcow2", "vdb.qcow2"]
        assert in_place_journal.read(directory) is None
    assert set(levels(rolled.backup()).values()) == {"incremental"}


def test_journal_of_a_copy_or_of_other_images_is_not_heeded(rolled: Rolled) -> None:
    vda = rolled.chain.specs[0].path
    first = rolled.backup()
    directory = rolled.chain.repository / rolled.chain.uuid
    victim = rolled.chain.tmp_path / "victim"
    victim.write_text("mine")
    new = replacement.Replacement(victim, first["id"]).new
    new.write_text("theirs")
    disks = [in_place_journal.Replaced("vda", victim, first["id"], False)]
    in_place_journal.write(directory, in_place_journal.Step.EXCHANGING, backup=first["id"], disks=disks)
    assert f"{victim}, which it replaced, is no image" in in_place(rolled, status=5).stderr
    disks = [in_place_journal.Replaced("vda", vda, first["id"], False)]
    in_place_journal.write(directory, in_place_journal.Step.EXCHANGING, backup=first["id"], disks=disks)
    text = (directory / in_place_journal.NAME).read_text()
    inode = directory.stat().st_ino
    (directory / in_place_journal.NAME).write_text(text.replace(f'"inode": {inode}', '"inode": 1'))
    assert "before this repository was copied or moved" in in_place(rolled, status=5).stderr
    assert (victim.read_text(), new.read_text()) == ("mine", "theirs")


def test_what_a_new_image_could_not_be_is_refused_with_what_to_do(
    lab: Lab, command: Command, repository: Path, tmp_path: Path
) -> None:
    """A block device; below an image that the definition names. A raw file gets a new one."""
    (tmp_path / "device").write_bytes(bytes(8 << 20))
    with loop_device(tmp_path / "device") as loop:
        specs = [
            DiskSpec(loop, dev="vda", format="raw", kind="block", size="8M"),
            DiskSpec(tmp_path / "vdb.raw", dev="vdb", format="raw", size="8M"),
        ]
        specs[1].create()
        machine = lab.define(domain_xml("kinds", [spec.xml() for spec in specs]))
        argv = ("-c", lab.uri, "-r", repository)
        first = command("backup", "kinds", "--json", *argv).document["id"]
        subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 3 1M 1M", str(specs[1].path)], check=True)
        said = command("restore", "kinds", "--in-place", *argv, status=5).stderr
        assert f"{loop} is a block device, on which the old content could not be kept" in said
        assert f"vbackup restore kinds --backup={first} --output=DIR --disk=vda={loop}." in said
        assert specs[1].path.read_bytes()[1 << 20] == 3
        if subprocess.run(["chattr", "+i", str(specs[1].path)], check=False).returncode == 0:  # not on every filesystem
            said = command("restore", "kinds", "--in-place", "--disk", "vdb", *argv, status=5).stderr
            subprocess.run(["chattr", "-i", str(specs[1].path)], check=True)
            assert f"{specs[1].path} is immutable ('chattr -i {specs[1].path}' changes that). Nothing was wr" in said
            assert "exclude-disk" not in said
        done = command("restore", "kinds", "--in-place", "--disk", "vdb", "--json", *argv).document
        assert "raw" in done["disks"][0]["full"]
        assert specs[1].path.read_bytes() == bytes(8 << 20)
        command("-q", "restore", "kinds", *argv, "--output", tmp_path / "out", f"--disk=vda={loop}")
        lab.remove(machine)
