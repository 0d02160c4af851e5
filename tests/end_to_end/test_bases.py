"""Which base each disk starts from when the world has changed: auto falls back disk by disk, and says why."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.daemon import wait_for
from tests.end_to_end.chains import END_BYTES, Chain, levels, reasons
from tests.lab import DiskSpec, Lab, domain_xml

if TYPE_CHECKING:
    from tests.conftest import Command

ALL_INCREMENTAL = {"vda": "incremental", "vdb": "incremental"}


def test_bitmaps_outlive_a_restart_of_the_domain(chain: Chain) -> None:
    full = chain.backup()
    chain.machine.write("vda", "write -P 2 1M 64k")
    chain.restart()
    chain.machine.write("vda", "write -P 3 3M 64k")
    after = chain.backup()
    assert levels(after) == {"vda": "incremental", "vdb": "incremental"}
    assert after["parent"] == full["id"]
    assert after["disks"][0]["copied_bytes"] == 2 * 65536 + END_BYTES


def test_killed_qemu_costs_a_full(chain: Chain) -> None:
    full = chain.backup()
    chain.restart()  # the bitmaps are in the images now
    chain.machine.write("vda", "write -P 2 1M 64k")
    chain.restart(kill=True)
    refused = chain.run("--level", "incremental", status=6)
    assert f"Disk vda: no incremental backup is possible: checkpoint {full['id']} is inconsistent" in refused.stderr
    assert "--level auto" in refused.stderr
    done = chain.backup()
    assert done["level"] == "full"
    assert "inconsistent" in reasons(done)["vda"]
    # The bitmaps that could only be removed were removed.
    assert {len(names) for names in chain.machine.bitmaps().values()} == {2}
    assert levels(chain.backup()) == {"vda": "incremental", "vdb": "incremental"}


def test_missing_bitmap_costs_a_full_of_that_disk_only(chain: Chain) -> None:
    full = chain.backup()
    node, bitmap = full["disks"][0]["node_name"], full["disks"][0]["bitmap"]
    chain.machine.execute("block-dirty-bitmap-remove", node=node, name=bitmap)
    chain.machine.write("vdb", "write -P 2 1M 64k")
    refused = chain.run("--level", "incremental", status=6)
    assert f"Disk vda: no incremental backup is possible: checkpoint {full['id']} is missing" in refused.stderr
    done = chain.backup()
    assert (done["level"], done["parent"]) == ("incremental", full["id"])
    assert levels(done) == {"vda": "full", "vdb": "incremental"}
    assert reasons(done)["vda"] == f"checkpoint {full['id']} is missing from the image"
    refused = chain.run("--level", "differential")
    assert levels(refused.document) == {"vda": "differential", "vdb": "differential"}
    assert [disk["base"] for disk in refused.document["disks"]] == [done["id"], full["id"]]


def test_attached_disk_gets_a_full_of_its_own(chain: Chain) -> None:
    chain.backup()
    spec = DiskSpec(chain.tmp_path / "vdc.qcow2", dev="vdc", size="4M")
    spec.create()
    chain.machine.handle.domain.attachDevice(spec.xml())
    chain.machine.write("vdc", "write -P 5 0 64k")
    done = chain.backup()
    assert levels(done) == {"vda": "incremental", "vdb": "incremental", "vdc": "full"}


def test_images_that_changed_places_are_not_taken_for_each_other(chain: Chain) -> None:
    chain.machine.write("vdb", "write -P 77 0 4M")
    chain.backup()
    a, b = chain.specs
    chain.specs = [DiskSpec(b.path, size="8M"), DiskSpec(a.path, dev="vdb", size="8M")]
    chain.restart()
    assert levels(chain.backup()) == {"vda": "full", "vdb": "full"}


def test_other_image_under_the_same_name_costs_a_full(chain: Chain) -> None:
    chain.backup()
    other = DiskSpec(chain.tmp_path / "other.qcow2", size="8M")
    other.create()
    chain.specs[0] = other
    chain.restart()
    done = chain.backup()
    assert levels(done) == {"vda": "full", "vdb": "incremental"}


def test_grown_disk_stays_incremental(chain: Chain) -> None:
    chain.backup()
    chain.machine.handle.domain.blockResize("vda", 12 << 20, 1)
    chain.machine.write("vda", "write -P 9 11M 64k")
    done = chain.backup()
    assert levels(done)["vda"] == "incremental"
    assert done["disks"][0]["virtual_size_bytes"] == 12 << 20


def test_shrunk_disk_costs_a_full(chain: Chain) -> None:
    full = chain.backup()
    chain.stop()
    image = str(chain.specs[0].path)
    listed = subprocess.run(["qemu-img", "info", image], capture_output=True, text=True, check=True).stdout
    name = next(line.split(":", 1)[1].strip() for line in listed.splitlines() if "name: vbackup-" in line)
    subprocess.run(["qemu-img", "bitmap", "--remove", image, name], check=True)
    subprocess.run(["qemu-img", "resize", "-q", "--shrink", image, "4M"], check=True)
    chain.machine = chain.lab.start(chain.xml())
    done = chain.backup()
    assert levels(done)["vda"] == "full"
    assert reasons(done)["vda"] == f"the disk has shrunk from 8388608 to 4194304 bytes since {full['id']}"


def test_image_missing_from_the_repository_costs_a_full(chain: Chain) -> None:
    full = chain.backup()
    directory = chain.repository / full["domain"]["uuid"] / full["id"]
    (directory / "vdb.qcow2").unlink()
    refused = chain.run("--level", "incremental", status=6)
    assert f"the image of backup {full['id']} is missing" in refused.stderr
    done = chain.backup()
    assert levels(done) == {"vda": "incremental", "vdb": "full"}
    listed = chain.command("list", "-r", chain.repository, "--json", status=6)
    assert [one["id"] for one in listed.document["broken"]] == [full["id"]]


def test_external_snapshot_before_while_and_after(chain: Chain) -> None:
    full = chain.backup()
    chain.machine.write("vda", "write -P 2 1M 64k")
    take_snapshot(chain)
    chain.machine.write("vda", "write -P 3 2M 64k", "write -z 0 64k")
    over = chain.backup()
    # libvirt made the bitmap in the overlay go on where the one below stopped: both count.
    assert levels(over) == {"vda": "incremental", "vdb": "incremental"}
    assert over["disks"][0]["copied_bytes"] == 3 * 65536 + END_BYTES
    chain.machine.write("vda", "write -P 4 4M 64k")
    again = chain.backup()
    assert levels(again)["vda"] == "incremental"
    commit(chain)
    chain.machine.write("vda", "write -P 5 5M 64k")
    after = chain.backup()
    assert levels(after)["vdb"] == "incremental"
    assert full["id"] != after["id"]


def take_snapshot(chain: Chain) -> None:
    """An external one of vda."""
    chain.machine.handle.domain.snapshotCreateXML(
        "<domainsnapshot><name>s1</name><disks>"
        f"<disk name='vda' snapshot='external'><source file='{chain.tmp_path}/overlay.qcow2'/></disk>"
        "<disk name='vdb' snapshot='no'/></disks></domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC,
    )


def commit(chain: Chain) -> None:
    """The overlay of vda into the layer below."""
    domain = chain.machine.handle.domain
    flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
    domain.blockCommit("vda", None, None, 0, flags)
    wait_for(lambda: "ready='yes'" in chain.machine.handle.live_xml(), "the commit")
    domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    wait_for(lambda: "<mirror" not in chain.machine.handle.live_xml(), "the pivot")


def test_disk_grown_over_an_external_snapshot_costs_a_full(chain: Chain) -> None:
    """Found by the random test: QEMU merges no bitmaps of layers of different sizes."""
    chain.backup()
    take_snapshot(chain)
    chain.machine.handle.domain.blockResize("vda", 9 << 20, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    chain.machine.write("vda", "write -P 3 2M 64k", "write -P 4 8M 64k")
    refused = chain.run("--level", "incremental", status=6)
    assert "QEMU does not merge the bitmaps of layers of different sizes" in refused.stderr
    done = chain.backup()
    assert levels(done) == {"vda": "full", "vdb": "incremental"}
    chain.machine.write("vda", "write -P 5 5M 64k")
    assert levels(chain.backup())["vda"] == "incremental"
    commit(chain)
    chain.machine.write("vda", "write -P 6 6M 64k")
    assert levels(chain.backup())["vda"] == "incremental"


def test_overlay_without_the_bitmap_costs_a_full(chain: Chain) -> None:
    chain.backup()
    chain.stop()
    overlay = DiskSpec(chain.tmp_path / "overlay.qcow2", size="8M", backing=chain.specs[0].path)
    overlay.create()
    chain.specs[0] = overlay
    chain.machine = chain.lab.start(chain.xml())
    chain.machine.write("vda", "write -P 2 1M 64k")
    done = chain.backup()
    assert levels(done) == {"vda": "full", "vdb": "incremental"}


def test_two_repositories_do_not_disturb_each_other(chain: Chain) -> None:
    other = chain.tmp_path / "other"
    chain.command("init", "-r", other)
    first = chain.backup()
    chain.machine.write("vda", "write -P 2 1M 64k")
    there = chain.command("-c", chain.lab.uri, "-q", "backup", "bases", "-r", other, "--json").document
    assert there["level"] == "full"
    chain.machine.write("vda", "write -P 3 2M 64k")
    here = chain.backup()
    assert (here["parent"], here["disks"][0]["copied_bytes"]) == (first["id"], 2 * 65536 + END_BYTES)
    there = chain.command("-c", chain.lab.uri, "-q", "backup", "bases", "-r", other, "--json").document
    assert there["disks"][0]["copied_bytes"] == 65536 + END_BYTES


def test_only_bitmaps_of_possible_bases_are_kept(chain: Chain) -> None:
    full = chain.backup()
    chain.machine.execute("block-dirty-bitmap-add", node=full["disks"][0]["node_name"], name="somebody-elses")
    last = [chain.backup() for _ in range(3)][-1]
    names = [name for name in chain.machine.bitmaps()[full["disks"][0]["node_name"]] if "-end-" not in name]
    assert names == sorted(["somebody-elses", full["disks"][0]["bitmap"], last["disks"][0]["bitmap"]])


def test_disk_with_another_block_job_is_busy(chain: Chain) -> None:
    chain.backup()
    domain = chain.machine.handle.domain
    copy = chain.tmp_path / "copy.qcow2"
    xml = f"<disk type='file'><source file='{copy}'/><driver type='qcow2'/></disk>"
    domain.blockCopy("vda", xml, {}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    before = chain.machine.state()
    refused = chain.run(status=8)
    assert "Disk vda is busy with a mirror job (copy-vda-" in refused.stderr
    assert chain.machine.state()["bitmaps"] == before["bitmaps"]
    domain.blockJobAbort("vda", 0)
    wait_for(lambda: "<mirror" not in chain.machine.handle.live_xml(), "the end of the copy")
    assert levels(chain.backup()) == {"vda": "incremental", "vdb": "incremental"}


def at_one_second(chain: Chain) -> dict[str, Any]:
    """A backup whose id is that of another, made into a copy of the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vbackup.engine.plan.free_id", lambda *_: "20261124T000000Z-incremental")
        return chain.backup()


