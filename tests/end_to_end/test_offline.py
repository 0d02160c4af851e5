"""A domain that is off: the same chain goes on through a storage daemon, byte for byte, and nothing of it stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests import documents
from tests.daemon import Daemon, wait_for
from tests.end_to_end.chains import END_BYTES
from tests.end_to_end.test_daemon import Running
from tests.end_to_end.test_faults import break_target
from tests.filesystem import loop_device
from tests.lab import DiskSpec, Lab, Machine, References, compare, create_luks, domain_xml, qemu_img_info
from vbackup import errors
from vbackup.qemu import backing_chain, jobs, qemu_img
from vbackup.qemu.storage_daemon import StorageDaemon

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome

PASSPHRASE = "pässwörd, with = and spaces"


def storage_daemons(directory: Path) -> list[int]:
    """The storage daemons that have a file below the directory open; others on this machine are none of ours."""
    return [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if _reads(process / "comm") == "qemu-storage-da\n"
        and any(file.startswith(f"{directory}/") for file in _open_files(process))
    ]


def _reads(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # it has ended


def _open_files(process: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return [str(entry.readlink()) for entry in (process / "fd").iterdir()]
    return []


@pytest.fixture(autouse=True)
def _no_daemon_stays(tmp_path: Path) -> Iterator[None]:
    yield
    assert storage_daemons(tmp_path) == []


def write(path: Path, *commands: str, image_format: str = "qcow2") -> None:
    """qemu-io as any program that has the image while the domain is off; it marks persistent bitmaps too."""
    argv = ["qemu-io", "-f", image_format]
    for one in commands:
        argv += ["-c", one]
    subprocess.run([*argv, str(path)], check=True, capture_output=True)


def can_be_written(path: Path) -> bool:
    done = subprocess.run(["qemu-io", "-f", "qcow2", "-c", "read 0 1", str(path)], capture_output=True, check=False)
    return done.returncode == 0


class Backups:
    """The command for one domain and repository; each backup is restored and compared."""

    def __init__(self, uri: str, command: Command, machine: Machine, repository: Path, tmp_path: Path) -> None:
        self.uri, self.command, self.machine, self.repository = uri, command, machine, repository
        self._tmp_path = tmp_path
        self._count = 0

    def __call__(self, *options: str, status: int = 0) -> Outcome:
        argv = ["-c", self.uri, "-q", "backup", self.machine.name, "-r", self.repository, "--json", *options]
        return self.command(*argv, status=status)

    def restore(self, *options: str) -> Path:
        self._count += 1
        output = self._tmp_path / f"restored-{self._count}"
        argv = ["-q", "restore", self.machine.name, "-r", self.repository, "--output", output, "--no-checkpoint"]
        self.command(*argv, *options)
        return output

    def off(self, *specs: DiskSpec, options: tuple[str, ...] = ()) -> dict[str, Any]:
        """Back up while it is off. The reference is a copy of the image made before; the backup changes no byte."""
        assert not self.machine.handle.is_active()
        before = {spec.dev: self._reference(spec) for spec in specs}
        done = self(*options).document
        assert (done["consistency"], done["frozen_ms"]) == ("offline", 0)
        restored = self.restore("--backup", done["id"])
        for spec in specs:
            compare(restored / f"{spec.dev}.qcow2", before[spec.dev])
            compare(self._reference(spec), before[spec.dev])
        return done

    def on(self) -> dict[str, Any]:
        references = References(self._tmp_path / f"references-{self._count}")
        with pytest.MonkeyPatch.context() as patch, references.taken(patch):
            done = self().document
        images = references.finish(self.machine)
        restored = self.restore()
        for disk in done["disks"]:
            compare(restored / disk["file"], images[disk["node_name"]])
        return done

    def _reference(self, spec: DiskSpec) -> Path:
        self._count += 1
        path = self._tmp_path / f"reference-{self._count}.qcow2"
        argv = ["qemu-img", "convert", "-f", spec.format, "-O", "qcow2", str(spec.path), str(path)]
        subprocess.run(argv, check=True)
        return path

    def entries(self) -> list[str]:
        directory = self.repository / self.machine.handle.uuid
        return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


@pytest.fixture
def specs(tmp_path: Path) -> list[DiskSpec]:
    return [DiskSpec(tmp_path / "vda.qcow2"), DiskSpec(tmp_path / "vdb.qcow2", dev="vdb")]


@pytest.fixture
def machine(lab: Lab, specs: list[DiskSpec]) -> Machine:
    """Two disks with data."""
    machine = lab.boot("offline", specs)
    for spec in specs:
        machine.write(spec.dev, "write -P 1 0 4M")
    return machine


@pytest.fixture
def backups(lab: Lab, command: Command, machine: Machine, repository: Path, tmp_path: Path) -> Backups:
    return Backups(lab.uri, command, machine, repository, tmp_path)


def facts(done: dict[str, Any]) -> list[tuple[str, str | None, int]]:
    return [
        (disk["level"], disk["base"], disk["copied_bytes"] - (END_BYTES if disk["base"] else 0))
        for disk in done["disks"]
    ]


def define_off(lab: Lab, name: str, specs: list[DiskSpec], *disks: str) -> Machine:
    """A domain that was never started; its images are there."""
    return lab.define(domain_xml(name, [*(spec.xml() for spec in specs), *disks]))


# the chain


def test_chain_goes_on_from_on_to_off_and_back(backups: Backups, machine: Machine, specs: list[DiskSpec]) -> None:
    vda, vdb = specs
    full = backups.on()
    machine.write("vda", "write -P 2 1M 128k", "write -z 2M 64k")
    machine.destroy()
    write(vdb.path, "write -P 3 8M 64k", "discard 0 1M")
    one = backups.off(*specs)
    assert facts(one) == [("incremental", full["id"], 3 * 65536), ("incremental", full["id"], 17 * 65536)]

    write(vda.path, "write -P 4 16M 64k")
    two = backups.off(*specs)
    assert facts(two) == [("incremental", one["id"], 65536), ("incremental", one["id"], 0)]

    write(vda.path, "write -P 5 17M 64k")
    machine.handle.domain.create()
    machine.write("vda", "write -P 6 18M 64k")
    three = backups.on()
    assert facts(three) == [("incremental", two["id"], 2 * 65536), ("incremental", two["id"], 0)]
    assert {len(names) for names in machine.bitmaps().values()} == {3}  # the full's, the newest's, the end mark

    machine.destroy()
    differential = backups.off(*specs, options=("--level", "differential"))
    assert [(disk["level"], disk["base"]) for disk in differential["disks"]] == [("differential", full["id"])] * 2
    for spec in specs:
        stored = qemu_img_info(spec.path)["format-specific"]["data"]["bitmaps"]
        # An end mark is disabled.
        assert sorted(tuple(bitmap["flags"]) for bitmap in stored) == [(), ("auto",), ("auto",)]


def test_first_backup_of_a_domain_that_was_never_started(
    lab: Lab, command: Command, repository: Path, specs: list[DiskSpec], tmp_path: Path
) -> None:
    for spec in specs:
        spec.create()
        write(spec.path, "write -P 1 0 1M")
    machine = define_off(lab, "never", specs)
    backups = Backups(lab.uri, command, machine, repository, tmp_path)
    full = backups.off(*specs)
    assert full["level"] == "full"
    machine.handle.domain.create()
    machine.write("vda", "write -P 2 0 64k")
    assert facts(backups.on()) == [("incremental", full["id"], 65536), ("incremental", full["id"], 0)]


def test_dry_run_and_copy_leave_the_images_as_they_were(
    backups: Backups, machine: Machine, specs: list[DiskSpec]
) -> None:
    full = backups.on()
    machine.destroy()
    write(specs[0].path, "write -P 2 0 64k")
    before = [qemu_img_info(spec.path)["format-specific"] for spec in specs]
    plan = backups("--dry-run").document
    assert [disk["base"] for disk in plan["disks"]] == [full["id"]] * 2
    assert backups.entries() == [full["id"], "domain.json", "lock"]
    copy = backups("--level", "copy").document
    assert copy["level"] == "copy"
    assert [qemu_img_info(spec.path)["format-specific"] for spec in specs] == before
    assert facts(backups.off(*specs)) == [("incremental", full["id"], 65536), ("incremental", full["id"], 0)]


def test_quiesce_is_satisfied_by_a_guest_that_does_not_run(
    backups: Backups, machine: Machine, specs: list[DiskSpec]
) -> None:
    machine.destroy()
    assert backups.off(*specs, options=("--quiesce", "required"))["level"] == "full"


def test_saved_memory_is_not_in_the_backup_and_the_guest_goes_on_from_it(
    backups: Backups, machine: Machine, specs: list[DiskSpec]
) -> None:
    full = backups.on()
    machine.write("vda", "write -P 2 0 64k")
    machine.handle.domain.managedSave(0)
    done = backups()
    assert "managed save" in done.stderr
    assert done.document["consistency"] == "crash"
    assert facts(done.document) == [("incremental", full["id"], 65536), ("incremental", full["id"], 0)]
    machine.handle.domain.create()
    machine.write("vda", "write -P 3 1M 64k")
    assert facts(backups.on()) == [("incremental", done.document["id"], 65536), ("incremental", done.document["id"], 0)]


def test_external_snapshot_made_while_on_and_backed_up_while_off(
    backups: Backups, machine: Machine, specs: list[DiskSpec], tmp_path: Path
) -> None:
    full = backups.on()
    machine.write("vda", "write -P 2 1M 64k")
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    overlays = [DiskSpec(tmp_path / f"{spec.dev}.snap", dev=spec.dev) for spec in specs]
    disks = "".join(f"<disk name='{one.dev}'><source file='{one.path}'/></disk>" for one in overlays)
    machine.handle.domain.snapshotCreateXML(f"<domainsnapshot><disks>{disks}</disks></domainsnapshot>", flags)
    machine.write("vda", "write -P 3 2M 64k")
    machine.destroy()
    write(overlays[0].path, "write -P 4 3M 64k")
    one = backups.off(*overlays)
    assert facts(one) == [("incremental", full["id"], 3 * 65536), ("incremental", full["id"], 0)]
    machine.handle.domain.create()
    machine.write("vda", "write -P 5 4M 64k")
    assert facts(backups.on()) == [("incremental", one["id"], 65536), ("incremental", one["id"], 0)]


# disks of every kind


def test_raw_disk_and_block_device_are_copied_whole(
    lab: Lab, command: Command, repository: Path, tmp_path: Path
) -> None:
    raw = DiskSpec(tmp_path / "raw.raw", format="raw", size="16M")
    raw.create()
    qcow2 = DiskSpec(tmp_path / "vdb.qcow2", dev="vdb")
    qcow2.create()
    write(raw.path, "write -P 1 1M 1M", image_format="raw")
    machine = define_off(lab, "raw", [raw, qcow2])
    backups = Backups(lab.uri, command, machine, repository, tmp_path)
    one = backups.off(raw, qcow2)
    assert [disk["bitmap"] is None for disk in one["disks"]] == [True, False]
    two = backups.off(raw, qcow2)
    assert [disk["level"] for disk in two["disks"]] == ["full", "incremental"]
    assert two["disks"][0]["reason"] == "QEMU keeps no bitmap in a raw image while the domain is off"
    refused = backups("--level", "incremental", status=6)
    assert "QEMU keeps no bitmap in a raw image" in refused.stderr
    machine.handle.domain.create()
    on = backups.on()
    assert [disk["level"] for disk in on["disks"]] == ["full", "incremental"]
    machine.write("vda", "write -P 2 0 64k")
    assert facts(backups.on()) == [("incremental", on["id"], 65536), ("incremental", on["id"], 0)]


def test_block_device_of_the_host(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> None:
    backing = tmp_path / "loop.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(backing), "16M"], check=True)
    with backing.open("r+b") as file:
        file.truncate(32 << 20)  # room for the image to grow in
    with loop_device(backing) as device:
        spec = DiskSpec(device, kind="block")
        machine = define_off(lab, "block", [spec])
        backups = Backups(lab.uri, command, machine, repository, tmp_path)
        full = backups.off(spec, options=("--exclusive",))
        write(spec.path, "write -P 1 1M 64k")
        assert facts(backups.off(spec, options=("--exclusive",))) == [("incremental", full["id"], 65536)]


def test_what_is_no_disk_of_the_backup_is_not_opened(
    lab: Lab, command: Command, repository: Path, tmp_path: Path
) -> None:
    spec = DiskSpec(tmp_path / "vda of 'ünïcode' & <words>.qcow2")
    spec.create()
    left = [
        "<disk type='file' device='cdrom'><source file='/no/cd.iso'/><target dev='hda' bus='ide'/></disk>",
        "<disk type='file' device='disk'><source file='/no/ro'/><target dev='vdb' bus='virtio'/><readonly/></disk>",
    ]
    nbd = (
        "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='x'>"
        "<host name='127.0.0.1' port='1'/></source><target dev='vdc' bus='virtio'/></disk>"
    )
    gone = DiskSpec(tmp_path / "gone.qcow2", dev="vdd")
    machine = define_off(lab, "left", [spec, gone], *left, nbd)
    backups = Backups(lab.uri, command, machine, repository, tmp_path)
    failed = backups(status=5)
    assert "Disk vdc: it cannot be read while the domain is off: its type is network" in failed.stderr
    assert "--exclude-disk vdc" in failed.stderr
    assert json.loads(failed.stdout)["error"] == "DiskError"
    failed = backups("--exclude-disk", "vdc", status=5)
    assert f"Disk vdd: it cannot be read while the domain is off: the image {gone.path} cannot be" in failed.stderr
    assert backups.entries() == []
    done = backups.off(spec, options=("--exclude-disk", "vdc", "vdd"))
    assert [disk["dev"] for disk in done["disks"]] == ["vda"]
    assert [left["dev"] for left in done["left_out"]] == ["vdb", "hda", "vdc", "vdd"]


def luks(directory: Path) -> tuple[Path, Path]:
    """An image of either kind: encrypted within qcow2, and LUKS around a raw disk."""
    file = directory / "passphrase"
    file.write_text(PASSPHRASE)
    paths = directory / "luks.qcow2", directory / "luks.raw"
    for path in paths:
        create_luks(path, passphrase=file, size="8M")
    return paths


def luks_disks(paths: tuple[Path, Path], secrets: tuple[str, str]) -> list[str]:
    """Their <disk> elements; each secret as attributes of <secret>."""
    return [
        f"<disk type='file' device='disk'><driver name='qemu' type='{image_format}'/><source file='{path}'>"
        f"<encryption format='luks'><secret type='passphrase' {secret}/></encryption></source>"
        f"<target dev='{dev}' bus='virtio'/></disk>"
        for dev, path, image_format, secret in zip(("vda", "vdb"), paths, ("qcow2", "raw"), secrets)
    ]


def luks_options(path: Path) -> str:
    """As QEMU's tools want an encrypted image described."""
    if path.suffix == ".qcow2":
        return f"driver=qcow2,file.filename={path},encrypt.format=luks,encrypt.key-secret=s"
    return f"driver=luks,file.filename={path},key-secret=s"


