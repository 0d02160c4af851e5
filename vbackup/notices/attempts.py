"""Try until it works or the time is over: attempts that end in time whatever they wait for, and pauses between them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from vbackup.errors import NoticeError, Retry

T = TypeVar("T")

#: The pause after the first attempt; each next one is twice as long.
FIRST_PAUSE_S = 1.0
#: An attempt gets this part of the time that is left, so that one that hangs is not the only one.
_SHARE = 2 / 3
#: With less time left than this, an attempt gets all of it.
_SHORT_S = 3.0
#: No attempt begins with less than this part of the time: it would only say that nobody answered so quickly.
_LEAST = 1 / 4


def until_sent(
    attempt: Callable[[float], T],
    timeout_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Return what the attempt returns, which gets the seconds that it may take.

    Raises the NoticeError of the last attempt: if it says that another one is of no use, or the time is over.
    """
    deadline = clock() + timeout_s
    pause = FIRST_PAUSE_S
    while True:
        left = deadline - clock()
        try:
            return attempt(left if left < _SHORT_S else max(left * _SHARE, _SHORT_S))
        except NoticeError as err:
            wait = max(pause, err.not_before_s or 0.0)
            if err.retry is Retry.NEVER or clock() + wait >= deadline - timeout_s * _LEAST:
                raise
        sleep(wait)
        pause *= 2


def bounded(work: Callable[[], T], timeout_s: float) -> T:
    """Return what ``work`` returns, or raise what it raises. Raises TimeoutError if it takes longer.

    A server that sends a byte a second keeps within every limit of a socket, and the resolver of names has none. What
    does not end in time is left to its thread, which does not keep the process from ending.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as err:  # noqa: BLE001 - it is raised below
            errors.append(err)

    thread = threading.Thread(target=run, name="attempt", daemon=True)
    thread.start()
    thread.join(max(timeout_s, 0.0))
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]