def test_copies_of_a_repository_do_not_take_each_other_s_bitmaps(chain: Chain) -> None:
    """Both are written to, and clocks make two backups of one name: the wrong bitmap would lose what is between."""
    chain.backup()
    one, other = chain.repository, chain.tmp_path / "copy"
    shutil.copytree(one, other)
    chain.machine.write("vda", "write -P 2 1M 64k")
    assert levels(at_one_second(chain)) == ALL_INCREMENTAL
    chain.machine.write("vda", "write -P 3 2M 64k")
    chain.repository = other
    assert levels(at_one_second(chain)) == ALL_INCREMENTAL
    chain.machine.write("vda", "write -P 4 3M 64k")
    for repository in (one, other, one):
        chain.repository = repository
        assert levels(chain.backup("--level", "incremental")) == ALL_INCREMENTAL
        chain.machine.write("vda", "write -P 5 4M 64k")


def test_bitmap_of_another_backup_of_the_same_name_costs_a_full(chain: Chain) -> None:
    """Of a copy of the repository; the own one is gone."""
    chain.backup()
    one, other = chain.repository, chain.tmp_path / "copy"
    shutil.copytree(one, other)
    own = {name for bitmaps in chain.machine.bitmaps().values() for name in bitmaps}
    done = at_one_second(chain)
    chain.repository = other
    at_one_second(chain)
    for disk in done["disks"]:
        assert disk["bitmap"] not in own
        chain.machine.execute("block-dirty-bitmap-remove", node=disk["node_name"], name=disk["bitmap"])
    chain.repository = one
    refused = chain.run("--level", "incremental", status=6)
    said = "checkpoint 20261124T000000Z-incremental is that of another backup of the same name"
    assert said in refused.stderr
    done = chain.backup()
    assert levels(done) == {"vda": "full", "vdb": "full"}
    assert said in reasons(done)["vda"]
    assert levels(chain.backup()) == ALL_INCREMENTAL


