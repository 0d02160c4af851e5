"""Whatever way images are made and opened in, a restore is the disk as it was at that moment.

Data, discarded blocks, WRITE_ZEROES and literal zeros, over data and over nothing, in a full and in incrementals.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.chains import END_BYTES, Chain
from tests.filesystem import Btrfs, Xfs
from tests.lab import DiskSpec, Lab, qemu_img_info
from vbackup.images import targets, tuning
from vbackup.model import CLUSTER_BYTES, Compression, ImageOptions, Level, NodeOptions
from vbackup.qemu import jobs
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.report import Silent
from vbackup.stop import Stop

if TYPE_CHECKING:
    from tests.conftest import Command

MIB = 1024 * 1024

#: All that vbackup.images.tuning can choose; tests/unit/images/test_tuning.py holds the two together.
COMBINATIONS = [
    (ImageOptions(CLUSTER_BYTES, compression), NodeOptions(no_flush=no_flush, detect_zeroes=True))
    for compression in (Compression.NONE, Compression.ZSTD, Compression.ZLIB)
    for no_flush in (True, False)
]


def _id(combination: tuple[ImageOptions, NodeOptions]) -> str:
    image, node = combination
    return f"{image.compression.value}-{'' if node.no_flush else 'not-'}local"


#: Two formats of the guest's disk, and a discard that reaches the image.
DISKS = (("vda", "qcow2"), ("vdb", "raw"))


@pytest.fixture
def machine_chain(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Chain:
    specs = [
        DiskSpec(tmp_path / f"{dev}.{kind}", dev=dev, size="16M", format=kind, driver="discard='unmap'")
        for dev, kind in DISKS
    ]
    return Chain(lab, command, repository, tmp_path, specs)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=_id)
def test_what_is_restored_is_the_disk_of_that_moment(
    machine_chain: Chain, monkeypatch: pytest.MonkeyPatch, combination: tuple[ImageOptions, NodeOptions]
) -> None:
    image, node = combination
    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(tuning, "image_options", lambda _compression: image)
    monkeypatch.setattr(tuning, "node_options", lambda *, is_local: opened.append({"local": is_local}) or node)
    chain = machine_chain
    for dev, _ in DISKS:
        chain.machine.write(
            dev,
            "write -P 1 0 4M",
            "write -P 0 4M 1M",  # literal zeros over nothing
            "write -P 2 5M 64k",
            "write -z 6M 1M",
            "write -P 3 8M 1M",
            "write -P 4 15M 1M",
        )
    options = ("--compress", image.compression.value)
    assert set(levels(chain.backup(*options))) == {"full"}
    for dev, _ in DISKS:
        chain.machine.write(
            dev,
            "write -P 0 0 192k",  # literal zeros over data
            "write -P 0 1032k 8k",  # within a cluster
            "write -z 2M 320k",
            "discard 3M 512k",
            "write -z -u 8M 64k",
            "write -P 5 12M 4k",
            "write -P 6 5M 512",
        )
    assert set(levels(chain.backup(*options))) == {"incremental"}
    for dev, _ in DISKS:
        chain.machine.write(dev, "write -P 7 0 64k", "write -P 8 3M 64k", "discard 15M 1M", "write -P 0 8M 1M")
    assert set(levels(chain.backup(*options))) == {"incremental"}
    assert opened == [{"local": True}] * 6  # the plan and the flush of each backup


def levels(done: dict[str, Any]) -> list[str]:
    return [disk["level"] for disk in done["disks"]]


def images(repository: Path) -> list[Path]:
    return sorted(repository.glob("*/*/vda.qcow2"))


def test_images_are_made_as_was_chosen(machine_chain: Chain, repository: Path) -> None:
    for dev, _ in DISKS:
        machine_chain.machine.write(dev, "write -P 1 0 4M")
    machine_chain.backup("--compress", "zstd")
    machine_chain.machine.write("vda", "write -P 2 0 4k")
    machine_chain.backup("--compress")
    machine_chain.backup("--level", "full")
    assert [
        (info["cluster-size"], info["format-specific"]["data"]["compression-type"])
        for info in map(qemu_img_info, images(repository))
    ] == [(CLUSTER_BYTES, "zstd"), (CLUSTER_BYTES, "zstd"), (CLUSTER_BYTES, "zlib")]


def test_zeros_that_the_guest_has_written_take_no_room(machine_chain: Chain, repository: Path) -> None:
    """Neither in a full, where there is nothing, nor in an incremental, where they hide what is below."""
    machine_chain.machine.write("vda", "write -P 0 0 8M", "write -P 1 8M 1M")
    machine_chain.backup()
    machine_chain.machine.write("vda", "write -P 0 8M 1M")
    machine_chain.backup()
    full, incremental = images(repository)
    assert full.stat().st_size < 2 * MIB
    assert incremental.stat().st_size < MIB


def test_scattered_changes_are_copied_for_themselves(machine_chain: Chain) -> None:
    machine_chain.machine.write("vda", "write -P 1 0 16M")
    machine_chain.backup("--compress", "zstd")
    machine_chain.machine.write("vda", *(f"write -P 2 {number}M 4k" for number in range(8)))
    done = machine_chain.backup("--compress", "zstd")
    copied = {disk["dev"]: disk["copied_bytes"] for disk in done["disks"]}
    assert copied == {"vda": 8 * CLUSTER_BYTES + END_BYTES, "vdb": END_BYTES}


def test_images_are_on_the_disk_before_they_count(
    machine_chain: Chain, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    """QEMU does not flush, so each image is flushed here before the journal says that it is complete."""
    really = os.fsync
    order: list[str] = []

    def noted(fd: int) -> None:
        name = Path(f"/proc/self/fd/{fd}").readlink()
        if name.suffix == ".qcow2" or name.name == "journal":
            step = json.loads(name.read_text().splitlines()[-1])["step"] if name.name == "journal" else name.name
            order.append(step)
        really(fd)

    monkeypatch.setattr(os, "fsync", noted)
    machine_chain.machine.write("vda", "write -P 1 0 1M")
    machine_chain.run()
    flushed = order.index("flushed")
    assert sorted(order[order.index("copied") + 1 : flushed]) == ["vda.qcow2", "vdb.qcow2"]


def test_domain_that_is_off_is_read_in_the_same_way(machine_chain: Chain, repository: Path, tmp_path: Path) -> None:
    machine_chain.machine.write("vda", "write -P 1 0 4M", "write -P 0 4M 4M")
    chain = machine_chain
    chain.stop()
    chain.lab.define(chain.xml())
    done = chain.run("--compress").document
    chain.command("-q", "restore", "bases", "-r", repository, "--output", tmp_path / "out")
    for dev, kind in DISKS:
        path = tmp_path / f"{dev}.{kind}"
        argv = [
            "qemu-img",
            "compare",
            "-U",
            "-f",
            kind,
            "-F",
            "qcow2",
            str(path),
            str(tmp_path / "out" / f"{dev}.qcow2"),
        ]
        assert subprocess.run(argv, capture_output=True, check=False).returncode == 0
    assert done["consistency"] == "offline"
    assert Level(done["level"]) is Level.FULL


def writes_of_a_scattered_copy(source: Path, target_node: dict[str, Any]) -> int:
    """How many writes a storage daemon makes to the target while it copies what the source has.

    QEMU's blklogwrites counts them. What the kernel counts for the process (/proc/PID/io, syscw) depends on the load:
    its threads wake each other by writes too.
    """
    path = Path(target_node["file"]["filename"])
    log = path.with_suffix(".log")
    log.touch()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1T"], check=True)
    disk = {"driver": "qcow2", "node-name": "source", "read-only": True}
    counted = {
        "driver": "blklogwrites",
        "file": target_node["file"],
        "log": {"driver": "file", "filename": str(log)},
        "log-super-update-interval": 1,
    }
    nodes = [{**disk, "file": {"driver": "file", "filename": str(source)}}, {**target_node, "file": counted}]
    with StorageDaemon(Silent(), nodes=nodes) as daemon:
        copy = {"job-id": "copy", "device": "source", "target": "target", "sync": "top", "auto-dismiss": False}
        daemon.execute("blockdev-backup", copy)
        assert jobs.follow(daemon, ["copy"], together=False, reporter=Silent(), stop=Stop())["copy"].error is None
    # Its superblock: magic, version, number of entries (log_write_super in QEMU's block/blklogwrites.c).
    magic, _version, writes = struct.unpack_from("<QQQ", log.read_bytes())
    assert magic == 0x6A736677736872
    return int(writes)


def test_tables_of_a_large_disk_are_written_as_a_whole(tmp_path: Path) -> None:
    """By itself QEMU makes each in sixteen writes where not all fit into its cache."""
    source = tmp_path / "source.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(source), "1T"], check=True)
    writes = [word for number in range(200) for word in ("-c", f"write -P 7 {number * 5}G 64k")]
    subprocess.run(["qemu-io", *writes, "-f", "qcow2", str(source)], check=True, stdout=subprocess.DEVNULL)
    ours = targets.node("target", str(tmp_path / "ours.qcow2"))
    qemus = targets.node("target", str(tmp_path / "qemus.qcow2"))
    for name in tuning.TABLES:
        del qemus[name]
    counts = [writes_of_a_scattered_copy(source, one) for one in (ours, qemus)]
    assert counts[0] < 0.6 * counts[1], counts
    subprocess.run(["qemu-img", "compare", "-q", str(source), str(tmp_path / "ours.qcow2")], check=True)


def test_image_that_may_share_data_with_the_disk_is_right_on_a_filesystem_that_cannot_do_that_too(
    machine_chain: Chain,
) -> None:
    chain, options = machine_chain, ("--allow-reflink",)
    for dev, _ in DISKS:
        chain.machine.write(dev, "write -P 1 0 4M", "write -P 0 4M 1M", "write -z 6M 1M", "write -P 3 8M 64k")
    chain.backup(*options)
    for dev, _ in DISKS:
        chain.machine.write(dev, "write -P 2 0 64k", "write -P 0 1M 64k", "discard 2M 64k", "write -P 9 15M 4k")
    chain.backup(*options, during=lambda: chain.machine.write("vda", "write -P 7 0 4M"))


@pytest.fixture(params=[Xfs, Btrfs])
def reflinking(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A separate filesystem with reflinks; without its tools or a loop device the test is skipped."""
    if os.getuid():
        pytest.skip("needs root")
    one = request.param(tmp_path, size_mib=512)
    one.mount()
    try:
        yield one.path
    finally:
        one.unmount()


def test_image_shares_the_data_of_the_disk_if_that_is_allowed(
    lab: Lab, command: Command, reflinking: Path, tmp_path: Path
) -> None:
    repository = reflinking / "repository"
    command("init", "-r", repository)
    chain = Chain(lab, command, repository, tmp_path, [DiskSpec(reflinking / "vda.qcow2", size="128M")])

    def used_bytes() -> int:
        os.sync()
        found = os.statvfs(reflinking)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    try:
        chain.machine.write("vda", *(f"write -P {number + 1} {number * 4}M 4M" for number in range(16)))
        before = used_bytes()
        # Without the references of Chain.backup: QEMU does not ask the kernel through the filter of another job.
        chain.run("--allow-reflink")
        assert used_bytes() - before < 16 * MIB
        chain.machine.write("vda", "write -P 99 60M 1M")
        chain.run("--level", "copy")
        assert used_bytes() - before > 64 * MIB
        first = images(repository)[0]
    finally:
        chain.stop()
    verified = [word for number in range(16) for word in ("-c", f"read -P {number + 1} {number * 4}M 4M")]
    read = subprocess.run(["qemu-io", "-r", *verified, str(first)], capture_output=True, text=True, check=True)
    assert "failed" not in read.stdout
