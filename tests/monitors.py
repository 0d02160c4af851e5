"""The monitoring programs that make unpacks (.ci/monitor-packages), for the tests that need them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

MONITORS = Path(__file__).parents[1] / "build" / "monitors"
LIBRARIES = MONITORS / "usr/lib/x86_64-linux-gnu"


def program(rpath: str) -> str:
    """The path of a program, as in usr/bin/promtool; skips the test where it could not be unpacked."""
    path = MONITORS / rpath
    if not path.exists():
        pytest.skip(f"{rpath} is not there: make build/monitors/.ready unpacks it, on Debian 12")
    return str(path)


def environment() -> Mapping[str, str]:
    """With the libraries of these programs."""
    return {**os.environ, "LD_LIBRARY_PATH": str(LIBRARIES)}


def run(argv: Sequence[str | Path], *, stdin: bytes = b"", cwd: Path | None = None) -> str:
    """Run a program that has to succeed; return what it prints on both streams."""
    done = subprocess.run(
        argv,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        cwd=cwd,
        timeout=60,
        check=False,
    )
    text = done.stdout.decode()
    assert done.returncode == 0, text
    return text


@contextmanager
def running(argv: Sequence[str | Path], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon during the block."""
    with log.open("wb") as file, subprocess.Popen(argv, stdout=file, stderr=file, env=environment()) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)