def test_image_of_another_domain_is_not_taken_for_its_own(chain: Chain) -> None:
    """Two domains are backed up in the same second, and later one gets the other's image."""
    other = DiskSpec(chain.tmp_path / "other.qcow2", size="8M")
    other.create()
    donor = chain.lab.start(domain_xml("donor", [other.xml()]))
    donor.write("vda", "write -P 66 0 4M")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vbackup.engine.plan.free_id", lambda *_: "20261124T000000Z-full")
        chain.command("-c", chain.lab.uri, "-q", "backup", "donor", "-r", chain.repository)
        chain.backup()
    chain.lab.remove(donor)
    chain.specs[0] = other
    chain.restart()
    done = chain.backup()
    assert levels(done) == {"vda": "full", "vdb": "incremental"}
    assert "or from another domain that had this image" in reasons(done)["vda"]


def test_repository_rolled_back_to_an_older_copy(chain: Chain) -> None:
    """A full if the older one's newest checkpoint was superseded; if that is the full, its bitmap is still there."""
    full = chain.backup()
    copies = [chain.tmp_path / "copy1", chain.tmp_path / "copy2"]
    shutil.copytree(chain.repository, copies[0])
    chain.machine.write("vda", "write -P 2 1M 64k")
    second = chain.backup()
    shutil.copytree(chain.repository, copies[1])
    chain.machine.write("vda", "write -P 3 2M 64k")
    chain.backup()
    chain.machine.write("vda", "write -P 4 3M 64k")
    chain.repository = copies[0]
    done = at_one_second(chain)  # or it may have the id of the second
    assert (levels(done), done["parent"]) == (ALL_INCREMENTAL, full["id"])
    chain.repository = copies[1]
    done = chain.backup()
    assert reasons(done)["vda"] == f"checkpoint {second['id']} is missing from the image"
    assert levels(done) == {"vda": "full", "vdb": "full"}


