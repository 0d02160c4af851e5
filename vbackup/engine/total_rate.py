"""Share one rate out among the backups of a command, and again whenever jobs begin or end.

Each running domain gets the same, and each of its running jobs the same of that; what a domain cannot use, because its
disks have a limit of their own, goes to the others. Nothing here waits or has a thread: each domain's own thread tells
how its jobs are (vbackup.qemu.jobs.Throttle), and sets their speed (block-job-set-speed of QEMU's QAPI) when its
part has changed. A part grows only by what others have already given back, so the sum is kept at every moment.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from vbackup.fields import MAX_SIZE_BYTES
from vbackup.qemu.jobs import CHANGEABLE, Job, set_speed
from vbackup.qemu.monitor import Monitor


class TotalRate:
    """A rate for all; ``at_once`` is how many domains are backed up at the same time at most."""

    def __init__(self, total_bytes_s: int, *, at_once: int) -> None:
        self.total_bytes_s = total_bytes_s
        self.at_once = at_once
        self._lock = threading.Lock()
        self._wanted: dict[Share, int] = {}
        self._granted: dict[Share, int] = {}

    @contextmanager
    def share(self, *, job_limit_bytes_s: int | None = None) -> Iterator[Share]:
        """One domain's part while the block runs; ``job_limit_bytes_s`` is what each of its jobs may have at most."""
        share = Share(self, MAX_SIZE_BYTES if job_limit_bytes_s is None else job_limit_bytes_s)
        try:
            yield share
        finally:
            self.ask(share, 0)

    def ask(self, share: Share, wanted_bytes_s: int) -> int:
        """How much of the ``wanted_bytes_s`` a domain gets now; more may be had later."""
        with self._lock:
            if wanted_bytes_s == 0:
                self._wanted.pop(share, None)
                self._granted.pop(share, None)
                return 0
            self._wanted[share] = wanted_bytes_s
            fair = fair_parts(self.total_bytes_s, self._wanted)[share]
            others = sum(granted for one, granted in self._granted.items() if one is not share)
            self._granted[share] = max(0, min(fair, self.total_bytes_s - others))
            return self._granted[share]


class Share:
    """One domain's part (see vbackup.qemu.jobs.Throttle)."""

    def __init__(self, rate: TotalRate, job_limit_bytes_s: int) -> None:
        self._rate = rate
        self._job_limit_bytes_s = job_limit_bytes_s
        self._set: dict[str, int] = {}

    def first_bytes_s(self, jobs: int) -> int:
        """See Throttle."""
        return self._part(jobs)

    def slowest_bytes_s(self, jobs: int) -> int:
        """See Throttle."""
        fair = self._rate.total_bytes_s // self._rate.at_once // jobs
        return max(1, min(fair, self._job_limit_bytes_s))

    def adjust(self, monitor: Monitor, jobs: Collection[Job]) -> None:
        """See Throttle."""
        running = [job for job in jobs if job.status in CHANGEABLE]
        if not running:
            self._rate.ask(self, 0)
            return
        speed_bytes_s = self._part(len(running))
        for job in running:
            if self._set.get(job.id) != speed_bytes_s:
                set_speed(monitor, job.id, speed_bytes_s)
                self._set[job.id] = speed_bytes_s

    def _part(self, jobs: int) -> int:
        wanted = min(self._job_limit_bytes_s * jobs, MAX_SIZE_BYTES)
        return max(1, self._rate.ask(self, wanted) // jobs)  # to QEMU 0 is no limit


def fair_parts(total: int, wanted: Mapping[Share, int]) -> dict[Share, int]:
    """Nobody gets more than he wants, and whoever gets less than that gets as much as any other."""
    parts = {}
    left = total
    for count, (share, want) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        parts[share] = min(want, left // (len(wanted) - count))
        left -= parts[share]
    return parts
