"""What the guest notices: how long it stands still at the transaction, and how long its writes take meanwhile."""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench import guests
from tests.bench.bench import Bench, vbackup_knows
from tests.bench.contenders import OURS, VIRSH, VIRTNBDBACKUP, Backup, Contender, Job
from tests.bench.guests import EXTENT_BYTES, MIB, Guest, Qmp
from tests.bench.isolation import URI, slow_filesystem
from tests.bench.measuring import FailedError, Meter, percentile

#: Between two writes: as a database that commits now and then.
PAUSE_S = 0.005
SLOW_BYTES_S = 4_000_000
#: As disks of servers are: the guest's write is done when the host's storage has it.
DRIVER = "cache='none' io='native'"


class Writer:
    """Writes all the time through the guest's device, from a separate monitor, and keeps how long each write took.

    The write goes through the device's own block backend, so whatever holds up the guest holds it up: the transaction,
    and a copy that has to be made first. The way over the monitor is in each figure, with a backup and without.
    """

    def __init__(self, guest: Guest, *, size_bytes: int, write_bytes: int) -> None:
        self._qdev = guest.qdev("vda")
        self._extents = size_bytes // EXTENT_BYTES
        self._write_bytes = write_bytes
        self._qmp = Qmp(guest.socket)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._random = random.Random(1)
        self.took_s: list[float] = []

    def _run(self) -> None:
        while not self._end.wait(PAUSE_S):
            offset_bytes = self._random.randrange(self._extents) * EXTENT_BYTES
            line = f'qemu-io -d {self._qdev} "write -q -P 7 {offset_bytes} {self._write_bytes}"'
            start_s = time.perf_counter()
            self._qmp.execute("human-monitor-command", command_line=line)
            self.took_s.append(time.perf_counter() - start_s)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end.set()
        self._thread.join()
        self._qmp.close()

    def forget(self) -> None:
        """Leave out the writes that are complete by now."""
        self.took_s.clear()

    def figures(self) -> dict[str, float]:
        """In milliseconds."""
        took = [one * 1000 for one in self.took_s]
        return {
            "writes": len(took),
            "median_ms": round(statistics.median(took), 3),
            "p99_ms": round(percentile(took, 99), 3),
            "worst_ms": round(max(took), 3),
        }


# the transaction


def moment(bench: Bench) -> None:
    """Incrementals, while the guest writes: how long QEMU takes for the transaction, and the longest write."""
    for count in (2, 8, 27):
        with bench.place("work") as place:
            disks = {dev: guests.create(place / f"{dev}.qcow2", "1G") for dev in guests.devs(count)}
            with guests.running(bench.connection, f"moment{count}", disks) as guest:
                bench.record.figures[str(count)] = made = _moment(bench, guest, times=20 if count < 20 else 10)
                print(f"    {count} disks: {made}", flush=True)


def _moment(bench: Bench, guest: Guest, *, times: int) -> dict[str, Any]:
    with bench.place("output") as output:
        OURS.ready(Job(guest, output, output))
        transactions, gaps = [], []
        with Writer(guest, size_bytes=1024 * MIB, write_bytes=4096) as quiet:
            time.sleep(2)
        for number in range(times + 1):
            with tempfile.NamedTemporaryFile(dir=bench.directory) as log:
                argv = (sys.executable, "-m", "tests.bench.phases", log.name, "backup", guest.name)
                with Writer(guest, size_bytes=1024 * MIB, write_bytes=4096) as writer:
                    Meter(bench.log).run(*argv, "-c", URI, "-r", output, "-q")
                calls = [json.loads(line) for line in Path(log.name).read_text().splitlines()]
            if number == 0:
                continue  # the full
            transactions += [(call["answered_s"] - call["sent_s"]) * 1000 for call in calls if call["is_moment"]]
            gaps.append(max(writer.took_s) * 1000)
    return {
        "runs": times,
        "transaction_median_ms": round(statistics.median(transactions), 2),
        "transaction_worst_ms": round(max(transactions), 2),
        "longest_write_median_ms": round(statistics.median(gaps), 2),
        "longest_write_worst_ms": round(max(gaps), 2),
        "without_backup": quiet.figures(),
    }


# the latency


def latency(bench: Bench) -> None:
    """One backup each into a repository that takes 4 MB/s, while the guest writes all over its disk."""
    # One round: each has a thousand writes and takes a minute.
    with latency_guest(bench) as (guest, _):
        keep(bench, "no backup", quiet(guest))
    for name, contender, options in _backups(bench):
        with (
            latency_guest(bench) as (guest, place),
            slow_filesystem(place / "slow", size_mib=1024, bytes_s=SLOW_BYTES_S) as slow,
        ):
            try:
                keep(bench, name, _while(bench, contender, guest, slow, place, options))
            except FailedError as err:
                bench.record.skip(name, f"it failed: {err}")


@contextmanager
def latency_guest(bench: Bench, *, data_mib: int = 40) -> Iterator[tuple[Guest, Path]]:
    """A new one for each contender: what the guest writes during one backup is not for the next to copy."""
    with bench.place("work") as place:
        disk = {"size_gib": 1, "data_mib": data_mib, "driver": DRIVER}
        with bench.guest(place, "latency", **disk) as guest:
            yield guest, place


def _backups(bench: Bench) -> Iterator[tuple[str, Contender, tuple[str, ...]]]:
    for peer in bench.able([VIRSH, VIRTNBDBACKUP]):
        yield peer.name, peer, ()
    yield OURS.name, OURS, ()
    if vbackup_knows("backup", "--fleecing"):
        yield f"{OURS.name} --fleecing", OURS, ("--fleecing",)
    else:
        bench.record.skip(f"{OURS.name} --fleecing", "this vbackup has no backup --fleecing")


def keep(bench: Bench, name: str, figures: dict[str, float]) -> None:
    """Add the figures of one run."""
    bench.record.figures.setdefault(name, []).append(figures)
    print(f"    {name}: {figures}", flush=True)


def quiet(guest: Guest) -> dict[str, float]:
    """How long the guest's writes take in ten seconds in which the bench does nothing else."""
    with writer_on(guest) as writer:
        time.sleep(10)
    return writer.figures()


@contextmanager
def writer_on(guest: Guest) -> Iterator[Writer]:
    with Writer(guest, size_bytes=1024 * MIB, write_bytes=EXTENT_BYTES) as writer:
        yield writer


def _while(
    bench: Bench, contender: Contender, guest: Guest, slow: Path, place: Path, options: tuple[str, ...]
) -> dict[str, float]:
    with bench.place("scratch") as scratch:
        if options:
            options = (*options, str(scratch))
        output = slow / "output"
        output.mkdir()
        job = Job(guest, output, scratch, options)
        contender.ready(job)
        backup: Backup = contender.full
        start_s = time.monotonic()
        with writer_on(guest) as writer:
            backup(job, Meter(bench.log))
        return {**writer.figures(), "backup_s": round(time.monotonic() - start_s, 2)}
