"""Repair an image of a backup: a copy of it, in which damaged blocks have their content again, takes its name.

The published image is not written to: whoever has it open goes on with it, and a run that is killed leaves it as it is.
The copy has the name .repaired-DEV.qcow2 until all of it has been compared with the manifest and the block list. So it
differs from what the backup recorded in nothing, wherever its blocks come from.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from vbackup import files
from vbackup.errors import ChainError, StorageError
from vbackup.files import fsync, is_regular, storage_errors
from vbackup.qemu.qcow2_layer import Extent, Qcow2Layer
from vbackup.repository import block_scan, filesystem, verify
from vbackup.repository.block_list import BLOCK_BYTES, Algorithm, BlockList, runs
from vbackup.repository.block_scan import Scan
from vbackup.repository.block_sources import Block, BlockSources, Place, extent_of, read_block
from vbackup.repository.history import Link
from vbackup.repository.inspection import REPAIRED

_ZEROS = bytes(BLOCK_BYTES)
#: How much is copied at a time; what cannot be read is left out in pieces of the size of a page.
_PIECE_BYTES, _PAGE_BYTES = 1024 * 1024, 4096


@dataclass(frozen=True)
class RepairedImage:
    """What became of an image."""

    staged: Path | None  #: the repaired copy; None: nothing was to be done, or could be
    repaired: int  #: number of blocks
    left: int  #: number of blocks that are still damaged
    source: Path | None = None  #: another file that the copy was made of


class ImageRepair:
    """The repair of one image."""

    def __init__(self, path: Path, link: Link, sources: BlockSources, *, check: Callable[[], None]) -> None:
        self._path, self._link, self._sources, self._check = path, link, sources, check

    def run(self, *, is_dry: bool) -> RepairedImage:
        """Repair a copy, which the caller publishes or removes; with ``is_dry`` only find out what can be repaired.

        Raises ChainError if nothing can be, StorageError, NoSpaceError; the copy is removed then.
        """
        if self._link.image.blocks is None:
            return self._whole(is_dry=is_dry)
        with ExitStack() as stack:
            listed = stack.enter_context(verify.opened_list(self._path, self._link))
            basis = self._basis()
            layer = stack.enter_context(Qcow2Layer(basis))
            bad = dict(self._bad(layer, listed))
            if not bad and basis == self._path:
                return RepairedImage(None, 0, 0)
            places = self._places(bad, listed)
            other = basis if basis != self._path else None
            if is_dry:
                return RepairedImage(None, len(places), len(bad) - len(places), other)
            if other is None and not places:
                return RepairedImage(None, 0, len(bad))
            left = self._stage(basis, layer, places, listed, bad=bad)
            return RepairedImage(self.staged, len(bad) - left, left, other)

    @property
    def staged(self) -> Path:
        """The path of the copy."""
        return self._path.with_name(f"{REPAIRED}{self._path.name}")

    def _basis(self) -> Path:
        """Return the file with the header and the tables that were recorded: the image, or one in a copy.

        Raises ChainError if there is none.
        """
        reason: ChainError | None = None
        for path in (self._path, *self._sources.twins(self._path)):
            try:
                if is_regular(path) and path.lstat().st_size == self._link.image.file_size_bytes:
                    verify.check_header(path, self._link)
                    with Qcow2Layer(path) as layer:
                        verify.check_structure(layer, self._link)
                    return path
            except ChainError as err:
                reason = reason or err
        raise ChainError(
            f"Disk {self._link.image.dev}: {self._path} cannot be repaired: it is missing, or its header or tables are"
            " damaged. Only a copy of the repository has them: give it with --from."
        ) from reason

    def _bad(self, layer: Qcow2Layer, listed: BlockList) -> Iterator[tuple[Block, bytes | None]]:
        """Yield the damaged blocks, with the digest that they should have; None is zeros."""
        with Scan(layer, listed.algorithm, check=self._check, is_tolerant=True) as scan:
            for found in block_scan.differences(listed, scan, layer):
                segment = listed.segment(found.number)
                for start, end in runs(found.blocks):
                    for block in range(start, end):
                        if not segment.held >> block & 1:
                            raise ChainError(
                                f"Disk {self._link.image.dev}: {layer.path} holds a block that its list does not have."
                            )
                        is_data = segment.data >> block & 1
                        yield (found.number, block), segment.digest_of(block) if is_data else None

    def _places(self, bad: Mapping[Block, bytes | None], listed: BlockList) -> dict[Block, Place | None]:
        """Return where the content of those of the damaged blocks is that can be had; None for zeros."""
        places: dict[Block, Place | None] = {block: None for block, digest in bad.items() if digest is None}
        wanted = {block: digest for block, digest in bad.items() if digest is not None}
        for path in (self._path, *self._sources.twins(self._path)):
            with suppress(ChainError), Qcow2Layer(path) as layer:
                for block in [*wanted]:
                    self._check()
                    content = read_block(layer, block)
                    if content is not None and listed.algorithm.digest(content) == wanted[block]:
                        places[block] = Place(path, block)
                        del wanted[block]
        return {**places, **self._sources.find(wanted, listed.algorithm)}

    def _contents(
        self, places: Mapping[Block, Place | None], bad: Mapping[Block, bytes | None], algorithm: Algorithm
    ) -> Iterator[tuple[Block, bytes]]:
        """Yield the contents, one at a time, as long as they are what was found."""
        by_path: dict[Path, list[tuple[Block, Block]]] = {}
        for block, place in places.items():
            if place is None:
                yield block, _ZEROS
            else:
                by_path.setdefault(place.path, []).append((block, place.block))
        for path, blocks in by_path.items():
            with suppress(ChainError), Qcow2Layer(path) as source:
                for block, there in blocks:
                    self._check()
                    content = read_block(source, there)
                    if content is not None and algorithm.digest(content) == bad[block]:
                        yield block, content

    def _stage(
        self,
        basis: Path,
        layer: Qcow2Layer,
        places: Mapping[Block, Place | None],
        listed: BlockList,
        *,
        bad: Mapping[Block, bytes | None],
    ) -> int:
        """Make the copy, compare all of it, and return how many blocks of it are damaged."""
        try:
            with storage_errors(f"write {self.staged}"):
                self.staged.unlink(missing_ok=True)
                copy(basis, self.staged, check=self._check)
                self._write(layer, self._contents(places, bad, listed.algorithm), _rooms(layer, places))
                fsync(self.staged)
            with Qcow2Layer(self.staged) as made:
                verify.check_structure(made, self._link)
                left = {block for block, _ in self._bad(made, listed)}
            if self.staged.lstat().st_size != self._link.image.file_size_bytes or left - bad.keys():
                raise ChainError(f"{self.staged} is not what was written to it; the storage may be failing.")
        except BaseException:
            with suppress(OSError):
                self.staged.unlink(missing_ok=True)
            raise
        return len(left)

    def _write(self, layer: Qcow2Layer, contents: Iterator[tuple[Block, bytes]], rooms: Mapping[int, int]) -> None:
        fd = os.open(self.staged, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for place, content in contents:
                extent = extent_of(layer, place)
                if extent is None or extent.offset is None:
                    continue
                if extent.compressed_bytes is None:
                    offset = extent.offset + (place[1] - extent.start) * BLOCK_BYTES
                    data: bytes | None = content[: max(0, self._link.image.file_size_bytes - offset)]
                else:
                    offset = extent.offset
                    data = self._packed(layer, extent, content, rooms[offset])
                if data is not None:
                    os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def _packed(self, layer: Qcow2Layer, extent: Extent, content: bytes, room: int) -> bytes | None:
        """Return what to write in the place of a compressed cluster: that of a copy, or the content compressed again.

        None if it does not fit between the neighbours.
        """
        assert extent.offset is not None
        for path in self._sources.twins(self._path):
            with suppress(ChainError, OSError), Qcow2Layer(path) as twin:
                verify.check_structure(twin, self._link)
                if bytes(twin.read(extent, 0, 1)) == content:
                    with path.open("rb") as file:
                        file.seek(extent.offset)
                        return file.read(room)
        return next((packed for packed in layer.packed(content) if len(packed) <= room), None)

    def _whole(self, *, is_dry: bool) -> RepairedImage:
        """Repair an image of a backup without block lists: only a copy of the whole file can take its place."""
        for path in (self._path, *self._sources.twins(self._path)):
            try:
                verify.check_header(path, self._link)
                verify.check_digest(path, self._link, check=self._check, progress=lambda _done_bytes: None)
            except (ChainError, StorageError):
                continue
            if path == self._path:
                return RepairedImage(None, 0, 0)
            if is_dry:
                return RepairedImage(None, 1, 0, path)
            try:
                with storage_errors(f"write {self.staged}"):
                    self.staged.unlink(missing_ok=True)
                    copy(path, self.staged, check=self._check)
                    fsync(self.staged)
                if files.digest(self.staged, check=self._check) != self._link.image.digest:
                    raise ChainError(f"{self.staged} is not what was written to it; the storage may be failing.")
            except BaseException:
                with suppress(OSError):
                    self.staged.unlink(missing_ok=True)
                raise
            return RepairedImage(self.staged, 1, 0, path)
        raise ChainError(
            f"Disk {self._link.image.dev}: {self._path} cannot be repaired: backups of that version have a digest of"
            " the whole image only. Give a copy of the repository with --from."
        )


def _rooms(layer: Qcow2Layer, blocks: Iterable[Block]) -> dict[int, int]:
    """Return how many bytes each compressed cluster of these blocks may have, by its offset.

    That is its sectors, up to the next cluster.
    """
    rooms: dict[int, int] = {}
    for block in blocks:
        extent = extent_of(layer, block)
        if extent is not None and extent.offset is not None and extent.compressed_bytes is not None:
            rooms[extent.offset] = extent.compressed_bytes
    offsets = sorted(rooms)
    for number in layer.tables() if offsets else ():
        for extent in layer.extents(number):
            before = bisect_left(offsets, extent.offset) - 1 if extent.offset is not None else -1
            if extent.offset is not None and before >= 0:
                rooms[offsets[before]] = min(rooms[offsets[before]], extent.offset - offsets[before])
    return rooms


def copy(source: Path, target: Path, *, check: Callable[[], None]) -> None:
    """Make a copy that shares the data of the source if it can; what cannot be read of the source is zeros.

    Raises OSError.
    """
    try:
        filesystem.clone(source, target)
        return
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
    try:
        filesystem.copy(source, target, check=check, progress=lambda _done_bytes: None)
    except OSError as err:
        if err.errno != errno.EIO:
            raise
        _copy_readable(source, target, check)


def _copy_readable(source: Path, target: Path, check: Callable[[], None]) -> None:
    reading = files.open_regular(source)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            size_bytes = os.fstat(reading).st_size
            os.ftruncate(writing, size_bytes)
            for start in range(0, size_bytes, _PIECE_BYTES):
                check()
                try:
                    os.pwrite(writing, os.pread(reading, _PIECE_BYTES, start), start)
                except OSError as err:
                    if err.errno != errno.EIO:
                        raise
                    for page in range(start, min(start + _PIECE_BYTES, size_bytes), _PAGE_BYTES):
                        with suppress(OSError):
                            os.pwrite(writing, os.pread(reading, _PAGE_BYTES, page), page)
        finally:
            os.close(writing)
    finally:
        os.close(reading)
