"""Restore to a hypervisor that SSH leads to: images, machine and definition are there, nothing is left of failures.

vbackup.operations.restore_there, disk_places_there, tpm_there and in_place_there decide, vbackup.images.there writes.
"""

from __future__ import annotations

import json
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.end_to_end.test_daemon import wait_for
from tests.filesystem import loop_device
from tests.hosts import Hypervisor
from tests.lab import DiskSpec, Machine, compare, domain_xml
from vbackup import archive
from vbackup.domain import swtpm
from vbackup.domain.host import UNDEFINE_FLAGS, library_version
from vbackup.engine import rollback
from vbackup.operations.restored_machine import TPM_SOURCE_SINCE
from vbackup.remote.link import Link

if TYPE_CHECKING:
    from tests.conftest import Command

UUID = "77777777-2222-3333-4444-777777777777"


@pytest.fixture
def backed_up(second_hypervisor: Hypervisor, command: Command, repository: Path) -> Path:
    """The repository, with a full and an incremental of domain ``web``: data, zeros and discards, one odd size."""
    source = second_hypervisor
    specs = [
        DiskSpec(source.images / "vda.qcow2", size="64M"),
        DiskSpec(source.images / "vdb.qcow2", dev="vdb", size="33555968"),
    ]
    for spec in specs:
        spec.create()
    machine = source.start(domain_xml("web", [spec.xml() for spec in specs]))
    machine.write("vda", "write -P 1 0 4M", "write -P 2 20M 1M")
    machine.write("vdb", "write -P 3 32M 1536")
    command("-q", "-c", source.direct_uri, "backup", "web", "-r", repository)
    machine.write("vda", "write -z 1M 1M", "discard 20M 512k", "write -P 4 40M 64k")
    machine.write("vdb", "write -P 5 1M 3M")
    command("-q", "-c", source.direct_uri, "backup", "web", "-r", repository)
    machine.destroy()
    return repository


def test_defined_and_started_there(
    hypervisor: Hypervisor, second_hypervisor: Hypervisor, command: Command, backed_up: Path, tmp_path: Path
) -> None:
    output = hypervisor.images / "new" / "web"
    options = ("-c", hypervisor.uri, "restore", "web", "-r", backed_up, "--output", output, "--start", "--json")
    done = command(*options).document
    assert [disk["file"] for disk in done["disks"]] == [str(output / "vda.qcow2"), str(output / "vdb.qcow2")]
    domain = hypervisor.host.domain("web")
    assert domain.is_active()
    machine = Machine(domain)
    machine.write("vda", "write -P 6 50M 64k")
    back = command("-c", hypervisor.direct_uri, "-q", "backup", "web", "-r", backed_up, "--json").document
    assert {disk["level"] for disk in back["disks"]} == {"incremental"}
    domain.domain.destroy()
    domain.domain.undefine()
    command("-q", "restore", "web", "-r", backed_up, "--output", tmp_path / "home")
    for dev in ("vda", "vdb"):
        compare(output / f"{dev}.qcow2", tmp_path / "home" / f"{dev}.qcow2")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -z 50M 64k", output / "vda.qcow2"], check=True)
    for dev in ("vda", "vdb"):
        compare(second_hypervisor.images / f"{dev}.qcow2", output / f"{dev}.qcow2")
    assert sorted(path.name for path in output.iterdir()) == ["domain.xml", "vda.qcow2", "vdb.qcow2"]
    assert "already exists on root@hv1" in command(*options, status=7).stderr  # the files are there already


def test_beside_the_original_under_a_new_name(hypervisor: Hypervisor, command: Command, backed_up: Path) -> None:
    hypervisor.define(domain_xml("web", []))
    output = hypervisor.images / "clone"
    options = ("-c", hypervisor.uri, "-q", "restore", "web", "-r", backed_up, "--output", output)
    assert "another domain web" in command(*options, "--define", status=5).stderr
    assert not output.exists()
    command(*options, "--define", "--name", "clone", "--format", "raw")
    domain = hypervisor.host.domain("clone")
    assert not domain.is_active()
    domain.domain.undefine()
    assert (output / "vdb.raw").stat().st_size == 33555968


