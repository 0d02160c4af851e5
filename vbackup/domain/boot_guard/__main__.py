"""The guard process: wait for the end of vbackup; if that was too early, end the copy's QEMU and remove its files.

It is run by path and isolated, and imports nothing of vbackup. A QEMU is recognized by the copy's UUID in its arguments
(-uuid), which no other process has; libvirt may have started it without having said so to anybody.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path


def main() -> None:
    """Read the orders and then a line from standard input; its end without that is that of vbackup."""
    orders, *done = (line.rstrip("\n") for line in sys.stdin)
    if done:
        return
    order = json.loads(orders)
    # A QEMU that starts while the processes are looked through is found the next time.
    while [pid for pid in running() if kill(pid, order["uuid"])]:
        pass
    for directory in order["directories"]:
        shutil.rmtree(directory, ignore_errors=True)


def running() -> list[int]:
    """Return the ids of all processes."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def kill(pid: int, uuid: str) -> bool:
    """Kill the process if it is the QEMU of the copy, wait for its end, and return whether it was."""
    try:
        fd = os.pidfd_open(pid)  # from here on it stays the same process, whatever gets its id
    except OSError:
        return False
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if (b"-uuid", uuid.encode()) not in zip(words, words[1:]):
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        import select

        select.select([fd], [], [])
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


if __name__ == "__main__":
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # vbackup may have got it too, and then ends the pipe
    os.chdir("/")
    with contextlib.suppress(BrokenPipeError):
        os.write(1, b"ready\n")
        main()
