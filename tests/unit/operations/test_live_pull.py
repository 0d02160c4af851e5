"""When the data of a disk counts as at home, and what becomes of a running guest when its pulls cannot be followed."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import REPOSITORY, UUID, Recorder, backup_id
from vbackup import files
from vbackup.engine import live_backing
from vbackup.errors import StorageError
from vbackup.operations import live_pull
from vbackup.repository import live_state
from vbackup.repository.live_state import LiveDisk, LiveState


@pytest.fixture
def state(tmp_path: Path) -> LiveState:
    made = LiveState(
        output=tmp_path,
        repository_id=REPOSITORY,
        uuid=UUID,
        name="web",
        backup=backup_id(1),
        disks={"vda": LiveDisk("vda", backup_id(1))},
        files=("domain.xml", "vda.qcow2"),
    )
    live_state.write(made)
    made.image("vda").touch()
    return made


def pulls(handle: Any, state: LiveState) -> live_pull._Pulls:
    overlays: Any = {"vda": None}
    return live_pull._Pulls(handle, state, overlays, SimpleNamespace(), Recorder())  # type: ignore[arg-type]


def test_disk_is_at_home_only_when_the_host_has_flushed_it(state: LiveState, monkeypatch: pytest.MonkeyPatch) -> None:
    """With cache='unsafe' QEMU leaves that to nobody."""
    done: list[str] = []
    flush = files.fsync

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    def fsync(path: Path) -> None:
        done.append(path.name)
        flush(path)

    monkeypatch.setattr(live_backing, "store", lambda *_: done.append("store"))
    monkeypatch.setattr(live_backing, "remove", lambda *_: None)
    with monkeypatch.context() as broken:
        broken.setattr(files, "fsync", fail)
        with pytest.raises(StorageError, match=r"vda\.qcow2"):
            pulls(None, state)._keep("vda")
    assert live_state.read(state.output).home == set()
    done.clear()
    monkeypatch.setattr(files, "fsync", fsync)
    pulls(None, state)._keep("vda")
    assert done[:2] == ["store", "vda.qcow2"]
    assert live_state.read(state.output).home == {"vda"}
