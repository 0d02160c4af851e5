"""What a live restore has made goes, wherever it is; what others have put there stays."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import live_state_in
from vbackup.domain import domain_xml
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


def test_disk_that_was_detached_meanwhile_has_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = live_state_in(tmp_path)
    assert state.disks
    state = replace(state, original=state.uuid)
    monkeypatch.setattr(domain_xml, "parse", lambda _xml: SimpleNamespace(disks=()))
    monkeypatch.setattr(live_files, "Passthrough", nullcontext)
    monkeypatch.setattr(live_files, "block_graph", lambda _monitor: None)
    handle: Any = SimpleNamespace(is_active=lambda: True, live_xml=lambda: "")
    repository: Any = SimpleNamespace(catalogue=lambda _uuid: SimpleNamespace(history=None))
    assert live_files.checkpoints(handle, state, repository) == []
