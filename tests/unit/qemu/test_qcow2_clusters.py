"""The clusters that decide what a guest reads: QEMU reads the same if all others are destroyed."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from tests.lab import create_luks
from tests.unit.builders import MIB
from vbackup.qemu import qcow2_clusters
from vbackup.qemu.qcow2_clusters import GuestClusters

OPTIONS = ("", "compat=0.10", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "compression_type=zstd",
           "preallocation=metadata")  # fmt: skip
COMMANDS = ("write -P 1 0 1M", "write -P 2 5M 100k", "write -z 256k 128k")
#: Only to clusters that are not allocated.
COMPRESSED = ("write -P 3 -c 6M 64k", "write -P 4 -c 7M 64k")


def commands_of(options: str) -> tuple[str, ...]:
    return COMMANDS if "2M" in options or "metadata" in options else (*COMMANDS, *COMPRESSED)


def made(path: Path, options: str = "", *commands: str) -> Path:
    more = ("-o", options) if options else ()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *more, str(path), "8M"], check=True)
    write(path, *commands)
    return path


def write(path: Path, *commands: str) -> None:
    argv = ["qemu-io", "-f", "qcow2", *(word for one in commands for word in ("-c", one)), str(path)]
    subprocess.run(argv, check=True, capture_output=True)


def find(path: Path) -> GuestClusters | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        return qcow2_clusters.find(fd, path.stat().st_size)
    finally:
        os.close(fd)


def content(path: Path) -> bytes:
    raw = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(raw)], check=True)
    return raw.read_bytes()


@pytest.mark.parametrize("options", OPTIONS)
def test_guest_reads_the_same_if_all_other_clusters_are_destroyed(tmp_path: Path, options: str) -> None:
    path = made(tmp_path / "i.qcow2", options, *commands_of(options))
    before, found = content(path), find(path)
    assert found is not None
    destroyed = 0
    with path.open("r+b") as file:
        for number, mark in enumerate(found.marks):
            if number and not mark:
                file.seek(number * found.cluster_bytes)
                file.write(b"\xff" * found.cluster_bytes)
                destroyed += 1
    assert destroyed >= 2  # table and block of refcounts
    # QEMU checks the table of refcounts when it opens the image.
    table = struct.unpack_from(">Q", path.read_bytes(), 48)[0]
    with path.open("r+b") as file:
        file.seek(table)
        file.write(bytes(found.cluster_bytes))
    assert content(path) == before


@pytest.mark.parametrize("options", OPTIONS)
def test_everything_that_qemu_maps_is_marked(tmp_path: Path, options: str) -> None:
    path = made(tmp_path / "i.qcow2", options, *commands_of(options))
    found = find(path)
    assert found is not None
    argv = ["qemu-img", "map", "--output=json", "-f", "qcow2", str(path)]
    extents = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    mapped = [one for one in extents if one["data"] and "offset" in one]
    assert mapped
    for one in mapped:
        first, last = (at // found.cluster_bytes for at in (one["offset"], one["offset"] + one["length"] - 1))
        assert set(found.marks[first : last + 1]) == {1}


def test_bitmaps_change_nothing(tmp_path: Path) -> None:
    path = made(tmp_path / "i.qcow2", "", *COMMANDS)
    before = find(path)
    for name in ("one", "two"):
        subprocess.run(["qemu-img", "bitmap", "--add", "-g", "64k", str(path), name], check=True)
    after = find(path)
    assert before is not None
    assert after is not None
    assert after.header == before.header
    assert after.marks[: len(before.marks)] == before.marks
    assert not any(after.marks[len(before.marks) :])
    assert len(after.marks) > len(before.marks)


def test_members_of_the_header_that_matter_are_told_apart(tmp_path: Path) -> None:
    backing = made(tmp_path / "base.qcow2")
    headers = []
    for number, more in enumerate(((), ("-b", backing, "-F", "raw"), ("-b", backing, "-F", "qcow2"))):
        path = tmp_path / f"{number}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *more, path, "8M"], check=True)
        found = find(path)
        assert found is not None
        headers.append(found.header)
    assert len(set(headers)) == 3
    larger = tmp_path / "larger.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(larger), "9M"], check=True)
    found = find(larger)
    assert found is not None
    assert found.header not in headers


def test_of_an_image_with_a_data_file_the_tables_count(tmp_path: Path) -> None:
    path = made(tmp_path / "i.qcow2", f"data_file={tmp_path}/data", "write -P 1 0 4M")
    found = find(path)
    assert found is not None
    assert sum(found.marks) == 2  # L1 and L2


def test_header_of_the_encryption_counts(tmp_path: Path) -> None:
    path = tmp_path / "i.qcow2"
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("x")
    create_luks(path, passphrase=passphrase, size="8M")
    found = find(path)
    assert found is not None
    place = path.read_bytes().index(b"LUKS\xba\xbe")
    assert found.marks[place // found.cluster_bytes]


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"QED\0"),
        (4, struct.pack(">I", 4)),
        (20, struct.pack(">I", 40)),
        (72, struct.pack(">Q", 1 << 1)),  # corrupt
        (72, struct.pack(">Q", 1 << 40)),  # a feature of the future
        (36, struct.pack(">I", 2**31)),  # a table L1 of 16 GiB
    ],
)
def test_what_is_not_understood_is_told(tmp_path: Path, offset: int, value: bytes) -> None:
    path = made(tmp_path / "i.qcow2", "", "write -P 1 0 64k")
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value)
    assert find(path) is None


@pytest.mark.parametrize("length", [0, 50, 80, 300])
def test_truncated_header_is_not_understood(tmp_path: Path, length: int) -> None:
    path = made(tmp_path / "i.qcow2")
    os.truncate(path, length)
    assert find(path) is None


def test_tables_beyond_the_end_read_as_zeros(tmp_path: Path) -> None:
    path = made(tmp_path / "i.qcow2", "", "write -P 1 0 64k")
    os.truncate(path, 3 * 65536)
    found = find(path)
    assert found is None or len(found.marks) == 3
    assert path.stat().st_size < MIB