@pytest.fixture
def pool(hypervisor: Hypervisor) -> Iterator[Any]:
    """A pool of files there."""
    (directory := hypervisor.images / "pool").mkdir(mode=0o711)
    xml = f"<pool type='dir'><name>ours</name><target><path>{directory}</path></target></pool>"
    made: Any = hypervisor.host.connection.storagePoolCreateXML(xml)
    yield made
    made.destroy()


def test_volumes_and_other_paths(
    hypervisor: Hypervisor, second_hypervisor: Hypervisor, command: Command, backed_up: Path, pool: Any
) -> None:
    """vda becomes a volume, vdb a file of the user; the next backup is an incremental."""
    output, elsewhere = hypervisor.images / "web", hypervisor.images / "b.qcow2"
    options = ("-c", hypervisor.uri, "-q", "restore", "web", "-r", backed_up, "--output", output, "--pool", "ours")
    with_path = ("--disk", f"vdb={elsewhere}", "--disk", "vda")
    assert "--define or --start" in command(*options, status=5).stderr
    done = {disk["dev"]: disk for disk in command(*options, *with_path, "--start", "--json").document["disks"]}
    volume = hypervisor.images / "pool" / "web-vda.qcow2"
    assert {dev: (disk["file"], disk["volume"]) for dev, disk in done.items()} == {
        "vda": (str(volume), "web-vda.qcow2"),
        "vdb": (str(elsewhere), None),
    }
    assert pool.listVolumes() == ["web-vda.qcow2"]
    machine = Machine(hypervisor.host.domain("web"))
    machine.handle.domain.destroy()
    compare(second_hypervisor.images / "vda.qcow2", volume)
    compare(second_hypervisor.images / "vdb.qcow2", elsewhere)
    assert [path.name for path in output.iterdir()] == ["domain.xml"]
    assert sorted(path.name for path in hypervisor.images.iterdir()) == ["b.qcow2", "pool", "web"]
    back = command("-c", hypervisor.uri, "-q", "backup", "web", "-r", backed_up, "--json").document
    assert {disk["level"] for disk in back["disks"]} == {"incremental"}
    machine.handle.domain.undefine()
    shutil.rmtree(output)
    said = command(*options, *with_path, "--define", status=7).stderr
    assert "already has a volume web-vda.qcow2" in said


@pytest.mark.parametrize("moment", ["stage", "publish"])
def test_broken_link_leaves_nothing_there(
    hypervisor: Hypervisor, command: Command, backed_up: Path, monkeypatch: pytest.MonkeyPatch, pool: Any, moment: str
) -> None:
    """``moment``: ssh ends when the images are to be written, or when they are to get their names."""
    to_pool = ("--pool", "ours") if moment == "publish" else ()
    call = getattr(Link, moment)

    def broken(link: Link, *arguments: Any) -> Any:
        result = call(link, *arguments) if moment == "stage" else None
        assert hypervisor.kill("sshd: root")
        return call(link, *arguments) if moment == "publish" else result

    monkeypatch.setattr(Link, moment, broken)
    output = hypervisor.images / "web"
    options = ("-c", hypervisor.uri, "-q", "restore", "web", "-r", backed_up, "--output", output, "--define", *to_pool)
    assert "root@hv1" in command(*options, status=4).stderr
    wait_for(lambda: not output.exists(), "the helper's cleaning up")
    wait_for(lambda: not [*(hypervisor.images / "pool").iterdir()], "the same in the pool")
    assert not hypervisor.processes("qemu-storage-daemon")
    monkeypatch.undo()
    command(*options)
    hypervisor.host.domain("web").domain.undefine()


def test_refusals_before_anything_is_written(hypervisor: Hypervisor, command: Command, backed_up: Path) -> None:
    options = ("-c", hypervisor.uri, "-q", "restore", "web", "-r", backed_up, "--define", "--output")
    assert "absolute path" in command(*options, "web", status=5).stderr
    output = hypervisor.images / "web"
    assert "absolute path" in command(*options, output, "--disk", "vda=web", status=5).stderr
    (images := hypervisor.images / "taken").write_bytes(bytes(1 << 20))
    assert f"{images} already exists" in command(*options, output, "--disk", f"vda={images}", status=7).stderr
    said = command(*options, output, "--disk", f"vda={images}/vda", status=7).stderr
    assert f"Disk vda: there is no directory {images} on root@hv1" in said
    said = command(*options, output, "--disk", f"vda={output / 'vdb.qcow2'}", status=7).stderr
    assert f"there is no directory {output}" in said
    with loop_device(images) as loop:
        said = command(*options, output, "--disk", f"vda={loop}", status=5).stderr
        assert f"{loop} is a block device of root@hv1" in said
    with hypervisor.without("qemu-storage-daemon"):
        assert "could not start qemu-storage-daemon" in command(*options, output, status=5).stderr
    assert not output.exists()