def write_luks(path: Path, command: str) -> None:
    secret = ["--object", f"secret,id=s,file={path.parent / 'passphrase'}"]
    argv = ["qemu-io", *secret, "--image-opts", "-c", command, luks_options(path)]
    subprocess.run(argv, check=True, capture_output=True)


def plain(path: Path) -> Path:
    secret = ["--object", f"secret,id=s,file={path.parent / 'passphrase'}"]
    output = path.with_suffix(".plain")
    argv = ["qemu-img", "convert", *secret, "--image-opts", luks_options(path), "-O", "qcow2", str(output)]
    subprocess.run(argv, check=True)
    return output


def test_encrypted_disks_of_both_kinds(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> None:
    paths = luks(tmp_path)
    by_usage = f"<usage type='volume'><volume>{paths[1]}</volume></usage>"
    # They go with the lab: libvirt 9.0 crashes where an embedded secret is undefined.
    made = [lab.secrets.secretDefineXML(f"<secret ephemeral='no'>{usage}</secret>") for usage in ("", by_usage)]
    attributes = (f"uuid='{made[0].UUIDString()}'", f"usage='{paths[1]}'")
    machine = lab.define(domain_xml("luks", luks_disks(paths, attributes)))
    backups = Backups(lab.uri, command, machine, repository, tmp_path)
    refused = backups(status=5)
    assert f"Disk vda: libvirt has no value for secret {made[0].UUIDString()}" in refused.stderr
    assert errors.command("virsh secret-set-value", lab.uri) in refused.stderr
    made[0].setValue(PASSPHRASE.encode(), 0)
    made[1].setValue(b"another one", 0)
    refused = backups(status=5)
    assert f"Disk vdb: its image {paths[1]} cannot be opened: Invalid password" in refused.stderr
    made[1].setValue(PASSPHRASE.encode(), 0)

    for path in paths:
        write_luks(path, "write -P 1 1M 1M")
    loud = command("-c", lab.uri, "-v", "backup", "luks", "-r", repository, "--json")
    full = loud.document
    assert "Disk vda is encrypted on this host; its image in the repository is not" in loud.stderr
    assert "object-add" in loud.stderr
    assert "wörd" not in loud.stderr
    assert "w\\u00f6rd" not in loud.stderr
    write_luks(paths[0], "write -P 2 2M 64k")
    done = backups().document
    assert facts(done)[0] == ("incremental", full["id"], 65536)
    assert done["disks"][1]["reason"] == "QEMU keeps no bitmap in a luks image while the domain is off"
    output = backups.restore()
    for disk, path in zip(done["disks"], paths):
        assert disk["encrypted"]
        compare(output / disk["file"], plain(path))


# faults


@pytest.mark.parametrize(("errno", "status", "said"), [(5, 7, "Input/output error"), (28, 7, "no space left")])
def test_one_of_two_disks_failing_undoes_both(
    backups: Backups, machine: Machine, specs: list[DiskSpec], errno: int, status: int, said: str
) -> None:
    full = backups.on()
    machine.destroy()
    for spec in specs:
        write(spec.path, "write -P 2 1M 2M")
    before = [qemu_img_info(spec.path)["format-specific"] for spec in specs]
    with pytest.MonkeyPatch.context() as patch:
        break_target(patch, "vdb", errno, StorageDaemon)
        failed = backups("--level", "incremental", status=status)
    assert "Disk vdb" in failed.stderr
    assert said in failed.stderr
    assert [qemu_img_info(spec.path)["format-specific"] for spec in specs] == before
    assert backups.entries() == [full["id"], "domain.json", "lock"]
    assert facts(backups.off(*specs)) == [("incremental", full["id"], 2 << 20)] * 2


def test_killed_storage_daemon_costs_a_full(backups: Backups, machine: Machine, specs: list[DiskSpec]) -> None:
    full = backups.on()
    machine.destroy()
    original = jobs.run

    def kill_and_run(monitor: Any, *args: Any, **kwargs: Any) -> Any:
        os.kill(monitor.pid, signal.SIGKILL)
        return original(monitor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "run", kill_and_run)
        failed = backups(status=1)
    assert failed.stderr.count("\n") == 1
    assert "qemu-storage-daemon was killed by SIGKILL. Nothing was kept" in failed.stderr
    assert backups.entries() == [full["id"], "domain.json", "lock"]
    again = backups.off(*specs)
    assert {disk["level"] for disk in again["disks"]} == {"full"}
    assert "is inconsistent (QEMU did not close the image)" in again["disks"][0]["reason"]


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_domain_cannot_be_started_into_its_backup(
    lab: Lab, command: Command, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_format: str
) -> None:
    spec = DiskSpec(tmp_path / f"vda.{image_format}", format=image_format)
    spec.create()
    write(spec.path, "write -P 1 0 1M", image_format=image_format)
    machine = define_off(lab, "started", [spec])
    backups = Backups(lab.uri, command, machine, repository, tmp_path)
    original = jobs.run
    told: list[str] = []

    def start_and_run(*args: Any, **kwargs: Any) -> Any:
        with pytest.raises(libvirt.libvirtError) as caught:
            machine.handle.domain.create()
        told.append(str(caught.value))
        return original(*args, **kwargs)

    monkeypatch.setattr(jobs, "run", start_and_run)
    backups.off(spec)
    assert len(told) == 1
    assert f'Failed to get "write" lock\nIs another process using the image [{spec.path}]?' in told[0]
    machine.handle.domain.create()


@pytest.mark.parametrize(("image_format", "step"), [("qcow2", "images_of"), ("raw", "images_of"), ("raw", "create")])
def test_domain_that_was_started_meanwhile_is_told(
    lab: Lab, command: Command, repository: Path, tmp_path: Path, image_format: str, step: str
) -> None:
    """Before its images are opened; or after, as long as a raw one is not locked yet."""
    spec = DiskSpec(tmp_path / f"vda.{image_format}", format=image_format)
    spec.create()
    machine = define_off(lab, "meanwhile", [spec])
    backups = Backups(lab.uri, command, machine, repository, tmp_path)
    module: Any = {"images_of": backing_chain, "create": qemu_img}[step]
    original = getattr(module, step)

    def start_first(*args: Any, **kwargs: Any) -> Any:
        machine.handle.domain.create()
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, step, start_first)
        refused = backups(status=8)
    assert "been started" in refused.stderr
    assert "run the same command again" in refused.stderr
    assert backups.entries() == []
    machine.write("vda", "write -P 1 0 64k")
    assert backups.on()["consistency"] == "crash"


