"""Share one total rate among the backups of a command, and share it again whenever jobs begin or end.

Each running domain gets an equal share, and each of its running jobs an equal part of that. What a domain cannot use,
because its jobs have their own limit, goes to the others. Nothing here waits or has a thread: the thread of each domain
reports the state of its jobs (vbackup.qemu.jobs.Throttle) and sets their speed (QAPI block-job-set-speed) when the
share has changed. A share only grows by what others have given back already, so the sum never exceeds the total.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from vbackup.fields import MAX_SIZE_BYTES
from vbackup.qemu.jobs import CHANGEABLE, Job, set_speed
from vbackup.qemu.monitor import Monitor


class TotalRate:
    """The total rate in bytes/s; ``at_once`` is the maximum number of domains that are backed up at the same time."""

    def __init__(self, total_bytes_s: int, *, at_once: int) -> None:
        self.total_bytes_s = total_bytes_s
        self.at_once = at_once
        self._lock = threading.Lock()
        self._wanted: dict[Share, int] = {}
        self._granted: dict[Share, int] = {}

    @contextmanager
    def share(self, *, job_limit_bytes_s: int | None = None) -> Iterator[Share]:
        """Give one domain a share while the block runs; ``job_limit_bytes_s`` is the limit of each of its jobs."""
        share = Share(self, MAX_SIZE_BYTES if job_limit_bytes_s is None else job_limit_bytes_s)
        try:
            yield share
        finally:
            self.ask(share, 0)

    def ask(self, share: Share, wanted_bytes_s: int) -> int:
        """Return how much of ``wanted_bytes_s`` the domain gets now; it may get more later."""
        with self._lock:
            if wanted_bytes_s == 0:
                self._wanted.pop(share, None)
                self._granted.pop(share, None)
                return 0
            self._wanted[share] = wanted_bytes_s
            fair = fair_parts(self.total_bytes_s, self._wanted)[share]
            others = sum(granted for other, granted in self._granted.items() if other is not share)
            self._granted[share] = max(0, min(fair, self.total_bytes_s - others))
            return self._granted[share]


class Share:
    """The share of one domain, divided equally among its running jobs. A vbackup.qemu.jobs.Throttle."""

    def __init__(self, rate: TotalRate, job_limit_bytes_s: int) -> None:
        self._rate = rate
        self._job_limit_bytes_s = job_limit_bytes_s
        self._set: dict[str, int] = {}

    def first_bytes_s(self, jobs: int) -> int:
        """Return the part of the present share for each job."""
        return self._part(jobs)

    def slowest_bytes_s(self, jobs: int) -> int:
        """Return the part for each job while the maximum number of domains is backed up."""
        fair = self._rate.total_bytes_s // self._rate.at_once // jobs
        return max(1, min(fair, self._job_limit_bytes_s))

    def adjust(self, monitor: Monitor, jobs: Collection[Job]) -> None:
        """Ask for the share that the running jobs can use, and set the speed of those whose part has changed."""
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
        return max(1, self._rate.ask(self, wanted) // jobs)  # for QEMU, 0 is no limit


def fair_parts(total: int, wanted: Mapping[Share, int]) -> dict[Share, int]:
    """Return the parts of ``total``: nobody gets more than they want; those who get less all get the same."""
    parts = {}
    left = total
    # The smallest wish first: what it leaves of an equal part goes to the larger ones.
    for count, (share, want) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        parts[share] = min(want, left // (len(wanted) - count))
        left -= parts[share]
    return parts
