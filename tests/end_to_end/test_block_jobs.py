"""External snapshots and block jobs that others make: what stays incremental, what is busy, all byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt
import pytest

from tests.daemon import wait_for
from tests.end_to_end.chains import Chain, levels, reasons
from tests.lab import DiskSpec, Lab

if TYPE_CHECKING:
    from tests.conftest import Command

ALL_INCREMENTAL = {"vda": "incremental", "vdb": "incremental"}


def snapshot(chain: Chain, name: str) -> Path:
    """As ``virsh snapshot-create-as --disk-only --no-metadata --atomic`` with an overlay for vda."""
    path = chain.tmp_path / f"{name}.qcow2"
    others = "".join(f"<disk name='{spec.dev}' snapshot='no'/>" for spec in chain.specs if spec.dev != "vda")
    chain.machine.handle.domain.snapshotCreateXML(
        f"<domainsnapshot><name>{name}</name><disks>"
        f"<disk name='vda' snapshot='external'><source file='{path}'/></disk>{others}</disks></domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC,
    )
    return path


def wait_until_idle(chain: Chain) -> None:
    wait_for(lambda: chain.machine.execute("query-jobs") == [], "the end of the job")
    wait_for(lambda: not chain.machine.handle.domain.blockJobInfo("vda", 0), "the end of the job in libvirt")
    wait_for(lambda: "<mirror" not in chain.machine.handle.live_xml(), "the pivot")


def pivot(chain: Chain) -> None:
    wait_for(lambda: "ready='yes'" in chain.machine.handle.live_xml(), "the job's getting ready")
    chain.machine.handle.domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    wait_until_idle(chain)


def commit_all(chain: Chain) -> None:
    """``virsh blockcommit vda --active --pivot``."""
    chain.machine.handle.domain.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    pivot(chain)


def commit_the_middle(chain: Chain) -> None:
    """``virsh blockcommit vda --top two.qcow2 --base vda.qcow2``: the active layer stays."""
    two, base = str(chain.tmp_path / "one.qcow2"), str(chain.specs[0].path)
    chain.machine.handle.domain.blockCommit("vda", base, two, 0, 0)
    wait_until_idle(chain)


def pull_all(chain: Chain) -> None:
    """``virsh blockpull vda``."""
    chain.machine.handle.domain.blockPull("vda", 0, 0)
    wait_until_idle(chain)


def copy_elsewhere(chain: Chain) -> None:
    """``virsh blockcopy vda --pivot``: flat, and another file from then on."""
    xml = f"<disk type='file'><source file='{chain.tmp_path}/copy.qcow2'/><driver type='qcow2'/></disk>"
    chain.machine.handle.domain.blockCopy("vda", xml, {}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    pivot(chain)


@pytest.mark.parametrize(
    ("merge", "between"),
    [
        (commit_all, True),
        (commit_the_middle, True),
        (commit_the_middle, False),
        (pull_all, True),
        (copy_elsewhere, True),
    ],
)
def test_backups_before_while_and_after_overlays(
    chain: Chain, merge: Callable[[Chain], None], *, between: bool
) -> None:
    """Every one is restored and compared. libvirt carries the bitmaps along, so that all stay incremental."""
    chain.backup()
    chain.machine.write("vda", "write -P 2 1M 64k", "write -P 2 6M 64k")
    snapshot(chain, "one")
    chain.machine.write("vda", "write -P 3 2M 64k", "write -z 0 64k")
    if between:
        assert levels(chain.backup()) == ALL_INCREMENTAL
    snapshot(chain, "two")
    chain.machine.write("vda", "write -P 5 4M 64k")
    if between:
        assert levels(chain.backup()) == ALL_INCREMENTAL
    chain.machine.write("vda", "write -P 6 5M 64k")
    merge(chain)
    chain.machine.write("vda", "write -P 7 5M 128k")
    assert levels(chain.backup()) == ALL_INCREMENTAL
    chain.machine.write("vda", "write -P 8 7M 64k")
    assert levels(chain.backup("--level", "differential")) == {"vda": "differential", "vdb": "differential"}


def test_raw_disk_under_an_overlay_gets_fulls_until_it_is_committed(
    lab: Lab, command: Command, repository: Path, tmp_path: Path
) -> None:
    """libvirt does not carry bitmaps along that are not stored; that of the raw image itself goes on recording."""
    spec = DiskSpec(tmp_path / "vda.img", size="8M", format="raw")
    chain = Chain(lab, command, repository, tmp_path, [spec])
    chain.machine.write("vda", "write -P 1 0 2M")
    full = chain.backup()
    chain.machine.write("vda", "write -P 2 1M 64k")
    snapshot(chain, "one")
    chain.machine.write("vda", "write -P 3 2M 64k")
    commit_all(chain)
    chain.machine.write("vda", "write -P 4 3M 64k")
    after = chain.backup()
    assert (levels(after), after["parent"]) == ({"vda": "incremental"}, full["id"])
    snapshot(chain, "two")
    chain.machine.write("vda", "write -P 5 4M 64k")
    over = chain.backup()
    assert levels(over) == {"vda": "full"}
    assert "not on every layer" in reasons(over)["vda"]


def expect_busy(chain: Chain, said: str) -> None:
    """Refused by name before anything is made; the other disk can be backed up meanwhile."""
    before = chain.machine.state()
    entries = sorted(chain.repository.rglob("*"))
    for options in ((), ("--dry-run",)):
        refused = chain.run(*options, status=8)
        assert f"Disk vda is busy with {said}" in refused.stderr
    assert refused.document["evidence"]["dev"] == "vda"
    for job in (after := chain.machine.state())["jobs"] + before["jobs"]:
        del job["current-progress"], job["total-progress"]
    assert after == before
    assert sorted(chain.repository.rglob("*")) == entries
    assert [disk["dev"] for disk in chain.run("--exclude-disk", "vda").document["disks"]] == ["vdb"]


def test_disk_with_a_commit_job_is_busy(chain: Chain) -> None:
    chain.backup()
    snapshot(chain, "one")
    chain.machine.write("vda", "write -P 2 0 64k")
    domain = chain.machine.handle.domain
    domain.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    expect_busy(chain, "a commit job (commit-vda-libvirt-")
    pivot(chain)
    assert levels(chain.backup()) == ALL_INCREMENTAL


def test_disk_with_a_stream_job_is_busy(chain: Chain) -> None:
    chain.backup()
    snapshot(chain, "one")
    chain.machine.handle.domain.blockPull("vda", 1, libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
    expect_busy(chain, "a stream job (pull-vda-libvirt-")
    chain.machine.handle.domain.blockJobAbort("vda", 0)
    wait_until_idle(chain)
    assert levels(chain.backup()) == ALL_INCREMENTAL


def test_disk_in_libvirt_s_own_backup_is_busy(chain: Chain) -> None:
    chain.backup()
    domain = chain.machine.handle.domain
    domain.backupBegin(
        f"<domainbackup mode='pull'><server transport='unix' socket='{chain.lab.root}/nbd'/><disks>"
        f"<disk name='vda' type='file'><scratch file='{chain.tmp_path}/scratch'/></disk>"
        "<disk name='vdb' backup='no'/></disks></domainbackup>",
        None,
        0,
    )
    expect_busy(chain, "libvirt's own backup (backup-vda-libvirt-")
    domain.abortJob()
    wait_until_idle(chain)
    assert levels(chain.backup()) == ALL_INCREMENTAL


def test_job_that_is_nobody_s_is_named_by_its_type(chain: Chain) -> None:
    """Started by hand, over QMP; its id tells nothing of the disk."""
    full = chain.backup()
    target = chain.tmp_path / "mine.img"
    target.write_bytes(bytes(8 << 20))
    chain.machine.execute("blockdev-add", driver="file", node_name="mine", filename=str(target))
    device = full["disks"][0]["node_name"]
    chain.machine.execute("blockdev-backup", job_id="mine", device=device, target="mine", sync="full", speed=1)
    expect_busy(chain, "a backup job (mine)")
    chain.machine.execute("job-cancel", id="mine")
    wait_until_idle(chain)
    assert levels(chain.backup()) == ALL_INCREMENTAL