def test_damaged_backup_is_not_restored(hypervisor: Hypervisor, command: Command, backed_up: Path) -> None:
    """A block that was changed in the repository is found when the image there is compared with the lists."""
    [image] = backed_up.glob("*/*-full/vda.qcow2")
    data, content = bytearray(image.read_bytes()), b"\1" * 65536
    for place in range(0, len(data), 65536):  # QEMU writes them in any order, and needs only some of them
        if data[place : place + 65536] == content:
            data[place + 7] ^= 1
    image.write_bytes(data)
    output = hypervisor.images / "web"
    options = ("-c", hypervisor.uri, "-q", "restore", "web", "-r", backed_up, "--output", output, "--define")
    assert "vda" in command(*options, status=6).stderr
    wait_for(lambda: not output.exists(), "the helper's cleaning up")


def test_firmware_variables_come_along(
    hypervisor: Hypervisor, second_hypervisor: Hypervisor, command: Command, repository: Path
) -> None:
    nvram = second_hypervisor.images / "web_VARS.fd"
    nvram.write_bytes(bytes(range(256)) * 256)
    spec = DiskSpec(second_hypervisor.images / "vda.qcow2", size="8M")
    spec.create()
    loader = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>"
    xml = domain_xml("web", [spec.xml()]).replace("</type>", f"</type>{loader}<nvram>{nvram}</nvram>")
    second_hypervisor.define(xml)
    command("-q", "-c", second_hypervisor.direct_uri, "backup", "web", "-r", repository)
    output = hypervisor.images / "web"
    command("-c", hypervisor.uri, "-q", "restore", "web", "-r", repository, "--output", output, "--define")
    domain = hypervisor.host.domain("web")
    assert f"{output}/nvram" in domain.definition_xml()
    assert (output / "nvram").read_bytes() == nvram.read_bytes()
    assert (output / "nvram").stat().st_mode & 0o777 == 0o600
    domain.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")
def test_state_of_the_tpm_is_there_when_the_domain_starts(
    hypervisor: Hypervisor, second_hypervisor: Hypervisor, command: Command, repository: Path
) -> None:
    """Given to swtpm's user, and nothing is overwritten."""
    spec = DiskSpec(second_hypervisor.images / "vda.qcow2", size="8M")
    spec.create()
    tpm = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>"
    machine = second_hypervisor.define(domain_xml("web", [spec.xml()], devices=tpm, top=f"<uuid>{UUID}</uuid>"))
    machine.handle.domain.create()
    command("-c", second_hypervisor.uri, "-q", "backup", "web", "-r", repository)
    machine.destroy()
    (saved,) = repository.glob(f"{UUID}/*/tpm.tar")
    known = archive.unpack(saved.read_bytes())["tpm2-00.permall"]
    output, has_source = hypervisor.images / "web", library_version() >= TPM_SOURCE_SINCE
    state = output / "tpm" if has_source else Path("/var/lib/libvirt/swtpm", UUID, "tpm2")
    options = ("-c", hypervisor.uri, "restore", "web", "-r", repository, "--output", output, "--json")
    done = command(*options, "--define").document
    assert done["tpm_place"] is None
    assert [one["path"] for one in done["machine"] if one["kind"] == "tpm"] == [str(state)]
    kept = hypervisor.images / "kept"
    hypervisor.run("cp", "-a", state / "tpm2-00.permall", kept)
    assert kept.read_bytes() == known
    assert kept.stat().st_uid == pwd.getpwnam(swtpm.DEFAULT).pw_uid
    hypervisor.host.domain("web").domain.create()

    def ended() -> None:
        domain = hypervisor.host.domain("web")
        assert domain.is_active()
        domain.destroy()
        domain.domain.undefineFlags(UNDEFINE_FLAGS[0])
        for path in output.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    ended()
    for how in ("--start", "--live"):
        if not has_source:
            assert f"{state} already exists on root@hv1" in command(*options, how, status=7).stderr
            hypervisor.run("rm", "-r", state.parent)
        done = command(*options, how).document
        ended()
    assert [disk["file"] for disk in done["disks"]] == [str(output / "vda.qcow2")]


