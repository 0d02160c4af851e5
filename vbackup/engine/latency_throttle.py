"""Have a backup copy slower while the guest's own requests take too long: ``--max-latency``.

While the jobs run the guest's first write to a place waits until that was copied, and its reads and writes share the
storage with the copy. What speed follows from that is vbackup.engine.latency's decision; here it is measured and set.
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

#: How often it is decided anew. A mean over less is not one.
INTERVAL_S = 1.0


def counters(monitor: Monitor) -> dict[str, Counters]:
    """What the guest has read and written of each disk, by its device (QAPI BlockStats)."""
    found = {}
    for entry in objects(monitor.execute("query-blockstats"), "query-blockstats", MalformedError):
        qdev = entry.optional_text("qdev")
        if qdev:
            stats = entry.object("stats")
            found[qdev] = Counters(
                operations=stats.integer("rd_operations") + stats.integer("wr_operations"),
                time_ns=stats.integer("rd_total_time_ns") + stats.integer("wr_total_time_ns"),
            )
    return found


class Backoff:
    """Sets the speed of the jobs it is shown (vbackup.qemu.jobs.run's ``on_tick``).

    ``limit_ms`` is the longest mean time of the guest's requests, ``ceiling_bytes_s`` the user's own limit of each
    job, None for none. Where somebody else sets the speed of a job meanwhile (``vbackup speed``), that is the ceiling
    from then on.
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
        self._begun_with_bytes_s = ceiling_bytes_s
        self._known: dict[str, int | None] = {}
        self._read_at: float | None = None
        self._counters: Mapping[str, Counters] = {}
        self._done_bytes: Mapping[str, int] = {}
        self._told = False

    def on_tick(self, known: Mapping[str, Job]) -> None:
        """Measure and set, if it is time to."""
        now = self._clock()
        if self._read_at is not None and now - self._read_at < INTERVAL_S:
            return
        running = {job_id: one for job_id, one in known.items() if one.status is JobStatus.RUNNING}
        window = self._measure(running, now)
        if window is None or not running:
            return
        actual = self._heed_others(running)
        before = self._speed
        self._speed = decide(before, window, limit_ms=self._limit_ms, ceiling_bytes_s=self._ceiling_bytes_s)
        self._tell(before, window)
        wanted = self._speed.speed_bytes_s
        for job_id, speed_bytes_s in actual.items():
            if speed_bytes_s != wanted and jobs.set_speed(self._monitor, job_id, wanted):
                self._known[job_id] = wanted

    def _measure(self, running: Mapping[str, Job], now: float) -> Window | None:
        """What has happened since this was last asked; None the first time."""
        read = counters(self._monitor)
        done_bytes = {job_id: one.done_bytes for job_id, one in running.items()}
        window = None
        if self._read_at is not None:
            copied = [done_bytes[job_id] - self._done_bytes.get(job_id, done_bytes[job_id]) for job_id in done_bytes]
            rate = int(max(copied, default=0) / (now - self._read_at))
            window = Window(latency_ms(self._counters, read), rate)
        self._read_at, self._counters, self._done_bytes = now, read, done_bytes
        return window

    def _heed_others(self, running: Mapping[str, Job]) -> Mapping[str, int | None]:
        """The speeds the jobs have. One that was not set here is somebody's who had a reason: it is the ceiling now."""
        actual = {job_id: speed for job_id, speed in jobs.speeds(self._monitor).items() if job_id in running}
        for job_id, speed_bytes_s in actual.items():
            if speed_bytes_s != self._known.get(job_id, self._begun_with_bytes_s):
                log.debug("job %s: somebody set the speed %s", job_id, speed_bytes_s)
                self._ceiling_bytes_s = speed_bytes_s
        self._known = dict(actual)
        return actual

    def _tell(self, before: Speed, window: Window) -> None:
        log.debug("guest's requests: %s ms, %s; %s", window.latency_ms, window, self._speed)
        slower = self._speed.speed_bytes_s is not None and self._speed.speed_bytes_s < (before.speed_bytes_s or 2**63)
        if slower and not self._told:
            self._told = True
            self._reporter.step(
                f"The guest's requests take {window.latency_ms or 0:.0f} ms, more than {self._limit_ms:g}: copying"
                " slower for as long as they do."
            )
