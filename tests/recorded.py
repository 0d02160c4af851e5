"""Repositories with real images whose contents are known: qemu-img and qemu-io make them, without a domain."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.unit.builders import UUID, backup, fixture_xml, image
from vbackup import files
from vbackup.model import Backup, Level
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.repository import block_list, block_scan
from vbackup.repository.repository import Repository

KIB = 1024
MIB = KIB * KIB
BLOCK = 64 * KIB


@dataclass(frozen=True)
class Write:
    """What a guest has written: so many bytes of a pattern, from an offset on."""

    at: int
    length: int
    pattern: int | None  #: None: zeros, which QEMU stores as zero clusters
    is_packed: bool = False  #: compressed, one cluster

    @property
    def command(self) -> str:
        flags = "-z" if self.pattern is None else f"-P {self.pattern}"
        return f"write {'-c ' * self.is_packed}{flags} {self.at} {self.length}"


@dataclass(frozen=True)
class Ready:
    """A qcow2 image that somebody else has made; what it has below it in the backup is another's."""

    path: Path
    size_bytes: int


class Recorded:
    """A repository, and what each disk contained at each backup."""

    def __init__(self, path: Path) -> None:
        self.repository = Repository.create(path)
        self.backups: list[Backup] = []
        self.contents: dict[tuple[str, str], bytes] = {}

    def add(
        self,
        writes: Mapping[str, Sequence[Write] | Ready],
        *,
        level: Level = Level.INCREMENTAL,
        size_bytes: int = 8 * MIB,
        compression: str = "zlib",
        has_lists: bool = True,
        is_huge: bool = False,
    ) -> Backup:
        """A backup of these disks. The base of an increment is the newest backup that has the disk.

        Of a disk that ``is_huge``, and of an image that is ready, the contents are not kept.
        """
        repository, number = self.repository, len(self.backups) + 1
        bases = {dev: self._newest(dev) if level is not Level.FULL else None for dev in writes}
        sizes = {dev: one.size_bytes if isinstance(one, Ready) else size_bytes for dev, one in writes.items()}
        draft = backup(
            number,
            *(
                image(
                    dev,
                    level=Level.FULL if base is None else level,
                    base=None if base is None else base.id,
                    virtual_size_bytes=sizes[dev],
                    source=f"/capture/{dev}.qcow2",
                )
                for dev, base in bases.items()
            ),
            level=level,
        )
        with repository.lock(UUID), repository.stage(UUID, draft.id) as stage:
            disks = []
            for drafted in draft.disks:
                path, dev = stage.path / drafted.file, drafted.dev
                base, content = bases[dev], writes[dev]
                if isinstance(content, Ready):
                    _take(content.path, path, base)
                else:
                    _make(path, size_bytes, base, content, compression)
                    if not is_huge:
                        before = b"" if base is None else self.contents[base.id, dev]
                        self.contents[draft.id, dev] = _written(before, size_bytes, content)
                sized = replace(drafted, file_size_bytes=path.stat().st_size, digest=None)
                if has_lists:
                    made = block_scan.make(
                        path,
                        path.with_suffix(block_list.SUFFIX),
                        algorithm=block_list.best_algorithm(),
                        check=lambda: None,
                    )
                    disks.append(replace(sized, blocks=made))
                else:
                    disks.append(replace(sized, digest=files.digest_of(path.read_bytes())))
            recorded = {
                "domain.xml": stage.write("domain.xml", fixture_xml("bitmaps").encode()),
                "nvram": stage.write("nvram", b"variables"),
            }
            repository.remember_name(UUID, "web")
            made_backup = replace(draft, disks=tuple(disks), files=recorded)
            stage.commit(made_backup)
        self.backups.append(made_backup)
        return made_backup

    def copied(self, path: Path) -> Recorded:
        """The same in another place."""
        made = Recorded.__new__(Recorded)
        made.repository = Repository.open(Path(shutil.copytree(self.repository.path, path)))
        made.backups, made.contents = list(self.backups), dict(self.contents)
        return made

    def expected(self, one: Backup) -> dict[str, bytes]:
        """What the disks of a backup contained."""
        return {disk.dev: self.contents[one.id, disk.dev] for disk in one.disks}

    def path(self, one: Backup, name: str = "vda.qcow2") -> Path:
        """A file of a backup."""
        return self.repository.directory(UUID, one.id) / name

    def _newest(self, dev: str) -> Backup | None:
        return next((one for one in reversed(self.backups) if one.image(dev) is not None), None)


