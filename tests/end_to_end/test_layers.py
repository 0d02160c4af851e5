"""What no bitmap covers: layers below those with bitmaps, and external data files. A change there is never missed.

Every backup is restored and compared. Changes that QEMU makes itself cost no full.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.crossed import crossed
from tests.daemon import Daemon, wait_for
from tests.end_to_end.chains import END_BYTES, Chain, levels, reasons
from tests.end_to_end.test_bases import commit
from tests.end_to_end.test_block_jobs import pull_all, snapshot, wait_until_idle
from tests.filesystem import loop_device
from tests.lab import DiskSpec, Lab, compare, domain_xml, qemu_img_info
from vbackup.domain import file_contents
from vbackup.operations import backup

if TYPE_CHECKING:
    from tests.conftest import Command

PROVEN = {"path", "device", "inode", "size_bytes", "mtime_ns", "ctime_ns"}
FULL, INCREMENTAL = {"vda": "full"}, {"vda": "incremental"}


def image(path: Path, *commands: str, backing: Path | None = None, options: tuple[str, ...] = ()) -> Path:
    """A qcow2 image of 8 MiB in which qemu-io has carried out the commands."""
    more = () if backing is None else ("-b", str(backing), "-F", "qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *more, *options, str(path), "8M"], check=True)
    write(path, *commands)
    return path


def write(path: Path, *commands: str, image_format: str = "qcow2") -> None:
    argv = ["qemu-io", "-f", image_format]
    for one in commands:
        argv += ["-c", one]
    subprocess.run([*argv, str(path)], check=True, capture_output=True)


def overwrite(path: Path, *commands: str, image_format: str = "qcow2") -> None:
    """In place, and with its former time of modification, as rsync --inplace --times does, and cp -p."""
    before = path.stat()
    write(path, *commands, image_format=image_format)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read to digest them."""
    names: list[str] = []
    really = file_contents._content

    def content(fd: int, *arguments: Any, **more: Any) -> str:
        names.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        return really(fd, *arguments, **more)

    monkeypatch.setattr(file_contents, "_content", content)
    return names


@dataclass(frozen=True)
class Made(DiskSpec):
    """A disk whose image is there already."""

    def create(self) -> None:
        """Leave it."""


