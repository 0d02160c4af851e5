"""One run of the bench: where it works, how long, with whom; and what every work does alike."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt

from tests.bench import guests
from tests.bench.contenders import OURS, VBACKUP, Contender, Job, check
from tests.bench.guests import Guest
from tests.bench.isolation import URI
from tests.bench.measuring import FailedError, Meter, Sample, measure


@dataclass
class Record:
    """What a work has found out."""

    cases: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)  #: what is no run of a contender

    def case(self, series: str, contender: str, *, x: float | None = None, unit: str = "") -> dict[str, Any]:
        """The case of that name, made if it is not there; ``x`` is where on the series' axis it stands."""
        for one in self.cases:
            if (one["series"], one["contender"], one["x"]) == (series, contender, x):
                return one
        made = {"series": series, "contender": contender, "x": x, "unit": unit, "verified": None, "samples": []}
        self.cases.append(made)
        return made

    def skip(self, what: str, reason: str) -> None:
        """Say why something was not measured."""
        print(f"    {what}: left out, {reason}", flush=True)
        entry = {"what": what, "reason": reason}
        if entry not in self.skipped:
            self.skipped.append(entry)


@dataclass
class Bench:
    """What the works share."""

    directory: Path
    connection: libvirt.virConnect
    rounds: int
    is_smoke: bool
    record: Record = field(default_factory=Record)

    def size(self, whole: int, smoke: int) -> int:
        """The first, or the second where only a sign of life is asked for."""
        return smoke if self.is_smoke else whole

    @property
    def log(self) -> Path:
        """Where the contenders' output goes."""
        return self.directory / "contenders.log"

    @contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """An empty directory, for as long as the block runs."""
        path = self.directory / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def guest(self, place: Path, name: str, *, driver: str = "", **disk: Any) -> Iterator[Guest]:
        """A running domain with one disk; ``disk`` as for guests.make_disk."""
        path = guests.make_disk(place / f"{name}.qcow2", **disk)
        with guests.running(self.connection, name, {"vda": path}, driver=driver) as guest:
            yield guest

    def run(
        self, action: Callable[[Meter], object], case: dict[str, Any], *, output: Path, of: Sequence[Guest]
    ) -> None:
        """Measure once and keep it."""
        made: Sample = measure(action, output=output, pids=[guest.pid for guest in of], log=self.log)
        case["samples"].append(made.document())
        at = "" if case["x"] is None else f", {case['x']:g} {case['unit']}"
        print(
            f"    {case['series']}{at}: {case['contender']}: {made.wall_s:.2f} s (stored {made.stored_s:.2f} s), "
            f"CPU {made.cpu_s:.2f} s, {made.peak_mib:.0f} + {made.qemu_mib:.0f} MiB, wrote {made.written_mib:.1f} MiB",
            flush=True,
        )

    def able(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Those that can take part; the others are reported."""
        if self.is_smoke:
            contenders = [one for one in contenders if one.name in ("cp", "qemu-img convert -W -m 8", OURS.name)]
        for one in contenders:
            if reason := one.missing():
                self.record.skip(one.name, reason)
        return [one for one in contenders if one.missing() is None]

    def fulls(self, guest: Guest, contenders: Sequence[Contender], series: str, *, options: Sequence[str] = ()) -> None:
        """A full by each in turn, for all rounds; the output goes after each."""
        able = self.able(contenders)
        for number in range(self.rounds):
            for one in able:
                with self.place("output") as output, self.place("scratch") as scratch:
                    job = Job(guest, output, scratch, tuple(options))
                    case = self.record.case(series, named(one, options))
                    self.attempt(one, one.full, job, case)
                    if number == 0 and case["samples"]:
                        case["verified"] = check(one, job)
                        print(f"      {case['verified']}", flush=True)

    def attempt(
        self, one: Contender, backup: Callable[[Job, Meter], None], job: Job, case: dict[str, Any], *, x: str = ""
    ) -> None:
        """Make it ready, measure it; that it failed is a result too."""
        try:
            one.ready(job)
            self.run(lambda meter: backup(job, meter), case, output=job.output, of=[job.guest])
        except (FailedError, RuntimeError) as err:
            self.record.skip(f"{case['series']}{x}: {case['contender']}", f"it failed: {err}")


def named(contender: Contender, options: Sequence[str]) -> str:
    """The contender with its options."""
    return " ".join([contender.name, *options]) if contender is OURS else contender.name


@functools.cache
def vbackup_knows(command: str, option: str = "") -> bool:
    """True if this vbackup has that option."""
    argv = [*VBACKUP, command, "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode == 0 and option in done.stdout


def vbackup(meter: Meter, *arguments: str | Path) -> None:
    """Run it with the bench's libvirt, telling only the result."""
    meter.run(*VBACKUP, *arguments, "-c", URI, "-q")
