"""Rollback by changed blocks of a domain that is off, beside a full restore of the same backup."""

from __future__ import annotations

import subprocess

from tests.bench.bench import Bench, vbackup, vbackup_knows
from tests.bench.contenders import OURS, Job
from tests.bench.guests import EXTENT_BYTES, MIB, scattered
from tests.bench.measuring import FailedError, Meter

IN_PLACE, FULL = "restore --in-place", "restore --output"
#: How many commands one qemu-io gets.
_COMMANDS = 400


def rollback(bench: Bench) -> None:
    """100 MiB in 1600 extents all over the disk have changed since the backup; the disk has 2 GiB of data."""
    if not vbackup_knows("restore", "--in-place"):
        bench.record.skip(IN_PLACE, "this vbackup has no restore --in-place")
        return
    count = bench.size(100, 4) * MIB // EXTENT_BYTES
    for size_gib in (8, bench.size(1024, 64)):
        with (
            bench.place("work") as place,
            bench.place("output") as output,
            bench.guest(place, f"roll{size_gib}", size_gib=size_gib, data_mib=bench.size(2048, 16)) as guest,
        ):
            job = Job(guest, output, place)
            OURS.ready(job)
            OURS.full(job, Meter(bench.log))
            guest.domain.destroy()
            where = {"x": size_gib, "unit": "GiB virtual size"}
            for number in range(bench.rounds):
                with bench.place("restored") as restored:
                    case = bench.record.case("100 MiB changed", FULL, **where)
                    directory = restored / "disks"
                    bench.run(
                        lambda meter, to=directory: vbackup(meter, "restore", guest.name, "-r", output, "--output", to),
                        case,
                        output=restored,
                        of=[],
                    )
                extents = scattered(count=count, size_bytes=size_gib * 1024 * MIB, seed=number)
                for first in range(0, count, _COMMANDS):
                    writes = [
                        f"write -q -P {number + 1} {at} {EXTENT_BYTES}" for at in extents[first : first + _COMMANDS]
                    ]
                    argv = ["qemu-io", "-f", "qcow2", *(word for one in writes for word in ("-c", one))]
                    subprocess.run([*argv, str(guest.disks["vda"])], check=True)
                case = bench.record.case("100 MiB changed", IN_PLACE, **where)
                try:
                    bench.run(
                        lambda meter: vbackup(meter, "restore", guest.name, "-r", output, "--in-place"),
                        case,
                        output=place,
                        of=[],
                    )
                except FailedError as err:
                    bench.record.skip(IN_PLACE, f"it failed: {err}")
