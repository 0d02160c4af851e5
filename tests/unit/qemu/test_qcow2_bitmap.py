"""QEMU finds no fault with an image that contains nothing but a bitmap, and reads the bits that were chosen."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.daemon import wait_for
from vbackup.qemu import qcow2_bitmap

GRANULE = 65536
TIB = 1 << 40


def write(path: Path, size_bytes: int, *extents: tuple[int, int]) -> None:
    with path.open("xb") as file:
        qcow2_bitmap.write(file, size_bytes, name="where", extents=extents)


def dirty(path: Path) -> list[tuple[int, int]]:
    """(start, end) of what is set, as QEMU reads it: its NBD server shows a bitmap to qemu-img map."""
    socket = path.with_suffix(".sock")
    server = subprocess.Popen(["qemu-nbd", "-r", "-f", "qcow2", "-B", "where", "-k", str(socket), "-t", str(path)])
    try:
        wait_for(socket.exists, "the NBD server's socket")
        options = f"driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:where"
        argv = ["qemu-img", "map", "--output=json", "--image-opts", options]
        shown = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    finally:
        server.terminate()
        server.wait()
    # x-dirty-bitmap shows what is dirty as what is no data.
    return [(one["start"], one["start"] + one["length"]) for one in shown if not one["data"]]


@pytest.mark.parametrize(
    ("size_bytes", "extents", "expected"),
    [
        (16 * GRANULE, [(GRANULE, 2 * GRANULE)], [(GRANULE, 2 * GRANULE)]),
        (16 * GRANULE, [(GRANULE + 1, GRANULE + 2)], [(GRANULE, 2 * GRANULE)]),
        (16 * GRANULE, [(GRANULE - 1, GRANULE + 1)], [(0, 2 * GRANULE)]),
        (16 * GRANULE, [(0, 16 * GRANULE)], [(0, 16 * GRANULE)]),
        (16 * GRANULE, [(3 * GRANULE, 13 * GRANULE)], [(3 * GRANULE, 13 * GRANULE)]),
        (3 * GRANULE + 512, [(3 * GRANULE, 3 * GRANULE + 512)], [(3 * GRANULE, 3 * GRANULE + 512)]),
        (3 * TIB, [(TIB - GRANULE, TIB + GRANULE)], [(TIB - GRANULE, TIB + GRANULE)]),
        (40 * TIB, [(0, 1), (39 * TIB, 39 * TIB + 1)], [(0, GRANULE), (39 * TIB, 39 * TIB + GRANULE)]),
    ],
)
def test_granules_that_an_extent_touches_are_set_and_no_others(
    tmp_path: Path, size_bytes: int, extents: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    path = tmp_path / "b.qcow2"
    write(path, size_bytes, *extents)
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], check=True)
    assert dirty(path) == expected


def test_empty_one_has_no_bits(tmp_path: Path) -> None:
    path = tmp_path / "b.qcow2"
    write(path, 40 * TIB)
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], check=True)
    assert dirty(path) == []


def test_it_takes_storage_for_what_is_set(tmp_path: Path) -> None:
    path = tmp_path / "b.qcow2"
    write(path, 40 * TIB, (0, 1), (20 * TIB, 20 * TIB + 1))
    assert path.stat().st_blocks * 512 < 1 << 20