def test_bitmap_of_another_granularity_costs_a_full(chain: Chain) -> None:
    """Somebody made it again, as a tool may that copies bitmaps."""
    full = chain.backup()
    node, bitmap = full["disks"][0]["node_name"], full["disks"][0]["bitmap"]
    chain.machine.execute("block-dirty-bitmap-remove", node=node, name=bitmap)
    chain.machine.execute("block-dirty-bitmap-add", node=node, name=bitmap, granularity=131072, persistent=True)
    done = chain.backup()
    assert levels(done) == {"vda": "full", "vdb": "incremental"}
    assert "granularity of 131072 bytes" in reasons(done)["vda"]


def test_reattached_disk_stays_incremental(chain: Chain) -> None:
    chain.backup()
    domain = chain.machine.handle.domain
    spec = DiskSpec(chain.tmp_path / "sda.qcow2", dev="sda", bus="scsi", size="4M")
    spec.create()
    domain.attachDevice(spec.xml())
    chain.machine.write("sda", "write -P 5 0 64k")
    chain.backup()
    chain.machine.write("sda", "write -P 6 1M 64k")
    detach(chain, spec)
    domain.attachDevice(spec.xml())
    assert levels(chain.backup()) == {**ALL_INCREMENTAL, "sda": "incremental"}


def test_domain_defined_anew_is_incremental_with_its_uuid_and_full_with_another(chain: Chain) -> None:
    """In other directories as well, as a domain that came from another host with its images has them."""
    chain.backup()
    chain.machine.write("vda", "write -P 2 1M 64k")
    chain.stop()
    moved = chain.tmp_path / "moved"
    moved.mkdir()
    chain.specs = [replace(spec, path=spec.path.rename(moved / spec.path.name)) for spec in chain.specs]
    chain.machine = chain.lab.start(chain.xml())
    assert levels(chain.backup()) == ALL_INCREMENTAL
    chain.stop()
    chain.uuid = "11111111-2222-3333-4444-666666666666"
    chain.machine = chain.lab.start(chain.xml())
    done = chain.run().document
    assert levels(done) == {"vda": "full", "vdb": "full"}
    assert "no earlier backup" in reasons(done)["vda"]


