"""Run a process whose standard streams are closed, on a full disk, or pipes without a reader; or files in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


def break_stream(fd: int, how: str, stack: ExitStack) -> Callable[[], None]:
    """Return what a new process calls to have that stream broken.

    ``how`` is "full", "closed", or "gone": the reader of a pipe.
    """
    if how == "closed":
        return lambda: os.close(fd)
    if how == "full":
        opened = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, opened = os.pipe()
        os.close(reading)
    stack.callback(os.close, opened)
    return lambda: os.dup2(opened, fd) and None


def run_with_broken(
    argv: list[str], broken: dict[int, str], *, unbuffered: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments; ``broken`` says how by descriptor."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with ExitStack() as stack:
        breaks = [break_stream(fd, how, stack) for fd, how in broken.items()]
        return subprocess.run(
            [sys.executable, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            env=environment | ({"PYTHONUNBUFFERED": "1"} if unbuffered else {}),
            preexec_fn=lambda: [do() for do in breaks],
        )


@contextmanager
def descriptor(number: int, target: Path | int) -> Iterator[None]:
    """Let a standard descriptor of this process be a file, or a copy of another descriptor, during the block."""
    flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    opened = os.dup(target) if isinstance(target, int) else os.open(target, flags, 0o600)
    saved = os.dup(number)
    os.dup2(opened, number)
    os.close(opened)
    try:
        yield
    finally:
        os.dup2(saved, number)
        os.close(saved)
