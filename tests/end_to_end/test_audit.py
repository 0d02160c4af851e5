"""``vbackup audit``: what bitmaps call unchanged is what the newest backup has, or the next backup is a full."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import Daemon, wait_for
from tests.end_to_end.chains import Chain, levels, reasons
from tests.lab import HEEDING_SIGNALS, DiskSpec, Lab, Machine, compare
from vbackup.domain.passthrough import Passthrough
from vbackup.engine import audit_copy
from vbackup.repository import audit_comparison
from vbackup.repository.audit_comparison import Compared

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome


@pytest.fixture
def mixed(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Chain:
    """A qcow2 disk, one whose last cluster is not whole, and a raw one, whose bitmap QEMU only has in memory."""
    specs = [
        DiskSpec(tmp_path / "vda.qcow2", size="8M"),
        DiskSpec(tmp_path / "vdb.qcow2", dev="vdb", size=str((8 << 20) + 4608)),
        DiskSpec(tmp_path / "vdc.raw", dev="vdc", size="8M", format="raw"),
    ]
    return Chain(lab, command, repository, tmp_path, specs)


def audit(chain: Chain, *options: str | Path, status: int = 0) -> Outcome:
    return chain.command(
        "-c", chain.lab.uri, "audit", "bases", "-r", chain.repository, "--json", *options, status=status
    )


def disk(done: Outcome, dev: str = "vda") -> dict[str, Any]:
    return next(one for one in done.document["disks"] if one["dev"] == dev)


def lie(chain: Chain, done: dict[str, Any], dev: str, *writes: str) -> None:
    """Write what the bitmap of that backup forgets, together with all that it had."""
    chain.machine.write(dev, *writes)
    image = next(one for one in done["disks"] if one["dev"] == dev)
    chain.machine.execute("block-dirty-bitmap-clear", node=image["node_name"], name=image["bitmap"])


def test_truth_is_good_and_leaves_nothing(chain: Chain) -> None:
    chain.backup()
    chain.machine.write("vda", "write -P 2 1M 64k", "write -z 512k 64k", "write -P 3 7M 64k")
    chain.backup()
    chain.machine.write("vda", "write -P 4 1536k 64k", "write -P 9 5M 64k")
    before = chain.machine.state()
    done = audit(chain)
    assert chain.machine.state() == before
    assert done.document["verdict"] == "good"
    # 2 MiB + 64 KiB were data, a block of them is zeros, another has changed since.
    assert (disk(done)["clean_bytes"], disk(done)["read_bytes"]) == ((32 + 1 - 1 - 1) * 65536,) * 2
    assert disk(done)["read_zero_bytes"] == (128 - 33 + 1 - 1 - 1) * 65536
    assert disk(done)["wrong_bytes"] == 0
    assert set(levels(chain.backup()).values()) == {"incremental"}


def test_missed_change_is_found_and_costs_a_full(chain: Chain) -> None:
    full = chain.backup()
    chain.machine.write("vda", "write -P 2 1M 64k")
    lie(chain, chain.backup(), "vda", "write -P 7 1M 64k", "write -P 7 192k 128k", "write -P 7 4M 64k")
    chain.machine.write("vda", "write -P 8 7M 64k")
    done = audit(chain, status=6)
    assert done.document["verdict"] == "missed"
    assert disk(done)["wrong_bytes"] == 4 * 65536
    assert [(one["start_bytes"], one["length_bytes"]) for one in disk(done)["ranges"]] == [
        (192 << 10, 128 << 10),
        (1 << 20, 64 << 10),
        (4 << 20, 64 << 10),
    ]
    assert disk(done)["ranges"][0]["since"] == full["id"]
    assert "changed-block tracking missed it" in done.stderr
    assert disk(done, "vdb")["verdict"] == "good"
    after = chain.backup()
    assert levels(after) == {"vda": "full", "vdb": "incremental"}
    assert "an audit at " in reasons(after)["vda"]
    assert audit(chain).document["verdict"] == "good"
    assert levels(chain.backup()) == {"vda": "incremental", "vdb": "incremental"}


def test_miss_is_kept_although_the_domain_ends_before_its_bitmap_is_removed(chain: Chain) -> None:
    chain.backup()
    lie(chain, chain.backup(), "vda", "write -P 7 1M 64k")
    original = audit_comparison.compare

    def compare(*arguments: Any, **more: Any) -> Compared:
        found = original(*arguments, **more)
        if chain.machine.handle.is_active():
            chain.machine.destroy()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_comparison, "compare", compare)
        done = audit(chain, status=6)
    assert [disk(done, dev)["verdict"] for dev in ("vda", "vdb")] == ["missed", "good"]
    assert "was not removed: QEMU has ended" in done.stderr
    chain.restart()
    after = chain.backup()
    assert levels(after) == {"vda": "full", "vdb": "incremental"}
    assert "an audit at " in reasons(after)["vda"]


@contextmanager
def while_it_reads(action: Callable[[], None]) -> Iterator[None]:
    """Do that just after the transaction of an audit."""
    original = Passthrough.execute

    def execute(monitor: Passthrough, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
        reply = original(monitor, command, arguments, fd=fd)
        if command == "transaction" and any(
            one["type"] == "blockdev-backup" and "-audit-" in one["data"]["job-id"] for one in arguments["actions"]
        ):
            action()
        return reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passthrough, "execute", execute)
        yield


def test_what_the_guest_writes_meanwhile_is_no_false_alarm(mixed: Chain) -> None:
    for dev in ("vda", "vdb", "vdc"):
        mixed.machine.write(dev, "write -P 1 0 4M")
    mixed.machine.write("vdb", "write -P 1 8M 4608")
    mixed.backup()
    mixed.machine.write("vda", "write -P 2 1M 64k")

    def churn() -> None:
        for dev in ("vda", "vdb", "vdc"):
            mixed.machine.write(dev, "write -P 5 0 1M", "write -z 1M 512k", "discard 2M 512k", "write -P 6 6M 1M")
        mixed.machine.write("vdb", "write -P 7 8M 4608")

    with while_it_reads(churn):
        done = audit(mixed, "--speed", "4M", "--max-latency", "500ms")
    assert done.document["verdict"] == "good"
    # The last block of a disk is copied by every incremental (vbackup.engine.endmark), so it is never audited.
    assert [one["read_bytes"] for one in done.document["disks"]] == [63 << 16, 64 << 16, 64 << 16]
    # What was overwritten meanwhile is dirty now, and still the truth.
    assert audit(mixed).document["verdict"] == "good"
    assert set(levels(mixed.backup()).values()) == {"incremental"}


@pytest.mark.long
def test_random_rounds_raise_no_false_alarm(mixed: Chain) -> None:
    choose = random.Random(12)
    mixed.backup()
    for number in range(12):
        for spec in mixed.specs:
            blocks = 128 if spec.dev != "vda" or number < 5 else 192
            for _ in range(choose.randrange(4)):
                verb = choose.choice([f"write -P {number + 1}", "write -z", "discard", "write -P 0"])
                start, length = choose.randrange(blocks - 8) * 64, choose.choice([4, 64, 100, 448])
                mixed.machine.write(spec.dev, f"{verb} {start}k {length}k")
        if number == 4:
            mixed.machine.handle.domain.blockResize("vda", 12 << 20, 1)
        if choose.random() < 0.3:
            mixed.run()
        assert audit(mixed).document["verdict"] == "good", number


def test_disk_that_is_audited_only_in_part_by_old_lists(chain: Chain) -> None:
    """A backup from before there were block lists is in the chain: what only it has is left out."""
    full = chain.backup()
    chain.machine.write("vda", "write -P 2 1M 64k")
    chain.run()
    directory = chain.repository / full["domain"]["uuid"] / full["id"]
    manifest = json.loads((directory / "manifest.json").read_text())
    for image in manifest["disks"]:
        del image["blocks"]
        image["digest"] = "sha256:" + hashlib.sha256((directory / image["file"]).read_bytes()).hexdigest()
    del manifest["digest"]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    done = audit(chain)
    assert [disk(done)[name] for name in ("complete", "read_bytes", "read_zero_bytes")] == [False, 65536, 0]
    shown = chain.command("-c", chain.lab.uri, "audit", "bases", "-r", chain.repository)
    assert "older backups have no block lists" in shown.stdout
    assert "all data that is unchanged was read" in shown.stdout


def test_disk_without_a_base_has_nothing_to_audit(chain: Chain) -> None:
    refused = audit(chain, status=5)
    assert "has nothing to audit" in refused.stderr
    assert "there is no earlier backup of this disk" in refused.stderr
    chain.run("--disk", "vda")
    done = audit(chain)
    assert [one["dev"] for one in done.document["not_audited"]] == ["vdb"]
    refused = audit(chain, "--disk", "vdb", status=5)
    assert "Disk vdb: there is nothing to audit: there is no earlier backup" in refused.stderr


def test_full_scratch_space_is_none_of_the_guests_business(chain: Chain, small_filesystem: Path) -> None:
    chain.machine.write("vda", "write -P 1 0 8M")
    chain.backup()
    ballast = small_filesystem / "ballast"
    ballast.write_bytes(bytes(6 << 20))
    before = chain.machine.state()
    refused = audit(chain, "--scratch", small_filesystem, status=7)
    assert "The audit needs up to" in refused.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_copy, "_refuse_full", lambda *_: None)
        with while_it_reads(lambda: chain.machine.write("vda", "write -P 3 0 8M")):
            refused = audit(chain, "--scratch", small_filesystem, status=7)
        assert "was ended; no write of the guest was lost" in refused.stderr
        # Nobody looks at the space, as with a quota: what is missing is seen.
        patch.setattr(audit_copy.SpaceWatch, "check", lambda _self: None)
        chain.backup()
        with while_it_reads(lambda: chain.machine.write("vda", "write -P 4 0 8M")):
            refused = audit(chain, "--scratch", small_filesystem, status=7)
        assert "could not store in" in refused.stderr
    chain.machine.check_content("vda", "-P 4 0 8M")
    after = chain.machine.state()
    for name in ("nodes", "jobs", "fdsets"):
        assert after[name] == before[name]
    assert list(small_filesystem.iterdir()) == [ballast]
    assert set(levels(chain.backup()).values()) == {"incremental"}


def test_domain_that_is_off_is_read_through_a_storage_daemon(chain: Chain) -> None:
    chain.machine.write("vda", "write -P 1 0 4M")
    chain.backup()
    chain.machine.write("vda", "write -P 2 1M 64k")
    full = chain.backup()
    chain.machine.write("vdb", "write -P 2 1M 64k")
    chain.machine.destroy()
    done = audit(chain)
    assert done.document["verdict"] == "good"
    assert disk(done, "vdb")["read_bytes"] == 31 << 16
    # Behind QEMU's back: no bitmap knows of it.
    image = chain.specs[0].path
    mapped = subprocess.run(["qemu-img", "map", "--output=json", str(image)], capture_output=True, check=True)
    place = next(one["offset"] for one in json.loads(mapped.stdout) if one.get("offset") and one["start"] == 0)
    with image.open("r+b") as file:
        file.seek(place + (128 << 10) + 5)
        file.write(b"x")
    done = audit(chain, status=6)
    assert [one["start_bytes"] for one in disk(done)["ranges"]] == [128 << 10]
    assert disk(done, "vdb")["verdict"] == "good"
    off = chain.run().document
    assert levels(off) == {"vda": "full", "vdb": "incremental"}
    assert "an audit at" in reasons(off)["vda"]
    output = chain.tmp_path / "restored"
    chain.command("-q", "restore", "bases", "-r", chain.repository, "--output", output)
    for spec in chain.specs:
        compare(output / spec.path.name, spec.path)
    assert full["id"] != off["id"]
    assert audit(chain).document["verdict"] == "good"


def test_damaged_list_is_told_and_nothing_is_distrusted(chain: Chain) -> None:
    full = chain.backup()
    path = chain.repository / full["domain"]["uuid"] / full["id"] / "vda.blocks"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    assert "vda.blocks of backup" in audit(chain, status=6).stderr
    assert set(levels(chain.run().document).values()) == {"incremental"}


def test_damaged_results_cost_one_full_of_each_disk(chain: Chain) -> None:
    full = chain.backup()
    lie(chain, full, "vda", "write -P 7 1M 64k")
    audit(chain, status=6)
    path = chain.repository / full["domain"]["uuid"] / "audit.json"
    path.write_bytes(path.read_bytes()[:100])
    assert f"{path} cannot be read" in chain.command("check", "-r", chain.repository).stdout
    assert "audit.json is damaged" in audit(chain, status=5).stderr
    chain.run("--dry-run")
    assert f"{path} cannot be read" in chain.command("check", "-r", chain.repository).stdout
    done = chain.backup()
    assert set(levels(done).values()) == {"full"}
    assert "audit.json" not in chain.command("check", "-r", chain.repository).stdout
    assert set(levels(chain.backup()).values()) == {"incremental"}


@pytest.mark.parametrize("sender", ["recover", "audit", "backup"])
def test_killed_audit_is_cleaned_up_by_the_next_command(
    daemon: Daemon, command: Command, repository: Path, slow_machine: Callable[[str], Machine], sender: str
) -> None:
    machine = slow_machine("audited")
    options = ("-c", daemon.uri, "-q")
    command(*options, "backup", "audited", "-r", repository)
    before = machine.state()
    argv = [*HEEDING_SIGNALS, sys.executable, "-m", "vbackup", *options, "audit", "audited", "-r", str(repository)]
    with subprocess.Popen([*argv, "--speed", "1M"]) as process:
        wait_for(lambda: len(machine.execute("query-jobs")) == 2, "the jobs of the audit")
        process.kill()
    assert machine.state() != before
    machine.write("vda", "write -P 9 4M 1M")
    assert not [path for path in repository.rglob("*") if path.suffix in (".partial", ".scratch")]
    command(*options, sender, "audited", "-r", repository)
    after = machine.state()
    assert "audit" not in str(after)
    if sender == "backup":  # has bitmaps of its own
        del before["bitmaps"], after["bitmaps"]
    assert after == before
    assert command(*options, "audit", "audited", "-r", repository, "--json").document["verdict"] == "good"


def test_domain_that_ends_meanwhile_is_told(chain: Chain) -> None:
    chain.backup()
    with while_it_reads(chain.machine.destroy):
        ended = audit(chain, "--speed", "64k", status=1)
    assert "Domain bases stopped while it was being audited" in ended.stderr
    chain.restart()
    assert audit(chain).document["verdict"] == "good"
    assert set(levels(chain.backup()).values()) == {"incremental"}


def test_signal_ends_an_audit_and_leaves_nothing(chain: Chain) -> None:
    chain.machine.write("vda", "write -P 1 0 8M")
    chain.backup()
    before = chain.machine.state()
    with while_it_reads(lambda: os.kill(os.getpid(), signal.SIGTERM)):
        audit(chain, "--speed", "64k", status=128 + signal.SIGTERM)
    assert chain.machine.state() == before
