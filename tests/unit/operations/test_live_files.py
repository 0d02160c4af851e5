"""What a live restore has made goes, wherever it is; what others have put there stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.unit.builders import live_state_in
from vbackup.operations import live_files
from vbackup.repository import live_state
from vbackup.repository.live_state import LiveDisk


def test_all_files_are_removed_and_no_others(tmp_path: Path) -> None:
    output = tmp_path / "restored"
    output.mkdir()
    state = live_state_in(output)
    live_state.write(state)
    elsewhere = tmp_path / "pool"
    elsewhere.mkdir()
    (elsewhere / "theirs").touch()
    disks = {**state.disks, "vdb": LiveDisk("vdb", state.backup, elsewhere / "web-vdb.qcow2")}
    state = replace(state, disks=disks)
    for path in (*state.paths, *(output / name for name in (*state.later, "live.sock", "mine"))):
        path.touch()
    live_files.remove(state)
    assert [path.name for path in output.iterdir()] == ["mine"]
    (output / "mine").unlink()
    live_state.write(state)
    live_files.remove(state)
    assert not output.exists()
    assert [path.name for path in elsewhere.iterdir()] == ["theirs"]
