"""Run ``vbackup`` in this process and end it, or its QEMU, at one step of its journal. Started by test_kill_matrix.

    python -m tests.end_to_end.killed STEP before|after VICTIM -- ARGUMENTS OF VBACKUP

VICTIM is kill (SIGKILL to this process), term (SIGTERM to it) or the pid of a QEMU (SIGKILL to that).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from vbackup.cli import main
from vbackup.repository.journal import Journal, Step


def arm(step: Step, when: str, victim: str) -> None:
    """Strike at that step, once."""
    write = Journal._write

    def strike() -> None:
        if victim == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif victim == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            os.kill(int(victim), signal.SIGKILL)

    def write_and_strike(self: Journal, wanted: Step, members: Mapping[str, Any]) -> None:
        if wanted is step and when == "before":
            strike()
        write(self, wanted, members)
        if wanted is step and when == "after":
            strike()

    Journal._write = write_and_strike  # type: ignore[method-assign]


if __name__ == "__main__":
    separator = sys.argv.index("--")
    arm(Step(sys.argv[1]), sys.argv[2], sys.argv[3])
    sys.exit(main(sys.argv[separator + 1 :]))
