"""A disk that is made smaller and larger again between two backups, on and off: no restore has its old end.

End marks show what QEMU's bitmaps miss of it (vbackup.engine.endmark).
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crossed import crossed
from tests.daemon import wait_for
from tests.end_to_end.chains import Chain, levels, reasons
from tests.lab import DiskSpec, Lab
from vbackup.domain.host import libvirt

if TYPE_CHECKING:
    from tests.conftest import Command

MIB = 1 << 20
SHRUNK = "the disk has been shrunk and grown again"
SIZES = [8 * MIB, 8 * MIB + 512, 8 * MIB + 65024]


def resize(chain: Chain, dev: str, *sizes_bytes: int) -> None:
    for size_bytes in sizes_bytes:
        chain.machine.handle.domain.blockResize(dev, size_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def end_marks(chain: Chain) -> list[str]:
    return sorted(name for names in chain.machine.bitmaps().values() for name in names if "-end-" in name)


@pytest.mark.parametrize(("size_bytes", "image_format"), crossed(SIZES, ["qcow2", "raw"]))
def test_disk_shrunk_and_grown_again_costs_a_full(
    lab: Lab, command: Command, repository: Path, tmp_path: Path, image_format: str, size_bytes: int
) -> None:
    """Its end held data at the first backup and has been zero since: no bitmap tells."""
    chain = Chain(
        lab, command, repository, tmp_path, [DiskSpec(tmp_path / "vda", size=str(size_bytes), format=image_format)]
    )
    chain.machine.write("vda", "write -P 7 0 1M", f"write -P 8 {size_bytes - 65536} 65536")
    full = chain.backup()
    resize(chain, "vda", 4 * MIB, size_bytes)
    refused = chain.run("--level", "incremental", status=6)
    assert f"Disk vda: no incremental backup since {full['id']} is possible: {SHRUNK}. Take a full" in refused.stderr
    done = chain.backup()
    assert (levels(done), reasons(done)) == ({"vda": "full"}, {"vda": SHRUNK})
    chain.machine.write("vda", "write -P 9 5M 64k")
    done = chain.backup()
    assert (levels(done), done["disks"][0]["copied_bytes"]) == ({"vda": "incremental"}, 2 * 65536)


@pytest.mark.parametrize(("kind", "cut_bytes"), crossed(["raw", "small clusters", "backed"], [512, 65024]))
def test_shrink_within_the_last_granule_is_copied(
    lab: Lab, command: Command, repository: Path, tmp_path: Path, kind: str, cut_bytes: int
) -> None:
    """It leaves no trace in any bitmap, so that the last granule is always copied."""
    spec = DiskSpec(tmp_path / "vda", size="8M", format="raw" if kind == "raw" else "qcow2")
    if kind == "backed":
        below = DiskSpec(tmp_path / "below.qcow2", size="8M")
        below.create()
        spec = DiskSpec(tmp_path / "vda", size="8M", backing=below.path)
    if kind == "small clusters":
        spec = SmallClusters(tmp_path / "vda", size="8M")
    chain = Chain(lab, command, repository, tmp_path, [spec])
    chain.machine.write("vda", "write -P 8 8128k 64k")
    chain.backup()
    resize(chain, "vda", 8 * MIB - cut_bytes, 8 * MIB)
    done = chain.backup()
    assert (levels(done), done["disks"][0]["copied_bytes"]) == ({"vda": "incremental"}, 65536)


class SmallClusters(DiskSpec):
    def create(self) -> None:
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", str(self.path), self.size]
        subprocess.run(argv, check=True)


def test_disk_shrunk_and_grown_while_the_domain_was_off(chain: Chain) -> None:
    chain.machine.write("vda", "write -P 8 7M 1M")
    chain.backup()
    chain.stop()
    image = str(chain.specs[0].path)
    subprocess.run(["qemu-img", "resize", "-q", "--shrink", image, "4M"], check=True)
    subprocess.run(["qemu-img", "resize", "-q", image, "8M"], check=True)
    chain.machine = chain.lab.start(chain.xml())
    assert SHRUNK in chain.run("--level", "incremental", status=6).stderr
    done = chain.backup()
    assert (levels(done), reasons(done)["vda"]) == ({"vda": "full", "vdb": "incremental"}, SHRUNK)


def test_backup_of_a_domain_that_is_off_makes_and_heeds_end_marks(chain: Chain) -> None:
    chain.machine.write("vda", "write -P 8 7M 1M")
    chain.machine.destroy()
    assert levels(chain.run().document) == {"vda": "full", "vdb": "full"}
    assert levels(chain.run().document) == {"vda": "incremental", "vdb": "incremental"}
    image = str(chain.specs[0].path)
    subprocess.run(["qemu-img", "resize", "-q", "--shrink", image, "4M"], check=True)
    subprocess.run(["qemu-img", "resize", "-q", image, "8M"], check=True)
    assert SHRUNK in chain.run("--level", "incremental", status=6).stderr
    done = chain.run().document
    assert (levels(done), reasons(done)["vda"]) == ({"vda": "full", "vdb": "incremental"}, SHRUNK)
    chain.machine.handle.domain.create()
    assert levels(chain.backup()) == {"vda": "incremental", "vdb": "incremental"}


def test_disk_that_only_grew_stays_incremental_and_its_new_end_is_watched(chain: Chain) -> None:
    chain.backup()
    resize(chain, "vda", 12 * MIB)
    chain.machine.write("vda", "write -P 9 11M 1M")
    assert levels(chain.backup()) == {"vda": "incremental", "vdb": "incremental"}
    assert len(end_marks(chain)) == 3  # vda's of both sizes, as a differential would start from the full
    resize(chain, "vda", 10 * MIB, 12 * MIB)
    done = chain.backup()
    assert (levels(done), reasons(done)["vda"]) == ({"vda": "full", "vdb": "incremental"}, SHRUNK)
    assert len(end_marks(chain)) == 2


def test_shrink_that_a_failed_backup_saw_is_seen_by_the_next(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed one would have made the mark again: its full has never been."""
    chain.machine.write("vda", "write -P 8 7M 1M")
    chain.backup()
    resize(chain, "vda", 4 * MIB, 8 * MIB)
    with monkeypatch.context() as patch:
        patch.setattr("vbackup.repository.block_scan.make", fail)
        chain.run(status=1)
    done = chain.backup()
    assert levels(done) == {"vda": "full", "vdb": "incremental"}


