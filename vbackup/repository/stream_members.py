"""Send the files of a backup as a stream, and say which members the stream of a backup has to have.

vbackup.repository.stream_tar is the form of a stream.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vbackup import names
from vbackup.errors import StreamError
from vbackup.files import open_regular, storage_errors
from vbackup.model import Backup
from vbackup.report import Phase, Reporter
from vbackup.repository import block_list, manifest, stream_tar
from vbackup.repository.stream_tar import PIECE_BYTES, Member, Write
from vbackup.repository.verify import MAX_FURTHER_BYTES


@dataclass(frozen=True)
class Origin:
    """Which backup a stream is of, by the name of its first member."""

    domain_uuid: str
    backup_id: str

    @property
    def prefix(self) -> str:
        """The directory of all its members."""
        return f"{self.domain_uuid}/{self.backup_id}"


@dataclass(frozen=True)
class Expected:
    """A member that a stream has to have, and how large it may be."""

    file: str  #: name in the backup's directory
    max_bytes: int
    is_exact: bool = False  #: it has to be exactly so large


def origin(first: Member) -> Origin:
    """Return the backup that the first member is of. Raises StreamError."""
    uuid, _, rest = first.name.partition("/")
    backup_id, _, file = rest.partition("/")
    if not names.UUID.fullmatch(uuid) or not names.BACKUP_ID.fullmatch(backup_id) or file != manifest.NAME:
        raise StreamError(
            f"The stream begins with {first.name[:200]!r} and not with a manifest: it is no stream of vbackup, or its"
            " beginning is missing."
        )
    return Origin(uuid, backup_id)


def expected(backup: Backup) -> Iterator[Expected]:
    """Yield the members that follow the manifest, in order, but for the last. Raises StreamError."""
    sizes = {one.file: one.size_bytes for one in backup.machine}
    for name in sorted(backup.digests):
        size_bytes = sizes.get(name)
        yield Expected(name, size_bytes if size_bytes is not None else MAX_FURTHER_BYTES, size_bytes is not None)
    for image in backup.disks:
        if image.blocks is None:
            raise StreamError(f"Disk {image.dev} of the backup has no block list, so it is no stream of vbackup.")
        most = block_list.most_bytes(
            image.virtual_size_bytes, data_blocks=image.blocks.data_blocks, zero_blocks=image.blocks.zero_blocks
        )
        yield Expected(f"{image.dev}{block_list.SUFFIX}", most)
        yield Expected(image.file, image.file_size_bytes, is_exact=True)


def send(backup: Backup, directory: Path, write: Write, *, reporter: Reporter, check: Callable[[], None]) -> None:
    """Write the backup in that directory as a stream. ``check`` is called between pieces and may raise.

    Raises StorageError if a file cannot be read, and what ``write`` raises.
    """
    prefix = Origin(backup.domain_uuid, backup.id).prefix
    writer = stream_tar.Writer(write, prefix, time_s=int(backup.time.timestamp()))
    for name in (manifest.NAME, *(one.file for one in expected(backup))):
        image = next((image for image in backup.disks if image.file == name), None)
        size_bytes, pieces = _file(directory / name, check)
        if image is not None:
            pieces = _reported(pieces, reporter, image.dev, size_bytes)
        writer.add(name, size_bytes, pieces)
    writer.end()


def _file(path: Path, check: Callable[[], None]) -> tuple[int, Iterator[bytes | memoryview]]:
    with storage_errors(f"read {path}"):
        fd = open_regular(path)
        size_bytes = os.fstat(fd).st_size

    def pieces() -> Iterator[bytes | memoryview]:
        buffer = bytearray(PIECE_BYTES)
        with os.fdopen(fd, "rb", buffering=0) as file:
            while True:
                check()
                with storage_errors(f"read {path}"):
                    length = file.readinto(buffer)
                if not length:
                    return
                yield memoryview(buffer)[:length]

    return size_bytes, pieces()


def _reported(
    pieces: Iterator[bytes | memoryview], reporter: Reporter, dev: str, size_bytes: int
) -> Iterator[bytes | memoryview]:
    done_bytes = 0
    for piece in pieces:
        yield piece
        done_bytes += len(piece)
        reporter.progress(dev, Phase.WRITE, done_bytes, size_bytes)
