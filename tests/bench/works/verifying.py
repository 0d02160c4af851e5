"""Verify and restore, in the page cache, beside what reads or writes the same data without looking at it."""

from __future__ import annotations

from pathlib import Path

from tests.bench.bench import Bench
from tests.bench.contenders import OURS, VBACKUP
from tests.bench.guests import MIB, scattered
from tests.bench.measuring import Meter
from tests.recorded import BLOCK, Recorded, Write
from vbackup.model import Level
from vbackup.repository.repository import Repository

GIB = 1024 * MIB
SHA256SUM = "sha256sum"
CONVERT = "qemu-img convert -W -m 8"
FULL, CHAIN, HUGE = "full", "chain of 200", "64 MiB in 1 TiB"


def verify(bench: Bench) -> None:
    """A full of 2 GiB in 8 GiB; a chain of 200, 2 MiB each; and 64 MiB all over 1 TiB."""
    with bench.place("work") as place:
        full, chain = _full(bench, place), _chain(bench, place)
        for _ in range(bench.rounds):
            for made, series in ((full, FULL), (chain, CHAIN)):
                _verify(bench, made, series)
                _restore(bench, made, series)
        huge = Recorded(place / "huge")
        size_gib = bench.size(1024, 64)
        writes = [Write(number * size_gib * MIB, BLOCK, number % 255 + 1) for number in range(1024)]
        huge.add({"vda": writes}, level=Level.FULL, size_bytes=size_gib * GIB, is_huge=True)
        for _ in range(bench.rounds):
            _verify(bench, huge, HUGE)


def _full(bench: Bench, place: Path) -> Recorded:
    made = Recorded(place / "full")
    writes = [Write(number * 4 * MIB, MIB, number % 255 + 1) for number in range(bench.size(2048, 16))]
    made.add({"vda": writes}, level=Level.FULL, size_bytes=8 * GIB, is_huge=True)
    return made


def _chain(bench: Bench, place: Path) -> Recorded:
    made = Recorded(place / "chain")
    writes = [Write(number * 4 * MIB, MIB, number % 255 + 1) for number in range(bench.size(512, 16))]
    made.add({"vda": writes}, level=Level.FULL, size_bytes=8 * GIB, is_huge=True)
    for number in range(1, bench.size(200, 4)):
        extents = scattered(count=32, size_bytes=8 * GIB, seed=number)
        made.add({"vda": [Write(at, BLOCK, number % 255 + 1) for at in extents]}, size_bytes=8 * GIB, is_huge=True)
    return made


def _images(repository: Repository) -> list[Path]:
    return sorted(repository.path.glob("*/*/*.qcow2"))


def _verify(bench: Bench, made: Recorded, series: str) -> None:
    path = made.repository.path
    ours = bench.record.case(f"verify, {series}", OURS.name)
    bench.run(lambda meter: meter.run(*VBACKUP, "-q", "verify", "--all", "-r", path), ours, output=path, of=[])
    theirs = bench.record.case(f"verify, {series}", SHA256SUM)
    bench.run(lambda meter: meter.run(SHA256SUM, *_images(made.repository)), theirs, output=path, of=[])


def _restore(bench: Bench, made: Recorded, series: str) -> None:
    """Both write the same; what the other one reads is what ours has written."""
    with bench.place("restored") as output, bench.place("converted") as converted:
        argv = (*VBACKUP, "-q", "restore", "web", "-r", made.repository.path, "--output", output / "disks")
        (output / "disks").mkdir()
        ours = bench.record.case(f"restore, {series}", OURS.name)
        bench.run(lambda meter: meter.run(*argv), ours, output=output, of=[])

        def convert(meter: Meter) -> None:
            names = (output / "disks" / "vda.qcow2", converted / "vda.qcow2")
            meter.run(*CONVERT.split(), "-f", "qcow2", "-O", "qcow2", *names)

        bench.run(convert, bench.record.case(f"restore, {series}", CONVERT), output=converted, of=[])
