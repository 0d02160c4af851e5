"""Backups through SSH, beside ssh itself with the same bytes, and beside the same backup of a domain on this host."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import hosts
from tests.bench import guests
from tests.bench.bench import Bench
from tests.bench.contenders import OURS, VBACKUP, Job, newest_backup
from tests.bench.guests import MIB, Guest, scattered
from tests.bench.isolation import SHORT, URI
from tests.bench.measuring import Meter
from tests.bench.phases import phases
from tests.hosts import Hosts, Hypervisor

GIB = 1024 * MIB
CAT = "ssh cat"
FULL, INCREMENTAL = "full through SSH", "incremental, 100 MiB in 1600 extents"
REMOTE, LOCAL = "vbackup", "vbackup of a domain on this host"
_NAME = "remote"


def remote(bench: Bench) -> None:
    """A full of 3 GiB of random data, and incrementals, of a domain on a hypervisor that ssh reaches by a veth pair."""
    if (reason := hosts.reason_not_to_start()) is not None:
        bench.record.skip("remote", reason)
        return
    disk = {"size_gib": bench.size(8, 1), "data_mib": bench.size(3072, 16)}
    with bench.place("work") as place, _hypervisor(bench) as hypervisor:
        path = guests.make_disk(hypervisor.images / "vda.qcow2", **disk)
        with guests.running(
            hypervisor.host.connection, _NAME, {"vda": path}, run=hypervisor.directory / "run"
        ) as guest:
            for number in range(bench.rounds):
                _cat(bench, hypervisor, path)
                with bench.place("output") as output:
                    _backup(bench, hypervisor.uri, guest, output, "full", bench.record.case(FULL, REMOTE), number)
            _incrementals(bench, hypervisor, guest, place)


@contextmanager
def _hypervisor(bench: Bench) -> Iterator[Hypervisor]:
    # The hypervisor does not see the repositories.
    made = Hosts(Path(tempfile.mkdtemp(prefix="hosts-", dir=SHORT)), hidden=[bench.directory])
    try:
        started = made.start("hv1")
        (started.directory / "run").chmod(0o1777)  # QEMU, which is no root there, makes the bench's monitors in it
        yield started
    finally:
        made.close()


def _cat(bench: Bench, hypervisor: Hypervisor, path: Path) -> None:
    with bench.place("cat") as output:
        command = f"exec ssh -o BatchMode=yes root@{hypervisor.name} cat {path} > {output}/vda.qcow2"
        case = bench.record.case(FULL, CAT)
        bench.run(lambda meter: meter.run("sh", "-c", command), case, output=output, of=[])
        if case["verified"] is None:
            case["verified"] = _compared(path, output / "vda.qcow2")


def _backup(
    bench: Bench, uri: str, guest: Guest, output: Path, level: str, case: dict[str, object], number: int
) -> None:
    OURS.ready(Job(guest, output, output))
    argv = (*VBACKUP, "backup", guest.name, "-c", uri, "-r", output, "-q", "--level", level)
    bench.run(lambda meter: meter.run(*argv), case, output=output, of=[])
    if number == 0:
        case["verified"] = _compared(guest.disks["vda"], newest_backup(output) / "vda.qcow2")
        print(f"      {case['verified']}", flush=True)


def _compared(disk: Path, made: Path) -> str:
    argv = ["qemu-img", "compare", "-U", os.fspath(disk), os.fspath(made)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return "identical" if done.returncode == 0 else f"differs: {(done.stdout + done.stderr).strip()}"


def _incrementals(bench: Bench, hypervisor: Hypervisor, far: Guest, place: Path) -> None:
    """The same writes to both domains, and a backup of each in turn."""
    size_gib, count = bench.size(8, 1), bench.size(1600, 16)
    with (
        bench.guest(place, "local", size_gib=size_gib, data_mib=bench.size(256, 16)) as near,
        bench.place("remote") as to_far,
        bench.place("local") as to_near,
    ):
        both = ((REMOTE, hypervisor.uri, far, to_far), (LOCAL, URI, near, to_near))
        for _, uri, guest, output in both:
            OURS.ready(Job(guest, output, output))
            words = ("backup", guest.name, "-c", uri, "-r", output, "-q")
            Meter(bench.log).run(*VBACKUP, *words)
        for number in range(bench.rounds):
            for name, uri, guest, output in both:
                guest.dirty("vda", scattered(count=count, size_bytes=size_gib * GIB, seed=number), pattern=number + 1)
                _backup(bench, uri, guest, output, "incremental", bench.record.case(INCREMENTAL, name), number)
        if not bench.is_smoke:
            far.dirty("vda", scattered(count=count, size_bytes=size_gib * GIB, seed=99), pattern=99)
            argv = (*VBACKUP, "backup", far.name, "-c", hypervisor.uri, "-r", os.fspath(to_far))
            bench.record.figures["phases of an incremental"] = phases(argv)
            bench.record.figures["phases"] = phases([*argv, "--level", "full"])