def test_bitmap_that_finds_no_room_in_its_filesystem_is_warned_of(
    lab: Lab, command: Command, repository: Path, tmp_path: Path, small_filesystem: Path
) -> None:
    """The backup itself is complete by then."""
    spec = DiskSpec(small_filesystem / "vda.qcow2")
    spec.create()
    write(spec.path, "write -P 1 0 1M")
    machine = define_off(lab, "room", [spec])
    backups = Backups(lab.uri, command, machine, repository, tmp_path)
    original = jobs.run

    def run_and_fill(*args: Any, **kwargs: Any) -> Any:
        copied = original(*args, **kwargs)
        with (small_filesystem / "filler").open("wb") as file, contextlib.suppress(OSError):
            while True:
                os.write(file.fileno(), bytes(4096))
        return copied

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "run", run_and_fill)
        done = backups()
    assert "qemu-storage-daemon reported while closing the images" in done.stderr
    assert "No space left on device" in done.stderr
    (small_filesystem / "filler").unlink()
    again = backups.off(spec)
    assert again["disks"][0]["reason"] == f"checkpoint {done.document['id']} is missing from the image"


# with a libvirtd


@pytest.fixture
def defined(daemon: Daemon, images: Path) -> Machine:
    """A domain that is off: two disks with 16 MiB of data each, so that a job at 2 MiB/s takes its time."""
    made = [DiskSpec(images / "vda.qcow2"), DiskSpec(images / "vdb.qcow2", dev="vdb")]
    for spec in made:
        spec.create()
        write(spec.path, "write -P 1 0 16M")
    return daemon.define(domain_xml("offline", [spec.xml() for spec in made]))


