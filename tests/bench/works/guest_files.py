"""One file of 1 MiB out of a guest with libguestfs's appliance, beside libguestfs's own programs on a raw copy."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests import guest_disk
from tests.bench.bench import Bench
from tests.bench.contenders import OURS, VBACKUP
from tests.bench.measuring import Meter

#: guestfish refuses libvirt's QEMU here, and a KVM that is there may hang.
ENVIRONMENT = {"LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}
NAMED, FOUND = "ext4 on LVM, named", "the same, by inspection"


def one_file(bench: Bench) -> None:
    """From a file system that is named, and from one that libguestfs's inspection has to find."""
    if shutil.which("guestfish") is None:
        bench.record.skip("all", "guestfish is not installed")
        return
    with bench.place("work") as place:
        made = guest_disk.repository(place / "repository")
        first = made.path(made.backups[0])
        raw = place / "vda.raw"
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", first, raw], check=True)
        # The first start ever builds the appliance.
        with bench.place("warm") as warm:
            _ours(Meter(bench.log), made.repository.path, f"{guest_disk.ROOT}:/srv/big", made.backups[0].id, warm)
        for _ in range(bench.rounds):
            for series, source in ((NAMED, f"{guest_disk.ROOT}:/srv/big"), (FOUND, "vda:/srv/big")):
                _measure(bench, series, source, made.repository.path, made.backups[0].id, raw)


def _measure(bench: Bench, series: str, source: str, repository: Path, backup_id: str, raw: Path) -> None:
    device = ("-m", f"/dev/{guest_disk.ROOT}") if series == NAMED else ("-i",)
    with bench.place("ours") as ours, bench.place("theirs") as theirs:
        case = bench.record.case(series, OURS.name)
        bench.run(lambda meter: _ours(meter, repository, source, backup_id, ours), case, output=ours, of=[])
        case["verified"] = _verdict(ours)
        argv = ["guestfish", "--ro", "--format=raw", "-a", raw, *device, "copy-out", "/srv/big", theirs]
        bench.run(
            lambda meter: meter.run(*argv, environment=ENVIRONMENT),
            bench.record.case(series, "guestfish copy-out"),
            output=theirs,
            of=[],
        )
    if series == FOUND:
        with bench.place("theirs") as theirs:
            copy_out = ["virt-copy-out", "--format=raw", "-a", raw, "/srv/big", theirs]
            bench.run(
                lambda meter: meter.run(*copy_out, environment=ENVIRONMENT),
                bench.record.case(series, "virt-copy-out"),
                output=theirs,
                of=[],
            )


def _ours(meter: Meter, repository: Path, source: str, backup_id: str, output: Path) -> None:
    argv = [*VBACKUP, "-q", "cp", "web", "--backup", backup_id, source, output, "-r", repository]
    meter.run(*argv, environment=ENVIRONMENT)


def _verdict(output: Path) -> str:
    return "identical" if (output / "big").read_bytes() == guest_disk.BIG else "differs"
