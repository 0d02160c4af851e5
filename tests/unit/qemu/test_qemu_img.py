"""qemu-img makes, reads and converts images; its errors become vbackup's. The program is the real one."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vbackup.errors import ChainError, InterruptedBySignalError, NoSpaceError, StorageError
from vbackup.model import BlockDriver, Compression, ImageFormat, ImageOptions
from vbackup.process import Process
from vbackup.qemu import qemu_img
from vbackup.stop import Stop

MIB = 1024 * 1024


def make(path: Path, *, backing: str | None = None, options: ImageOptions = ImageOptions()) -> Path:  # noqa: B008
    path.touch(mode=0o600)
    qemu_img.create(path, 2 * MIB, backing_rpath=backing, options=options)
    return path


def write(path: Path, pattern: int, offset: int, length: int) -> None:
    """Write into the image itself; its backing file, if any, is beside it."""
    argv = ["qemu-io", "-c", f"write -P {pattern} {offset} {length}", str(path)]
    subprocess.run(argv, check=True, capture_output=True)


def info(path: Path) -> dict[str, Any]:
    argv = ["qemu-img", "info", "-f", "qcow2", "--output=json", str(path)]
    found: dict[str, Any] = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    return found


def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program in the place of qemu-img."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "qemu-img").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "bin" / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def test_image_has_the_options_that_were_asked_for(tmp_path: Path) -> None:
    found = info(make(tmp_path / "i.qcow2", options=ImageOptions(128 * 1024, Compression.ZSTD)))
    assert (found["virtual-size"], found["cluster-size"]) == (2 * MIB, 128 * 1024)
    assert found["format-specific"]["data"]["compression-type"] == "zstd"


def test_backing_file_is_named_but_not_opened(tmp_path: Path) -> None:
    header = qemu_img.header(make(tmp_path / "i.qcow2", backing="../none/i.qcow2"), image_format=BlockDriver.QCOW2)
    assert (header.backing_file, header.backing_format) == ("../none/i.qcow2", BlockDriver.QCOW2)
    header = qemu_img.header(make(tmp_path / "full.qcow2"), image_format=BlockDriver.QCOW2)
    assert (header.backing_file, header.backing_format) == (None, None)


@pytest.mark.parametrize("content", [b"", b"QFI\xfb" + bytes(500)], ids=["empty", "damaged"])
def test_image_that_is_none_is_an_error_of_the_chain(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "i.qcow2").write_bytes(content)
    with pytest.raises(ChainError, match=r"The image .*/i\.qcow2 cannot be read: .*[^.]\.$"):
        qemu_img.header(tmp_path / "i.qcow2", image_format=BlockDriver.QCOW2)


def test_image_is_made_in_a_file_without_a_name(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "gone", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        (tmp_path / "gone").unlink()
        qemu_img.create_in(fd, 2 * MIB, what="make a fleecing image")
        assert os.pread(fd, 4, 0) == b"QFI\xfb"
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ("qemu-img: x.qcow2: No space left on device", NoSpaceError, "no space left. Free some space"),
        ("warning\nqemu-img: x.qcow2: Permission denied.", StorageError, "x.qcow2: Permission denied."),
        ("", StorageError, "qemu-img failed without a message."),
    ],
    ids=["full", "refused", "silent"],
)
def test_failure_is_told_by_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, error: type[StorageError], message: str
) -> None:
    program(tmp_path, monkeypatch, f"printf '{said}' >&2; exit 1")
    with pytest.raises(error) as caught:
        make(tmp_path / "i.qcow2")
    assert str(caught.value).startswith(f"Cannot create the image {tmp_path / 'i.qcow2'}: {message}")
    assert type(caught.value) is error


@pytest.mark.parametrize("image_format", [ImageFormat.RAW, ImageFormat.QCOW2])
def test_chain_becomes_one_image_of_its_owner_alone(tmp_path: Path, image_format: ImageFormat) -> None:
    """Each layer is opened by its path: the names in the headers lead nowhere."""
    full, newer, output = tmp_path / "full.qcow2", tmp_path / "käse,=.qcow2", tmp_path / "output"
    make(full)
    write(full, 1, 0, MIB)
    write(make(newer), 2, 65536, 65536)
    told: list[float] = []
    qemu_img.convert([full, newer], output, image_format, stop=Stop(), progress=told.append)
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert told[-1] == 100.0
    raw = output
    if image_format is ImageFormat.QCOW2:
        raw = tmp_path / "raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(output), str(raw)], check=True)
        assert "backing-filename" not in info(output)
    assert raw.read_bytes() == bytes([1]) * 65536 + bytes([2]) * 65536 + bytes([1]) * (MIB - 131072) + bytes(MIB)


def test_existing_output_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("precious")
    with pytest.raises(FileExistsError):
        qemu_img.convert(
            [make(tmp_path / "i.qcow2")], tmp_path / "output", ImageFormat.RAW, stop=Stop(), progress=lambda _: None
        )
    assert (tmp_path / "output").read_text() == "precious"


def test_conversion_that_fails_names_both_files(tmp_path: Path) -> None:
    (tmp_path / "i.qcow2").write_bytes(b"no image")
    with pytest.raises(StorageError, match=r"Cannot copy .*/i\.qcow2 to .*/output: "):
        qemu_img.convert(
            [tmp_path / "i.qcow2"], tmp_path / "output", ImageFormat.RAW, stop=Stop(), progress=lambda _: None
        )


def test_signal_ends_a_conversion_and_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, f"echo $$ >{tmp_path / 'pid'}; echo '    (50.00/100%)'; exec sleep 60")
    stop, begun = Stop(), time.monotonic()
    with pytest.raises(InterruptedBySignalError):
        qemu_img.convert(
            [tmp_path / "i.qcow2"],
            tmp_path / "output",
            ImageFormat.RAW,
            stop=stop,
            progress=lambda _percent: stop.request(signal.SIGTERM),
        )
    assert time.monotonic() - begun < 30
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_bytes_of_a_small_export_are_copied_whatever_they_are(tmp_path: Path) -> None:
    """An image that names another file is not opened as one, so nothing of that file is in the copy."""
    (tmp_path / "secret").write_bytes(b"secret" * MIB)
    source = make(tmp_path / "a.qcow2")
    rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(tmp_path / "secret"), str(source)]
    subprocess.run(rebase, check=True)
    qemu_img.copy_bytes(str(source), tmp_path / "b", max_bytes=2 * MIB, timeout_s=30)
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600
    assert (tmp_path / "b").read_bytes()[: source.stat().st_size] == source.read_bytes()


def test_export_that_is_too_large_or_gone_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(2 * MIB))
    with pytest.raises(StorageError, match="has 2097152 bytes, which is more than 1048576"):
        qemu_img.copy_bytes(str(tmp_path / "a"), tmp_path / "b", max_bytes=MIB, timeout_s=30)
    with pytest.raises(StorageError, match=r"Cannot copy /nowhere: .*No such file"):
        qemu_img.copy_bytes("/nowhere", tmp_path / "b", max_bytes=MIB, timeout_s=30)
    assert not (tmp_path / "b").exists()


def test_server_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "exec sleep 60")
    with pytest.raises(StorageError, match="it does not answer"):
        qemu_img.copy_bytes("nbd://x", tmp_path / "b", max_bytes=MIB, timeout_s=0.2)


def test_qemu_img_ends_when_vbackup_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 600")
    script = (
        "from pathlib import Path; from vbackup.model import ImageFormat; from vbackup.qemu import qemu_img;"
        "from vbackup.stop import Stop;"
        f"qemu_img.convert([Path('/x')], Path('{tmp_path}/out'), ImageFormat.RAW, stop=Stop(), progress=print)"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as vbackup:
        wait_until((tmp_path / "pid").exists)
        vbackup.kill()
    child = int((tmp_path / "pid").read_text())
    wait_until(lambda: Process.of(child) is None)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
