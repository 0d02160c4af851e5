"""A connection is opened with what is there, and closed with its block."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.unit.builders import Recorder
from vbackup import api
from vbackup.api.connection import Connection
from vbackup.errors import HostUnreachableError, StorageError, UsageError


def test_repository_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a vbackup repository"):
        api.connect(repository=tmp_path)


def test_libvirt_is_reached_when_it_is_needed(filled: Path) -> None:
    with api.connect("nonsense:///", repository=filled) as vb:
        assert [one.name for one in vb.records()] == ["web"]
        with pytest.raises(HostUnreachableError):
            vb.connect_to_libvirt()
        with pytest.raises(HostUnreachableError):
            vb.backup("web")


def test_closed_connection_reaches_no_libvirt(filled: Path) -> None:
    with api.connect("test:///default", repository=filled) as vb:
        vb.connect_to_libvirt()
    vb.close()
    with pytest.raises(UsageError, match="closed"):
        vb.connect_to_libvirt()


def test_connections_do_not_know_of_each_other(filled: Path) -> None:
    with api.connect("test:///default") as one, api.connect("test:///default", repository=filled) as two:
        assert not one.has_repository
        assert two.has_repository
        one.close()
        two.connect_to_libvirt()


def test_several_threads_use_one_connection(filled: Path) -> None:
    found: list[str] = []
    with api.connect("test:///default", repository=filled) as vb:

        def work() -> None:
            found.append(vb.select(["test"]).chosen[0].name + str(len(vb.records("web")[0].backups)))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert found == ["test2"] * 4


@pytest.mark.parametrize("loop", ["libvirtaio", "default", "none"])
def test_event_loop_of_the_program_is_kept(loop: str) -> None:
    """libvirt has one: the first that is registered."""
    register = {
        "libvirtaio": "import asyncio, libvirtaio\nloop = asyncio.new_event_loop()\n"
        "libvirtaio.virEventRegisterAsyncIOImpl(loop)\nrun = loop.run_forever\n",
        "default": "import libvirt\nlibvirt.virEventRegisterDefaultImpl()\n"
        "def run():\n    while True: libvirt.virEventRunDefaultImpl()\n",
        "none": "run = None\n",
    }[loop]
    source = (
        "import os, threading\nos.environ['LIBVIRT_LOG_OUTPUTS'] = '4:file:/dev/null'\n"
        f"{register}"
        "if run is not None: threading.Thread(target=run, daemon=True).start()\n"
        "import vbackup.api\n"
        "with vbackup.api.connect('test:///default') as vb: print([one.name for one in vb.select(['test']).chosen])\n"
        "print(end='', flush=True)\nos._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("['test']\n", "")


def test_new_repository_can_be_used(tmp_path: Path) -> None:
    made = api.create_repository(tmp_path / "new")
    assert Connection(repository=made).repository.id == api.connect(repository=tmp_path / "new").repository.id
    with pytest.raises(StorageError, match="already a vbackup repository"):
        api.create_repository(str(tmp_path / "new"))


def test_new_repository_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda _fd, _operation: None)
    recorder = Recorder()
    api.create_repository(tmp_path / "new", reporter=recorder)
    assert "does not lock files" in recorder.warnings[0]
