"""A disk goes to a new file or to a block device; whatever else is at the path stays as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.builders import Recorder
from vbackup import files
from vbackup.errors import StorageError
from vbackup.images import destination, device
from vbackup.images.destination import Destination, Overwritten
from vbackup.model import ImageFormat
from vbackup.qemu.qemu_img import Output
from vbackup.repository import filesystem
from vbackup.stop import Stop

QCOW2 = ImageFormat.QCOW2


def test_new_file_has_the_format_and_a_device_is_raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = destination.of_path("vda", Path("new.img"), QCOW2)
    assert found == Destination("vda", tmp_path / "new.img", QCOW2, Output.NEW)
    monkeypatch.setattr(device, "is_block_device", lambda _path: True)
    found = destination.of_path("vda", tmp_path / "lv", QCOW2)
    assert found == Destination("vda", tmp_path / "lv", ImageFormat.RAW, Output.DEVICE)
    assert not found.is_new


def test_what_is_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    for name in ("file", "dangling", "fifo", "."):
        with pytest.raises(StorageError, match=r"already exists.*another path"):
            destination.of_path("vda", tmp_path / name, QCOW2)
    assert (tmp_path / "file").read_text() == "mine"


def test_misspelled_device_or_directory_is_refused(tmp_path: Path) -> None:
    for path in ("/dev/no-such-device", "/dev/no-such-group/volume", "/dev/../dev/x"):
        with pytest.raises(StorageError, match=f"there is no block device {path}"):
            destination.of_path("vda", Path(path), QCOW2)
    with pytest.raises(StorageError, match=f"there is no directory {tmp_path}/none"):
        destination.of_path("vda", tmp_path / "none" / "a.qcow2", QCOW2)
    assert not (tmp_path / "none").exists()


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"Two files would both be {tmp_path}/a"):
        destination.refuse_existing([tmp_path / "a", tmp_path / "b", tmp_path / "a"])


def test_device_that_was_overwritten_is_named_if_the_restore_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    zeroed = []
    monkeypatch.setattr(device, "zero", lambda _path, start, end, check: zeroed.append((start, end)))
    recorder = Recorder()
    monkeypatch.setattr(device, "size_bytes", lambda _path: 100)
    devices = {dev: Path("/dev") / dev for dev in ("vda", "vdb")}
    vda = Destination("vda", devices["vda"], ImageFormat.RAW, Output.DEVICE)
    overwritten = Overwritten(devices, recorder, Stop())
    overwritten.begin(vda, 90)
    overwritten.__exit__(ZeroDivisionError, None, None)
    assert zeroed == [(90, 100)]
    [warning] = recorder.warnings
    assert "Disk vda: the restore to /dev/vda did not end. Its old content is lost" in warning
    assert "its last 10 bytes" in recorder.steps[0]
    with Overwritten(devices, recorder, Stop()) as overwritten:
        overwritten.begin(vda, 100)
    assert recorder.warnings == [warning]


def test_device_that_was_made_for_the_restore_has_nothing_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    zeroed = []
    monkeypatch.setattr(device, "zero", lambda _path, start, end, check: zeroed.append((start, end)))
    monkeypatch.setattr(device, "size_bytes", lambda _path: 100)
    recorder = Recorder()
    overwritten = Overwritten({}, recorder, Stop())
    overwritten.begin(Destination("vda", Path("/dev/vg/web-vda"), ImageFormat.RAW, Output.DEVICE, "web-vda"), 90)
    overwritten.__exit__(ZeroDivisionError, None, None)
    assert zeroed == [(90, 100)]
    assert recorder.warnings == recorder.steps == []


def test_files_are_moved_all_or_none(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("a", "b")]
    for path in places:
        path.touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b").write_text("mine")
    moves = [(path, tmp_path / "other" / path.name) for path in places]
    with pytest.raises(StorageError, match="already exists"):
        destination.move_out(moves)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["b"]
    assert (tmp_path / "other" / "b").read_text() == "mine"


def test_last_file_gets_its_name_when_the_others_are_on_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    moved, synced = filesystem.move, files.fsync
    monkeypatch.setattr(filesystem, "move", lambda one, to: (moved(one, to), done.append(to.name)))
    monkeypatch.setattr(files, "fsync", lambda path: (synced(path), done.append(f"fsync {path.name}")))
    places = [tmp_path / "from" / name for name in ("vda", "domain.xml")]
    for name in ("from", "images", "out"):
        (tmp_path / name).mkdir()
    for path in places:
        path.touch()
    destination.move_out([(places[0], tmp_path / "images" / "vda"), (places[1], tmp_path / "out" / "domain.xml")])
    assert done == ["vda", "fsync images", "domain.xml", "fsync out"]


def test_name_that_is_taken_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And an error of the undo does not hide why."""
    monkeypatch.setattr(destination, "refuse_existing", lambda _paths: None)
    for name in ("a", "b", "taken"):
        (tmp_path / name).write_text(name)
    unlink = Path.unlink

    def vanished(path: Path, *arguments: bool) -> None:
        unlink(path, *arguments)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "unlink", vanished)
    with pytest.raises(StorageError, match="File exists"):
        destination.move_out([(tmp_path / "a", tmp_path / "free"), (tmp_path / "b", tmp_path / "taken")])
    assert (tmp_path / "taken").read_text() == "taken"
    assert not (tmp_path / "free").exists()


def test_directory_of_a_killed_restore_is_removed_by_the_next_one(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from vbackup.images import destination\n"
        f"with destination.temporary_directory(Path('{tmp_path}')) as directory:\n"
        "    (directory / 'vda.qcow2').touch(); print(directory, flush=True); sys.stdin.read()"
    )
    for name in (".vbackup-mine", ".vbackup-cp-abcdefgh", ".vbackup-00000000"):  # the last one without a lock
        (tmp_path / name).mkdir()
    others = {path.name for path in tmp_path.iterdir()}
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        left = Path(killed.stdout.readline().decode().strip())
        with destination.temporary_directory(tmp_path) as directory:
            assert {path.name for path in tmp_path.iterdir()} == others | {left.name, directory.name}
            assert (left / "vda.qcow2").exists()
        killed.kill()
    assert (left / "vda.qcow2").exists()
    with destination.temporary_directory(tmp_path) as directory:
        assert {path.name for path in tmp_path.iterdir()} == others | {directory.name}
    assert {path.name for path in tmp_path.iterdir()} == others


def test_nothing_else_counts_as_a_dead_restore(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / ".vbackup-lock").touch()
    output = tmp_path / "output"
    output.mkdir()
    (output / ".vbackup-aaaaaaaa").symlink_to(kept)
    (output / ".vbackup-bbbbbbbb").mkdir()
    (output / ".vbackup-bbbbbbbb" / ".vbackup-lock").symlink_to(kept / ".vbackup-lock")
    with destination.temporary_directory(output):
        pass
    assert sorted(path.name for path in output.iterdir()) == [".vbackup-aaaaaaaa", ".vbackup-bbbbbbbb"]
    assert (kept / ".vbackup-lock").exists()