def start_slow_backup(machine: Machine, daemon: Daemon, repository: Path, *options: str) -> Running:
    """A backup in a separate process, until its jobs copy."""
    argv = ("-c", daemon.uri, "backup", machine.name, "-r", repository, "--json", "--progress", "json")
    running = Running(*argv, "--speed", "2M", *options)
    assert running.process.stderr is not None
    for line in running.process.stderr:
        documents.check_events(line)
        event = json.loads(line)
        if event["event"] == "progress" and 0 < event["done_bytes"] < event["total_bytes"]:
            return running
    raise AssertionError(running.wait())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_unwinds_in_seconds(
    defined: Machine, daemon: Daemon, command: Command, repository: Path, images: Path, signum: signal.Signals
) -> None:
    full = command("-c", daemon.uri, "-q", "backup", "offline", "-r", repository, "--json").document
    paths = [images / "vda.qcow2", images / "vdb.qcow2"]
    for path in paths:
        write(path, "write -P 2 0 16M")
    before = [qemu_img_info(path)["format-specific"] for path in paths]
    running = start_slow_backup(defined, daemon, repository)
    assert len(storage_daemons(images)) == 1
    running.process.send_signal(signum)
    status, _out, err = running.wait(timeout_s=20)
    assert status == 128 + signum
    assert f"Stopped by {signum.name}" in err
    assert storage_daemons(images) == []
    assert [qemu_img_info(path)["format-specific"] for path in paths] == before
    assert entries(repository) == [full["id"], "domain.json", "lock"]
    again = command("-c", daemon.uri, "-q", "backup", "offline", "-r", repository, "--json").document
    assert facts(again) == [("incremental", full["id"], 16 << 20)] * 2


