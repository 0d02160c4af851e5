"""Run ``vbackup`` in this process and kill it when it comes to one step of a replicate. Started by test_standby.

    python -m tests.end_to_end.killed_standby STEP NUMBER before|after -- ARGUMENTS OF VBACKUP

STEP is a key of STEPS; the process is killed before or after its NUMBERth call.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from vbackup.cli import main
from vbackup.engine import rollback as engine
from vbackup.operations import rollback, standby
from vbackup.operations.standby_files import Files
from vbackup.repository import standbys

STEPS: dict[str, tuple[Any, str]] = {
    "record": (standbys, "put"),
    "images": (Files, "write_images"),
    "define": (standby, "define"),
    "mark": (engine, "_mark"),
    "copy": (engine, "_copy"),
    "check": (engine, "_verify"),
    "finish": (engine, "_finish"),
    "drop": (rollback.Rollback, "_drop_superseded"),
    "put": (Files, "put_images"),
    "machine": (Files, "put_machine"),
}


def arm(step: str, number: int, when: str) -> None:
    """Kill this process at that step."""
    place, name = STEPS[step]
    real, calls = getattr(place, name), 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        value = real(*arguments, **named)
        if calls == number and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    setattr(place, name, wrapped)


if __name__ == "__main__":
    separator = sys.argv.index("--")
    arm(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    sys.exit(main(sys.argv[separator + 1 :]))