class Off:
    """Backups of a chain's machine while it is off, each restored and compared with the images."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        chain.stop()
        chain.machine = chain.lab.define(chain.xml())

    def backup(self, *options: str) -> dict[str, Any]:
        chain = self.chain
        chain.count += 1
        done = chain.run(*options).document
        output = chain.tmp_path / f"out{chain.count}"
        chain.command("-q", "restore", "bases", "-r", chain.repository, "--output", output)
        compare(output / "vda.qcow2", chain.specs[0].path)
        return done


@pytest.fixture
def layered(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Chain:
    """A disk of three layers, each with different data; somebody else made the two below."""
    base = image(tmp_path / "base.qcow2", "write -P 1 0 4M")
    middle = image(tmp_path / "middle.qcow2", "write -P 2 1M 1M", backing=base)
    image(tmp_path / "vda.qcow2", "write -P 3 2M 64k", backing=middle)
    return Chain(lab, command, repository, tmp_path, [Made(tmp_path / "vda.qcow2", size="8M")])


def rebase_to_another(directory: Path) -> None:
    other = image(directory / "other.qcow2", "write -P 9 0 4M")
    rebase(directory / "vda.qcow2", other)


def rebase(path: Path, backing: Path) -> None:
    subprocess.run(["qemu-img", "rebase", "-u", "-b", str(backing), "-F", "qcow2", str(path)], check=True)


def move_another_to_its_name(directory: Path) -> None:
    image(directory / "other.qcow2", "write -P 9 1M 1M", backing=directory / "base.qcow2")
    (directory / "other.qcow2").replace(directory / "middle.qcow2")


def drop_the_middle(directory: Path) -> None:
    rebase(directory / "vda.qcow2", directory / "base.qcow2")


def write_to_the_middle(directory: Path) -> None:
    write(directory / "middle.qcow2", "write -P 9 3M 64k")


def write_to_the_lowest(directory: Path) -> None:
    write(directory / "base.qcow2", "write -P 9 3M 64k")


CHANGES = (rebase_to_another, move_another_to_its_name, drop_the_middle, write_to_the_middle, write_to_the_lowest)


@pytest.mark.parametrize("change", CHANGES)
def test_change_below_the_bitmaps_costs_a_full(layered: Chain, change: Callable[[Path], None]) -> None:
    """While the domain is off, and the next backup is made off too."""
    full = layered.backup()
    off = Off(layered)
    change(layered.tmp_path)
    refused = layered.run("--level", "incremental", status=6)
    assert f"Disk vda: no incremental backup is possible: backup {full['id']} had " in refused.stderr
    assert levels(off.backup()) == FULL


def test_change_between_two_backups_while_off_and_before_a_start_costs_fulls(layered: Chain) -> None:
    off, lowest = Off(layered), layered.tmp_path / "base.qcow2"
    off.backup()
    write(layered.specs[0].path, "write -P 4 5M 64k")
    assert levels(off.backup()) == INCREMENTAL
    write(lowest, "write -P 7 3M 64k")
    assert levels(off.backup()) == FULL
    write(lowest, "write -P 8 3584k 64k")
    layered.machine.handle.domain.create()
    done = layered.backup()
    assert levels(done) == FULL
    assert reasons(done)["vda"].endswith(f"had {lowest} below, which was written to since")
    assert levels(layered.backup()) == INCREMENTAL


@pytest.mark.parametrize("change", CHANGES)
def test_change_below_the_bitmaps_before_a_start_costs_a_full(layered: Chain, change: Callable[[Path], None]) -> None:
    layered.backup()
    layered.stop()
    change(layered.tmp_path)
    layered.machine = layered.lab.start(layered.xml())
    layered.machine.write("vda", "write -P 4 5M 64k")
    assert levels(layered.backup()) == FULL


@pytest.mark.parametrize(("name", "starts"), crossed(["middle", "base"], [False, True]))
def test_layer_that_was_overwritten_and_given_back_its_time_costs_a_full(
    layered: Chain, name: str, *, starts: bool
) -> None:
    """While the domain is off. Only ctime and the content show it."""
    layered.backup()
    off, path = Off(layered), layered.tmp_path / f"{name}.qcow2"
    overwrite(path, "write -P 9 1M 64k")
    refused = layered.run("--level", "incremental", status=6)
    said = f"had {path} below, which was overwritten since, and given back its time of modification"
    assert said in refused.stderr
    if starts:
        layered.machine.handle.domain.create()
    done = layered.backup() if starts else off.backup()
    assert levels(done) == FULL
    assert reasons(done)["vda"].endswith(said)
    assert levels(layered.backup() if starts else off.backup()) == INCREMENTAL


def test_raw_file_below_and_data_file_below_that_were_overwritten_cost_a_full(
    lab: Lab, command: Command, repository: Path, tmp_path: Path, read: list[str]
) -> None:
    raw, data = tmp_path / "base.raw", tmp_path / "data.raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", str(raw), "8M"], check=True)
    write(raw, "write -P 1 0 2M", image_format="raw")
    middle, top = tmp_path / "middle.qcow2", tmp_path / "vda.qcow2"
    # A raw data file stands for all that is there, so it has no backing file.
    argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
    subprocess.run([*argv, "-o", f"data_file={data}", "-b", str(raw), "-F", "raw", str(middle), "8M"], check=True)
    write(middle, "write -P 2 1M 1M")
    image(top, "write -P 3 2M 64k", backing=middle)
    chain = Chain(lab, command, repository, tmp_path, [Made(top, size="8M")])
    chain.backup()
    off = Off(chain)
    for path, place in ((raw, "512k"), (data, "64k")):
        overwrite(path, f"write -P 9 {place} 4k", image_format="raw")
        done = off.backup()
        assert levels(done) == FULL
        assert f"had {path} below, which was overwritten since" in reasons(done)["vda"]
        assert levels(off.backup()) == INCREMENTAL
    # Each of the three once at first; then what was touched, to compare it.
    assert sorted(read) == sorted(["base.raw", "data.raw", "middle.qcow2", "base.raw", "data.raw"])


def test_layer_that_was_overwritten_before_a_full_is_compared_with_that(layered: Chain) -> None:
    layered.backup()
    off, path = Off(layered), layered.tmp_path / "base.qcow2"
    overwrite(path, "write -P 9 3M 64k")
    assert levels(off.backup("--level", "full")) == FULL
    assert levels(off.backup()) == INCREMENTAL
    path.chmod(0o640)
    assert levels(off.backup()) == INCREMENTAL


def test_data_file_that_was_overwritten_and_given_back_its_time_costs_a_full(with_data_file: Chain) -> None:
    """That of the active layer is not read: it is as large as the disk."""
    chain, data = with_data_file, with_data_file.tmp_path / "vda.raw"
    off = Off(chain)
    off.backup()
    overwrite(data, "write -P 9 3M 64k", image_format="raw")
    done = off.backup()
    assert levels(done) == FULL
    assert f"had the data file {data}: " in reasons(done)["vda"]
    assert levels(off.backup()) == INCREMENTAL


def test_layer_that_changes_at_the_moment_ends_the_backup(layered: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    layered.backup()
    before = layered.machine.state()

    def send(*arguments: Any) -> None:
        os.utime(layered.tmp_path / "base.qcow2")  # as a program does that does not heed QEMU's locks
        really_send(*arguments)

    really_send = backup.send
    with monkeypatch.context() as patch:
        patch.setattr(backup, "send", send)
        refused = layered.run(status=8)
    assert f"Disk vda: {layered.tmp_path}/base.qcow2 was changed while the backup began" in refused.stderr
    assert layered.machine.state() == before
    assert levels(layered.backup()) == INCREMENTAL


def test_file_that_was_moved_to_the_name_of_a_layer_while_qemu_runs_is_noticed_after_it(layered: Chain) -> None:
    """QEMU goes on with the file that it has open, and the backup too; what lies under the name proves nothing."""
    layered.backup()
    move_another_to_its_name(layered.tmp_path)
    layered.machine.write("vda", "write -P 4 5M 64k")
    assert levels(layered.backup()) == INCREMENTAL
    layered.restart()
    done = layered.backup()
    assert levels(done) == FULL
    assert "middle.qcow2 below, and nothing proves that this was not changed since" in reasons(done)["vda"]


def test_disk_that_was_detached_while_a_layer_changed_gets_a_full(layered: Chain) -> None:
    """The same QEMU process, but not the same device."""
    spec = Made(image(layered.tmp_path / "sda.qcow2", backing=layered.tmp_path / "base.qcow2"), dev="sda", bus="scsi")
    domain = layered.machine.handle.domain
    domain.attachDevice(spec.xml())
    layered.backup()
    domain.detachDevice(spec.xml())
    wait_for_detach(layered)
    other = image(layered.tmp_path / "other.qcow2", "write -P 9 0 4M")
    rebase(spec.path, other)
    domain.attachDevice(spec.xml())
    assert levels(layered.backup()) == {"vda": "incremental", "sda": "full"}


def wait_for_detach(chain: Chain) -> None:
    wait_for(lambda: "sda" not in chain.machine.handle.live_xml(), "the detach")


def test_overlay_whose_lower_layers_were_dropped_costs_a_full(chain: Chain) -> None:
    """libvirt gave the overlay the bitmap of the layer that had it at the backup; that layer is gone."""
    chain.specs = chain.specs[:1]
    chain.restart()
    chain.backup()
    overlay = snapshot(chain, "one")
    chain.specs[0] = Made(overlay, size="8M")
    chain.stop()
    subprocess.run(["qemu-img", "rebase", "-u", "-b", "", str(overlay)], check=True)
    chain.machine = chain.lab.start(chain.xml())
    chain.machine.write("vda", "write -P 4 5M 64k")
    done = chain.backup()
    assert levels(done) == FULL
    assert "nothing proves that" in reasons(done)["vda"]


# what is legitimate


def test_restarts_and_backups_while_off_stay_incremental(layered: Chain) -> None:
    """Layers below are untouched, whoever opens them."""
    layered.backup()
    for night in range(2):
        layered.machine.write("vda", f"write -P {night} 5M 64k")
        layered.restart()
        assert levels(layered.backup()) == INCREMENTAL
    off = Off(layered)
    for night in range(2):
        write(layered.specs[0].path, f"write -P 1{night} 6M 64k")
        done = off.backup()
        assert (levels(done), done["disks"][0]["copied_bytes"]) == (INCREMENTAL, 65536 + END_BYTES)
    layered.machine.handle.domain.create()
    done = layered.backup("--level", "differential")
    assert levels(done) == {"vda": "differential"}


def test_layers_whose_owner_libvirt_changes_at_each_start_cost_no_full(
    daemon: Daemon, command: Command, repository: Path, images: Path, tmp_path: Path, read: list[str]
) -> None:
    """libvirtd gives the images to QEMU's user, which is not root, in a separate mount namespace.

    The file below is read once for the first backup, and once after it was touched.
    """
    base = image(images / "base.qcow2", "write -P 1 0 4M")
    spec = Made(image(images / "vda.qcow2", backing=base))
    machine = daemon.define(domain_xml("owners", [spec.xml()]))

    def backup() -> dict[str, Any]:
        done = command("-c", daemon.uri, "-q", "backup", "owners", "-r", repository, "--json").document
        layers = done["disks"][0]["chain"]["layers"]
        assert [layer["file"].keys() for layer in layers] == [PROVEN, PROVEN | {"digest"}]
        return levels(done)

    assert backup() == FULL
    for night in range(2):
        before = base.stat().st_ctime_ns
        machine.handle.domain.create()
        assert base.stat().st_ctime_ns != before
        machine.write("vda", f"write -P {night} 5M 64k")
        assert backup() == INCREMENTAL
        assert backup() == INCREMENTAL
        machine.handle.domain.destroy()
        os.chown(base, 0, 0)  # libvirt 9.0 gives it to QEMU, and leaves it so
        assert backup() == INCREMENTAL
        assert backup() == INCREMENTAL
        assert len(read) == 1 + 2 * (night + 1)
    assert set(read) == {"base.qcow2"}
    command("-q", "restore", "owners", "-r", repository, "--output", tmp_path / "out")
    compare(tmp_path / "out" / "vda.qcow2", spec.path)
    # Each start is a chance to overwrite it.
    overwrite(base, "write -P 9 2M 64k")
    machine.handle.domain.create()
    assert backup() == FULL


@pytest.mark.long
def test_layers_are_read_by_the_first_backup_and_by_no_later_one_until_they_are_touched(
    layered: Chain, read: list[str]
) -> None:
    layered.backup()
    assert sorted(read) == ["base.qcow2", "middle.qcow2"]
    base = layered.tmp_path / "base.qcow2"
    for night in range(2):
        layered.machine.write("vda", f"write -P {night} 5M 64k")
        assert levels(layered.backup()) == INCREMENTAL
        base.chmod(0o640 - night)  # as when another domain with that file starts
        assert levels(layered.backup()) == INCREMENTAL
    layered.backup("--level", "differential")
    layered.backup("--level", "copy")
    off = Off(layered)
    assert len(read) == 2
    for _night in range(2):
        assert levels(off.backup()) == INCREMENTAL
    assert read[2:] == ["base.qcow2"]
    base.chmod(0o600)
    layered.run("--level", "full", "--dry-run")
    assert len(read) == 3
    layered.machine.handle.domain.create()
    assert levels(layered.backup()) == INCREMENTAL
    assert levels(layered.backup("--level", "full")) == FULL
    assert read[3:] == ["base.qcow2"]


def test_layer_that_was_written_while_qemu_ran_is_found_out_after_a_restart(layered: Chain, read: list[str]) -> None:
    """By a program that heeds no lock, and sets back the time. QEMU has the file open, so that nothing is compared."""
    layered.backup()
    base = layered.tmp_path / "base.qcow2"
    before = base.stat()
    with base.open("r+b") as file:
        place = file.read().index(b"\1" * 65536)
        file.seek(place + 65536)
        file.write(b"\7" * 65536)
    os.utime(base, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert levels(layered.run().document) == INCREMENTAL
    layered.restart()
    done = layered.backup()
    assert levels(done) == FULL
    assert "base.qcow2 below, which was overwritten since" in reasons(done)["vda"]


@pytest.mark.parametrize("is_written", [False, True])
def test_audit_compares_what_lies_below_by_content_as_a_backup_does(
    layered: Chain, read: list[str], *, is_written: bool
) -> None:
    """The base has another ctime after a chown, and after it was overwritten."""
    layered.backup()
    layered.stop()
    base = layered.tmp_path / "base.qcow2"
    if is_written:
        overwrite(base, "write -P 9 3M 64k")
    else:
        os.chown(base, os.getuid(), os.getgid())
    layered.machine = layered.lab.start(layered.xml())
    read.clear()
    audit = ("-c", layered.lab.uri, "audit", "bases", "-r", layered.repository, "--json")
    done = layered.command(*audit, status=5 if is_written else 0)
    assert read == ["base.qcow2"]
    if is_written:
        assert "base.qcow2 below, which was overwritten since" in done.stderr
    else:
        assert done.document["verdict"] == "good"
    assert levels(layered.backup()) == (FULL if is_written else INCREMENTAL)


@pytest.mark.parametrize("level", ["incremental", "full"])
def test_manifest_without_ctime_and_digests_is_trusted_as_before(layered: Chain, read: list[str], level: str) -> None:
    """And the next backup has what it lacks."""
    first = layered.backup()
    (manifest,) = layered.repository.glob(f"*/{first['id']}/manifest.json")
    document = json.loads(manifest.read_text())
    for layer in document["disks"][0]["chain"]["layers"]:
        for name in ("ctime_ns", "digest"):
            layer["file"].pop(name, None)
    del document["digest"]
    manifest.write_text(json.dumps(document))
    off, base = Off(layered), layered.tmp_path / "base.qcow2"
    base.chmod(0o640)
    read.clear()
    assert levels(off.backup("--level", level)) == {"vda": level}
    overwrite(base, "write -P 9 2M 64k")
    assert levels(off.backup()) == FULL


def test_layer_that_vbackup_may_not_read_is_trusted_by_its_time(
    layered: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS that does not let root in. Nothing else is known of it, which is told."""
    monkeypatch.setattr(file_contents, "digest", lambda *_file, **_more: None)
    monkeypatch.setattr(file_contents, "is_denied", lambda _file: True)
    layered.backup()
    off = Off(layered)
    (layered.tmp_path / "base.qcow2").chmod(0o640)
    assert levels(off.backup()) == INCREMENTAL
    write_to_the_lowest(layered.tmp_path)
    assert levels(off.backup()) == FULL


