"""What one image holds by itself, read without QEMU: the same as QEMU reads, whoever wrote the image and how."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

from vbackup.errors import ChainError
from vbackup.qemu import jobs
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.report import Silent
from vbackup.repository import block_scan
from vbackup.repository.block_list import BLOCK_BYTES, SEGMENT_BLOCKS, BlockList, algorithm_of, best_algorithm
from vbackup.stop import Stop

SHA256 = algorithm_of("sha256:", where="here")
MIB = 1024 * 1024
#: More than one table, and an end in the middle of a block.
SIZE_BYTES = 600 * MIB + 36 * 1024 + 512


def qemu_img(*words: str | Path) -> str:
    done = subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, text=True)
    return done.stdout


def qemu_io(path: Path, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", "-d", "unmap", *words, str(path)], check=True, capture_output=True)


def create(path: Path, *options: str, size_bytes: int = SIZE_BYTES, backing: Path | None = None) -> Path:
    below = ("-F", "qcow2", "-b", backing) if backing else ()
    words = (word for option in options for word in ("-o", option))
    qemu_img("create", "-q", "-f", "qcow2", *words, *below, path, str(size_bytes))
    return path


def written(path: Path) -> Path:
    """Data, zeros and discards of all kinds, also over each other and over data below."""
    qemu_io(
        path,
        "write -P 1 0 1M",
        "write -P 2 256k 4k",
        "write -z 512k 128k",  # zeros that keep the cluster they hide
        "write -z -u 640k 64k",
        "discard 704k 64k",
        "write -P 0 832k 64k",  # zeros as data
        "write -P 3 2M 100",
        "write -z 3M 1M",
        "discard 5M 1M",
        "write -P 4 511M 2M",  # over the border of two tables
        "write -z 514M 512k",
        f"write -P 5 {SIZE_BYTES - 1000} 1000",
        "write -P 6 100M 64k",
        "discard 100M 64k",
    )
    return path


def plain(directory: Path) -> Path:
    return written(create(directory / "plain.qcow2"))


def chained(directory: Path) -> Path:
    base = create(directory / "base.qcow2")
    qemu_io(base, "write -P 9 0 8M", "write -P 8 500M 20M", f"write -P 7 {SIZE_BYTES - 70000} 70000")
    return written(create(directory / "chained.qcow2", backing=base))


def grown(directory: Path) -> Path:
    """An overlay of a disk that was smaller, and ended in the middle of a block."""
    base = create(directory / "small.qcow2", size_bytes=3 * MIB + 1000)
    qemu_io(base, "write -P 9 2M 1M", "write -P 8 3M 1000")
    return written(create(directory / "grown.qcow2", backing=base))


def resized(directory: Path) -> Path:
    image = create(directory / "resized.qcow2", size_bytes=3 * MIB + 1000)
    qemu_io(image, "write -P 9 2M 1M", "write -P 8 3M 1000")
    qemu_img("resize", "-q", image, str(SIZE_BYTES))
    return written(image)


def shrunk(directory: Path) -> Path:
    image = plain(directory)
    qemu_img("resize", "-q", "--shrink", image, str(515 * MIB + 512))
    return image


def version_two(directory: Path) -> Path:
    """It has no zeros, so discards and zeros are stored in other ways."""
    base = create(directory / "base.qcow2")
    qemu_io(base, "write -P 9 0 8M")
    return written(create(directory / "two.qcow2", "compat=0.10", backing=base))


def compressed(kind: str) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        source = written(create(directory / "source.qcow2"))
        # What hardly compresses: clusters of more sectors, which begin anywhere.
        raw = directory / "random"
        raw.write_bytes(b"".join(sha256(bytes([n % 256, n // 256])).digest() for n in range(4096)) * 20)
        subprocess.run(
            ["qemu-io", "-f", "qcow2", "-c", f"write -s {raw} 200M 2M", source], check=True, capture_output=True
        )
        image = directory / "compressed.qcow2"
        qemu_img("convert", "-f", "qcow2", "-O", "qcow2", "-c", "-o", f"compression_type={kind}", source, image)
        qemu_io(image, "write -c -P 7 300M 64k", "write -P 8 300M 4k", "write -z 200M 64k")
        return image

    return make


def snapshot(directory: Path) -> Path:
    """No entry says that its cluster is used once."""
    image = plain(directory)
    qemu_img("snapshot", "-c", "one", image)
    qemu_io(image, "write -P 11 0 64k")
    return image


def bitmaps(directory: Path) -> Path:
    image = plain(directory)
    qemu_img("bitmap", "--add", image, "b")
    return image


def large_refcounts(directory: Path) -> Path:
    return written(create(directory / "refcounts.qcow2", "refcount_bits=64"))


def lazy_refcounts(directory: Path) -> Path:
    return written(create(directory / "lazy.qcow2", "lazy_refcounts=on"))


def preallocated(directory: Path) -> Path:
    image = create(directory / "allocated.qcow2", "preallocation=metadata", size_bytes=8 * MIB)
    qemu_io(image, "write -P 1 0 1M", "write -z 2M 1M", "discard 4M 1M")
    return image


def converted_partial(directory: Path) -> Path:
    """The last cluster of the file need not be whole."""
    raw = directory / "disk.raw"
    raw.write_bytes(b"\7" * (65536 * 3 + 777))
    image = directory / "partial.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, image)
    return image


def backed_up(options: dict[str, object], *create_options: str) -> Callable[[Path], Path]:
    """What a backup job writes: with zeros detected, or through the filter that compresses."""

    def make(directory: Path) -> Path:
        source = chained(directory)
        size_bytes = -(-SIZE_BYTES // 65536) * 65536 if "driver" in options else SIZE_BYTES
        if size_bytes != SIZE_BYTES:
            qemu_img("resize", "-q", source, str(size_bytes))
        target = create(directory / "target.qcow2", *create_options, size_bytes=size_bytes)
        with StorageDaemon(Silent()) as daemon:
            for name, path in (("disk", source), ("target", target)):
                file = {"driver": "file", "filename": str(path), "discard": "unmap"}
                node = {"driver": "qcow2", "node-name": name, "file": file, "discard": "unmap"}
                daemon.execute("blockdev-add", {**node, "detect-zeroes": "on"} if name == "target" else node)
            goal = "target"
            if "driver" in options:
                daemon.execute("blockdev-add", {**options, "node-name": "filter", "file": "target"})
                goal = "filter"
            job = {"job-id": "backup", "device": "disk", "target": goal, "sync": "top"}
            daemon.execute("blockdev-backup", {**job, "auto-dismiss": False})
            jobs.until(daemon, "backup", lambda seen: seen.status.name == "CONCLUDED", stop=Stop())
            assert jobs.query(daemon)["backup"].error is None
            daemon.execute("job-dismiss", {"id": "backup"})
        return target

    return make


IMAGES: dict[str, Callable[[Path], Path]] = {
    "plain": plain,
    "chained": chained,
    "grown": grown,
    "resized": resized,
    "shrunk": shrunk,
    "version 2": version_two,
    "zlib": compressed("zlib"),
    "zstd": compressed("zstd"),
    "snapshot": snapshot,
    "bitmaps": bitmaps,
    "refcounts of 64 bits": large_refcounts,
    "lazy refcounts": lazy_refcounts,
    "preallocated": preallocated,
    "file that ends in a cluster": converted_partial,
    "backup": backed_up({}),
    "backup with compression": backed_up({"driver": "compress"}, "compression_type=zstd"),
}


def held_by_qemu(image: Path, directory: Path) -> tuple[set[int], Path]:
    """The blocks that the image holds by itself, and its content without what is below, as QEMU has them."""
    alone = directory / "alone.qcow2"
    shutil.copyfile(image, alone)
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", "", alone)
    held: set[int] = set()
    for entry in json.loads(qemu_img("map", "-f", "qcow2", "--output=json", alone)):
        if entry["present"]:
            end = -(-(entry["start"] + entry["length"]) // BLOCK_BYTES)
            held.update(range(entry["start"] // BLOCK_BYTES, end))
    raw = directory / "alone.raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", alone, raw)
    return held, raw


@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES)
def test_own_layer_is_what_qemu_reads(make: Callable[[Path], Path], tmp_path: Path) -> None:
    image = make(tmp_path)
    expected_held, raw = held_by_qemu(image, tmp_path)
    out = tmp_path / "image.blocks"
    block_scan.make(image, out, algorithm=SHA256, check=lambda: None)
    held: set[int] = set()
    with BlockList.open(out) as listed, raw.open("rb") as content:
        assert listed.virtual_size_bytes == raw.stat().st_size
        for segment in listed.segments():
            for block in range(SEGMENT_BLOCKS):
                if not segment.held >> block & 1:
                    continue
                number = segment.number * SEGMENT_BLOCKS + block
                held.add(number)
                content.seek(number * BLOCK_BYTES)
                seen = content.read(BLOCK_BYTES).ljust(BLOCK_BYTES, b"\0")
                if segment.data >> block & 1:
                    assert segment.digest_of(block) == sha256(seen).digest(), number
                else:
                    assert not any(seen), number
    assert len(held) > 3
    assert held == expected_held


def test_structure_covers_all_that_qemu_reads_beside_content(tmp_path: Path) -> None:
    """Whatever bit of a table is changed: it is found, or QEMU reads the same."""
    image = plain(tmp_path)
    with Qcow2Layer(image) as layer:
        before = block_scan.structure_digest(layer, best_algorithm())
        places = [layer._l1[number] & (1 << 56) - 1 for number in layer.tables()]
    for place in (30, places[0] + 8, places[1] + 3, 65536 + 7):
        with image.open("r+b") as file:
            file.seek(place)
            old = file.read(1)
            file.seek(place)
            file.write(bytes([old[0] ^ 0x10]))
        with suppress(ChainError), Qcow2Layer(image) as layer:
            assert block_scan.structure_digest(layer, best_algorithm()) != before, place
        with image.open("r+b") as file:
            file.seek(place)
            file.write(old)
