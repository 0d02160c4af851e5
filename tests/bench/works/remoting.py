"""Backups through SSH, beside ssh itself with the same bytes, and beside the same backup of a domain on this host.

One link is as quick as this machine, the other one has a round trip of 20 ms (tests.delayed_link), or is dead.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import delayed_link, hosts
from tests.bench import guests
from tests.bench.bench import Bench
from tests.bench.contenders import OURS, VBACKUP, Job, newest_backup
from tests.bench.guests import MIB, Guest, scattered
from tests.bench.isolation import SHORT, URI
from tests.bench.measuring import FailedError, Meter
from tests.bench.phases import phases
from tests.bench.works import moments
from tests.daemon import wait_for
from tests.hosts import FarHypervisor, Hosts, Hypervisor
from vbackup.errors import HostUnreachableError

GIB = 1024 * MIB
CAT = "ssh cat"
FULL, INCREMENTAL = "full through SSH", "incremental, 100 MiB in 1600 extents"
REMOTE, LOCAL = "vbackup", "vbackup of a domain on this host"
#: What is added to each round trip.
DELAY_S = 0.02
AWAY = "vbackup, 20 ms away"
NO_BACKUP, NO_DELAY, DEAD = "no backup", "vbackup, no delay", "vbackup, the link dies"
_NAME = "remote"


def remote(bench: Bench) -> None:
    """A full of 3 GiB of random data, and incrementals, of a domain on a hypervisor that ssh reaches by a veth pair."""
    if not _can_start(bench, "remote"):
        return
    disk = {"size_gib": bench.size(8, 1), "data_mib": bench.size(3072, 16)}
    with bench.place("work") as place, _hypervisor(bench) as hypervisor, hypervisor.far_away(DELAY_S) as away:
        path = guests.make_disk(hypervisor.images / "vda.qcow2", **disk)
        with guests.running(
            hypervisor.host.connection, _NAME, {"vda": path}, run=hypervisor.directory / "run"
        ) as guest:
            for number in range(bench.rounds):
                _cat(bench, hypervisor, path)
                with bench.place("output") as output:
                    _backup(bench, hypervisor.uri, guest, output, "full", bench.record.case(FULL, REMOTE), number)
            _incrementals(bench, hypervisor, away, guest, place)


def _can_start(bench: Bench, what: str) -> bool:
    reason = hosts.reason_not_to_start() or delayed_link.reason_not_to_start()
    if reason is not None:
        bench.record.skip(what, reason)
    return reason is None


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
        # As the user's ssh is configured: nothing is said of ciphers.
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


def _incrementals(bench: Bench, hypervisor: Hypervisor, away: FarHypervisor, far: Guest, place: Path) -> None:
    """The same writes to both domains, and a backup of each in turn; of the one there, by either link."""
    size_gib, count = bench.size(8, 1), bench.size(1600, 16)
    with (
        bench.guest(place, "local", size_gib=size_gib, data_mib=bench.size(256, 16)) as near,
        bench.place("remote") as to_far,
        bench.place("local") as to_near,
    ):
        all_ = (
            (REMOTE, hypervisor.uri, far, to_far),
            (AWAY, away.uri, far, to_far),
            (LOCAL, URI, near, to_near),
        )
        for uri, guest, output in ((hypervisor.uri, far, to_far), (URI, near, to_near)):
            OURS.ready(Job(guest, output, output))
            words = ("backup", guest.name, "-c", uri, "-r", output, "-q")
            Meter(bench.log).run(*VBACKUP, *words)
        for number in range(bench.rounds):
            for pattern, (name, uri, guest, output) in enumerate(all_, start=1 + number * len(all_)):
                guest.dirty("vda", scattered(count=count, size_bytes=size_gib * GIB, seed=number), pattern=pattern)
                _backup(bench, uri, guest, output, "incremental", bench.record.case(INCREMENTAL, name), number)
        if not bench.is_smoke:
            far.dirty("vda", scattered(count=count, size_bytes=size_gib * GIB, seed=99), pattern=99)
            argv = (*VBACKUP, "backup", far.name, "-c", hypervisor.uri, "-r", os.fspath(to_far))
            bench.record.figures["phases of an incremental"] = phases(argv)
            bench.record.figures["phases"] = phases([*argv, "--level", "full"])


# the guest meanwhile


def remote_latency(bench: Bench) -> None:
    """A full each of a disk of 1 GiB, full of random data, while the guest writes all over it."""
    if not _can_start(bench, "remote-latency"):
        return
    with _hypervisor(bench) as hypervisor, hypervisor.far_away(DELAY_S) as away:
        for _ in range(bench.rounds):
            with _guest(hypervisor) as guest:
                moments.keep(bench, NO_BACKUP, moments.quiet(guest))
            for name, uri in ((NO_DELAY, hypervisor.uri), (AWAY, away.uri)):
                with _guest(hypervisor) as guest, bench.place("output") as output:
                    moments.keep(bench, name, _while(bench, guest, uri, output))
            with _guest(hypervisor) as guest, bench.place("output") as output:
                moments.keep(bench, DEAD, _after_death(bench, guest, away, output))
            away.link.mend()


@contextmanager
def _guest(hypervisor: Hypervisor) -> Iterator[Guest]:
    """A new one for each contender: what the guest writes during one backup is not for the next to copy."""
    path = guests.make_disk(hypervisor.images / "latency.qcow2", size_gib=1, data_mib=1024)
    where: dict[str, Any] = {"driver": moments.DRIVER, "run": hypervisor.directory / "run"}
    with guests.running(hypervisor.host.connection, "latency", {"vda": path}, **where) as guest:
        yield guest


def _argv(guest: Guest, uri: str, output: Path) -> list[str]:
    OURS.ready(Job(guest, output, output))
    return [*VBACKUP, "backup", guest.name, "-c", uri, "-r", os.fspath(output), "-q"]


def _while(bench: Bench, guest: Guest, uri: str, output: Path) -> dict[str, float]:
    argv = _argv(guest, uri, output)
    start_s = time.monotonic()
    with moments.writer_on(guest) as writer:
        Meter(bench.log).run(*argv)
    return {**writer.figures(), "backup_s": round(time.monotonic() - start_s, 2)}


def _after_death(bench: Bench, guest: Guest, away: FarHypervisor, output: Path) -> dict[str, float]:
    """From the moment at which the link dies, in the middle of the copy, until QEMU has nothing of the backup."""
    with (
        bench.log.open("ab") as log,
        moments.writer_on(guest) as writer,
        subprocess.Popen(_argv(guest, away.uri, output), stdout=log, stderr=log) as process,
    ):
        try:
            wait_for(lambda: _copied(guest) >= 0.3 or process.poll() is not None, "a third of the copy")
            away.link.cut()
            start_s = time.monotonic()
            writer.forget()
            wait_for(lambda: _is_clean(guest), "the end of the jobs", timeout_s=120)
            clean_s = time.monotonic() - start_s
            figures = writer.figures()
            process.wait(timeout=300)
        except BaseException:
            process.kill()
            raise
    if process.returncode != HostUnreachableError.status:
        raise FailedError(f"the backup whose link died ended with status {process.returncode}")
    return {**figures, "clean_after_s": round(clean_s, 2), "ended_after_s": round(time.monotonic() - start_s, 2)}


def _copied(guest: Guest) -> float:
    """The share of the copy that is done; the other jobs save what the guest overwrites, and look for data."""
    jobs = [job for job in guest.qmp.execute("query-jobs") if job["id"].endswith("-vda") and job["total-progress"]]
    return max((job["current-progress"] / job["total-progress"] for job in jobs), default=0.0)


def _is_clean(guest: Guest) -> bool:
    nodes = guest.qmp.execute("query-named-block-nodes", flat=True)
    fdsets = guest.qmp.execute("query-fdsets")
    return not guest.qmp.execute("query-jobs") and not fdsets and not any(_is_ours(node) for node in nodes)


def _is_ours(node: Mapping[str, Any]) -> bool:
    return str(node.get("node-name", "")).startswith("vbackup")
