"""The disks of a guest with file systems of all kinds, as two backups have them.

They are fixtures: libguestfs's appliance needs half a minute to make them. ``python -m tests.guest_disk`` makes them
again, as root or not, with guestfish and cryptsetup.

    vda  GPT   1  ext4 /boot         2  LVM vg0: root (ext4, Debian, with /etc/fstab) and home (XFS)
    vdb  MBR   1  FAT    2  NTFS     3  btrfs with a subvolume                 4  LUKS with FAT
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.recorded import KIB, MIB, Ready, Recorded
from vbackup.images.appliance import command_line
from vbackup.model import Level

FIXTURES = Path(__file__).parent / "fixtures" / "guest_disk"
SIZES_BYTES = {"vda": 512 * MIB, "vdb": 256 * MIB}
PASSPHRASE = "a key with blanks"
BIG = bytes(range(256)) * 4096
MTIME_S = 1_700_000_000
#: Names that a terminal, a shell or guestfish could take for something else, below /etc/names.
NAMES = ("new\nline", "it's \\", "\x1b[31mred", "\udcff", 'say "x"', "-rf", "~root", "$(id)")
#: The key slots of LUKS without a key: random bytes, which do not compress.
_UNUSED_SLOTS = range(32 * KIB + 252 * KIB, 32 * KIB + MIB)
#: Where the root file system of vda is.
ROOT = "vg0/root"


def repository(path: Path) -> Recorded:
    """A repository with both backups, the second an increment of the first."""
    made = Recorded(path)
    for number, level in ((1, Level.FULL), (2, Level.INCREMENTAL)):
        with tempfile.TemporaryDirectory() as directory:
            images = {dev: Ready(Path(directory) / f"{dev}.qcow2", size) for dev, size in SIZES_BYTES.items()}
            for dev, image in images.items():
                image.path.write_bytes(lzma.decompress((FIXTURES / f"{dev}-{number}.qcow2.xz").read_bytes()))
            made.add(images, level=level)
    return made


def _guestfish(drives: Sequence[Path], commands: Iterator[Sequence[str]]) -> None:
    lines = [("add-drive", str(drive), "format:qcow2", "discard:besteffort") for drive in drives]
    script = b"".join(command_line(words) + b"\n" for words in (*lines, ("run",), *commands))
    script = script.replace(b"\nPASSPHRASE\n", b"\n" + PASSPHRASE.encode() + b"\n")
    environment = {**os.environ, "LIBGUESTFS_BACKEND": "direct"}
    argv = ["guestfish", "--keys-from-stdin", "--no-progress-bars"]
    subprocess.run(argv, input=script, check=True, env=environment)


def _first(luks: Path) -> Iterator[Sequence[str]]:
    yield "part-init", "/dev/sda", "gpt"
    yield "part-add", "/dev/sda", "p", "2048", "34815"
    yield "part-add", "/dev/sda", "p", "34816", "1046527"
    yield "part-init", "/dev/sdb", "mbr"
    for start, end in ((2048, 34815), (34816, 67583), (67584, 329727), (329728, 346111)):
        yield "part-add", "/dev/sdb", "p", str(start), str(end)
    yield "pvcreate", "/dev/sda2"
    yield "vgcreate", "vg0", "/dev/sda2"
    yield "lvcreate", "root", "vg0", "100"
    yield "lvcreate", "home", "vg0", "304"
    for kind, device in (
        ("ext4", "/dev/sda1"),
        ("ext4", "/dev/vg0/root"),
        ("xfs", "/dev/vg0/home"),
        ("vfat", "/dev/sdb1"),
        ("ntfs", "/dev/sdb2"),
        ("btrfs", "/dev/sdb3"),
    ):
        yield "mkfs", kind, device
    yield "upload", str(luks), "/dev/sdb4"
    yield "cryptsetup-open", "/dev/sdb4", "inside"
    yield ("PASSPHRASE",)
    yield "mkfs", "vfat", "/dev/mapper/inside"  # little is written: it does not compress
    yield from _on("/dev/mapper/inside", ("write", "/hidden", "in LUKS\n"))
    yield "cryptsetup-close", "/dev/mapper/inside"
    yield from _on("/dev/sdb1", ("mkdir", "/Grüße"), ("write", "/Grüße/fat.txt", "in FAT\n"))
    yield from _on("/dev/sdb2", ("mkdir", "/Users"), ("write", "/Users/Grüße.txt", "in NTFS\n"))
    yield from _on("/dev/sdb3", ("btrfs-subvolume-create", "/sub"), ("write", "/sub/b.txt", "in btrfs\n"))
    yield from _on("/dev/sda1", ("write", "/vmlinuz", "in ext4\n"))
    yield from _on("/dev/vg0/home", ("mkdir", "/user"), ("write", "/user/notes", "in XFS\n"))
    yield from _on("/dev/vg0/root", *_root())


def _on(device: str, *commands: Sequence[str]) -> Iterator[Sequence[str]]:
    yield "mount", device, "/"
    yield from commands
    yield ("umount-all",)


def _root() -> Iterator[Sequence[str]]:
    for directory in ("/bin", "/boot", "/dev", "/etc/names", "/home", "/srv/tree/deep", "/usr/bin", "/var/log"):
        yield "mkdir-p", directory
    fstab = (
        "/dev/vg0/root / ext4 defaults 0 1\n/dev/sda1 /boot ext4 defaults 0 2\n/dev/vg0/home /home xfs defaults 0 2\n"
    )
    yield "write", "/etc/fstab", fstab
    yield "write", "/etc/os-release", 'ID=debian\nNAME=Debian\nVERSION_ID=12\nPRETTY_NAME="Debian 12"\n'
    yield "write", "/etc/debian_version", "12.1\n"
    yield "write", "/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"
    yield "write", "/etc/changed", "before\n"
    yield "write", "/etc/removed", "soon gone\n"
    for name in NAMES:
        yield "write", f"/etc/names/{name}", name
    yield "fill-pattern", "x", "16", "/srv/small"
    yield "upload", str(_big()), "/srv/big"
    yield "ln-s", "/etc/passwd", "/srv/tree/absolute"
    yield "ln-s", "../../../../../../../etc/passwd", "/srv/tree/escape"
    yield "ln-s", "tree", "/srv/link"
    yield "write", "/srv/tree/program", "#!/bin/sh\n"
    yield "ln", "/srv/tree/program", "/srv/tree/deep/same"
    yield "touch", "/srv/tree/sparse"
    yield "truncate-size", "/srv/tree/sparse", str(4 * MIB)
    yield "mkfifo", "0644", "/srv/tree/fifo"
    yield "mknod-c", "0600", "1", "3", "/srv/tree/null"
    yield "chown", "1000", "1001", "/srv/tree/program"
    yield "chmod", "04755", "/srv/tree/program"
    yield "chmod", "0750", "/srv/tree/deep"
    for path in ("/srv/tree/program", "/srv/tree/deep", "/srv/tree"):
        yield "utimens", path, str(MTIME_S), "0", str(MTIME_S), "0"


def _big() -> Path:
    path = Path(tempfile.gettempdir()) / "vbackup-guest-disk-big"
    path.write_bytes(BIG)
    return path


def _second() -> Iterator[Sequence[str]]:
    yield from _on(
        "/dev/vg0/root",
        ("write", "/etc/changed", "after\n"),
        ("rm", "/etc/removed"),
        ("write", "/etc/added", "new\n"),
    )


def _make(directory: Path) -> None:
    luks = directory / "luks"
    with luks.open("wb") as file:
        file.truncate(8 * MIB)
    key = directory / "key"
    key.write_text(PASSPHRASE)
    cheap = ["--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--luks2-metadata-size", "16k"]
    argv = ["cryptsetup", "luksFormat", "--batch-mode", *cheap, "--luks2-keyslots-size", "1m", str(luks), str(key)]
    subprocess.run(argv, check=True)
    with luks.open("r+b") as file:
        file.seek(_UNUSED_SLOTS.start)
        file.write(bytes(len(_UNUSED_SLOTS)))
    images = {dev: [directory / f"{dev}-1.qcow2", directory / f"{dev}-2.qcow2"] for dev in SIZES_BYTES}
    for dev, (first, second) in images.items():
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(first), str(SIZES_BYTES[dev])], check=True)
        backing = ["-b", first.name, "-F", "qcow2"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(second)], check=True, cwd=directory)
    _guestfish([images["vda"][0], images["vdb"][0]], _first(luks))
    _guestfish([images["vda"][1], images["vdb"][1]], _second())
    FIXTURES.mkdir(exist_ok=True)
    for first, second in images.values():
        packed = directory / "packed.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", "-S", "4k", str(first), str(packed)], check=True)
        shutil.move(packed, first)
        for path in (first, second):
            (FIXTURES / f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as made_in:
        _make(Path(made_in))
