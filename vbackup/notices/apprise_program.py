"""A program: send one message with apprise, or, without one, only see whether it knows the URL.

Its orders are a JSON object on standard input, its answer is a word.

It is a process of its own because apprise logs its URLs, which are secrets, and has no limit of time. The orders have
the import path, so that it finds what vbackup finds, and nothing secret is on a command line or in the environment.
"""

from __future__ import annotations

import json
import os
import sys

MISSING = "missing"  #: apprise is not installed
UNKNOWN = "unknown"  #: it does not know the URL
KNOWN = "known"  #: it knows the URL, and no message was ordered
SENT = "sent"
FAILED = "failed"


def main() -> str:
    """Do what the orders say; return the answer."""
    orders = json.load(sys.stdin)
    sys.path[:] = orders["sys_path"]
    try:
        import apprise  # type: ignore[import-untyped, unused-ignore]  # an extra
    except ImportError:
        return MISSING
    sender = apprise.Apprise()
    if not sender.add(orders["url"]):
        return UNKNOWN
    if orders.get("text") is None:
        return KNOWN
    is_sent = sender.notify(
        body=orders["text"], title=orders["title"], notify_type=orders["type"], body_format=apprise.NotifyFormat.TEXT
    )
    return SENT if is_sent else FAILED


if __name__ == "__main__":
    answer_fd = os.dup(1)
    silent = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):  # whatever it prints or logs can have the URL
        os.dup2(silent, number)
    os.write(answer_fd, main().encode())
