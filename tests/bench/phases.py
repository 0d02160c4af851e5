"""Where the time of one backup goes: a run of vbackup that notes when each QMP command was sent and answered.

As a program it is ``python -m tests.bench.phases LOG ARGUMENT...``: vbackup with these arguments, and one line of
JSON for each command in LOG. vbackup itself is as it always is; only the call of the monitor is wrapped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Number of commands that are reported by name: those that took the most time together.
_SLOWEST = 4


def phases(argv: Sequence[str]) -> dict[str, float]:
    """Seconds by phase of one run of that vbackup command line."""
    with tempfile.NamedTemporaryFile() as log:
        arguments = list(argv)[list(argv).index("vbackup") + 1 :]
        start_s = time.time()
        program = [sys.executable, "-m", "tests.bench.phases", log.name, *arguments, "-q"]
        subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
        end_s = time.time()
        calls = [json.loads(line) for line in Path(log.name).read_text().splitlines()]
    found: dict[str, float] = {}
    at_s = start_s
    sent = [call for call in calls if call["is_moment"]]
    if sent:
        found["start, plan, targets"] = sent[0]["sent_s"] - at_s
        found["transaction"] = sent[0]["answered_s"] - sent[0]["sent_s"]
        at_s = sent[0]["answered_s"]
    finalised = [call for call in calls if call["command"] == "job-finalize"]
    if finalised:
        found["QEMU copies"] = finalised[-1]["answered_s"] - at_s
        at_s = finalised[-1]["answered_s"]
    found["digest, commit, clearing away, end"] = end_s - at_s
    found["commands"] = len(calls)
    by_command: dict[str, float] = {}
    for call in calls:
        by_command[call["command"]] = by_command.get(call["command"], 0) + call["answered_s"] - call["sent_s"]
    found["in all commands"] = sum(by_command.values())
    for command, took_s in sorted(by_command.items(), key=lambda item: -item[1])[:_SLOWEST]:
        found[f"in {sum(call['command'] == command for call in calls)} x {command}"] = took_s
    return {name: round(value, 4) for name, value in found.items()}


def main(arguments: Sequence[str]) -> int:
    """Run vbackup and note its commands."""
    from vbackup.cli import main as vbackup_main
    from vbackup.domain.passthrough import Passthrough

    log, *rest = arguments
    original = Passthrough.execute
    with Path(log).open("a") as file:

        def execute(monitor: Passthrough, command: str, data: Any = None, **more: Any) -> Any:
            sent_s = time.time()
            start_s = time.perf_counter()
            try:
                return original(monitor, command, data, **more)
            finally:
                took_s = time.perf_counter() - start_s
                call = {"command": command, "sent_s": sent_s, "answered_s": sent_s + took_s}
                call["is_moment"] = command == "transaction" and _starts_jobs(data["actions"])
                file.write(json.dumps(call) + "\n")

        Passthrough.execute = execute  # type: ignore[method-assign]
        return vbackup_main(rest)


def _starts_jobs(actions: Sequence[dict[str, Any]]) -> bool:
    """True for the transaction of the backup itself; others are tests, or remove bitmaps."""
    types = {action["type"] for action in actions}
    return "blockdev-backup" in types and "abort" not in types


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