def _written(before: bytes, size_bytes: int, writes: Sequence[Write]) -> bytes:
    content = bytearray(before.ljust(size_bytes, b"\0"))
    for write in writes:
        content[write.at : write.at + write.length] = bytes([write.pattern or 0]) * write.length
    return bytes(content)


def _take(image: Path, path: Path, base: Backup | None) -> None:
    shutil.copyfile(image, path)
    path.chmod(0o600)
    if base is not None:
        argv = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", f"../{base.id}/{path.name}", "-F", "qcow2", str(path)]
        subprocess.run(argv, check=True)


def _make(path: Path, size_bytes: int, base: Backup | None, writes: Sequence[Write], compression: str) -> None:
    path.touch(mode=0o600)
    backing = [] if base is None else ["-u", "-b", f"../{base.id}/{path.name}", "-F", "qcow2"]
    options = ["-o", f"compression_type={compression}"]
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *options, *backing, str(path), str(size_bytes)]
    subprocess.run(argv, check=True)
    if writes:
        commands = [word for write in writes for word in ("-c", write.command)]
        opened = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": None}
        subprocess.run(["qemu-io", *commands, f"json:{json.dumps(opened)}"], check=True, stdout=subprocess.DEVNULL)


def story(path: Path, *, has_lists: bool = True) -> Recorded:
    """Four backups: data, zeros, compressed clusters, zeros over data, a disk that grows, one that comes and goes."""
    made = Recorded(path)
    made.add(
        {
            "vda": [
                Write(0, 4 * BLOCK, 1),
                Write(MIB, BLOCK, None),
                Write(2 * MIB, 2 * BLOCK, 2),
                Write(5 * MIB, 5, 3),
            ],
            "vdb": [Write(0, 4 * BLOCK, 11)],
        },
        level=Level.FULL,
        has_lists=has_lists,
    )
    made.add(
        {"vda": [Write(BLOCK, BLOCK, 4), Write(2 * MIB, BLOCK, None), Write(3 * MIB, BLOCK, 5, is_packed=True)]},
        compression="zstd",
        has_lists=has_lists,
    )
    made.add(
        {"vda": [Write(2 * BLOCK, BLOCK, 6)], "vdb": [Write(BLOCK, BLOCK, None)]},
        compression="zlib",
        has_lists=has_lists,
    )
    grown = 9 * MIB + 3 * 512
    made.add(
        {
            "vda": [Write(8 * MIB, BLOCK, 7), Write(9 * MIB, 3 * 512, 8), Write(4 * BLOCK, BLOCK, 9, is_packed=True)],
            "vdb": [],
        },
        size_bytes=grown,
        has_lists=has_lists,
    )
    return made


def flip(path: Path, at: int) -> None:
    """Change a bit of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def place_of(path: Path, block: int) -> int:
    """The offset of a block of data in the file of an image."""
    with Qcow2Layer(path) as layer:
        for extent in layer.extents(block // block_list.SEGMENT_BLOCKS):
            first = block % block_list.SEGMENT_BLOCKS - extent.start
            if 0 <= first < extent.clusters and extent.offset is not None:
                return extent.offset + first * BLOCK
    raise AssertionError(f"{path} has no block {block}")


def flip_block(path: Path, block: int) -> None:
    """Change a bit of a block, compressed or not."""
    flip(path, place_of(path, block) + 3)
