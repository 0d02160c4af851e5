"""Say which extents of an NBD export have changed since a bitmap began to record, which hold data, and which are zeros.

The bitmap is asked first: for a disk of 1 TiB that takes 0.03 s. base:allocation takes 1.4 s for it, so it is only
asked about what is dirty. A connection of NBD answers each request for all of its contexts; so each context has one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.nbd_client import ALLOCATION, DIRTY, ZERO, NbdClient

if TYPE_CHECKING:
    import ssl

#: How long one description may take: QEMU reads a few tables for it.
TIMEOUT_S = 60.0
#: Dirty ranges with up to this much between them are asked about together. A request takes as long as QEMU needs for
#: 45 MiB without data; but where there is data, each cluster can be an extent of its answer.
MAX_GAP_BYTES = 4 * 1024 * 1024
#: Most ranges that are asked about together: they are in memory.
_MAX_TOGETHER = 4096


class Extent(NamedTuple):
    """A range of a disk. What is dirty and zero is zeroed by a client without reading it."""

    start_bytes: int
    length_bytes: int
    is_dirty: bool  #: it changed since the base; all of a disk without one is dirty
    is_zero: bool  #: it reads as zeros

    @property
    def end_bytes(self) -> int:
        """Offset of the first byte behind it."""
        return self.start_bytes + self.length_bytes


class _Run(NamedTuple):
    """A range in which one thing is so, or is not."""

    start_bytes: int
    end_bytes: int
    value: bool


class NbdBlocks:
    """What QEMU says of the blocks of an export. A context manager; one thread at a time may use it.

    Entering, and every iterator, raises what NbdClient raises.
    """

    def __init__(
        self,
        address: NbdAddress,
        *,
        bitmap: str | None,
        base_size_bytes: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``bitmap``: metadata context of the bitmap that has recorded since the base; None: all is dirty.

        ``base_size_bytes``: size of the disk at the base, if that is known: what is behind it is dirty. (A bitmap is
        clean there until the guest writes.)
        """
        self._address, self._bitmap, self._base_size_bytes, self._tls = address, bitmap, base_size_bytes, tls

    def __enter__(self) -> NbdBlocks:
        self._stack = ExitStack()
        self._first = self._stack.enter_context(self._client(self._bitmap or ALLOCATION))
        self._allocation = self._first if self._bitmap is None else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        return self._first.size_bytes

    def changed(self, start_bytes: int, end_bytes: int) -> Iterator[Extent]:
        """Yield the dirty extents of a range within the disk: in ascending order, and as long as they can be."""
        groups = _together(self._dirty(start_bytes, end_bytes))
        extents = itertools.chain.from_iterable(map(self._overlaid, groups))
        return _joined(extent for extent in extents if extent.is_dirty)

    def allocated(self, start_bytes: int, end_bytes: int) -> Iterator[Extent]:
        """Yield the extents of a range that do not read as zeros: in ascending order, and as long as they can be."""
        zeros = self._zeros(start_bytes, end_bytes)
        return _joined(extent for extent in _overlaid(self._dirty(start_bytes, end_bytes), zeros) if not extent.is_zero)

    def _overlaid(self, dirty: Sequence[_Run]) -> Iterator[Extent]:
        return _overlaid(iter(dirty), self._zeros(dirty[0].start_bytes, dirty[-1].end_bytes))

    def _dirty(self, start_bytes: int, end_bytes: int) -> Iterator[_Run]:
        """Yield the dirty runs and the clean ones of a range, in turns."""
        known_end = end_bytes if self._base_size_bytes is None else min(end_bytes, self._base_size_bytes)
        if self._bitmap is None or known_end <= start_bytes:
            return iter([_Run(start_bytes, end_bytes, value=True)] if start_bytes < end_bytes else [])
        runs = _runs(self._first, start_bytes, known_end, DIRTY)
        grown = [_Run(known_end, end_bytes, value=True)] if known_end < end_bytes else []
        return _in_turns(itertools.chain(runs, grown))

    def _zeros(self, start_bytes: int, end_bytes: int) -> Iterator[_Run]:
        """Yield the runs of zeros and those of data of a range."""
        if self._allocation is None:
            self._allocation = self._stack.enter_context(self._client(ALLOCATION))
        return _runs(self._allocation, start_bytes, end_bytes, ZERO)

    def _client(self, context: str) -> NbdClient:
        return NbdClient(self._address, context=context, tls=self._tls, timeout_s=TIMEOUT_S)


def _runs(client: NbdClient, start_bytes: int, end_bytes: int, flag: int) -> Iterator[_Run]:
    for start, length, flags in client.blocks(start_bytes, end_bytes - start_bytes):
        yield _Run(start, start + length, bool(flags & flag))


def _in_turns(runs: Iterable[_Run]) -> Iterator[_Run]:
    """Yield the runs, which have no gaps between them, with neighbours of the same value as one."""
    before: _Run | None = None
    for run in runs:
        if before is not None and before.value is not run.value:
            yield before
            before = None
        before = run if before is None else before._replace(end_bytes=run.end_bytes)
    if before is not None:
        yield before


def _together(dirty: Iterable[_Run]) -> Iterator[list[_Run]]:
    """Yield groups of runs, each from a dirty one to a dirty one, with the short clean ones between them."""
    group: list[_Run] = []
    for run in dirty:
        is_short = run.end_bytes - run.start_bytes <= MAX_GAP_BYTES
        if run.value or (group and is_short and len(group) < _MAX_TOGETHER):
            group.append(run)
        elif group:
            yield group
            group = []
    if group and not group[-1].value:
        group.pop()
    if group:
        yield group


def _overlaid(dirty: Iterator[_Run], zeros: Iterator[_Run]) -> Iterator[Extent]:
    """Yield the extents of a range, both of whose descriptions are complete."""
    is_dirty, is_zero = next(dirty, None), next(zeros, None)
    at = is_dirty.start_bytes if is_dirty is not None else 0
    while is_dirty is not None and is_zero is not None:
        end = min(is_dirty.end_bytes, is_zero.end_bytes)
        yield Extent(at, end - at, is_dirty.value, is_zero.value)
        at = end
        if is_dirty.end_bytes == end:
            is_dirty = next(dirty, None)
        if is_zero.end_bytes == end:
            is_zero = next(zeros, None)


def _joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Yield the extents, those that adjoin and are the same as one."""
    before: Extent | None = None
    for extent in extents:
        if before is None:
            before = extent
        elif before.end_bytes == extent.start_bytes and before[2:] == extent[2:]:
            before = before._replace(length_bytes=before.length_bytes + extent.length_bytes)
        else:
            yield before
            before = extent
    if before is not None:
        yield before