def test_killed_run_leaves_no_daemon_and_is_cleared_away_by_the_next(
    defined: Machine, daemon: Daemon, command: Command, repository: Path, images: Path
) -> None:
    full = command("-c", daemon.uri, "-q", "backup", "offline", "-r", repository, "--json").document
    paths = [images / "vda.qcow2", images / "vdb.qcow2"]
    for path in paths:
        write(path, "write -P 2 0 16M")
    running = start_slow_backup(defined, daemon, repository)
    assert len(storage_daemons(images)) == 1
    running.process.kill()
    running.wait()
    wait_for(lambda: not storage_daemons(images), "the end of the storage daemon")
    assert all(can_be_written(path) for path in paths)
    again = command("-c", daemon.uri, "backup", "offline", "-r", repository, "--json")
    assert again.stderr.count("left by an interrupted backup") == 2  # the new checkpoint's bitmaps
    assert facts(again.document) == [("incremental", full["id"], 16 << 20)] * 2
    for path in paths:
        assert len(qemu_img_info(path)["format-specific"]["data"]["bitmaps"]) == 3
    assert not [name for name in entries(repository) if name.endswith(".partial")]


def test_restart_of_libvirtd_does_not_matter(
    defined: Machine, daemon: Daemon, command: Command, repository: Path
) -> None:
    running = start_slow_backup(defined, daemon, repository, "--speed", "12M")
    daemon.kill()
    status, out, err = running.wait()
    daemon.restart()
    daemon.host.reopen()
    assert status == 0, err
    assert json.loads(out)["consistency"] == "offline"


