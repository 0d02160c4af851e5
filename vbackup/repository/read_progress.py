"""Add up how much of a disk's images was read, in several threads, and report it now and then."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable

from vbackup.report import Phase, Reporter
from vbackup.repository.history import Link

#: Seconds between two reports of a disk.
REPORT_S = 0.25


class ReadProgress:
    """The progress of the images of ``links``, of which a percentage is read."""

    def __init__(self, reporter: Reporter, links: Iterable[Link], *, percent: float = 100.0) -> None:
        self.read_bytes = 0
        self._reporter = reporter
        self._total: Counter[str] = Counter()
        self._left: Counter[str] = Counter()  # number of images
        for link in links:
            self._total[link.image.dev] += int(link.image.file_size_bytes * percent / 100)
            self._left[link.image.dev] += 1
        self._done: Counter[str] = Counter()
        self._next_report_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, dev: str, size_bytes: int) -> None:
        """Count bytes of a disk."""
        with self._lock:
            self.read_bytes += size_bytes
            self._done[dev] += size_bytes
            now_s = time.monotonic()
            if now_s < self._next_report_s.setdefault(dev, now_s):
                return
            self._next_report_s[dev] = now_s + REPORT_S
            # Tables and zeros are in the size of a file, and not read as content: it is full only at the end.
            self._report(dev, min(self._done[dev], self._total[dev] - 1))

    def done(self, dev: str) -> None:
        """Count an image of a disk as complete; the last one makes the disk complete."""
        with self._lock:
            self._left[dev] -= 1
            if not self._left[dev]:
                self._report(dev, self._total[dev])

    def _report(self, dev: str, done_bytes: int) -> None:
        self._reporter.progress(dev, Phase.CHECK, max(0, done_bytes), self._total[dev])
