"""Run ``vbackup`` in this process and kill it at a call of one function. Started by test_sessions.

    python -m tests.end_to_end.killed_session MODULE:FUNCTION before|after N -- ARGUMENTS OF VBACKUP

N: at which call of the function, from 1.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from importlib import import_module
from typing import Any

from vbackup.cli import main


def arm(place: str, when: str, number: int) -> None:
    """Strike at that call."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, import_module(module))
    original = getattr(owner, name)
    calls = 0

    @functools.wraps(original)
    def struck(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        is_it = calls == number
        if is_it and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **named)
        if is_it:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, struck)


if __name__ == "__main__":
    separator = sys.argv.index("--")
    arm(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.exit(main(sys.argv[separator + 1 :]))