def test_rollback_of_a_domain_there(hypervisor: Hypervisor, command: Command, repository: Path, tmp_path: Path) -> None:
    """Only what differs is written, and the next backup is an incremental."""
    specs = [
        DiskSpec(hypervisor.images / "vda.qcow2", size="64M"),
        DiskSpec(hypervisor.images / "vdb.qcow2", dev="vdb", size="8M"),
    ]
    for spec in specs:
        spec.create()
    machine = hypervisor.define(domain_xml("web", [spec.xml() for spec in specs]))
    machine.handle.domain.create()
    machine.write("vda", "write -P 1 0 4M", "write -P 2 20M 1M")
    machine.write("vdb", "write -P 3 0 2M")
    back = ("-c", hypervisor.uri, "-q", "backup", "web", "-r", repository, "--json")
    first = command(*back).document
    machine.write("vda", "write -P 4 1M 64k", "write -P 5 40M 64k")
    command(*back)
    machine.write("vda", "write -z 2M 64k", "discard 20M 64k")
    roll = ("-c", hypervisor.uri, "-q", "restore", "web", first["id"], "-r", repository, "--in-place")
    assert "is running" in command(*roll, status=5).stderr
    machine.handle.domain.destroy()
    done = command(*roll, "--json").document
    # The last granule is written with every one (vbackup.engine.endmark).
    assert {disk["dev"]: disk["written_bytes"] for disk in done["disks"]} == {"vda": 4 << 16, "vdb": 1 << 16}
    command("-q", "restore", "web", first["id"], "-r", repository, "--output", tmp_path / "first")
    for spec in specs:
        compare(spec.path, tmp_path / "first" / f"{spec.dev}.qcow2")
    again = command(*back).document
    assert {disk["level"] for disk in again["disks"]} == {"incremental"}
    command("-q", "restore", "web", again["id"], "-r", repository, "--output", tmp_path / "again")
    for spec in specs:
        compare(spec.path, tmp_path / "again" / f"{spec.dev}.qcow2")


def test_rollback_that_is_interrupted_there(
    hypervisor: Hypervisor, command: Command, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DiskSpec(hypervisor.images / "vda.qcow2", size="64M")
    spec.create()
    machine = hypervisor.define(domain_xml("web", [spec.xml()]))
    machine.handle.domain.create()
    machine.write("vda", "write -P 1 0 4M")
    back = ("-c", hypervisor.uri, "-q", "backup", "web", "-r", repository, "--json")
    first = command(*back).document
    machine.write("vda", "write -P 4 1M 64k", "write -P 5 40M 64k")
    machine.handle.domain.destroy()
    verify = rollback._verify

    def broken(*arguments: Any) -> None:
        assert hypervisor.kill("sshd: root")
        verify(*arguments)

    monkeypatch.setattr(rollback, "_verify", broken)
    roll = ("-c", hypervisor.uri, "-q", "restore", "web", first["id"], "-r", repository, "--in-place")
    assert "Do not start domain web" in command(*roll, status=None).stderr
    monkeypatch.undo()
    record = json.loads(hypervisor.run("cat", f"/var/lib/vbackup/half-restored/{machine.handle.uuid}"))
    assert record["disks"] == ["vda"]
    assert f"-c {hypervisor.uri}" in record["command"]
    wait_for(lambda: not hypervisor.processes("qemu-storage-daemon"), "the end of the daemon there")
    command(*roll)
    command("-q", "restore", "web", first["id"], "-r", repository, "--output", tmp_path / "first")
    compare(spec.path, tmp_path / "first" / "vda.qcow2")
    with pytest.raises(AssertionError):
        hypervisor.run("cat", f"/var/lib/vbackup/half-restored/{machine.handle.uuid}")