def test_domain_that_is_off_on_another_host_is_refused(
    defined: Machine, daemon: Daemon, command: Command, repository: Path
) -> None:
    refused = command("-c", daemon.tcp_uri, "backup", "offline", "-r", repository, status=5)
    assert "Domain offline is off, and its images are on another host, which is not reached by SSH" in refused.stderr


def test_private_secret_is_told(daemon: Daemon, command: Command, repository: Path, images: Path) -> None:
    paths = luks(images)
    secret = daemon.secret("<secret ephemeral='no' private='yes'/>", PASSPHRASE.encode())
    daemon.define(domain_xml("private", luks_disks(paths, (f"uuid='{secret}'", f"uuid='{secret}'"))))
    refused = command("-c", daemon.uri, "-q", "backup", "private", "-r", repository, status=5)
    assert f"Disk vda: libvirt does not disclose secret {secret} (private='yes')" in refused.stderr


def test_volume_and_encrypted_disks_that_an_unprivileged_qemu_had(
    daemon: Daemon, command: Command, repository: Path, images: Path, tmp_path: Path
) -> None:
    paths = luks(images)
    secret = daemon.secret("<secret ephemeral='no' private='no'/>", PASSPHRASE.encode())
    disks = luks_disks(paths, (f"uuid='{secret}'", f"uuid='{secret}'"))
    pool = daemon.host.connection.storagePoolCreateXML(
        f"<pool type='dir'><name>vbackup-off</name><target><path>{images}</path></target></pool>"
    )
    pool.createXML(
        "<volume><name>v.qcow2</name><capacity unit='M'>16</capacity>"
        "<target><format type='qcow2'/><compat>1.1</compat></target></volume>"
    )
    disks.append(
        "<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/>"
        "<source pool='vbackup-off' volume='v.qcow2'/><target dev='vdc' bus='virtio'/></disk>"
    )
    machine = daemon.define(domain_xml("volumes", disks))
    backups = Backups(daemon.uri, command, machine, repository, tmp_path)
    machine.handle.domain.create()
    for dev in ("vda", "vdb", "vdc"):
        machine.write(dev, "write -P 1 1M 1M")
    full = backups().document
    machine.write("vda", "write -P 2 2M 64k")
    machine.destroy()
    done = backups().document
    assert facts(done)[0] == ("incremental", full["id"], 65536)
    assert facts(done)[2] == ("incremental", full["id"], 0)
    output = backups.restore()
    for dev, path in zip(("vda", "vdb"), paths):
        compare(output / f"{dev}.qcow2", plain(path))
    compare(output / "vdc.qcow2", images / "v.qcow2")
    # The images are QEMU's again as they were before.
    machine.handle.domain.create()
    machine.write("vda", "write -P 3 3M 64k")
    assert facts(backups().document)[0] == ("incremental", done["id"], 65536)


def entries(repository: Path) -> list[str]:
    """What is in the repository's domain directories."""
    return sorted(path.name for directory in repository.iterdir() if directory.is_dir() for path in directory.iterdir())
