"""Disks are restored to volumes of libvirt's storage pools: written by path, compared as bytes, known to libvirt."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.daemon import wait_for
from tests.end_to_end.test_destinations import raw
from tests.filesystem import loop_device
from tests.lab import DiskSpec
from tests.lab import domain_xml as of_disks
from tests.recorded import MIB, Recorded, story
from tests.unit.builders import Recorder
from tests.unit.domain.test_pools import FakePool, Volume, opened
from vbackup import errors
from vbackup.domain import defining, domain_xml
from vbackup.errors import MonitorError
from vbackup.images import restoring
from vbackup.model import ImageFormat
from vbackup.operations import restore
from vbackup.operations.restore import RestoreRequest
from vbackup.repository import verify
from vbackup.repository.choice import Wanted as Choose
from vbackup.stop import Stop

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.daemon import Daemon


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return story(tmp_path_factory.mktemp("pools") / "repository")


@pytest.fixture
def pool(daemon: Daemon, images: Path) -> Any:
    """A pool of files."""
    xml = f"<pool type='dir'><name>files of ours</name><target><path>{images}</path></target></pool>"
    return daemon.host.connection.storagePoolCreateXML(xml)


@pytest.mark.parametrize("image_format", ImageFormat)
def test_volumes_of_a_directory(
    recorded: Recorded, daemon: Daemon, command: Command, pool: Any, images: Path, tmp_path: Path,
    image_format: ImageFormat,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    done = command(
        "-c", daemon.uri, "restore", "web", "-r", recorded.repository.path, "--output", out, "--pool", pool.name(),
        "--format", image_format.value, "--json",
    ).document  # fmt: skip
    end = ".qcow2" if image_format is ImageFormat.QCOW2 else ""
    names = [f"web-{dev}{end}" for dev in ("vda", "vdb")]
    assert sorted(pool.listVolumes()) == names
    expected = recorded.expected(recorded.backups[-1])
    disks = {disk["dev"]: disk for disk in done["disks"]}
    for dev, name in zip(("vda", "vdb"), names):
        assert (disks[dev]["volume"], disks[dev]["file"], disks[dev]["type"]) == (name, str(images / name), "file")
        assert raw(images / name, image_format) == expected[dev]
        assert disks[dev]["checkpoint"] == (image_format is ImageFormat.QCOW2)
        volume = pool.storageVolLookupByName(name)
        assert volume.info()[1] == len(expected[dev])
    text = (out / "domain.xml").read_text()
    assert {one.dev: one.path for one in domain_xml.parse(text).disks} == {
        dev: str(images / name) for dev, name in zip(("vda", "vdb"), names)
    }
    assert sorted(path.name for path in out.iterdir()) == ["domain.xml", "nvram"]
    again = command(
        "-c", daemon.uri, "restore", "web", "-r", recorded.repository.path, "--output", tmp_path / "other",
        "--pool", pool.name(), "--format", image_format.value, status=7,
    ).stderr  # fmt: skip
    assert f"already has the volumes {', '.join(names)}, and" in again
    for name in names:
        assert f"vol-delete --pool 'files of ours' {name}" in again


class LoopVolume(Volume):
    """A logical volume that is a loop device; kernels of containers often have no LVM."""

    device: Path

    def path(self) -> str:
        return str(self.device)


def test_logical_volumes_are_raw_and_have_nothing_old_in_them(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backing").write_bytes(b"\xa5" * (12 * MIB))
    expected = recorded.expected(recorded.backups[-1])["vda"]
    with loop_device(tmp_path / "backing") as loop:
        monkeypatch.setattr(LoopVolume, "device", loop, raising=False)
        monkeypatch.setattr("tests.unit.domain.test_pools.Volume", LoopVolume)
        fake = FakePool("logical", room=12 * MIB)
        pool = opened(fake)
        request = RestoreRequest("web", tmp_path / "out", Choose(disks=("vda",)))
        recorder = Recorder()
        done = restore.run(request, repository=recorded.repository, reporter=recorder, stop=Stop(), pool=pool)
        content = loop.read_bytes()
    assert content == expected + bytes(12 * MIB - len(expected))
    assert f"<allocation unit='bytes'>{len(expected)}</allocation>" in fake.volumes["web-vda"].xml
    assert (done.devices, done.volumes, done.checkpoints) == (("vda",), {"vda": "web-vda"}, ())
    assert not [step for step in recorder.steps if "overwritten" in step]
    (disk, *_) = domain_xml.parse(done.domain_xml.read_text()).disks
    assert (str(disk.images[0].source_type), disk.path, str(disk.format)) == ("block", str(loop), "raw")


def test_failure_leaves_no_volume(
    recorded: Recorded, daemon: Daemon, command: Command, pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flattened, seen = restoring.flatten, []

    def spoil(layers: Any, path: Path, *more: Any, **options: Any) -> None:
        flattened(layers, path, *more, **options)
        seen.append(sorted(pool.listVolumes()))
        if "vdb" in path.name:
            with path.open("r+b") as file:
                file.seek(5 * MIB)
                file.write(b"x")

    monkeypatch.setattr(restoring, "flatten", spoil)
    told = command(
        "-c", daemon.uri, "restore", "web", "-r", recorded.repository.path, "--output", tmp_path / "out",
        "--pool", pool.name(), "--format", "raw", status=6,
    ).stderr  # fmt: skip
    assert "does not contain what was written" in told
    assert seen == [[], []]
    pool.refresh()
    assert pool.listVolumes() == []
    assert not (tmp_path / "out").exists()


def test_restore_that_is_killed_leaves_no_volume_and_the_next_one_removes_the_rest(
    recorded: Recorded, daemon: Daemon, pool: Any, images: Path, tmp_path: Path
) -> None:
    argv = [sys.executable, "-m", "vbackup", "-c", daemon.uri, "restore", "web", "-r", str(recorded.repository.path)]
    argv += ["--output", str(tmp_path / "out"), "--pool", pool.name()]
    process = subprocess.Popen([*argv, "--speed", "100K"], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: [*images.glob(".vbackup-*/web-vda.qcow2")] != [], "the image of a volume")
    finally:
        process.kill()
        process.wait()
    pool.refresh()
    assert not [name for name in pool.listVolumes() if name.startswith("web-")]
    assert [*images.glob(".vbackup-*")]
    subprocess.run([*argv, "-q"], check=True, timeout=60)
    assert sorted(pool.listVolumes()) == ["web-vda.qcow2", "web-vdb.qcow2"]
    assert [*images.glob(".vbackup-*")] == []


def test_pools_that_will_not_do(
    recorded: Recorded, daemon: Daemon, command: Command, pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(status: int, name: str, *options: str) -> str:
        told = command(
            "-c", daemon.uri, "restore", "web", "-r", recorded.repository.path, "--output", tmp_path / "out",
            "--pool", name, *options, status=status,
        ).stderr  # fmt: skip
        assert not (tmp_path / "out").exists()
        return str(told)

    assert "no storage pool 'files of our'; the closest is 'files of ours'; its pools are" in refused(5, "files of our")
    inactive = daemon.host.connection.storagePoolDefineXML(
        f"<pool type='dir'><name>off</name><target><path>{tmp_path}</path></target></pool>"
    )
    try:
        assert f"is not active. Start it ('{errors.command('virsh pool-start off', daemon.uri)}')" in refused(5, "off")
    finally:
        inactive.undefine()
    monkeypatch.setattr(restoring, "needed_bytes", lambda *_: 1 << 60)
    monkeypatch.setattr("vbackup.operations.disk_places.needed_bytes", lambda *_: 1 << 60)
    assert f"and the disks need {2 << 60}. Nothing was written" in refused(7, pool.name())
    assert pool.listVolumes() == []


def test_restored_volume_starts_and_its_next_backup_is_an_incremental(
    daemon: Daemon, command: Command, pool: Any, images: Path, repository: Path, tmp_path: Path
) -> None:
    spec = DiskSpec(images / "vda.qcow2")
    spec.create()
    machine = daemon.start(of_disks("volumes", [spec.xml()]))
    machine.write("vda", "write -P 7 1M 1M")
    first = command("-c", daemon.uri, "backup", "volumes", "-r", repository, "--json").document
    machine.handle.domain.destroy()
    argv = ("-c", daemon.uri, "-q", "restore", "volumes", "-r", repository)
    command(*argv, "--output", tmp_path / "out", "--pool", pool.name())
    text = (tmp_path / "out" / "domain.xml").read_text()
    daemon.host.connection.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE).undefine()
    machine = daemon.start(text)
    machine.write("vda", "write -P 8 1M 64k")
    second = command("-c", daemon.uri, "backup", "volumes", "-r", repository, "--json").document
    assert (second["disks"][0]["level"], second["disks"][0]["base"]) == ("incremental", first["id"])


@pytest.fixture
def volumes(daemon: Daemon, command: Command, images: Path, repository: Path) -> Iterator[Any]:
    """A domain ``volumes`` with a backup; yields the command that restores it, and undefines what that defines."""
    spec = DiskSpec(images / "vda.qcow2")
    spec.create()
    machine = daemon.start(of_disks("volumes", [spec.xml()]))
    machine.write("vda", "write -P 7 1M 1M")
    command("-c", daemon.uri, "backup", "volumes", "-r", repository, "--json")
    yield lambda *options, **more: command(
        "-c", daemon.uri, "restore", "volumes", "-r", repository, "--output", images / "out", "--json", *options, **more
    )
    for handle in daemon.host.domains():
        if handle.name == "new":
            handle.domain.undefine()


def test_new_domain_has_its_own_volumes(volumes: Any, daemon: Daemon, pool: Any, images: Path) -> None:
    done = volumes("--pool", pool.name(), "--define", "--name", "new").document
    assert (done["name"], done["disks"][0]["volume"]) == ("new", "new-vda.qcow2")
    (disk,) = domain_xml.parse(daemon.host.domain("new").definition_xml()).disks
    assert disk.path == str(images / "new-vda.qcow2")
    assert bytes([7]) * MIB in raw(images / "new-vda.qcow2", ImageFormat.QCOW2)


def test_name_that_is_taken_is_found_before_anything_is_read_or_made(
    volumes: Any, pool: Any, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "check_chains", lambda *_args, **_more: pytest.fail("the chains were read"))
    for options in (("--define",), ("--define", "--name", "volumes")):
        told = volumes("--pool", pool.name(), *options, status=5).stderr
        assert "already has domain volumes" in told or "already has a domain volumes" in told
    pool.refresh()
    assert not [name for name in pool.listVolumes() if name.startswith(("volumes-", "new-"))]
    assert not (images / "out").exists()


def test_volumes_stay_if_libvirt_does_not_define_the_domain_at_last(
    volumes: Any, daemon: Daemon, pool: Any, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are complete, and what is left to do needs them."""

    def refuse(*_args: object) -> None:
        raise MonitorError("libvirt could not define domain new: no.")

    monkeypatch.setattr(defining, "define", refuse)
    told = volumes("--pool", pool.name(), "--define", "--name", "new", status=1).stderr
    assert "The disks are restored, but the domain is not defined. To define it later, run: virsh" in told
    assert bytes([7]) * MIB in raw(images / "new-vda.qcow2", ImageFormat.QCOW2)
    daemon.host.connection.defineXML((images / "out" / "domain.xml").read_text())
    (disk,) = domain_xml.parse(daemon.host.domain("new").definition_xml()).disks
    assert disk.path == str(images / "new-vda.qcow2")
