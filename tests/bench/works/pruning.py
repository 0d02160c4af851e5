"""Prune a chain: seven increments go into their full, beside a copy of that full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bench.bench import Bench
from tests.bench.contenders import OURS, VBACKUP
from tests.bench.guests import MIB, scattered
from tests.bench.measuring import Meter
from tests.filesystem import loop_device
from tests.recorded import BLOCK, Recorded, Write
from vbackup.model import Level

GIB = 1024 * MIB
CONVERT = "qemu-img convert -W -m 8"
REFLINK, IN_PLACE = "XFS, reflink", "in place"


def prune(bench: Bench) -> None:
    """A full of 1 GiB in 8 GiB and seven increments of 1 % become one, on the bench's filesystem and on an XFS."""
    with bench.place("work") as place:
        for _ in range(bench.rounds):
            _prune(bench, place / "here", IN_PLACE, "in-place")
        try:
            with _xfs(place) as mounted:
                for _ in range(bench.rounds):
                    _prune(bench, mounted / "here", REFLINK, "reflink")
        except (OSError, subprocess.CalledProcessError, pytest.skip.Exception) as err:
            bench.record.skip(REFLINK, f"there is no XFS here: {err}")


def _prune(bench: Bench, path: Path, series: str, way: str) -> None:
    data_mib = bench.size(1024, 16)
    made = Recorded(path)
    size_bytes = 8 * data_mib * MIB
    writes = [Write(number * 8 * MIB, MIB, number % 255 + 1) for number in range(data_mib)]
    made.add({"vda": writes}, level=Level.FULL, size_bytes=size_bytes, is_huge=True)
    count = max(1, data_mib * MIB // 100 // BLOCK)
    for number in range(7):
        extents = scattered(count=count, size_bytes=size_bytes, seed=number)
        made.add({"vda": [Write(at, BLOCK, number + 1) for at in extents]}, size_bytes=size_bytes, is_huge=True)
    full = made.repository.directory(made.backups[0].domain_uuid, made.backups[0].id) / "vda.qcow2"
    converted = path.parent / "converted.qcow2"

    def convert(meter: Meter) -> None:
        meter.run(*CONVERT.split(), "-f", "qcow2", "-O", "qcow2", full, converted)

    bench.run(convert, bench.record.case(f"prune, {series}", CONVERT), output=converted, of=[])
    converted.unlink()
    options = ("--all", "-r", path, "--keep-last", "1", "--consolidate", way)
    ours = bench.record.case(f"prune, {series}", OURS.name)
    bench.run(lambda meter: meter.run(*VBACKUP, "-q", "prune", *options), ours, output=path, of=[])
    subprocess.run(["rm", "-r", path], check=True)


@contextmanager
def _xfs(place: Path) -> Iterator[Path]:
    """An XFS in a file, mounted."""
    image, mounted = place / "xfs.img", place / "xfs"
    image.touch()
    os.truncate(image, 8 * GIB)
    mounted.mkdir()
    subprocess.run(["mkfs.xfs", "-q", image], check=True)
    with loop_device(image) as device:
        subprocess.run(["mount", device, mounted], check=True)
        try:
            yield mounted
        finally:
            subprocess.run(["umount", mounted], check=True)
