"""Nothing that is open is renamed or removed: SMB servers refuse it, and NFS leaves files behind.

Every rename and removal below the repository and the output is seen through Python's audit events. At that moment no
process may have the file open, or a file below the directory: not vbackup, not QEMU, not a storage daemon.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.test_faults import break_target
from tests.lab import DiskSpec, Lab, Machine, domain_xml
from vbackup.domain.passthrough import Passthrough
from vbackup.images import writeback
from vbackup.qemu.storage_daemon import StorageDaemon

if TYPE_CHECKING:
    from tests.conftest import Command


class Watch:
    """What was renamed or removed below a directory, and what of it was open then."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.seen: list[str] = []
        self.open: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            return
        path = os.fspath(arguments[0])
        # What rmtree removes by descriptor is below the directory that was looked at when it began.
        if isinstance(path, bytes) or not path.startswith(f"{self.top}/") or arguments[-1] not in (-1, None):
            return
        self.seen.append(f"{event} {path}")
        self.open += [f"{event} {path}: {name} has {file} open" for name, file in _open_below(path)]

    @property
    def renamed(self) -> list[str]:
        return [Path(one.partition(" ")[2]).name for one in self.seen if one.startswith("os.rename")]


def _open_below(path: str) -> Iterator[tuple[str, str]]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (process / "comm").read_text().strip()
            for entry in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    file = os.fspath(entry.readlink())
                    if file == path or file.startswith(f"{path}/"):
                        yield name, file


_watches: list[Watch] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for one in list(_watches):
        one(event, arguments)


@pytest.fixture(scope="module")
def _audit() -> None:
    sys.addaudithook(_hook)  # for ever: there is no way to remove one


@pytest.fixture
def watch(_audit: None, tmp_path: Path) -> Iterator[Watch]:
    watch = Watch(tmp_path)
    _watches.append(watch)
    yield watch
    _watches.remove(watch)


def open_files(directory: Path) -> list[str]:
    return [file for _, file in _open_below(os.fspath(directory))]


def test_watch_sees_what_is_open(watch: Watch, tmp_path: Path) -> None:
    """Else the tests below would prove nothing."""
    (tmp_path / "directory").mkdir()
    with (tmp_path / "directory" / "file").open("w"):
        (tmp_path / "directory").rename(tmp_path / "renamed")
    assert len(watch.open) == 1
    assert watch.renamed == ["directory"]


@pytest.fixture
def machine(lab: Lab, tmp_path: Path) -> Machine:
    specs = [DiskSpec(tmp_path / "vda.qcow2"), DiskSpec(tmp_path / "vdb.qcow2", dev="vdb")]
    for spec in specs:
        spec.create()
        subprocess.run(["qemu-io", "-c", "write -P 1 0 4M", str(spec.path)], check=True, capture_output=True)
    return lab.define(domain_xml("open", [spec.xml() for spec in specs]))


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "off"])
def test_nothing_open_is_renamed_or_removed(
    lab: Lab, command: Command, machine: Machine, repository: Path, watch: Watch, tmp_path: Path, is_running: bool
) -> None:
    """By a first backup that fails, one that succeeds, one that fails later, and a restore."""
    if is_running:
        machine.handle.domain.create()
    backup = ("-c", lab.uri, "-q", "backup", machine.name, "-r", repository, "--json")
    with pytest.MonkeyPatch.context() as patch:
        break_target(patch, "vdb", 5, Passthrough if is_running else StorageDaemon)
        # A sync of the other image is running when the backup fails.
        patch.setattr(writeback, "PIECE_BYTES", 65536)
        command(*backup, status=7)
        assert any(one.startswith("shutil.rmtree") and one.endswith(".partial") for one in watch.seen)
        lock = [one for one in watch.open if one.endswith(f"{machine.handle.uuid}/lock open")]
        assert len(lock) == 1  # it has to be removed while it is locked; its directory is removed afterwards
        assert watch.seen[-1] == f"os.rmdir {repository / machine.handle.uuid}"
        watch.open.remove(lock[0])
        patch.undo()
        done = command(*backup).document
        assert f"{done['id']}.partial" in watch.renamed
        assert watch.seen[-1].endswith(f"{done['id']}/journal")
        break_target(patch, "vdb", 5, Passthrough if is_running else StorageDaemon)
        command(*backup, "--level", "full", status=7)
    command("-q", "restore", machine.name, "-r", repository, "--output", tmp_path / "out")
    assert watch.renamed[-3:] == ["vda.qcow2", "vdb.qcow2", "domain.xml"]
    assert watch.open == []
    assert open_files(repository) == []


def test_nothing_open_is_renamed_when_a_killed_backup_is_finished(
    lab: Lab, command: Command, machine: Machine, repository: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vbackup.engine import finish
    from vbackup.undo import Undo

    machine.handle.domain.create()
    backup = ("-c", lab.uri, "-q", "backup", machine.name, "-r", repository, "--json")

    class Killed(BaseException):
        """Ends the command where a kill would, with nothing undone."""

    def die(*_args: Any, **_kwargs: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "copy", die)
        patch.setattr(Undo, "__exit__", lambda *_args: None)
        patch.setattr("vbackup.repository.repository._remove", lambda _path: None)
        with contextlib.suppress(Killed):
            command(*backup, status=1)
    command("-c", lab.uri, "-q", "recover", machine.name, "-r", repository)
    assert any(name.endswith(".partial") for name in watch.renamed)
    assert watch.open == []
