"""The command itself, killed in the middle of a repair: the image is as it was, and the next repair ends it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.recorded import BLOCK, MIB, Recorded, Write
from vbackup.model import Level

if TYPE_CHECKING:
    from tests.conftest import Command


#: Ends when the copy is there and the first block is about to be written to it.
_KILLED = """
import os, signal, sys
from vbackup.cli import main
from vbackup.repository.image_repair import ImageRepair
ImageRepair._contents = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(main(sys.argv[1:]))
"""


def test_repair_that_gets_sigkill_leaves_the_image_and_is_gone_on_with(command: Command, tmp_path: Path) -> None:
    recorded = Recorded(tmp_path / "repo")
    size_bytes = 96 * MIB
    recorded.add({"vda": [Write(0, size_bytes, 1), Write(BLOCK, 100, 2)]}, level=Level.FULL, size_bytes=size_bytes)
    path = recorded.path(recorded.backups[0])
    good = path.read_bytes()
    shutil.copytree(tmp_path / "repo", tmp_path / "copy")
    with path.open("r+b") as file:
        file.seek(len(good) // 2)
        file.write(b"damaged here")
    spoiled = path.read_bytes()
    command("verify", "web", "-r", tmp_path / "repo", "--progress", "none", status=6)
    words = ["check", "--repair", "--from", tmp_path / "copy", "-r", tmp_path / "repo", "--progress", "none"]
    staged = path.with_name(".repaired-vda.qcow2")
    killed = subprocess.run([sys.executable, "-c", _KILLED, *map(str, words)], stdout=subprocess.DEVNULL, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert staged.exists()
    assert path.read_bytes() == spoiled
    assert "was left by a run that was killed" in command("check", "-r", tmp_path / "repo", status=6).stdout
    outcome = command(*words)
    assert "was repaired (1 block)" in outcome.stdout
    assert path.read_bytes() == good
    assert not staged.exists()
    assert "no damage found" in outcome.stdout
    command("verify", "web", "-r", tmp_path / "repo", "--progress", "none")
