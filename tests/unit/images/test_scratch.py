"""Temporary directories go with the run that made them, or with the next one if it was killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vbackup.errors import StorageError
from vbackup.images import scratch

HOLD = """
import sys
from pathlib import Path
from vbackup.images import scratch
with scratch.directory(Path(sys.argv[1])) as made:
    (made / "nbd").touch()
    print(made, flush=True)
    sys.stdin.read()
"""


def test_it_is_private_and_goes_at_the_end(tmp_path: Path) -> None:
    with scratch.directory(tmp_path) as made:
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
        (made / "sub").mkdir()
        (made / "sub" / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_has_left_goes_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "vbackup-scratch-mine").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "vbackup-scratch-linkxxxx").symlink_to(tmp_path / "other")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().rstrip("\n"))
        try:
            with scratch.directory(tmp_path) as made:
                assert (left / "nbd").exists()
                with scratch.directory(tmp_path):
                    assert made.is_dir()
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert (left / "nbd").exists()
    with scratch.directory(tmp_path):
        assert not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"vbackup-scratch-mine", "other", "vbackup-scratch-linkxxxx"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_those_of_other_users_stay(tmp_path: Path) -> None:
    path = tmp_path / "vbackup-scratch-abcdefgh"
    path.mkdir()
    os.chown(path, 65534, 65534)
    with scratch.directory(tmp_path):
        pass
    assert path.exists()


def test_place_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Cannot make a directory in"), scratch.directory(tmp_path / "no"):
        pass
