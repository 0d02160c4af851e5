"""``backup --fleecing``: what the guest overwrites is put aside, the backup is of the moment anyway."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.end_to_end.chains import Chain, levels
from tests.lab import DiskSpec, Lab, References

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def area(tmp_path: Path) -> Path:
    path = tmp_path / "area"
    path.mkdir()
    return path


@pytest.fixture
def mixed(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Chain:
    """Disks with something of QEMU's between them and the device."""
    throttled = "<iotune><total_bytes_sec>500000000</total_bytes_sec></iotune>"
    specs = [
        DiskSpec(tmp_path / "vda.qcow2", size="16M", driver="copy_on_read='on'"),
        # Its last cluster is not whole. (Iothreads are in test_iothreads.)
        DiskSpec(tmp_path / "vdb.qcow2", dev="vdb", size=str((16 << 20) + 4608)),
        DiskSpec(tmp_path / "vdc.raw", dev="vdc", size="16M", format="raw", inside=throttled),
    ]
    return Chain(lab, command, repository, tmp_path, specs)


def test_backups_are_of_the_moment_whatever_the_guest_overwrites_meanwhile(mixed: Chain, area: Path) -> None:
    devs = [spec.dev for spec in mixed.specs]
    for dev in devs:
        mixed.machine.write(dev, "write -P 1 0 8M", "write -z 3M 1M")
    mixed.machine.write("vdb", "write -P 1 16M 4608")

    def overwrite(pattern: int) -> None:
        for dev in devs:
            mixed.machine.write(
                dev, f"write -P {pattern} 0 1M", f"write -P {pattern} 2M 3M", "write -z 5M 128k", "discard 6M 512k"
            )
        mixed.machine.write("vdb", f"write -P {pattern} 16M 4608")

    full = mixed.backup("--fleecing", area, during=lambda: overwrite(2))
    assert set(levels(full).values()) == {"full"}
    clean = mixed.machine.state()
    for dev in devs:
        mixed.machine.write(dev, "write -P 3 512k 1M", "write -z 9M 64k", "discard 2M 64k")
    incremental = mixed.backup("--fleecing", area, "--compress", "zstd", during=lambda: overwrite(4))
    assert set(levels(incremental).values()) == {"incremental"}
    differential = mixed.backup("--fleecing", area, "--level", "differential", during=lambda: overwrite(5))
    assert set(levels(differential).values()) == {"differential"}
    assert set(levels(mixed.backup()).values()) == {"incremental"}
    after = mixed.machine.state()
    assert [after[what] for what in ("nodes", "jobs", "fdsets")] == [
        clean[what] for what in ("nodes", "jobs", "fdsets")
    ]
    assert list(area.iterdir()) == []


def test_full_repository_is_none_of_the_guests_business(
    chain: Chain, command: Command, small_filesystem: Path, area: Path, tmp_path: Path
) -> None:
    repository = small_filesystem / "repository"
    command("init", "-r", repository)
    (small_filesystem / "ballast").write_bytes(bytes(10 << 20))
    before = chain.machine.state()
    chain.machine.write("vda", "write -P 7 0 6M")
    references = References(
        tmp_path / "references", after_transaction=lambda _monitor: chain.machine.write("vda", "write -P 8 0 6M")
    )
    with pytest.MonkeyPatch.context() as patch, references.taken(patch):
        failed = command(
            "-c", chain.lab.uri, "-q", "backup", "bases", "-r", repository, "--fleecing", area, status=7
        )  # fmt: skip
    references.finish(chain.machine)
    assert "no space left" in failed.stderr
    assert "guest" not in failed.stderr
    assert chain.machine.state() == before
    # All that it wrote has come to its disk.
    chain.backup()
    restored = tmp_path / "out1" / "vda.qcow2"
    done = subprocess.run(
        ["qemu-io", "-c", "read -P 8 0 6M", str(restored)], capture_output=True, text=True, check=True
    )
    assert "verification failed" not in done.stdout


def test_fleecing_area_that_fills_up_ends_the_backup_and_nothing_else(
    chain: Chain, command: Command, small_filesystem: Path, tmp_path: Path
) -> None:
    chain.machine.write("vda", "write -P 7 0 8M")
    before = chain.machine.state()
    # More than may be put aside there (a quarter is kept free), and less than there is room for.
    (small_filesystem / "ballast").write_bytes(bytes(2 << 20))
    references = References(
        tmp_path / "references", after_transaction=lambda _monitor: chain.machine.write("vda", "write -P 8 0 8M")
    )
    options = ("--fleecing", small_filesystem, "--speed", "256K")
    with pytest.MonkeyPatch.context() as patch, references.taken(patch):
        failed = chain.command(
            "-c", chain.lab.uri, "backup", "bases", "-r", chain.repository, *options, status=7
        )  # fmt: skip
    references.finish(chain.machine)
    assert f"The fleecing area {small_filesystem} is too small" in failed.stderr
    assert chain.machine.state() == before
    assert [path.name for path in small_filesystem.iterdir()] == ["ballast"]
    assert levels(chain.backup()) == {"vda": "full", "vdb": "full"}


def test_no_directory_is_refused_before_anything_is_begun(chain: Chain, tmp_path: Path) -> None:
    before = chain.machine.state()
    failed = chain.run("--fleecing", tmp_path / "nothing", status=7)
    assert f"{tmp_path / 'nothing'} is not a directory" in failed.stderr
    assert chain.machine.state() == before


def test_plan_shows_both_transactions(chain: Chain, area: Path) -> None:
    before = chain.machine.state()
    plan = chain.run("--fleecing", area, "--dry-run").document
    (aside, _) = [one["data"] for one in plan["transaction"] if one["type"] == "blockdev-backup"]
    (copy, _) = [one["data"] for one in plan["copies"] if one["type"] == "blockdev-backup"]
    assert (aside["sync"], aside["device"]) == ("none", plan["disks"][0]["node_name"])
    assert (copy["sync"], copy["device"]) == ("full", aside["filter-node-name"].replace("filter", "view"))
    printed = chain.command(
        "-c", chain.lab.uri, "-q", "backup", "bases", "-r", chain.repository, "--fleecing", area, "--dry-run"
    ).stdout
    assert "Then, to copy the disks through the fleecing area:" in printed
    assert json.dumps(copy["device"]) in printed
    assert chain.machine.state() == before


def test_domain_that_is_off_needs_no_fleecing(chain: Chain, area: Path) -> None:
    chain.machine.destroy()
    done = chain.command("-c", chain.lab.uri, "backup", "bases", "-r", chain.repository, "--fleecing", area)
    assert "nothing can slow it down" in done.stderr
    assert list(area.iterdir()) == []