def test_layer_that_could_not_be_read_once_costs_a_full_when_it_was_touched(
    layered: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(file_contents, "digest", lambda *_file, **_more: None)  # a read error
        layered.backup()
    off = Off(layered)
    overwrite(layered.tmp_path / "base.qcow2", "write -P 9 2M 64k")
    assert levels(off.backup()) == FULL


@pytest.mark.parametrize(("restarts", "between"), crossed([False, True], [False, True]))
def test_overlay_that_is_committed_each_night_costs_no_full(layered: Chain, *, restarts: bool, between: bool) -> None:
    """Except if the backup before was of the overlay and QEMU was restarted since: see the test below."""
    is_provable = not (restarts and between)
    layered.backup()
    for night in range(2):
        snapshot(layered, f"night{night}")
        layered.machine.write("vda", f"write -P {night} 5M 64k", "write -z 1M 64k")
        if between:
            assert levels(layered.backup()) == INCREMENTAL
        commit(layered)
        if restarts:
            layered.restart()
        layered.machine.write("vda", f"write -P 1{night} 6M 64k")
        assert levels(layered.backup()) == (INCREMENTAL if is_provable else FULL)


def test_layer_that_was_written_to_while_off_and_then_gets_the_bitmap_costs_a_full(layered: Chain) -> None:
    """The bitmap of the overlay is committed into it, and does not have what was written there before."""
    layered.backup()
    lower = layered.specs[0].path
    layered.specs[0] = Made(snapshot(layered, "night"), size="8M")
    assert levels(layered.backup()) == INCREMENTAL
    layered.stop()
    write(lower, "write -P 9 3M 64k")
    layered.machine = layered.lab.start(layered.xml())
    commit(layered)
    done = layered.backup()  # compares what is restored
    assert levels(done) == FULL
    assert "into which layers were committed since, and QEMU was restarted" in reasons(done)["vda"]


@pytest.mark.parametrize("between", [False, True])
def test_overlay_that_is_pulled_each_night_costs_no_full(layered: Chain, *, between: bool) -> None:
    """The layers below are gone then, all at once the first time."""
    layered.backup()
    for night in range(2):
        overlay = snapshot(layered, f"night{night}")
        layered.machine.write("vda", f"write -P {night} 5M 64k", "write -z 1M 64k")
        if between:
            assert levels(layered.backup()) == INCREMENTAL
        pull_all(layered)
        layered.machine.write("vda", f"write -P 1{night} 6M 64k")
        assert levels(layered.backup()) == INCREMENTAL
        layered.specs[0] = Made(overlay, size="8M")
        layered.restart()
        layered.machine.write("vda", f"write -P 2{night} 6M 64k")
        assert levels(layered.backup()) == INCREMENTAL


def test_layer_that_is_committed_into_a_shared_one_costs_no_full_while_qemu_runs(layered: Chain) -> None:
    """The middle into the lowest: QEMU writes to a layer that has no bitmap."""
    layered.backup()
    middle, base = (str(layered.tmp_path / name) for name in ("middle.qcow2", "base.qcow2"))
    layered.machine.handle.domain.blockCommit("vda", base, middle, 0, 0)
    wait_until_idle(layered)
    layered.machine.write("vda", "write -P 4 5M 64k")
    assert levels(layered.backup()) == INCREMENTAL
    layered.restart()
    assert levels(layered.backup()) == INCREMENTAL


def test_moved_image_stays_incremental(chain: Chain) -> None:
    """A copy of the whole image has its end mark, which libvirt gives to no overlay."""
    chain.backup()
    chain.stop()
    for spec in chain.specs:
        subprocess.run(["cp", str(spec.path), f"{spec.path}.moved"], check=True)
        spec.path.unlink()
    chain.specs = [Made(Path(f"{spec.path}.moved"), dev=spec.dev, size="8M") for spec in chain.specs]
    chain.machine = chain.lab.start(chain.xml())
    chain.machine.write("vda", "write -P 4 5M 64k")
    assert levels(chain.backup()) == {"vda": "incremental", "vdb": "incremental"}


def test_block_device_below_is_trusted_while_qemu_has_it_open(
    lab: Lab, command: Command, repository: Path, tmp_path: Path
) -> None:
    """Nothing proves that nobody wrote to it in the meantime: the kernel's counters miss other ways to it."""
    base = image(tmp_path / "loop.img", "write -P 1 0 4M")
    os.truncate(base, 16 << 20)
    with loop_device(base) as device:
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(device), "-F", "qcow2", str(tmp_path / "vda.qcow2")],
            check=True,
        )
        chain = Chain(lab, command, repository, tmp_path, [Made(tmp_path / "vda.qcow2", size="8M")])
        chain.backup()
        chain.machine.write("vda", "write -P 4 5M 64k")
        assert levels(chain.backup()) == INCREMENTAL
        chain.restart()
        done = chain.backup()
        assert levels(done) == FULL
        assert f"had {device} below, and nothing proves" in reasons(done)["vda"]
        lab.clear()