def fail(*_args: object, **_kwargs: object) -> str:
    from vbackup.errors import MalformedError

    raise MalformedError("made up by the test")


def test_shrunk_disk_that_a_failed_backup_saw_and_that_grew_again(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.machine.write("vda", "write -P 8 7M 1M")
    chain.backup()
    resize(chain, "vda", 4 * MIB)
    with monkeypatch.context() as patch:
        patch.setattr("vbackup.repository.block_scan.make", fail)
        chain.run(status=1)
    resize(chain, "vda", 8 * MIB)
    assert levels(chain.backup()) == {"vda": "full", "vdb": "incremental"}


def test_shrink_just_before_the_transaction_fails_the_backup(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    from vbackup.engine import scratch

    chain.machine.write("vda", "write -P 8 7M 1M")
    chain.backup()
    original = scratch.prepare

    def prepare(*args: object, **kwargs: object) -> None:
        original(*args, **kwargs)  # type: ignore[arg-type]
        resize(chain, "vda", 4 * MIB, 8 * MIB)

    with monkeypatch.context() as patch:
        patch.setattr("vbackup.engine.scratch.prepare", prepare)
        assert "Disk vda was made smaller while its backup began or ended" in chain.run(status=8).stderr
    assert levels(chain.backup()) == {"vda": "full", "vdb": "incremental"}


def snapshot(chain: Chain, name: str) -> None:
    chain.machine.handle.domain.snapshotCreateXML(
        f"<domainsnapshot><name>s1</name><disks><disk name='vda' snapshot='external'>"
        f"<source file='{chain.tmp_path}/{name}.qcow2'/></disk><disk name='vdb' snapshot='no'/></disks>"
        "</domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
    )


def commit(chain: Chain) -> None:
    domain = chain.machine.handle.domain
    domain.blockCommit(
        "vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
    )
    wait_for(lambda: "ready='yes'" in chain.machine.handle.live_xml(), "the commit")
    domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    wait_for(lambda: "<mirror" not in chain.machine.handle.live_xml(), "the pivot")


def test_overlay_gets_an_end_mark_of_its_own(chain: Chain) -> None:
    """libvirt takes none along: the base is taken as it is, and the overlay has one from this backup on."""
    chain.machine.write("vda", "write -P 8 7M 1M")
    chain.backup()
    snapshot(chain, "overlay")
    assert levels(chain.backup()) == {"vda": "incremental", "vdb": "incremental"}
    resize(chain, "vda", 4 * MIB, 8 * MIB)
    done = chain.backup()
    assert (levels(done), reasons(done)["vda"]) == ({"vda": "full", "vdb": "incremental"}, SHRUNK)
    commit(chain)
    assert levels(chain.backup()) == {"vda": "incremental", "vdb": "incremental"}


def test_shrink_before_an_external_snapshot_is_seen_after_it(chain: Chain) -> None:
    chain.machine.write("vda", "write -P 8 7M 1M")
    chain.backup()
    resize(chain, "vda", 4 * MIB, 8 * MIB)
    snapshot(chain, "overlay")
    assert levels(chain.backup()) == {"vda": "full", "vdb": "incremental"}


def test_grown_overlay_costs_a_full(chain: Chain) -> None:
    """QEMU merges no bitmaps of different sizes."""
    chain.backup()
    snapshot(chain, "overlay")
    resize(chain, "vda", 12 * MIB)
    chain.machine.write("vda", "write -P 9 11M 1M")
    done = chain.backup()
    assert levels(done) == {"vda": "full", "vdb": "incremental"}
    assert "does not merge the bitmaps of layers of different sizes" in reasons(done)["vda"]


def test_larger_layer_that_comes_back_costs_a_full(chain: Chain) -> None:
    """The overlay was shrunk; committed, the layer below shows its old end again, which no bitmap tells."""
    chain.machine.write("vda", "write -P 8 7M 1M")
    chain.backup()
    snapshot(chain, "overlay")
    resize(chain, "vda", 4 * MIB)
    assert levels(chain.backup()) == {"vda": "full", "vdb": "incremental"}
    commit(chain)
    wait_for(lambda: chain.machine.handle.domain.blockInfo("vda")[0] == 8 * MIB, "the size of the layer below")
    assert levels(chain.backup()) == {"vda": "full", "vdb": "incremental"}


def test_forgetting_removes_end_marks_on_and_off(chain: Chain) -> None:
    chain.backup()
    assert len(end_marks(chain)) == 2
    listed = chain.command("-c", chain.lab.uri, "bitmap", "list", "bases", "--json").document["bitmaps"]
    marks = [one for one in listed if "-end-" in one["name"]]
    assert {(one["owner"], one["checkpoint"], one["state"], one["dirty_bytes"]) for one in marks} == {
        ("vbackup", None, "disabled", 65536)
    }
    chain.command("-c", chain.lab.uri, "-q", "forget", "bases", "-r", chain.repository)
    assert chain.machine.bitmaps() == {}
    chain.backup()
    chain.machine.destroy()
    done = chain.command("-c", chain.lab.uri, "-q", "forget", "bases", "-r", chain.repository, "--json").document
    assert sum("-end-" in one["name"] for one in done["removed"]) == 2
    chain.machine.handle.domain.create()
    assert chain.machine.bitmaps() == {}


def test_unchanged_disk_costs_no_further_commands(chain: Chain) -> None:
    chain.backup()
    state = chain.machine.state()["nodes"]
    before = end_marks(chain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vbackup.engine.scratch._make", fail)
        done = chain.backup()
    assert {disk["copied_bytes"] for disk in done["disks"]} == {65536}
    assert (end_marks(chain), chain.machine.state()["nodes"]) == (before, state)
