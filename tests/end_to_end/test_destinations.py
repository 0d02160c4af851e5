"""Disks are restored to block devices and to named files, whatever was there, and compared byte for byte."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.filesystem import Ext4, loop_device
from tests.recorded import MIB, Recorded, story
from vbackup.domain import domain_xml
from vbackup.images import flatten, restoring
from vbackup.model import ImageFormat

if TYPE_CHECKING:
    from tests.conftest import Command

SIZE = 9 * MIB + 3 * 512  #: of the disks in the newest backup
OLD = b"\xa5"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return story(tmp_path_factory.mktemp("destinations") / "repository")


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    path = tmp_path / "backing"
    path.write_bytes(OLD * (12 * MIB))
    return path


@pytest.fixture
def loop(backing: Path) -> Iterator[Path]:
    """A device of 12 MiB with old content everywhere."""
    with loop_device(backing) as path:
        yield path


@pytest.mark.parametrize("layers", [25, 1], ids=["by qemu-img", "by a daemon"])
def test_disk_on_a_device_has_its_bytes_and_nothing_of_the_old_ones(
    recorded: Recorded, command: Command, tmp_path: Path, loop: Path, monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    """It has grown in the newest layer, and the device is larger still."""
    monkeypatch.setattr(flatten, "CONVERT_LAYERS", layers)
    out = tmp_path / "out"
    done = command(
        "restore", "web", "-r", recorded.repository.path, "--output", out,
        "--disk", f"vda={loop}", "vdb", "--json",
    )  # fmt: skip
    expected = recorded.expected(recorded.backups[-1])
    content = loop.read_bytes()
    assert content[:SIZE] == expected["vda"]
    assert content[SIZE:] == bytes(12 * MIB - SIZE)
    disks = {disk["dev"]: disk for disk in done.document["disks"]}
    assert (disks["vda"]["type"], disks["vda"]["format"], disks["vda"]["file"]) == ("block", "raw", str(loop))
    assert (disks["vda"]["checkpoint"], disks["vdb"]["checkpoint"]) == (False, True)
    assert (disks["vdb"]["type"], disks["vdb"]["format"]) == ("file", "qcow2")
    assert raw(out / "vdb.qcow2", ImageFormat.QCOW2) == expected["vdb"]
    parsed = {disk.dev: disk for disk in domain_xml.parse((out / "domain.xml").read_text()).disks}
    assert {dev: (one.path, str(one.format), str(one.images[0].source_type)) for dev, one in parsed.items()} == {
        "vda": (str(loop), "raw", "block"),
        "vdb": (str(out / "vdb.qcow2"), "qcow2", "file"),
    }
    assert f"Disk vda: the content of {loop} is overwritten; its last {12 * MIB - SIZE} bytes" in done.stderr
    assert "vda: " in done.stderr
    assert "stores no bitmap, so its next backup is a full" in done.stderr


def raw(path: Path, image_format: ImageFormat) -> bytes:
    made = path.with_suffix(".compared")
    subprocess.run(["qemu-img", "convert", "-f", image_format.value, "-O", "raw", path, made], check=True)
    content = made.read_bytes()
    made.unlink()
    return content


@pytest.mark.parametrize("image_format", ImageFormat)
def test_disk_becomes_the_named_file(
    recorded: Recorded, command: Command, tmp_path: Path, image_format: ImageFormat
) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "web.img"
    command(
        "-q", "restore", "web", "-r", recorded.repository.path, "--output", tmp_path / "out",
        "--disk", f"vda={path}", "--format", image_format.value, "--speed", "100M",
    )  # fmt: skip
    assert raw(path, image_format) == recorded.expected(recorded.backups[-1])["vda"]
    assert sorted(one.name for one in (tmp_path / "images").iterdir()) == ["web.img"]
    assert path.stat().st_blocks * 512 < 4 * MIB  # it has 9
    disks = {disk.dev: disk for disk in domain_xml.parse((tmp_path / "out" / "domain.xml").read_text()).disks}
    assert disks["vda"].path == str(path)
    # Only one of the two disks was asked for: the other stays the original's.
    assert disks["vdb"].path == "/capture/vdb.qcow2"


def test_nothing_is_written_where_it_must_not_be(
    recorded: Recorded, command: Command, tmp_path: Path, loop: Path, backing: Path
) -> None:
    def refused(status: int, *options: object) -> str:
        told = command(
            "restore", "web", "-r", recorded.repository.path, "--output", tmp_path / "out", *options, status=status
        ).stderr  # fmt: skip
        assert not (tmp_path / "out").exists()
        return str(told)

    before = backing.read_bytes()
    with (tmp_path / "small").open("xb") as file:
        file.truncate(9 * MIB)
    with loop_device(tmp_path / "small") as small:
        assert "is too small" in refused(7, "--disk", f"vda={small}", "vdb")
    fd = os.open(loop, os.O_RDONLY | os.O_EXCL)
    try:
        assert "is in use" in refused(8, "--disk", f"vda={loop}")
    finally:
        os.close(fd)
    assert "is in use" in refused(8, "--disk", f"vda={loop}", f"vdb={loop.parent}/../dev/{loop.name}")
    (tmp_path / "mine").write_text("mine")
    assert "never overwrites" in refused(7, "--disk", f"vda={tmp_path / 'mine'}")
    assert "would both be written to" in refused(2, "--disk", f"vda={tmp_path / 'new'}", f"vdb={tmp_path}/./new")
    assert "Two files would both be" in refused(
        7, "--disk", f"vda={tmp_path / 'new'}", f"vdb={os.path.relpath(tmp_path)}/new"
    )
    assert "no such disk" in refused(5, "--disk", f"vdz={loop}")
    assert (tmp_path / "mine").read_text() == "mine"
    assert backing.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backing", "mine", "small"]


def test_mounted_device_is_refused(recorded: Recorded, command: Command, tmp_path: Path) -> None:
    filesystem = Ext4(tmp_path, size_mib=16)
    filesystem.mount()
    try:
        with Path("/proc/self/mounts").open(encoding="utf-8") as file:
            [mounted] = [line.split()[0] for line in file if line.split()[1] == str(filesystem.path)]
        told = command(
            "restore", "web", "-r", recorded.repository.path, "--output", tmp_path / "out", "--disk", f"vda={mounted}",
            status=8,
        ).stderr  # fmt: skip
        assert "is in use: it, or a part of it, is mounted" in told
    finally:
        filesystem.unmount()
    assert not (tmp_path / "out").exists()


def test_failure_names_the_device_and_leaves_no_file(
    recorded: Recorded, command: Command, tmp_path: Path, loop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device has been written then: it does not contain what was written to it, as a failing one would."""
    flattened = restoring.flatten

    def spoil(layers: object, path: Path, *more: object, **options: object) -> None:
        flattened(layers, path, *more, **options)  # type: ignore[arg-type]
        if path == loop:
            with path.open("r+b") as file:
                file.seek(6 * MIB)
                file.write(OLD)

    monkeypatch.setattr(restoring, "flatten", spoil)
    (tmp_path / "images").mkdir()
    told = command(
        "restore", "web", "-r", recorded.repository.path, "--output", tmp_path / "out",
        "--disk", f"vdb={tmp_path / 'images' / 'web.raw'}", f"vda={loop}", "--format", "raw",
        status=6,
    ).stderr  # fmt: skip
    assert f"{loop} does not contain what was written to it, from byte {6 * MIB}" in told
    assert f"Disk vda: the restore to {loop} did not end. Its old content is lost" in told
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "images").iterdir())
