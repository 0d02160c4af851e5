"""systemd's own programs: make it read units, start and stop timers, and say what it thinks of a service."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

#: It is there while systemd manages the system (sd_booted(3)).
RUNNING = Path("/run/systemd/system")
_TIMEOUT_S = 60.0
_EXPOSURE = re.compile(r"Overall exposure level for .*: ([0-9.]+) ([A-Z]+)")


def manages_system() -> bool:
    """Return True if systemd manages this system."""
    return RUNNING.is_dir()


def command(*words: str, is_user: bool) -> tuple[str, ...]:
    """Return a command of systemctl."""
    return ("systemctl", *(("--user",) if is_user else ()), *words)


def run(argv: Sequence[str]) -> str | None:
    """Run a command of systemctl; return why it failed, or None."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        return f"there is no program {argv[0]}"
    except subprocess.TimeoutExpired:
        return f"{argv[0]} did not end within {_TIMEOUT_S:.0f} s"
    except OSError as err:
        return f"{argv[0]} cannot be started: {err.strerror}"
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else (lines[-1] if lines else f"exit status {done.returncode}")


def is_active(unit: str, *, is_user: bool) -> bool:
    """Return True if a unit is active."""
    return run(command("is-active", "--quiet", unit, is_user=is_user)) is None


def exposure(units: Path, service: str, *, is_user: bool) -> str | None:
    """Return how exposed a service is, as systemd-analyze rates it, such as "4.9 OK"; None: it cannot tell.

    ``units``: a directory with the service or its drop-ins; what is not there is looked for where this system has it.
    """
    if shutil.which("systemd-analyze") is None:
        return None
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", *(["--user"] if is_user else []), service]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            # A path that ends with a colon is searched first, and then the usual ones.
            env={**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_UNIT_PATH": f"{units}:"},
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        log.debug("systemd-analyze: %s", err)
        return None
    match = _EXPOSURE.search(done.stdout)
    return None if match is None else f"{match[1]} {match[2]}"
