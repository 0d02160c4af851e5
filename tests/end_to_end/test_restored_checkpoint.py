"""The chain goes on after a restore: the next backup is an incremental on the restored point, and right.

These are the tests of engine.restored_checkpoint.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.chains import Chain, levels, reasons
from tests.end_to_end.test_offline import write
from tests.end_to_end.test_rollback import Rolled, compare_content
from tests.lab import DiskSpec, qemu_img_info


class Restored(Rolled):
    """The original goes away; what is restored takes its place."""

    def restore(self, backup: str, *options: str) -> Path:
        output = self.chain.tmp_path / f"out-{len(list(self.chain.tmp_path.glob('out-*')))}"
        argv = ["-q", "restore", "bases", backup, "-r", self.chain.repository, "--output", output, *options]
        self.chain.command(*argv)
        return output

    def use(self, directory: Path) -> None:
        """The domain has the images of the directory from now on."""
        self.chain.specs = [DiskSpec(directory / f"{dev}.qcow2", dev=dev) for dev in ("vda", "vdb")]
        self.chain.stop()
        self.chain.machine = self.chain.lab.define(self.chain.xml())

    def start(self) -> None:
        self.chain.machine.handle.domain.create()

    def bases(self, done: dict[str, Any]) -> set[str | None]:
        return {disk["base"] for disk in done["disks"]}


@pytest.fixture
def domain(chain: Chain) -> Restored:
    return Restored(chain)


def bitmaps(path: Path) -> list[str]:
    return [one["name"] for one in qemu_img_info(path)["format-specific"]["data"].get("bitmaps", [])]


@pytest.mark.parametrize("runs", [True, False])
def test_next_backup_starts_from_the_restored_point(domain: Restored, runs: bool) -> None:
    vda = domain.chain.specs[0].path
    first = domain.backup()
    write(vda, "write -P 2 1M 64k")
    second = domain.backup()
    write(vda, "write -P 3 2M 64k")
    third = domain.backup()
    original = domain.chain.specs[0].path.parent
    domain.use(domain.restore(second["id"]))
    # Whatever writes to it before the domain is started is recorded too.
    write(domain.chain.specs[0].path, "write -P 7 4M 64k", "write -z 1M 4k", "discard 0 64k")
    if runs:
        domain.start()
        domain.chain.machine.write("vda", "write -P 8 6M 64k")
        domain.chain.machine.destroy()
    fourth = domain.backup()
    assert set(levels(fourth).values()) == {"incremental"}, reasons(fourth)
    assert domain.bases(fourth) == {second["id"]}
    assert fourth["disks"][0]["reason"] == f"changes since {second['id']}, to which the disk was restored"
    assert fourth["disks"][0]["copied_bytes"] == (5 if runs else 4) << 16
    write(domain.chain.specs[0].path, "write -P 9 7M 64k")
    fifth = domain.backup()
    assert domain.bases(fifth) == {fourth["id"]}
    # The original comes back: nothing of the newest backup is on its disks.
    domain.use(original)
    sixth = domain.backup()
    assert set(levels(sixth).values()) == {"full"}
    for each in (first, second, third, fourth, fifth, sixth):
        domain.restored(each["id"])


def test_restored_images_that_are_used_later(domain: Restored) -> None:
    """Backups of the original go on before the restored images come into use."""
    first = domain.backup()
    output = domain.restore(first["id"])
    write(domain.chain.specs[0].path, "write -P 2 1M 64k")
    domain.backup()
    domain.use(output)
    write(output / "vda.qcow2", "write -P 3 2M 64k")
    third = domain.backup()
    assert set(levels(third).values()) == {"incremental"}, reasons(third)
    assert domain.bases(third) == {first["id"]}
    domain.restored(third["id"])


def test_copy_of_restored_images_that_is_used_later_costs_a_full(domain: Restored) -> None:
    """Its end mark may be that of a later backup, so nothing proves that it is not an overlay of the restored image."""
    first = domain.backup()
    output = domain.restore(first["id"])
    domain.backup()
    elsewhere = domain.chain.tmp_path / "elsewhere"
    subprocess.run(["cp", "-a", str(output), str(elsewhere)], check=True)
    domain.use(elsewhere)
    write(elsewhere / "vda.qcow2", "write -P 3 2M 64k")
    third = domain.backup()
    assert set(levels(third).values()) == {"full"}, reasons(third)
    domain.restored(third["id"])


def test_restored_image_that_was_exchanged_or_killed_costs_a_full(domain: Restored) -> None:
    first = domain.backup()
    output = domain.restore(first["id"])
    domain.use(output)
    vda, vdb = (spec.path for spec in domain.chain.specs)
    other = domain.restore(first["id"], "--no-checkpoint")
    assert bitmaps(other / "vda.qcow2") == []
    subprocess.run(["cp", str(other / "vda.qcow2"), str(vda)], check=True)
    # A program that writes without QEMU, and leaves the bitmaps' extension behind as it was, clears its bit.
    with vdb.open("r+b") as file:
        file.seek(95)
        file.write(b"\0")
    done = domain.backup()
    assert levels(done) == {"vda": "full", "vdb": "full"}
    domain.restored(done["id"])


def test_overlay_over_a_restored_image(domain: Restored) -> None:
    """An overlay that was made while the domain was off has no bitmap."""
    first = domain.backup()
    domain.use(domain.restore(first["id"]))
    spec = domain.chain.specs[0]
    overlay = spec.path.with_name("overlay.qcow2")
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(spec.path), "-F", "qcow2", str(overlay)]
    subprocess.run(argv, check=True)
    domain.chain.specs[0] = DiskSpec(overlay)
    domain.chain.stop()
    domain.chain.machine = domain.chain.lab.define(domain.chain.xml())
    write(overlay, "write -P 3 2M 64k")
    done = domain.backup()
    assert levels(done) == {"vda": "full", "vdb": "incremental"}
    domain.restored(done["id"])


def test_resized_restored_image(domain: Restored) -> None:
    first = domain.backup()
    domain.use(domain.restore(first["id"]))
    path = domain.chain.specs[0].path
    subprocess.run(["qemu-img", "resize", "-q", str(path), "12M"], check=True)
    write(path, "write -P 3 9M 64k")
    second = domain.backup()
    assert domain.bases(second) == {first["id"]}
    domain.restored(second["id"])
    domain.use(domain.restore(first["id"]))
    path = domain.chain.specs[0].path
    for size in ("4M", "8M"):
        subprocess.run(["qemu-img", "resize", "-q", "--shrink", str(path), size], check=True)
    third = domain.backup()
    assert levels(third) == {"vda": "full", "vdb": "incremental"}
    domain.restored(third["id"])


def test_rollback_of_a_restored_disk(domain: Restored) -> None:
    first = domain.backup()
    write(domain.chain.specs[0].path, "write -P 2 1M 64k")
    second = domain.backup()
    domain.use(domain.restore(second["id"]))
    write(domain.chain.specs[0].path, "write -P 3 3M 64k")
    done, reasons_, _ = domain.roll(first["id"])
    assert (len(done), reasons_) == (2, {})
    domain.compare(first["id"])
    done, reasons_, _ = domain.roll(second["id"])
    assert {one.dev: one.written_bytes for one in done} == {"vda": 2 << 16, "vdb": 1 << 16}
    domain.compare(second["id"])


def test_restored_point_is_kept_while_the_next_backup_starts_from_it(domain: Restored) -> None:
    ids = []
    for number in range(3):
        write(domain.chain.specs[0].path, f"write -P {number + 2} {number + 1}M 64k")
        ids.append(domain.backup()["id"])
    domain.use(domain.restore(ids[1]))
    argv = ["-q", "prune", "bases", "-r", domain.chain.repository, "--keep-last", "1", "--json"]
    domain.chain.command(*argv)
    listed = domain.chain.command("list", "bases", "-r", domain.chain.repository, "--json").document
    assert ids[1] in json.dumps(listed)
    done = domain.backup()
    assert domain.bases(done) == {ids[1]}
    domain.restored(done["id"])


def test_copy_and_raw_images_get_none(domain: Restored) -> None:
    done = domain.backup("--level", "copy")
    assert bitmaps(domain.restore(done["id"]) / "vda.qcow2") == []
    first = domain.backup()
    raw = domain.restore(first["id"], "--format", "raw")
    assert (raw / "vda.raw").exists()
    assert compare_content(domain.chain.specs[0].path, raw / "vda.raw") is None


def test_repository_that_is_only_read(domain: Restored, monkeypatch: pytest.MonkeyPatch) -> None:
    """The restore is as good, and the image has no bitmap that nobody knows."""
    from vbackup.errors import StorageError
    from vbackup.repository import restored

    first = domain.backup()

    def refuse(*_: object) -> None:
        raise StorageError("Read-only file system.")

    monkeypatch.setattr(restored, "add", refuse)
    assert bitmaps(domain.restore(first["id"]) / "vda.qcow2") == []
