"""Run ``vbackup`` in this process and kill it at one step of a restore in place on another host.

    python -m tests.end_to_end.killed_there STEP NUMBER before|after -- ARGUMENTS OF VBACKUP

STEP is a key of STEPS; the process is killed before or after its NUMBERth call. Started by test_in_place_there, which
breaks the link at the same steps.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from vbackup.cli import main
from vbackup.engine import rollback
from vbackup.images.replacement_there import ReplacementThere
from vbackup.images.there import Writing
from vbackup.operations.in_place_there import There
from vbackup.repository import in_place_journal

STEPS: dict[str, tuple[Any, str]] = {
    "record": (in_place_journal, "write"),
    "make": (Writing, "write"),
    "adopt": (ReplacementThere, "adopt"),
    "attributes": (ReplacementThere, "take_attributes"),
    "roll": (rollback, "_verify"),
    "half": (There, "half_restored"),
    "put": (ReplacementThere, "put"),
    "remove": (ReplacementThere, "remove_old"),
    "whole": (There, "whole"),
}


def striking(step: str, number: int, when: str, strike: Callable[[], object]) -> tuple[Any, str, Any]:
    """What to set where, so that ``strike`` is called at that step."""
    place, name = STEPS[step]
    real, calls = getattr(place, name), 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            strike()
        value = real(*arguments, **named)
        if calls == number and when == "after":
            strike()
        return value

    return place, name, wrapped


if __name__ == "__main__":
    separator = sys.argv.index("--")
    setattr(*striking(sys.argv[1], int(sys.argv[2]), sys.argv[3], lambda: os.kill(os.getpid(), signal.SIGKILL)))
    sys.exit(main(sys.argv[separator + 1 :]))
