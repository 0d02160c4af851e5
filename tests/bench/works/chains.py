"""The start of the command, and what a long chain costs: to list, to plan with, to restore."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.bench.bench import Bench, vbackup
from tests.bench.contenders import OURS, VBACKUP, Job
from tests.bench.guests import MIB, Guest, scattered
from tests.bench.measuring import Meter
from tests.unit.builders import backup, commit, incremental
from vbackup.repository.repository import Repository

#: The chain is looked at when it has these lengths.
LENGTHS = (2, 50, 100, 200)


def start(bench: Bench) -> None:
    """What cron starts, and people wait for."""
    with bench.place("work") as place:
        commands = {"vbackup --help": ("--help",)}
        for length in (3, bench.size(200, 5)):
            _fill(place / str(length), length)
            commands[f"vbackup list, {length} backups"] = ("list", "-r", str(place / str(length)))
        for _ in range(bench.size(10, 1)):
            for name, arguments in commands.items():
                case = bench.record.case("start", name)
                bench.run(lambda meter, words=arguments: meter.run(*VBACKUP, *words), case, output=place, of=[])


def _fill(path: Path, length: int) -> None:
    """A repository with a chain of manifests; the images are empty."""
    repository = Repository.create(path)
    newest = backup(1)
    commit(repository, newest)
    for number in range(2, length + 1):
        newest = incremental(number, newest)
        commit(repository, newest)


def chain(bench: Bench) -> None:
    """Incrementals one on the other, 2 MiB each, and a full of the same moment."""
    data_mib = 512
    with (
        bench.place("work") as place,
        bench.guest(place, "chain", size_gib=8, data_mib=data_mib) as guest,
        bench.place("output") as output,
        bench.place("full") as full,
        bench.place("scratch") as scratch,
    ):
        job, whole = Job(guest, output, scratch), Job(guest, full, scratch)
        OURS.ready(job)
        OURS.ready(whole)
        OURS.full(job, Meter(bench.log))
        for number in range(2, max(LENGTHS) + 1):
            guest.dirty("vda", scattered(count=32, size_bytes=8 * 1024 * MIB, seed=number), pattern=number % 255 + 1)
            case = bench.record.case("next incremental", OURS.name, x=number, unit="backups in the chain")
            assert OURS.incremental is not None
            if number in LENGTHS:
                bench.attempt(OURS, OURS.incremental, job, case)
                _look(bench, guest, output, number)
            else:
                bench.record.cases.remove(case)
                OURS.incremental(job, Meter(bench.log))
        OURS.full(whole, Meter(bench.log))
        for _ in range(bench.rounds):
            _restore(bench, guest, full, "restore of a full", 1)
            _restore(bench, guest, output, "restore of the newest", max(LENGTHS))


def _look(bench: Bench, guest: Guest, output: Path, length: int) -> None:
    commands = {
        "list": ("list", guest.name),
        "plan (backup --dry-run)": ("backup", guest.name, "--dry-run"),
    }
    for _ in range(bench.rounds):
        for name, words in commands.items():
            case = bench.record.case(name, OURS.name, x=length, unit="backups in the chain")
            bench.run(lambda meter, words=words: vbackup(meter, *words, "-r", output), case, output=output, of=[guest])


def _restore(bench: Bench, guest: Guest, repository: Path, series: str, length: int) -> None:
    with bench.place("restored") as restored:
        case = bench.record.case(series, OURS.name, x=length, unit="backups in the chain")
        words = ("restore", guest.name, "-r", repository, "--output", restored / "disks")
        (restored / "disks").mkdir()
        bench.run(lambda meter: vbackup(meter, *words), case, output=restored, of=[])
        if case["verified"] is None:
            case["verified"] = _compared(guest, restored / "disks" / "vda.qcow2")
            print(f"      {case['verified']}", flush=True)


def _compared(guest: Guest, made: Path) -> str:
    argv = ["qemu-img", "compare", "-U", str(guest.disks["vda"]), str(made)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return "identical" if done.returncode == 0 else f"differs: {(done.stdout + done.stderr).strip()}"
