"""Slow a backup down while the guest's own requests take too long: ``--max-latency``.

While the jobs run, the guest's first write to a place waits until that place has been copied, and all its reads and
writes share the storage with the copy. This module measures the latency and sets the speed of the jobs;
vbackup.engine.latency decides which speed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from vbackup.engine.latency import Counters, Speed, Window, decide, latency_ms
from vbackup.errors import MalformedError
from vbackup.fields import objects
from vbackup.qemu import jobs
from vbackup.qemu.jobs import Job, JobStatus
from vbackup.qemu.monitor import Monitor
from vbackup.report import Reporter

log = logging.getLogger(__name__)

#: Interval between two decisions. A mean over less time is not meaningful.
INTERVAL_S = 1.0


def counters(monitor: Monitor) -> dict[str, Counters]:
    """Return the counters of the guest's reads and writes of each disk, by device (QAPI BlockStats)."""
    by_qdev = {}
    for entry in objects(monitor.execute("query-blockstats"), "query-blockstats", MalformedError):
        qdev = entry.optional_text("qdev")
        if qdev:
            stats = entry.object("stats")
            by_qdev[qdev] = Counters(
                operations=stats.integer("rd_operations") + stats.integer("wr_operations"),
                time_ns=stats.integer("rd_total_time_ns") + stats.integer("wr_total_time_ns"),
            )
    return by_qdev


class LatencyThrottle:
    """Sets the speed of running jobs by the latency of the guest's requests; ``on_tick`` is for vbackup.qemu.jobs.run.

    ``limit_ms`` is the highest acceptable mean time of the guest's requests. ``ceiling_bytes_s`` is the user's own
    limit of each job, or None. If something else sets the speed of a job (``vbackup speed``, or the backup's share of a
    total rate), that is the ceiling from then on.
    """

    def __init__(
        self,
        monitor: Monitor,
        *,
        limit_ms: float,
        ceiling_bytes_s: int | None,
        reporter: Reporter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monitor = monitor
        self._limit_ms = limit_ms
        self._ceiling_bytes_s = ceiling_bytes_s
        self._reporter = reporter
        self._clock = clock
        self._speed = Speed(ceiling_bytes_s)
        self._first_bytes_s = ceiling_bytes_s
        self._expected: dict[str, int | None] = {}
        self._read_at: float | None = None
        self._counters: Mapping[str, Counters] = {}
        self._done_bytes: Mapping[str, int] = {}
        self._reported = False

    def on_tick(self, known: Mapping[str, Job]) -> None:
        """Measure the latency and set the speed of the jobs, if the interval has passed."""
        now = self._clock()
        if self._read_at is not None and now - self._read_at < INTERVAL_S:
            return
        running = {job_id: job for job_id, job in known.items() if job.status is JobStatus.RUNNING}
        window = self._measure(running, now)
        if window is None or not running:
            return
        actual = self._take_ceiling(running)
        before = self._speed
        self._speed = decide(before, window, limit_ms=self._limit_ms, ceiling_bytes_s=self._ceiling_bytes_s)
        self._report(before, window)
        wanted = self._speed.speed_bytes_s
        for job_id, speed_bytes_s in actual.items():
            if speed_bytes_s != wanted and jobs.set_speed(self._monitor, job_id, wanted):
                self._expected[job_id] = wanted

    def _measure(self, running: Mapping[str, Job], now: float) -> Window | None:
        """Return the measurements since the last call; None the first time."""
        read = counters(self._monitor)
        done_bytes = {job_id: job.done_bytes for job_id, job in running.items()}
        window = None
        if self._read_at is not None:
            copied = [done_bytes[job_id] - self._done_bytes.get(job_id, done_bytes[job_id]) for job_id in done_bytes]
            rate = int(max(copied, default=0) / (now - self._read_at))
            window = Window(latency_ms(self._counters, read), rate)
        self._read_at, self._counters, self._done_bytes = now, read, done_bytes
        return window

    def _take_ceiling(self, running: Mapping[str, Job]) -> Mapping[str, int | None]:
        """Return the present speeds of the jobs. One that was not set here is the new ceiling."""
        actual = {job_id: speed for job_id, speed in jobs.speeds(self._monitor).items() if job_id in running}
        for job_id, speed_bytes_s in actual.items():
            if speed_bytes_s != self._expected.get(job_id, self._first_bytes_s):
                log.debug("job %s: something else has set the speed %s", job_id, speed_bytes_s)
                self._ceiling_bytes_s = speed_bytes_s
        self._expected = dict(actual)
        return actual

    def _report(self, before: Speed, window: Window) -> None:
        log.debug("guest's requests: %s; %s", window, self._speed)
        slower = self._speed.speed_bytes_s is not None and self._speed.speed_bytes_s < (before.speed_bytes_s or 2**63)
        if slower and not self._reported:
            self._reported = True
            self._reporter.step(
                f"The guest's requests take {window.latency_ms or 0:.0f} ms on average, more than"
                f" {self._limit_ms:g} ms: copying more slowly until they take less."
            )
