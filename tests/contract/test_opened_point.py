"""The disks of a backup opened by a real storage daemon: right bytes by NBD and by FUSE, nothing written to a layer."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.unit.builders import Recorder
from vbackup.errors import QmpError, StorageDaemonGoneError
from vbackup.images.flatten import Layer
from vbackup.images.opened_point import OpenedPoint
from vbackup.stop import Stop

MIB = 1024 * 1024
SIZE_BYTES = 8 * MIB


def image(path: Path, *writes: str, size_bytes: int = SIZE_BYTES, backing: str | None = None) -> Layer:
    below = [] if backing is None else ["-u", "-b", backing, "-F", "qcow2"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, path, str(size_bytes)], check=True)
    if writes:
        # Opened without what the header names, as a backup's image is written.
        opened = f'json:{{"driver":"qcow2","backing":null,"file":{{"driver":"file","filename":"{path}"}}}}'
        commands = [word for write in writes for word in ("-c", write)]
        subprocess.run(["qemu-io", *commands, opened], check=True, stdout=subprocess.DEVNULL)
    return Layer(path, size_bytes)


@pytest.fixture
def chain(tmp_path: Path) -> list[Layer]:
    """Three layers; what a header names does not exist."""
    return [
        image(tmp_path / "0.qcow2", "write -P 1 0 2M", size_bytes=SIZE_BYTES // 2),
        image(tmp_path / "1.qcow2", "write -P 2 1M 2M", backing="missing"),
        image(tmp_path / "2.qcow2", "write -z 1M 64k", "write -P 3 7M 64k", backing="missing"),
    ]


def expected() -> bytes:
    data = bytearray(SIZE_BYTES)
    data[0 : 2 * MIB] = b"\1" * (2 * MIB)
    data[MIB : 3 * MIB] = b"\2" * (2 * MIB)
    data[MIB : MIB + 65536] = bytes(65536)
    data[7 * MIB : 7 * MIB + 65536] = b"\3" * 65536
    return bytes(data)


def over_nbd(socket: Path, output: Path, export: str = "vda") -> bytes:
    uri = f"nbd+unix:///{export}?socket={socket}"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", uri, output], check=True)
    return output.read_bytes()


def test_nbd_has_the_whole_chain_and_the_files_stay_as_they_are(chain: list[Layer], tmp_path: Path) -> None:
    before = [(layer.path.read_bytes(), layer.path.stat().st_mtime_ns) for layer in chain]
    with OpenedPoint({"vda": chain}, reporter=Recorder()) as point:
        point.listen(tmp_path / "s")
        point.export_nbd("vda")
        assert over_nbd(tmp_path / "s", tmp_path / "out") == expected()
        assert point.size_bytes("vda") == SIZE_BYTES
        with pytest.raises(QmpError):
            point.export_nbd("vda", name="other", is_writable=True)
    assert before == [(layer.path.read_bytes(), layer.path.stat().st_mtime_ns) for layer in chain]


def test_writes_go_to_the_overlay_alone(chain: list[Layer], tmp_path: Path) -> None:
    before = [layer.path.read_bytes() for layer in chain]
    overlay = image(tmp_path / "overlay.qcow2").path
    with OpenedPoint({"vda": chain}, reporter=Recorder()) as point:
        point.write_to("vda", overlay)
        point.listen(tmp_path / "s")
        point.export_nbd("vda", is_writable=True)
        uri = f"nbd+unix:///vda?socket={tmp_path / 's'}"
        subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 9 4M 1M", uri], check=True, stdout=subprocess.DEVNULL)
        data = over_nbd(tmp_path / "s", tmp_path / "out")
    assert data == expected()[: 4 * MIB] + b"\x09" * MIB + expected()[5 * MIB :]
    assert before == [layer.path.read_bytes() for layer in chain]


@pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse")
def test_fuse_shows_a_raw_file(chain: list[Layer], tmp_path: Path) -> None:
    file = tmp_path / "vda.raw"
    file.touch()
    with OpenedPoint({"vda": chain}, reporter=Recorder()) as point:
        point.export_fuse("vda", file)
        assert file.stat().st_size == SIZE_BYTES
        assert file.read_bytes() == expected()
        with pytest.raises(OSError, match=r"denied|Read-only"), file.open("r+b", buffering=0) as opened:
            opened.write(b"x")
    assert file.read_bytes() == b""


def test_layer_that_cannot_be_opened_is_reported(chain: list[Layer], tmp_path: Path) -> None:
    chain[1].path.write_bytes(b"no image")
    with pytest.raises(StorageDaemonGoneError, match="qcow2") as caught:
        OpenedPoint({"vda": chain}, reporter=Recorder()).__enter__()
    assert "'vbackup verify'" in str(caught.value)


def test_long_chain_is_opened_in_no_time(tmp_path: Path) -> None:
    """QEMU describes each layer by its name alone, and not by all that is below it, which it does again for each."""
    layers = []
    for number in range(4):
        directory = tmp_path / "domain" / f"backup{number}"
        directory.mkdir(parents=True)
        backing = f"../backup{number - 1}/vda.qcow2" if number else None
        layers.append(image(directory / "vda.qcow2", f"write -P {number + 1} {number}M 1M", backing=backing))
    with OpenedPoint({"vda": layers}, reporter=Recorder()) as point:
        nodes = {node["node-name"]: node for node in point.daemon.execute("query-named-block-nodes", {"flat": True})}
        assert nodes[point.node("vda")]["file"] == "../backup3/vda.qcow2"  # not json:{...}
        point.listen(tmp_path / "s")
        point.export_nbd("vda")
        data = over_nbd(tmp_path / "s", tmp_path / "out")
    assert data == b"".join(bytes([number]) * MIB for number in range(1, 5)).ljust(SIZE_BYTES, b"\0")


def test_wait_ends_with_a_request_to_stop_or_when_it_is_over(chain: list[Layer]) -> None:
    stop, over = Stop(), [False]
    reading, writing = os.pipe()
    with OpenedPoint({"vda": chain}, reporter=Recorder()) as point:
        later = threading.Timer(0.1, lambda: (over.insert(0, True), os.write(writing, b"x")))
        later.start()
        point.wait(stop, watched=[(reading, select.POLLIN)], is_over=lambda: over[0])
        threading.Timer(0.1, lambda: stop.request(signal.SIGTERM)).start()
        point.wait(stop)
        point.wait(stop)  # at once
    later.join()
    os.close(reading)
    os.close(writing)


def test_wait_reports_a_daemon_that_was_killed(chain: list[Layer]) -> None:
    recorder = Recorder()

    def look() -> None:
        with OpenedPoint({"vda": chain}, reporter=recorder) as point:
            threading.Timer(0.1, lambda: os.kill(point.daemon.pid, signal.SIGKILL)).start()
            point.wait(Stop())

    with pytest.raises(StorageDaemonGoneError, match=r"killed by SIGKILL\. Nothing can be read"):
        look()
    assert recorder.warnings == []


def test_export_that_is_removed_is_no_longer_there(chain: list[Layer], tmp_path: Path) -> None:
    with OpenedPoint({"vda": chain}, reporter=Recorder()) as point:
        point.listen(tmp_path / "s")
        export = point.export_nbd("vda")
        point.remove_export(export)
        done = subprocess.run(
            ["qemu-img", "info", f"nbd+unix:///vda?socket={tmp_path / 's'}"], capture_output=True, check=False
        )
    assert done.returncode != 0


@pytest.mark.parametrize("is_shielded", [True, False])
def test_what_cannot_be_told_is_data(tmp_path: Path, is_shielded: bool) -> None:
    """A table that cannot be read: its query fails in QEMU's own way, and with the quorum only the read does.

    Whoever reads through a copy-on-read filter would take the failed query for the end of the disk.
    """
    layer = image(tmp_path / "0.qcow2", "write -P 1 0 2M")
    with layer.path.open("r+b") as file:
        file.seek(40)  # l1_table_offset (qcow2.txt in QEMU's docs/interop)
        l1 = int.from_bytes(file.read(8), "big")
        file.seek(l1)
        file.write(((1 << 63) | 0x40200).to_bytes(8, "big"))  # no table can begin there
    socket = tmp_path / "s"
    with OpenedPoint({"vda": [layer]}, reporter=Recorder()) as point:
        point.listen(socket)
        if is_shielded:
            point.answer_all_queries("vda")
        point.export_nbd("vda")
        uri = f"nbd+unix:///vda?socket={socket}"
        argv = ["qemu-img", "map", "-f", "raw", "--output=json", uri]
        mapped = subprocess.run(argv, capture_output=True, text=True, check=False)
        read = subprocess.run(["qemu-io", "-r", "-f", "raw", "-c", "read 0 64k", uri], capture_output=True, check=False)
    assert b"read failed" in read.stdout
    if is_shielded:
        assert [(one["length"], one["data"]) for one in json.loads(mapped.stdout)] == [(SIZE_BYTES, True)]
    else:
        assert mapped.returncode != 0
