"""live.json is read as it was written, locked by one vbackup, and nothing in it leads out of its directory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import backup_id, live_state_in
from vbackup.errors import BusyError, StorageError
from vbackup.repository import live_state
from vbackup.repository.live_state import LiveState


@pytest.fixture
def state(tmp_path: Path) -> LiveState:
    made = live_state_in(tmp_path, "vda", "vdb")
    (tmp_path / "domain.xml").touch()
    live_state.write(made)
    return made


def test_what_is_written_is_read(state: LiveState) -> None:
    with live_state.locked(state.output) as read:
        assert read == state
        assert read.away == ("vda", "vdb")
        live_state.write(replace(read, home=frozenset({"vda"})))
    assert live_state.read(state.output).away == ("vdb",)
    assert (state.output / "live.json").stat().st_mode & 0o777 == 0o600


def test_one_works_on_it_also_after_it_was_replaced(state: LiveState) -> None:
    with live_state.locked(state.output) as mine:
        live_state.write(mine)
        with pytest.raises(BusyError, match="Another vbackup"), live_state.locked(state.output):
            pass
    with live_state.locked(state.output):
        pass


def test_without_it_nothing_is_unfinished(state: LiveState) -> None:
    live_state.remove(state.output)
    for output in (state.output, state.output / "missing"):
        with pytest.raises(StorageError, match="No live restore to"):
            live_state.read(output)


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("schema", "vbackup.live/2", "knows only"),
        ("schema", 3, "should be a string"),
        ("files", ["../vda.qcow2"], "not valid"),
        ("files", [".."], "not valid"),
        ("later", ["/etc/passwd"], "not valid"),
        ("backup", "../x", "not valid"),
        ("protected", [".."], "not valid"),
        ("home", ["vdz"], "not valid"),
        ("disks", [{"dev": "../a", "backup": backup_id(1), "path": "/a"}], "not valid"),
        ("disks", [{"dev": "vda", "backup": backup_id(1), "path": "vda.qcow2"}], "not valid"),
        ("disks", [{"dev": "vda", "backup": backup_id(1), "path": "/a\0b"}], "not valid"),
        ("original", "../x", "not valid"),
        ("domain", {"name": "web", "uuid": ".."}, "not valid"),
    ],
)
def test_what_vbackup_does_not_write_is_refused(state: LiveState, member: str, value: Any, message: str) -> None:
    path = state.output / "live.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), member: value}))
    with pytest.raises(StorageError, match=message):
        live_state.read(state.output)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_what_is_no_json_is_refused(state: LiveState, content: bytes) -> None:
    (state.output / "live.json").write_bytes(content)
    with pytest.raises(StorageError):
        live_state.read(state.output)
