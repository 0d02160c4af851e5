"""A repository with backups of disks whose content is known, made with qemu-img and qemu-io: for merges.

A block of 64 KiB is two halves of one byte each; the state of a disk is a list of such pairs. Every backup writes what
differs from its base, as a backup job does, and its block lists are made from its images.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from tests.unit import builders
from vbackup import names
from vbackup.model import Backup, Compression, DiskImage, ImageOptions, Level
from vbackup.operations import restore
from vbackup.operations.restore import RestoreRequest
from vbackup.qemu import qemu_img
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.repository import block_list, block_scan
from vbackup.repository.choice import Wanted
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

BLOCK = block_list.BLOCK_BYTES
HALF = BLOCK // 2
Pair = tuple[int, int]
ZERO: Pair = (0, 0)


@dataclass(frozen=True)
class State:
    """What a disk contains."""

    size_bytes: int
    blocks: tuple[Pair, ...]

    @classmethod
    def of(cls, size_bytes: int, blocks: Mapping[int, Pair] | None = None) -> State:
        count = -(-size_bytes // BLOCK)
        return cls(size_bytes, tuple((blocks or {}).get(number, ZERO) for number in range(count)))

    def changed(self, blocks: Mapping[int, Pair], size_bytes: int | None = None) -> State:
        now = dict(enumerate(self.blocks))
        return State.of(size_bytes or self.size_bytes, {**now, **blocks})

    @property
    def digest(self) -> str:
        made = hashlib.sha256()
        left = self.size_bytes
        for pair in self.blocks:
            piece = bytes([pair[0]]) * HALF + bytes([pair[1]]) * HALF
            made.update(piece[:left])
            left -= len(piece[:left])
        return made.hexdigest()


class Tree:
    """A repository of one domain, and what each of its backups contains."""

    def __init__(self, path: Path) -> None:
        self.repository = Repository.create(path)
        self.uuid = builders.UUID
        self.states: dict[str, dict[str, State]] = {}
        self._count = 0

    @property
    def directory(self) -> Path:
        return self.repository.path / self.uuid

    def backup(
        self,
        states: Mapping[str, State],
        bases: Mapping[str, str | None] | None = None,
        *,
        compression: Compression = Compression.NONE,
        has_lists: bool = True,
        level: Level | None = None,
    ) -> str:
        """Commit a backup of these disks; ``bases``: of which backup each starts, by dev."""
        self._count += 1
        given = dict(bases or {})
        level = level or (Level.INCREMENTAL if any(given.values()) else Level.FULL)
        moment = builders.NOON + timedelta(seconds=self._count)
        backup_id = names.backup_id(moment, level)
        images = [
            builders.image(
                dev,
                level=Level.INCREMENTAL if given.get(dev) else Level.FULL,
                base=given.get(dev),
                virtual_size_bytes=state.size_bytes,
            )
            for dev, state in states.items()
        ]
        one = builders.backup(self._count, *images, level=level, id=backup_id, time=moment, files={})
        one = replace(one, parent=max((base for base in given.values() if base), default=None))
        with self.repository.lock(self.uuid), self.repository.stage(self.uuid, backup_id) as stage:
            disks = tuple(
                self._image(stage.path, image, states[image.dev], compression, has_lists=has_lists)
                for image in one.disks
            )
            self.repository.remember_name(self.uuid, one.domain_name)
            recorded = {"domain.xml": stage.write("domain.xml", _xml(one).encode())}
            stage.commit(replace(one, disks=disks, files=recorded))
        self.states[backup_id] = dict(states)
        return backup_id

    def _image(
        self, directory: Path, image: DiskImage, state: State, compression: Compression, *, has_lists: bool
    ) -> DiskImage:
        path = directory / image.file
        path.touch(mode=0o600)
        backing = f"../{image.base}/{image.file}" if image.base else None
        options = ImageOptions(compression=compression)
        qemu_img.create(path, state.size_bytes, backing_rpath=backing, options=options)
        before = self.states[image.base][image.dev].blocks if image.base else (ZERO,) * len(state.blocks)
        base_bytes = self.states[image.base][image.dev].size_bytes if image.base else state.size_bytes
        before += (ZERO,) * (len(state.blocks) - len(before))
        commands = []
        for number, (old, new) in enumerate(zip(before, state.blocks)):
            start = number * BLOCK
            has_grown = start < base_bytes < start + BLOCK and base_bytes < state.size_bytes
            if old == new and not (has_grown and new != ZERO):
                continue
            length = min(BLOCK, state.size_bytes - start)
            compressed = "-c " if compression is not Compression.NONE and length == BLOCK and new[0] == new[1] else ""
            if new == ZERO:
                commands.append(f"write -z {start} {length}")
            elif new[0] == new[1]:
                commands.append(f"write {compressed}-P {new[0]} {start} {length}")
            else:
                commands.append(f"write -P {new[0]} {start} {min(HALF, length)}")
                if length > HALF:
                    commands.append(f"write -P {new[1]} {start + HALF} {length - HALF}")
        qemu_io(path, commands)
        size_bytes = path.stat().st_size
        if not has_lists:
            digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
            return replace(image, file_size_bytes=size_bytes, digest=digest)
        blocks = block_scan.make(
            path, path.with_suffix(".blocks"), algorithm=block_list.best_algorithm(), check=lambda: None
        )
        return replace(image, file_size_bytes=size_bytes, digest=None, blocks=blocks)

    # what is there now

    def ids(self) -> list[str]:
        return [backup.id for backup in self.repository.catalogue(self.uuid).history.backups]

    def get(self, backup_id: str) -> Backup:
        return self.repository.catalogue(self.uuid).history.get(backup_id)

    def chain(self, backup_id: str, dev: str = "vda") -> list[str]:
        history = self.repository.catalogue(self.uuid).history
        return [link.backup.id for link in history.links(backup_id, dev)]

    def image(self, backup_id: str, dev: str = "vda") -> Path:
        return self.directory / backup_id / f"{dev}.qcow2"

    def content(self, backup_id: str, dev: str) -> str:
        """The digest of a disk at a backup, as QEMU reads it by the names in the headers."""
        return raw_digest(self.image(backup_id, dev))

    def check_restore(self, backup_id: str, output: Path) -> None:
        """Restore a backup to a new directory, and compare all its disks with what they contained."""
        request = RestoreRequest(self.uuid, output, Wanted(backup_id), checkpoint=False)  # nothing is recorded of it
        done = restore.run(request, repository=self.repository, reporter=builders.Recorder(), stop=Stop())
        assert done.images.keys() == self.states[backup_id].keys()
        for dev, path in done.images.items():
            assert raw_digest(path) == self.states[backup_id][dev].digest, (backup_id, dev)

    def check(self, *, lists: bool = True, by_qemu: bool = True) -> int:
        """Compare every backup that is there with what it contained; returns the number of disks.

        ``by_qemu``: as QEMU reads it, else as the decoder without QEMU does, which tests/contract compares with QEMU.
        """
        catalogue = self.repository.catalogue(self.uuid)
        assert catalogue.broken == ()
        count = 0
        for backup in catalogue.history.backups:
            states = self.states[backup.id]
            assert {image.dev for image in backup.disks} == states.keys()
            for image in backup.disks:
                read = raw_digest if by_qemu else decoded_digest
                assert read(self.image(backup.id, image.dev)) == states[image.dev].digest, (backup.id, image.dev)
                count += 1
                if lists and image.blocks is not None:
                    self._check_list(backup.id, image)
        return count

    def _check_list(self, backup_id: str, image: DiskImage) -> None:
        """The list of an image is the one that its manifest records, and the one that the image has."""
        path = self.image(backup_id, image.dev)
        assert image.blocks is not None
        with block_list.BlockList.open(path.with_suffix(".blocks")) as listed:
            assert listed.digest() == image.blocks.digest
            again = path.with_suffix(".again")
            made = block_scan.make(path, again, algorithm=listed.algorithm, check=lambda: None)
            again.unlink()
            assert made == image.blocks, (backup_id, image.dev)


def _xml(backup: Backup) -> str:
    disks = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image.source}'/>"
        f"<target dev='{image.dev}' bus='virtio'/></disk>"
        for image in backup.disks
    )
    return (
        f"<domain type='qemu'><name>{backup.domain_name}</name><uuid>{backup.domain_uuid}</uuid>"
        f"<devices>{disks}</devices></domain>"
    )


def qemu_io(path: Path, commands: Sequence[str]) -> None:
    if not commands:
        return
    name = f'json:{{"driver":"qcow2","backing":null,"file":{{"driver":"file","filename":"{path}"}}}}'
    argv = ["qemu-io", name]
    for command in commands:
        argv += ["-c", command]
    subprocess.run(argv, check=True, capture_output=True)


def raw_digest(path: Path) -> str:
    """The digest of what QEMU reads through an image and its backing files."""
    out = subprocess.run(
        ["qemu-img", "dd", "-U", "-f", "qcow2", "-O", "raw", "bs=1M", f"if={path}", f"of={path}.raw"],
        capture_output=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    try:
        with path.with_name(path.name + ".raw").open("rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    finally:
        path.with_name(path.name + ".raw").unlink()


def decoded_digest(path: Path) -> str:
    """The same without QEMU."""
    blocks: dict[int, bytes] = {}
    size_bytes = 0
    following: Path | None = path
    while following is not None:
        with Qcow2Layer(following) as layer:
            size_bytes = size_bytes or layer.virtual_size_bytes
            inside = -(-layer.virtual_size_bytes // BLOCK)
            for number in layer.tables():
                for extent in layer.extents(number):
                    for cluster in range(extent.clusters):
                        block = number * block_list.SEGMENT_BLOCKS + extent.start + cluster
                        if block in blocks or block >= inside:
                            continue
                        data = bytes(BLOCK) if extent.offset is None else bytes(layer.read(extent, cluster, 1))
                        end = layer.virtual_size_bytes - block * BLOCK
                        blocks[block] = data[: max(0, end)].ljust(BLOCK, b"\0")
            backing = layer.header.backing_file
            following = None if backing is None else following.parent / backing
    made = hashlib.sha256()
    for start in range(0, size_bytes, BLOCK):
        made.update(blocks.get(start // BLOCK, bytes(BLOCK))[: size_bytes - start])
    return made.hexdigest()


def random_changes(rng: random.Random, state: State, count: int, *, size_bytes: int | None = None) -> State:
    """Some blocks overwritten, zeroed, or written in a half."""
    total = len(state.blocks)
    blocks = {}
    for _ in range(count):
        number = rng.randrange(total)
        kind = rng.random()
        value = rng.randrange(1, 256)
        blocks[number] = ZERO if kind < 0.2 else (value, value) if kind < 0.7 else (value, rng.randrange(256))
    return state.changed(blocks, size_bytes)
