"""A process is identified by its pid, its start and the boot, so a reused pid is no match."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from vbackup.hooks.marks import Process


def test_process_with_an_odd_name_is_known(tmp_path: Path) -> None:
    path = tmp_path / "a) R (b"
    path.symlink_to("/bin/cat")
    with subprocess.Popen([str(path)], stdin=subprocess.PIPE) as process:
        found = Process.of(process.pid)
        assert found is not None
        # The test process started first, perhaps in the same tick.
        this = Process.of(os.getpid())
        assert this is not None
        assert found.start_ticks >= this.start_ticks
        assert found.boot_id == this.boot_id
        assert found.lives


def test_process_that_has_ended_lives_no_more() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        found = Process.of(process.pid)
        assert found is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not found.lives  # nobody has waited for it yet
    assert not found.lives
