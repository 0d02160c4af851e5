"""A real systemd as the first process of separate namespaces, which knows only the units of a test.

What it writes (/run, its timers' stamps) is in its own tmpfs; its control groups are below those of the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SYSTEMD = Path("/lib/systemd/systemd")
#: Units that others have by default.
_TARGETS = ("sysinit", "basic", "shutdown", "timers", "network-online", "multi-user")
_NAMESPACES = ("--uts", "--ipc", "--net", "--cgroup")
_INIT = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/units
mkdir -p /var/lib/systemd
mount -t tmpfs tmpfs /var/lib/systemd
umount -R /sys/fs/cgroup
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
mount --make-rshared /
export container=other
exec /lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no
"""


@dataclass
class Init:
    """The running systemd."""

    pid: int
    units: Path  #: where it looks for units, instead of /etc/systemd/system

    def run(self, *argv: str | Path, check: bool = True) -> str:
        """Run a program beside it; return what it printed."""
        inside = ["nsenter", "-t", str(self.pid), "-m", "-p", "-u", "-i", "-n", "-C", *map(os.fspath, argv)]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=30, check=False)
        assert not check or done.returncode == 0, (argv, done)
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", unit, "-p", name, "--value").strip()


def reason_not_to_start() -> str | None:
    """Why there can be no systemd here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    if not SYSTEMD.exists() or not shutil.which("unshare"):
        return "needs systemd and unshare"
    return None if Path("/sys/fs/cgroup/systemd").is_dir() else "needs the control group name=systemd"


@contextmanager
def init(directory: Path) -> Iterator[Init]:
    """Yield a systemd whose units are in ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in _TARGETS:
        (directory / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    environment = {
        "PATH": os.environ["PATH"],
        "SYSTEMD_UNIT_PATH": os.fspath(directory),
    }
    flags = ("--pid", "--fork", "--kill-child", "--mount", "--propagation", "private", "--mount-proc", *_NAMESPACES)
    with (directory.parent / "init.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", *flags, "sh", "-c", _INIT],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield Init(_started(process), directory)
    finally:
        process.kill()  # unshare's child, and with it all that is in its namespace, goes with it
        process.wait()


def _started(process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 20
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while time.monotonic() < deadline:
        found = children.read_text().split()
        if found:
            made = Init(int(found[0]), Path())
            if made.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded"):
                return made.pid
        assert process.poll() is None, "systemd did not start; see init.log"
        time.sleep(0.1)
    raise AssertionError("systemd is not ready within 20 s")
