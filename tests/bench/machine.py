"""On what was measured, and what."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import libvirt

import vbackup

GIB = 1024**3


@functools.cache
def commit() -> str:
    """Of the tree that is measured; empty where it is changed or no git tree."""
    if shutil.which("git") is None:
        return ""
    # "*.json" of the results change as they are written.
    argv = ["git", "status", "--porcelain", "--untracked-files=no", "--", "vbackup"]
    changed = subprocess.run(argv, capture_output=True, text=True, check=False)
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    return head.stdout.strip() if head.returncode == 0 and not changed.stdout.strip() else ""


def machine(directory: Path) -> dict[str, str]:
    """Processor, memory, kernel, and the filesystem of the directory."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    memory = re.search(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    found = subprocess.run(
        ["stat", "--file-system", "--format=%T", str(directory)], capture_output=True, text=True, check=True
    )
    return {
        "processors": f"{os.cpu_count()} x {model[1] if model else os.uname().machine}",
        "memory": f"{int(memory[1]) * 1024 / GIB:.0f} GiB" if memory else "?",
        "kernel": f"Linux {os.uname().release}",
        "filesystem": found.stdout.strip(),
    }


def versions(connection: libvirt.virConnect) -> dict[str, str]:
    """Of all that takes part."""
    found = {
        "vbackup": vbackup.__version__,
        "QEMU": _number(connection.getVersion()),
        "libvirt": _number(connection.getLibVersion()),
    }
    for package in ("virtnbdbackup", "libnbd-bin", "rclone", "openssh-server"):
        argv = ["dpkg-query", "--show", "--showformat=${Version}", package]
        if (
            shutil.which("dpkg-query")
            and (done := subprocess.run(argv, capture_output=True, text=True, check=False)).stdout
        ):
            found[package] = done.stdout
    return found


def _number(version: int) -> str:
    return f"{version // 1000000}.{version // 1000 % 1000}.{version % 1000}"
