"""Fulls and incrementals of one domain, by vbackup and its peers in turn."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from tests.bench.bench import Bench
from tests.bench.contenders import (
    CONVERT,
    CP,
    JOB_ALONE,
    NBDCOPY,
    OURS,
    QMPBACKUP,
    VBACKUP,
    VIRSH,
    VIRTNBDBACKUP,
    VIRTNBDBACKUP_Z,
    Job,
    check,
)
from tests.bench.guests import scattered
from tests.bench.isolation import URI
from tests.bench.phases import phases

GIB = 1024**3


def full(bench: Bench) -> None:
    """All that copy a whole disk."""
    contenders = (CP, CONVERT, VIRSH, VIRTNBDBACKUP, VIRTNBDBACKUP_Z, NBDCOPY, OURS)
    with bench.place("work") as place:
        disk = {"size_gib": bench.size(8, 1), "data_mib": bench.size(2048, 16)}
        with bench.guest(place, "full", **disk) as guest:
            bench.fulls(guest, contenders, "full")
            with bench.place("output") as output, bench.place("scratch") as scratch:
                job = Job(guest, output, scratch)
                OURS.ready(job)
                argv = (*VBACKUP, "backup", guest.name, "-c", URI, "-r", str(output), "--level", "full")
                bench.record.figures["phases"] = phases(argv)


def compressed(bench: Bench) -> None:
    """zstd, and the zlib that qmpbackup has QEMU do."""
    for content, series in (("files", "full compressed"), ("half text", "full compressed, half of it random")):
        with (
            bench.place("work") as place,
            bench.guest(place, "zstd", size_gib=2, data_mib=512, content=content) as guest,
        ):
            if bench.able([QMPBACKUP]):
                bench.fulls(guest, (QMPBACKUP, VIRTNBDBACKUP_Z), series)
            bench.fulls(guest, (OURS,), series, options=("--compress", "zstd"))


def incremental(bench: Bench) -> None:
    """One set of writes a round; every contender has its own bitmap and copies the same."""
    size_gib, count = bench.size(8, 1), bench.size(1600, 16)
    with bench.place("work") as place, ExitStack() as stack:
        guest = stack.enter_context(bench.guest(place, "incr", size_gib=size_gib, data_mib=bench.size(256, 16)))
        able = bench.able((VIRTNBDBACKUP, JOB_ALONE, OURS))
        jobs = {}
        for one in able:
            output, scratch = (
                stack.enter_context(bench.place(f"{kind}-{len(jobs)}")) for kind in ("output", "scratch")
            )
            jobs[one.name] = Job(guest, output, scratch)
            one.ready(jobs[one.name])
            if one is not JOB_ALONE:
                bench.attempt(one, one.full, jobs[one.name], bench.record.case("full to start from", one.name))
        for number in range(bench.rounds):
            guest.dirty("vda", scattered(count=count, size_bytes=size_gib * GIB, seed=number), pattern=number + 1)
            for one in able:
                assert one.incremental is not None
                case = bench.record.case("incremental", one.name)
                bench.attempt(one, one.incremental, jobs[one.name], case)
                if number == 0 and case["samples"] and one is not JOB_ALONE:
                    case["verified"] = check(one, replace(jobs[one.name], guest=guest))
                    print(f"      {case['verified']}", flush=True)
                if one is JOB_ALONE:
                    (jobs[one.name].output / "vda.qcow2").unlink(missing_ok=True)
        if OURS in able and not bench.is_smoke:
            guest.dirty("vda", scattered(count=count, size_bytes=size_gib * GIB, seed=99), pattern=99)
            argv = (*VBACKUP, "backup", guest.name, "-c", URI, "-r", str(jobs[OURS.name].output))
            bench.record.figures["phases"] = phases(argv)
