"""Limit how many bytes are read in a second, by all threads together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Longest sleep, and so the longest delay until a request to stop is noticed.
TICK_S = 0.1


class ReadRate:
    """Lets its callers wait so that they read at most ``bytes_s`` bytes per second; None is no limit.

    ``check`` is called while they wait, and may raise.
    """

    def __init__(
        self,
        bytes_s: int | None,
        *,
        check: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_s = bytes_s
        self._check, self._clock, self._sleep = check, clock, sleep
        self._lock = threading.Lock()
        self._free_at_s = clock()

    def take(self, size_bytes: int) -> None:
        """Return when this number of bytes may be read."""
        self._check()
        if self._bytes_s is None:
            return
        with self._lock:
            # What was not used while nobody read is not made up for later.
            at_s = max(self._free_at_s, self._clock())
            self._free_at_s = at_s + size_bytes / self._bytes_s
        while (left_s := at_s - self._clock()) > 0:
            self._sleep(min(left_s, TICK_S))
            self._check()