def test_overlay_that_was_made_while_off_costs_a_full(layered: Chain) -> None:
    """``virsh snapshot-create-as --disk-only`` of a domain that is off runs qemu-img, which carries no bitmap over."""
    layered.backup()
    off = Off(layered)
    overlay = layered.tmp_path / "over.qcow2"
    domain = layered.machine.handle.domain
    domain.snapshotCreateXML(
        f"<domainsnapshot><disks><disk name='vda' snapshot='external'><source file='{overlay}'/></disk></disks>"
        "</domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
    )
    layered.specs[0] = Made(overlay, size="8M")
    write(overlay, "write -P 4 5M 64k")
    done = off.backup()
    assert levels(done) == FULL
    assert "made while the domain was off" in reasons(done)["vda"]
    assert levels(off.backup()) == INCREMENTAL


# formats and names that an image gives


def test_raw_backing_file_whose_format_is_not_recorded_is_backed_up_off(
    lab: Lab, command: Command, repository: Path, tmp_path: Path
) -> None:
    """libvirt probes it and starts the domain, so it can be backed up in both states."""
    raw, vda = tmp_path / "base.raw", tmp_path / "vda.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", str(raw), "8M"], check=True)
    write(raw, "write -P 1 0 2M", image_format="raw")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(raw), "-F", "raw", str(vda)], check=True)
    vda.write_bytes(vda.read_bytes().replace(b"\xe2\x79\x2a\xca", b"\x11\x22\x33\x44", 1))
    chain = Chain(lab, command, repository, tmp_path, [Made(vda, size="8M")])
    chain.machine.write("vda", "write -P 2 1M 64k")
    chain.backup()
    off = Off(chain)
    write(vda, "write -P 3 3M 64k")
    assert levels(off.backup()) == INCREMENTAL