def test_managed_save_and_restore_stay_incremental(chain: Chain) -> None:
    chain.backup()
    chain.machine.write("vda", "write -P 2 1M 64k")
    domain = chain.machine.handle.domain
    domain.managedSave()
    domain.create()
    chain.machine.write("vda", "write -P 3 2M 64k")
    done = chain.backup()
    assert levels(done) == ALL_INCREMENTAL
    assert done["disks"][0]["copied_bytes"] == 2 * 65536 + END_BYTES


def detach(chain: Chain, spec: DiskSpec) -> None:
    chain.machine.handle.domain.detachDevice(spec.xml())
    wait_for(lambda: f"'{spec.dev}'" not in chain.machine.handle.live_xml(), "the end of the detaching")


def test_raw_disk_is_incremental_in_the_same_qemu_only(
    lab: Lab, command: Command, repository: Path, tmp_path: Path
) -> None:
    """Its bitmap is not stored anywhere: it is there only if this very process has recorded ever since."""
    spec = DiskSpec(tmp_path / "sda.img", dev="sda", bus="scsi", size="8M", format="raw")
    chain = Chain(lab, command, repository, tmp_path, [DiskSpec(tmp_path / "vda.qcow2", size="4M"), spec])
    chain.machine.write("sda", "write -P 1 0 2M")
    chain.backup()
    chain.machine.write("sda", "write -P 2 1M 64k")
    done = chain.backup()
    assert (levels(done)["sda"], done["disks"][1]["copied_bytes"]) == ("incremental", 65536 + END_BYTES)
    detach(chain, spec)
    chain.machine.handle.domain.attachDevice(spec.xml())
    chain.machine.write("sda", "write -P 3 2M 64k")
    done = chain.backup()
    assert levels(done) == {"vda": "incremental", "sda": "full"}
    assert "the disk was attached again" in reasons(done)["sda"]
    chain.restart()
    chain.machine.write("sda", "write -P 4 3M 64k")
    assert "the domain was restarted" in chain.run("--level", "incremental", status=6).stderr
    assert levels(chain.backup()) == {"vda": "incremental", "sda": "full"}


def test_network_disk_is_incremental_in_the_same_qemu_only(
    lab: Lab, command: Command, repository: Path, tmp_path: Path
) -> None:
    image, socket = tmp_path / "served.img", lab.root / "served"
    image.write_bytes(bytes(8 << 20))
    argv = ["qemu-nbd", "--format=raw", "--persistent", f"--socket={socket}", str(image)]
    server = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        wait_for(socket.exists, "the NBD server")
        disk = NetworkDisk(image, size="8M", format="raw", socket=socket)
        chain = Chain(lab, command, repository, tmp_path, [disk])
        chain.machine.write("vda", "write -P 1 0 2M")
        assert levels(chain.backup()) == {"vda": "full"}
        chain.machine.write("vda", "write -P 2 1M 64k")
        done = chain.backup()
        assert (levels(done), done["disks"][0]["copied_bytes"]) == ({"vda": "incremental"}, 65536 + END_BYTES)
        chain.restart()
        chain.machine.write("vda", "write -P 3 2M 64k")
        done = chain.backup()
        assert levels(done) == {"vda": "full"}
        assert "the domain was restarted" in reasons(done)["vda"]
        lab.clear()
    finally:
        server.terminate()
        server.wait()


@dataclass(frozen=True)
class NetworkDisk(DiskSpec):
    """One that an NBD server has."""

    socket: Path = Path()

    def create(self) -> None:
        """The server has made it."""

    def xml(self) -> str:
        return (
            "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd'>"
            f"<host transport='unix' socket='{self.socket}'/></source><target dev='vda' bus='virtio'/></disk>"
        )


def test_log_of_the_hook_tells_why_a_bitmap_is_gone(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full = chain.backup()
    chain.machine.execute(
        "block-dirty-bitmap-remove", node=full["disks"][0]["node_name"], name=full["disks"][0]["bitmap"]
    )
    started = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(seconds=1)
    line = {"time": started.timestamp(), "operation": "started", "sub": "begin", "extra": "-", "name": "bases"}
    uuid = full["domain"]["uuid"]
    (tmp_path / f"{uuid}.log").write_text(json.dumps({**line, "boot_id": "x", "refused": False}) + "\n")
    monkeypatch.setattr("vbackup.hooks.events.DIRECTORY", tmp_path)
    reason = reasons(chain.backup())["vda"]
    assert reason == (
        f"checkpoint {full['id']} is missing from the image (the domain was started again at"
        f" {started:%Y-%m-%d %H:%M:%S}Z)"
    )
