"""A chain of images becomes one image with the same bytes, however long the chain is."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import qemu_img_info
from vbackup.errors import InterruptedBySignalError, NoSpaceError, QmpError, StorageDaemonGoneError, StorageError
from vbackup.images import flatten
from vbackup.images.flatten import Layer
from vbackup.model import ImageFormat
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.report import Silent
from vbackup.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Callable

KIB = 1024
GRANULE = 64 * KIB


class Made:
    """Layers as a repository has them, and the bytes that the newest shows."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._random = random.Random(7)
        self.layers: list[Layer] = []
        self.content = bytearray()

    def add(self, size_bytes: int, *, changes: int) -> None:
        """A layer that has this number of granules of data, and as many that became zero."""
        path = self._directory / f"20261125T{len(self.layers):06}Z-incremental" / "vda.qcow2"
        path.parent.mkdir()
        backing = ["-u", "-b", f"../{self.layers[-1].path.parent.name}/vda.qcow2", "-F", "qcow2"] if self.layers else []
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(path), str(size_bytes)]
        subprocess.run(argv, check=True)
        self.content += bytes(size_bytes - len(self.content))
        commands = []
        for number in range(2 * changes):
            at = self._random.randrange(0, size_bytes, GRANULE)
            pattern = 0 if number % 2 else self._random.randrange(1, 255)
            commands += ["-c", f"write {'-z' if number % 2 else f'-P {pattern}'} {at} {GRANULE}"]
            self.content[at : at + GRANULE] = bytes([pattern]) * GRANULE
        if commands:
            # Without its backing file: what a job has written.
            options = f"driver=qcow2,file.driver=file,file.filename={path},backing="
            subprocess.run(["qemu-io", *commands, "--image-opts", options], check=True, stdout=subprocess.DEVNULL)
        self.layers.append(Layer(path, size_bytes))


def written(
    layers: Sequence[Layer], output: Path, image_format: ImageFormat, progress: Callable[[float], None]
) -> None:
    flatten.flatten(layers, output, image_format, reporter=Silent(), stop=Stop(), progress=progress)


def content_of(path: Path, image_format: ImageFormat) -> bytes:
    raw = path.with_suffix(".compared")
    subprocess.run(["qemu-img", "convert", "-f", image_format.value, "-O", "raw", str(path), str(raw)], check=True)
    return raw.read_bytes()


@pytest.mark.parametrize("image_format", ImageFormat, ids=lambda one: str(one.value))
@pytest.mark.parametrize("at_once", [1, 3, 9], ids="{} at once".format)
def test_output_has_the_bytes_of_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_format: ImageFormat, at_once: int
) -> None:
    """Data, zeros over data, and a disk that grew twice; by more than one daemon where there are many layers."""
    monkeypatch.setattr(flatten, "CONVERT_LAYERS", at_once)
    monkeypatch.setattr(flatten, "DAEMON_LAYERS", 4)
    made = Made(tmp_path)
    for number in range(9):
        made.add(KIB * KIB * (4 + number // 3), changes=6)
    told: list[float] = []
    output = tmp_path / f"out.{image_format.value}"
    written(made.layers, output, image_format, told.append)
    assert content_of(output, image_format) == bytes(made.content)
    assert output.stat().st_mode & 0o777 == 0o600
    assert told == sorted(told)
    assert told[-1] == pytest.approx(100)


def test_chain_that_is_too_long_for_qemus_own_way(tmp_path: Path) -> None:
    """The names of its images, joined, are longer than a path may be."""
    made = Made(tmp_path)
    for number in range(150):
        made.add(KIB * KIB, changes=number % 50 == 0)
    subprocess.run(["qemu-img", "info", "-U", str(made.layers[-1].path)], check=True, stdout=subprocess.DEVNULL)
    own_way = subprocess.run(
        ["qemu-img", "convert", "-O", "raw", str(made.layers[-1].path), str(tmp_path / "own")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "File name too long" in own_way.stderr
    output = tmp_path / "out.qcow2"
    written(made.layers, output, ImageFormat.QCOW2, lambda _percent: None)
    assert content_of(output, ImageFormat.QCOW2) == bytes(made.content)


def test_zeros_take_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatten, "CONVERT_LAYERS", 1)
    made = Made(tmp_path)
    made.add(8 * KIB * KIB, changes=0)
    made.add(8 * KIB * KIB, changes=0)
    path = made.layers[-1].path
    subprocess.run(
        ["qemu-io", "-c", "write -P 0 0 4M", "-f", "qcow2", str(path)], check=True, stdout=subprocess.DEVNULL
    )
    output = tmp_path / "out.qcow2"
    written(made.layers, output, ImageFormat.QCOW2, lambda _percent: None)
    assert qemu_img_info(output)["actual-size"] < KIB * KIB


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ("Error flushing drive: No space left on device", NoSpaceError, "no space left"),
        ("Error flushing drive: Input/output error", StorageError, "Cannot write .*out: .*Input/output error"),
    ],
    ids=["full", "broken"],
)
def test_output_that_cannot_take_the_last_tables_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, error: type[Exception], told: str
) -> None:
    monkeypatch.setattr(flatten, "CONVERT_LAYERS", 1)
    made = Made(tmp_path)
    for _ in range(2):
        made.add(KIB * KIB, changes=1)
    execute = StorageDaemon.execute

    def refuse(daemon: StorageDaemon, command: str, arguments: Any = None, **more: Any) -> Any:
        if command == "blockdev-reopen":
            raise QmpError(command, "GenericError", said)
        return execute(daemon, command, arguments, **more)

    monkeypatch.setattr(StorageDaemon, "execute", refuse)
    with pytest.raises(error, match=told):
        written(made.layers, tmp_path / "out", ImageFormat.QCOW2, lambda _percent: None)


def test_layer_that_cannot_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatten, "CONVERT_LAYERS", 1)
    made = Made(tmp_path)
    for _ in range(2):
        made.add(KIB * KIB, changes=1)
    made.layers[-1].path.write_bytes(b"no image" * 10000)
    with pytest.raises(StorageDaemonGoneError, match="not in qcow2 format"):
        written(made.layers, tmp_path / "out", ImageFormat.QCOW2, lambda _percent: None)


def test_request_to_stop_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatten, "CONVERT_LAYERS", 1)
    made = Made(tmp_path)
    for _ in range(3):
        made.add(KIB * KIB, changes=1)
    stop = Stop()

    def progress(percent: float) -> None:
        if percent > 50:  # of the second layer, which the daemon writes
            stop.request(15)

    with pytest.raises(InterruptedBySignalError):
        flatten.flatten(made.layers, tmp_path / "out", ImageFormat.RAW, reporter=Silent(), stop=stop, progress=progress)


def test_output_that_is_full_is_told(tmp_path: Path, small_filesystem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatten, "CONVERT_LAYERS", 1)
    made = Made(tmp_path)
    made.add(32 * KIB * KIB, changes=0)
    made.add(32 * KIB * KIB, changes=400)
    with pytest.raises(NoSpaceError, match="no space left"):
        written(made.layers, small_filesystem / "out", ImageFormat.RAW, lambda _percent: None)
