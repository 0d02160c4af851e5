"""Mount of the newest of a chain: the time to its first byte, and reading it, beside a copy by qemu-img."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.bench.bench import Bench
from tests.bench.contenders import OURS, VBACKUP
from tests.bench.guests import MIB, scattered
from tests.bench.measuring import Meter
from tests.recorded import BLOCK, Recorded, Write
from vbackup.model import Level

CONVERT = "qemu-img convert"


def mount(bench: Bench) -> None:
    """One image, and a chain of 200, of 1 GiB that is all data; 2 MiB of it are new in each backup."""
    with bench.place("work") as place:
        for length in (1, bench.size(200, 3)):
            made = _chain(place / f"chain{length}", length, size_bytes=bench.size(1024, 16) * MIB)
            for _ in range(bench.rounds):
                _read(bench, made, place / "mounted", length)


def _chain(path: Path, length: int, *, size_bytes: int) -> Recorded:
    made = Recorded(path)
    made.add({"vda": [Write(0, size_bytes, 1)]}, level=Level.FULL, size_bytes=size_bytes, is_huge=True)
    for number in range(1, length):
        extents = scattered(count=32, size_bytes=size_bytes, seed=number)
        made.add({"vda": [Write(at, BLOCK, number % 255 + 1) for at in extents]}, size_bytes=size_bytes, is_huge=True)
    return made


def _read(bench: Bench, made: Recorded, directory: Path, length: int) -> None:
    where: dict[str, Any] = {"x": length, "unit": "backups in the chain"}
    disk = directory / "vda.raw"

    def first_byte(meter: Meter) -> None:
        meter.run(*VBACKUP, "-q", "mount", "web", directory, "-r", made.repository.path)
        meter.run("dd", f"if={disk}", "of=/dev/null", "bs=1", "count=1")

    def convert(meter: Meter) -> None:
        meter.run("qemu-img", "convert", "-O", "raw", _description(made), converted / "vda.raw")

    with bench.place("nothing") as nothing, bench.place("converted") as converted:
        bench.run(first_byte, bench.record.case("first byte", OURS.name, **where), output=nothing, of=[])
        bench.run(
            lambda meter: meter.run("dd", f"if={disk}", "of=/dev/null", "bs=1M"),
            bench.record.case("read all", OURS.name, **where),
            output=nothing,
            of=[],
        )
        Meter(bench.log).run(*VBACKUP, "-q", "umount", directory)
        bench.run(convert, bench.record.case("read all", CONVERT, **where), output=converted, of=[])


def _description(made: Recorded) -> str:
    """The chain as qemu-img takes it. By the names in the headers it finds no more than 125 layers."""
    node: dict[str, Any] | None = None
    for one in made.backups:
        file = {"driver": "file", "filename": str(made.path(one).absolute())}
        node = {"driver": "qcow2", "file": file, "backing": node}
    return f"json:{json.dumps(node)}"