def test_relative_data_file_is_not_looked_up_in_the_working_directory(
    lab: Lab, command: Command, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off. There is a file of that name too where vbackup was started."""
    directory, decoy = tmp_path / "images", tmp_path / "decoy"
    for number, path in enumerate((directory, decoy)):
        path.mkdir()
        monkeypatch.chdir(path)
        image(path / "vda.qcow2", f"write -P {number} 0 8M", options=("-o", "data_file=vda.raw,data_file_raw=on"))
    lab.define(domain_xml("bases", [Made(directory / "vda.qcow2").xml()]))
    argv = ("-c", lab.uri, "-q", "backup", "bases", "-r", repository, "--json")
    for number, level in enumerate(("full", "incremental")):
        assert levels(command(*argv).document) == {"vda": level}
        output = tmp_path / f"out{number}"
        command("-q", "restore", "bases", "-r", repository, "--output", output)
        compare(output / "vda.qcow2", directory / "vda.raw")


# external data files


def put_back(copy: Path, data: Path) -> None:
    data.write_bytes(copy.read_bytes())


@pytest.fixture
def with_data_file(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Chain:
    """A qcow2 disk whose content is in a raw file."""
    image(tmp_path / "vda.qcow2", "write -P 1 0 4M", options=("-o", f"data_file={tmp_path}/vda.raw,data_file_raw=on"))
    return Chain(lab, command, repository, tmp_path, [Made(tmp_path / "vda.qcow2", size="8M")])


@pytest.mark.long
def test_data_file_that_was_put_back_costs_a_full(with_data_file: Chain) -> None:
    """Running, then off: nothing in the qcow2 image shows it."""
    chain, data, earlier = with_data_file, with_data_file.tmp_path / "vda.raw", with_data_file.tmp_path / "earlier"
    put_back(data, earlier)
    chain.machine.write("vda", "write -P 2 1M 64k")
    chain.backup()
    chain.machine.write("vda", "write -P 3 2M 64k")
    assert levels(chain.backup()) == INCREMENTAL
    off = Off(chain)
    put_back(earlier, data)
    assert levels(off.backup()) == FULL
    write(chain.specs[0].path, "write -P 4 3M 64k")
    off.backup()
    put_back(earlier, data)
    done = off.backup()
    assert levels(done) == FULL
    assert f"had the data file {data}: " in reasons(done)["vda"]
    assert levels(off.backup()) == INCREMENTAL  # nothing was written in between
    put_back(earlier, data)
    chain.machine.handle.domain.create()
    assert levels(chain.backup()) == FULL


@pytest.mark.long
def test_data_file_below_an_overlay_stays_incremental_until_it_is_changed(with_data_file: Chain) -> None:
    chain, data = with_data_file, with_data_file.tmp_path / "vda.raw"
    chain.backup()  # leaves bitmaps on what is a layer below from now on
    chain.stop()
    chain.specs = [Made(image(chain.tmp_path / "top.qcow2", backing=chain.tmp_path / "vda.qcow2"), size="8M")]
    chain.machine = chain.lab.start(chain.xml())
    chain.backup()
    chain.machine.write("vda", "write -P 2 1M 64k")
    chain.restart()
    assert levels(chain.backup()) == INCREMENTAL
    off = Off(chain)
    write(chain.specs[0].path, "write -P 3 2M 64k")
    assert levels(off.backup()) == INCREMENTAL
    write(data, "write -P 9 3M 64k", image_format="raw")
    assert levels(off.backup()) == FULL
    forgotten = chain.command("-c", chain.lab.uri, "forget", "bases", "-r", chain.repository, "--json").document
    assert forgotten["kept"] == []
    lower = qemu_img_info(chain.tmp_path / "vda.qcow2")
    assert "bitmaps" not in lower["format-specific"]["data"]
