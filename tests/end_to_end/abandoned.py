"""A test that starts, mounts and attaches things, removes none of them and waits. Started by test_namespaces."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.filesystem import Ext4

#: A file in whose directory everything is; it is made when everything is there.
READY = "VBACKUP_TESTS_READY"


def test_that_does_not_end() -> None:
    ready = Path(os.environ[READY])
    filesystem = Ext4(ready.parent, size_mib=8)
    filesystem.mount()
    # As QEMU: in a separate session, with another parent than this process.
    subprocess.run(["setsid", "--fork", "tail", "-f", str(filesystem.image)], check=True)
    ready.touch()
    signal.pause()
