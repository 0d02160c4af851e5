"""Fetch objects of points from a target: each is compared with the digest that its manifest has of it.

What was interrupted goes on where it was: what is there of a file is digested, and the rest is fetched.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

from vbackup.copies.point import ObjectRecord
from vbackup.copies.target import Target
from vbackup.errors import ChainError, StorageError
from vbackup.files import fsync, open_regular, storage_errors
from vbackup.report import Phase, Reporter
from vbackup.repository.block_list import Algorithm, Hash, algorithm_of
from vbackup.repository.read_rate import ReadRate
from vbackup.stop import Stop

#: Objects that are fetched at a time.
PARALLEL_OBJECTS = 4
_PART = ".part"
_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Wanted:
    """An object, what is recorded of it, and the file that it becomes."""

    key: str
    record: ObjectRecord
    dev: str | None  #: the disk that its progress is of; None: none is shown, because it is not part of a disk
    path: Path | None = None  #: None: it is only compared


@dataclass(frozen=True)
class Means:
    """What objects are fetched with."""

    target: Target
    reporter: Reporter
    stop: Stop
    bytes_s: int | None = None  #: limit of all together
    parallel: int = PARALLEL_OBJECTS


def fetch(objects: Sequence[Wanted], means: Means) -> int:
    """Fetch objects that are not there yet, and return the number of bytes that were fetched. Files are synced.

    Raises ChainError for the first that is missing at the target, or not what its manifest says; StorageError,
    NoSpaceError, InterruptedBySignalError.
    """
    work = Work(means, objects)
    with ThreadPoolExecutor(max_workers=means.parallel) as pool:
        futures = [pool.submit(work.fetch, each) for each in objects]
        try:
            return sum(future.result() for future in futures)
        except BaseException:
            work.ended.set()
            raise


class Work:
    """Fetches objects, from several threads, and reports how far those of each disk are together."""

    def __init__(self, means: Means, objects: Sequence[Wanted]) -> None:
        self._means = means
        self._rate = ReadRate(means.bytes_s, check=self._check)
        self._totals: Counter[str | None] = Counter()
        for each in objects:
            self._totals[each.dev] += each.record.size_bytes
        self._done: Counter[str | None] = Counter()
        self._lock = Lock()
        self.ended = Event()  #: set when another has failed

    def _check(self) -> None:
        self._means.stop.check()
        if self.ended.is_set():
            raise StorageError("Another object could not be fetched.")  # only ends this thread; nobody sees it

    def fetch(self, each: Wanted) -> int:
        """Fetch or compare one object; return the number of bytes that came from the target. Raises as ``fetch``."""
        self._check()
        algorithm = algorithm_of(each.record.digest, where=f"The manifest of {each.key}")
        if each.path is None:
            return self._compare(each, algorithm)
        with storage_errors(f"write {each.path}"):
            if each.path.exists():
                self._count(each, each.record.size_bytes)
                return 0
            each.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = each.path.with_name(each.path.name + _PART)
            made = algorithm.new()
            fd = open_regular(part, os.O_RDWR | os.O_CREAT)
            with os.fdopen(fd, "r+b", buffering=0) as file:
                there = 0
                while piece := file.read(_PIECE_BYTES):
                    self._check()
                    made.update(piece)
                    there += len(piece)
                if there > each.record.size_bytes:
                    file.truncate(0)
                    file.seek(0)
                    made, there = algorithm.new(), 0
                self._count(each, there)
                size_bytes = there
                for piece in self._pieces(each, there):
                    made.update(piece)
                    _write(file.fileno(), piece)
                    size_bytes += len(piece)
                try:
                    self._refuse_other(each, algorithm, made, size_bytes)
                except ChainError:
                    part.unlink()  # what is there may be the wrong part
                    raise
            fsync(part)
            part.rename(each.path)
        return size_bytes - there

    def _compare(self, each: Wanted, algorithm: Algorithm) -> int:
        made, size_bytes = algorithm.new(), 0
        for piece in self._pieces(each, 0):
            made.update(piece)
            size_bytes += len(piece)
        self._refuse_other(each, algorithm, made, size_bytes)
        return size_bytes

    def _pieces(self, each: Wanted, offset: int) -> Iterator[bytes]:
        left = each.record.size_bytes - offset
        try:
            for piece in self._means.target.store.get(each.key, offset):
                self._rate.take(len(piece))
                left -= len(piece)
                self._count(each, len(piece))
                yield piece
                if left < 0:
                    break  # it is longer than it should be
        except FileNotFoundError:
            raise ChainError(f"{each.key} is missing at {self._means.target.name}.") from None

    def _refuse_other(self, each: Wanted, algorithm: Algorithm, made: Hash, size_bytes: int) -> None:
        if size_bytes != each.record.size_bytes or algorithm.text(made) != each.record.digest:
            raise ChainError(
                f"{each.key} at {self._means.target.name} was altered or is damaged: it is not what its manifest says."
            )

    def _count(self, each: Wanted, size_bytes: int) -> None:
        if each.dev is None:
            return
        with self._lock:
            self._done[each.dev] += size_bytes
            self._means.reporter.progress(each.dev, Phase.COPY, self._done[each.dev], self._totals[each.dev])


def _write(fd: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(fd, view) :]
