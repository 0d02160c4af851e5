"""What a run costs: time, processor, memory and storage, of whole processes and of all that work for them.

The bench has a PID namespace for itself, so the processor time of everything that runs there is that of the
contender, QEMU and libvirtd; the runner's own is taken off. The kernel's threads (write-back) are not counted.
"""

from __future__ import annotations

import functools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.guests import MIB

_TICKS_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class FailedError(Exception):
    """A contender's program failed; with the end of what it said."""


@dataclass(frozen=True)
class Sample:
    """One run. Sizes are in MiB of 1048576 bytes."""

    wall_s: float  #: from the start of its first process to the end of its last
    stored_s: float  #: the same, and until what it wrote is on stable storage
    cpu_s: float  #: of its processes, QEMU and libvirtd together
    peak_mib: float  #: resident memory of its largest process
    qemu_mib: float  #: what QEMU's resident memory grew by at most
    written_mib: float  #: of storage that its output takes
    program_cpu_s: float  #: of its programs and their children alone, without QEMU, libvirtd and other servers

    def document(self) -> dict[str, float]:
        """For the JSON results."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


class _Starter:
    """Starts programs in place of the runner.

    A program begins with the peak memory of who has started it, so that must be small. It is a Python with no more than
    this; what needs less than its 8 MiB is shown with them.
    """

    _SOURCE = """
import json, os, sys
for line in sys.stdin:
    argv, log, environment = json.loads(line)
    to_log = [(os.POSIX_SPAWN_OPEN, fd, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) for fd in (1, 2)]
    from_nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    pid = os.posix_spawnp(argv[0], argv, {**os.environ, **environment}, file_actions=[from_nothing, *to_log])
    _, status, usage = os.wait4(pid, 0)
    cpu_s = usage.ru_utime + usage.ru_stime
    print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, cpu_s]), flush=True)
"""

    def __init__(self) -> None:
        argv = [sys.executable, "-I", "-S", "-c", self._SOURCE]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> tuple[int, int, float]:
        """The exit status of a program, the resident memory of its largest process in bytes, and their CPU seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([argv, os.fspath(log), environment]), file=self._process.stdin, flush=True)
        status, peak_bytes, cpu_s = json.loads(self._process.stdout.readline())
        return status, peak_bytes, cpu_s


_starter = functools.cache(_Starter)


class Meter:
    """Runs a contender's programs and keeps what they took."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.peak_bytes = 0
        self.cpu_s = 0.0

    def run(
        self, *argv: str | Path, environment: Mapping[str, str] | None = None, statuses: Container[int] = (0,)
    ) -> None:
        """Run a program to its end. Raises FailedError unless it ends with one of ``statuses``."""
        start = self._log.stat().st_size if self._log.exists() else 0
        words = [os.fspath(word) for word in argv]
        status, peak_bytes, cpu_s = _starter().run(words, self._log, environment or {})
        self.cpu_s += cpu_s
        # The largest of it and its children, not their sum: shared memory would be counted twice.
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        if status not in statuses:
            said = self._log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
            raise FailedError(f"{argv[0]} ended with status {status}: {' / '.join(said[-3:])}")


def measure(action: Callable[[Meter], object], *, output: Path, pids: Sequence[int], log: Path) -> Sample:
    """Run it once, with nothing waiting to be written before. ``pids`` are the QEMUs."""
    os.sync()
    _starter()
    meter = Meter(log)
    before_bytes = sum(_resident_from_now(pid) for pid in pids)
    already_bytes = used_bytes(output)
    cpu_s = _all_cpu_s()
    start_s = time.monotonic()
    action(meter)
    end_s = time.monotonic()
    cpu_s = _all_cpu_s() - cpu_s
    _store(output)
    return Sample(
        wall_s=end_s - start_s,
        stored_s=time.monotonic() - start_s,
        cpu_s=cpu_s,
        peak_mib=meter.peak_bytes / MIB,
        qemu_mib=max(0, sum(_peak_bytes(pid) for pid in pids) - before_bytes) / MIB,
        written_mib=(used_bytes(output) - already_bytes) / MIB,
        program_cpu_s=meter.cpu_s,
    )


def used_bytes(path: Path) -> int:
    """Of storage, by all files below the path."""
    return sum(one.lstat().st_blocks * 512 for one in path.rglob("*") if one.is_file())


def _store(path: Path) -> None:
    for one in path.rglob("*"):
        if one.is_file() or one.is_dir():
            fd = os.open(one, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def _all_cpu_s() -> float:
    """Of all processes here, with those that have ended (their parents have it), without the runner's own."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        times = [int(field) for field in fields[11:15]]
        ticks += sum(times[2:] if int(entry.name) == os.getpid() else times)
    return ticks / _TICKS_S


def _resident_from_now(pid: int) -> int:
    """The resident memory; the peak is counted from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def median(samples: Sequence[Mapping[str, Any]], member: str) -> float:
    """Of one member of samples as they are in the results."""
    return statistics.median(sample[member] for sample in samples)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that this percentage of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]
