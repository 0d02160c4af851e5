"""The two disks of the guest, formatted on the host: no partition table, ext4 from the first byte."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.guest.image import program
from tests.lab import DiskSpec

#: What the guest counts from (see tests.guest).
FIRST_NUMBER = f"{0:<12}\n"
#: Room for what the guest writes.
FREE_BYTES = 64 * 1024 * 1024


def make_disks(directory: Path, *, bulk_bytes: int = 0) -> tuple[DiskSpec, DiskSpec]:
    """Make vda (qcow2) and vdb (raw) in ``directory``; vda begins with ``bulk_bytes`` of noise in /bulk.

    Raises tests.guest.image.MissingError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    vda, vdb = directory / "vda.qcow2", directory / "vdb.raw"
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        raw = Path(temporary, "vda.raw")
        _format(raw, "data", FREE_BYTES + bulk_bytes, bulk_bytes=bulk_bytes)
        convert_to_qcow2 = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", os.fspath(raw), os.fspath(vda)]
        subprocess.run(convert_to_qcow2, check=True)
    _format(vdb, "log", FREE_BYTES)
    return DiskSpec(vda, "vda"), DiskSpec(vdb, "vdb", format="raw")


@dataclass(frozen=True)
class Check:
    """What e2fsck found."""

    clean: bool  #: nothing is wrong, and no journal waits to be replayed
    text: str


def check_filesystem(path: Path) -> Check:
    """Have e2fsck look at everything in a raw image, without changing it."""
    argv = [os.fspath(program("e2fsck")), "-f", "-n", os.fspath(path)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    # A journal that it may not replay is a warning to e2fsck, and no error.
    return Check(done.returncode == 0 and "skipping journal recovery" not in done.stdout, done.stdout)


def preen_filesystem(path: Path) -> bool:
    """What a host does at boot after a power cut: replay the journal, put counters right. False if not enough."""
    argv = [os.fspath(program("e2fsck")), "-f", "-p", os.fspath(path)]
    return subprocess.run(argv, capture_output=True, check=False).returncode in (0, 1)  # 1: it changed something


def read_file(path: Path, inside: str) -> bytes | None:
    """A file of the filesystem in a raw image, None if it is not there."""
    argv = [os.fspath(program("debugfs")), "-R", f"cat {inside}", os.fspath(path)]
    done = subprocess.run(argv, capture_output=True, check=True)
    return None if b"File not found" in done.stderr else done.stdout


def _format(path: Path, label: str, size_bytes: int, *, bulk_bytes: int = 0) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as content:
        Path(content, "files").mkdir()
        Path(content, "counter").write_text(FIRST_NUMBER)
        if bulk_bytes:
            Path(content, "bulk").write_bytes(os.urandom(bulk_bytes))
        with path.open("wb") as file:
            file.truncate(size_bytes)
        # Lazily initialised tables would be written by the guest's kernel at any time.
        features = "lazy_itable_init=0,lazy_journal_init=0"
        argv = [os.fspath(program("mkfs.ext4")), "-q", "-F", "-L", label, "-E", features, "-d", content]
        subprocess.run([*argv, os.fspath(path)], check=True)
