"""Digest what the guest can read from a file below a disk's bitmaps, and remember it while the file is untouched.

The digest is needed where size and times do not tell: libvirt changes the owner of images when a domain starts,
and whoever overwrites a file can set its time of modification back, but not its ctime. Of a qcow2 image only those
parts count that decide what the guest reads (vbackup.qemu.qcow2_clusters), so that bitmaps change nothing. Where a
piece of 2 MiB has only zeros, or the file has a hole, is not distinguished.

    /run/vbackup/contents/<device>-<inode>-<kind>    JSON: boot_id, size_bytes, mtime_ns, ctime_ns, digest

What was read once is remembered there for other disks and other runs. For a user other than root, the directory is
below XDG_RUNTIME_DIR; without one, only this process remembers. The memory ends with the boot, which is also the only
time in which the numbers of devices mean something.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vbackup.errors import MalformedError
from vbackup.fields import Fields
from vbackup.files import open_regular
from vbackup.layers import FileState
from vbackup.process import Process
from vbackup.qemu import qcow2_clusters
from vbackup.qemu.qcow2_clusters import GuestClusters

log = logging.getLogger(__name__)

#: Two changes within one tick of the kernel's clock (at most 10 ms) leave the same mtime and ctime.
TICK_NS = 20_000_000
#: The same where the filesystem stores whole seconds (ext3, ext4 with inodes of 128 bytes), or only even ones (vfat).
SECOND_NS = 1_000_000_000
COARSE_TICK_NS = 2 * SECOND_NS + TICK_NS
#: How much is digested at a time: at least one cluster.
PIECE_BYTES = 2 * 1024 * 1024
#: Pieces at a time: SHA-256 takes longer than reading, and the processor has to be left to the guests.
THREADS = 4
#: How many files are remembered; the oldest go.
MAX_KNOWN = 1024
#: The longest delay until a request to stop is noticed.
TICK_S = 0.25
_ZEROS = bytes(PIECE_BYTES)
_QCOW2, _BYTES = "sha256-qcow2", "sha256-bytes"


@dataclass(frozen=True)
class _Key:
    """A file that has not been touched since; as stat(2) gives it."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Key:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_of_same_time(self, other: _Key | FileState) -> bool:
        """True if it is the same file, and was not written to."""
        return (self.device, self.inode, self.size_bytes, self.mtime_ns) == (
            other.device, other.inode, other.size_bytes, other.mtime_ns
        )  # fmt: skip


_known: dict[tuple[_Key, str], str] = {}
_reading: dict[tuple[int, int], threading.Lock] = {}


def is_too_new(time_ns: int) -> bool:
    """Return True if a further change of a file with this mtime or ctime could leave the same."""
    return time.time_ns() - time_ns < (TICK_NS if time_ns % SECOND_NS else COARSE_TICK_NS)


def directory() -> Path | None:
    """Return the directory of what is remembered, or None if this user has none that ends with the boot or session."""
    if os.geteuid() == 0:
        return Path("/run/vbackup/contents")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(runtime) / "vbackup" / "contents" if runtime.startswith("/") else None


def digest(
    file: FileState, *, is_qcow2: bool, check: Callable[[], None], progress: Callable[[int, int], None]
) -> str | None:
    """Return the digest of what the guest can read from a file that is in this state; None if it cannot be read.

    ``check`` is called between pieces, and may raise. ``progress`` gets the bytes that are done, and the size, also
    before the first byte is read, but not if the digest is known. Two threads do not read one file at a time.
    """
    kind = _QCOW2 if is_qcow2 else _BYTES
    try:
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as err:
        log.debug("%s: %s", file.path, err)
        return None
    try:
        with _alone(os.fstat(fd), check):
            status = os.fstat(fd)
            key = _Key.of(status)
            if not stat.S_ISREG(status.st_mode) or not key.is_of_same_time(file):
                return None
            made = _recall(key, kind)
            if made is None:
                progress(0, key.size_bytes)
                made = _content(fd, key.size_bytes, is_qcow2=is_qcow2, check=check, progress=progress)
                after = _Key.of(os.fstat(fd))
                if not after.is_of_same_time(key):
                    return None
                if after == key and not is_too_new(key.ctime_ns):
                    _remember(key, made, kind)
            return made
    except OSError as err:
        log.debug("%s: %s", file.path, err)
        return None
    finally:
        os.close(fd)


def is_denied(file: FileState) -> bool:
    """Return True if this process may not read the file, as on NFS that does not let root in."""
    try:
        os.close(os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except PermissionError:
        return True
    except (OSError, ValueError) as err:
        log.debug("%s: %s", file.path, err)
    return False


def carry_over(path: Path, before: os.stat_result, after: os.stat_result) -> None:
    """Remember that a file has the content that it had before; between these states only bitmaps were written to it.

    If it is known: nothing is read. Never fails.
    """
    known = _recall(_Key.of(before), _QCOW2)
    if known is None or not known.startswith(_QCOW2):
        return
    time.sleep(1.1 * TICK_NS / SECOND_NS)  # until a further change has another ctime
    try:
        is_as_after = _Key.of(path.stat()) == _Key.of(after)
    except OSError as err:
        log.debug("%s: %s", path, err)
        return
    if is_as_after and not is_too_new(after.st_ctime_ns):
        _remember(_Key.of(after), known, _QCOW2)


# the content


def _content(
    fd: int, size_bytes: int, *, is_qcow2: bool, check: Callable[[], None], progress: Callable[[int, int], None]
) -> str:
    """Return the digest: of the header, and of number and digest of each piece that is not all zeros."""
    clusters = qcow2_clusters.find(fd, size_bytes) if is_qcow2 else None
    if clusters is None:
        kind, total = _BYTES, hashlib.sha256(struct.pack(">Q", size_bytes))
    else:
        kind, total = _QCOW2, hashlib.sha256(clusters.header)

    def piece(number: int) -> bytes | None:
        return _piece(fd, number, _ranges(number, size_bytes, clusters))

    done_bytes = 0
    with closing(_in_threads(piece, _pieces_with_data(fd, size_bytes, clusters))) as pieces:
        for number, digest_of_piece in pieces:
            check()
            done_bytes = min((number + 1) * PIECE_BYTES, size_bytes)
            progress(done_bytes, size_bytes)
            if digest_of_piece is not None:
                total.update(struct.pack(">Q", number) + digest_of_piece)
    if done_bytes < size_bytes:  # it ends with a hole
        progress(size_bytes, size_bytes)
    return f"{kind}:{total.hexdigest()}"


def _pieces_with_data(fd: int, size_bytes: int, clusters: GuestClusters | None) -> Iterator[int]:
    """Yield the numbers of the pieces that are not in a hole of the file, and have something for the guest."""
    following, offset = 0, 0
    while offset < size_bytes:
        try:
            begin = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # no more data
                return
            raise
        offset = os.lseek(fd, begin, os.SEEK_HOLE)
        end = -(-offset // PIECE_BYTES)
        for number in range(max(begin // PIECE_BYTES, following), end):
            if _ranges(number, size_bytes, clusters):
                yield number
        following = end


def _ranges(number: int, size_bytes: int, clusters: GuestClusters | None) -> list[tuple[int, int]]:
    """Return what of a piece is for the guest, as (begin, end) from its begin."""
    if clusters is None:
        return [(0, min(PIECE_BYTES, size_bytes - number * PIECE_BYTES))]
    each = PIECE_BYTES // clusters.cluster_bytes
    marks = clusters.marks[number * each : (number + 1) * each]
    found, end = [], 0
    while (begin := marks.find(1, end)) >= 0:
        end = marks.find(0, begin)
        end = len(marks) if end < 0 else end
        found.append((begin * clusters.cluster_bytes, end * clusters.cluster_bytes))
    return found


_buffers = threading.local()


def _piece(fd: int, number: int, ranges: list[tuple[int, int]]) -> bytes | None:
    """Return the digest of these ranges of a piece; None if they are all zeros, as is what lies beyond the end."""
    buffer: bytearray = _buffers.__dict__.setdefault("buffer", bytearray(PIECE_BYTES))
    view, done = memoryview(buffer), 0
    while done < PIECE_BYTES and (length := os.preadv(fd, [view[done:]], number * PIECE_BYTES + done)):
        done += length
    view[done:] = _ZEROS[done:]
    if all(buffer.startswith(_ZEROS[: end - begin], begin) for begin, end in ranges):
        return None
    sha256 = hashlib.sha256()
    for begin, end in ranges:
        sha256.update(struct.pack(">II", begin, end))
        sha256.update(view[begin:end])
    return sha256.digest()


def _in_threads(
    work: Callable[[int], bytes | None], numbers: Iterable[int]
) -> Generator[tuple[int, bytes | None], None, None]:
    """Yield each number with the result of ``work``, in their order, with some ahead."""
    ahead: deque[tuple[int, Future[bytes | None]]] = deque()
    with ThreadPoolExecutor(max_workers=min(THREADS, os.cpu_count() or 1)) as pool:
        try:
            for number in numbers:
                ahead.append((number, pool.submit(work, number)))
                if len(ahead) > 2 * THREADS:
                    first, result = ahead.popleft()
                    yield first, result.result()
            while ahead:
                first, result = ahead.popleft()
                yield first, result.result()
        finally:
            for _number, result in ahead:
                result.cancel()


# the memory


@contextmanager
def _alone(status: os.stat_result, check: Callable[[], None]) -> Iterator[None]:
    """Wait until no other thread reads the file."""
    lock = _reading.setdefault((status.st_dev, status.st_ino), threading.Lock())
    while not lock.acquire(timeout=TICK_S):
        check()
    try:
        yield
    finally:
        lock.release()


def _recall(key: _Key, kind: str) -> str | None:
    known = _known.get((key, kind))
    if known is not None:
        return known
    place = _place(key, kind)
    if place is None:
        return None
    try:
        with os.fdopen(open_regular(place), "rb") as file:
            fields = Fields(json.loads(file.read(4096)), str(place), MalformedError)
        members = {name: fields.integer(name) for name in asdict(key)}
        if _Key(**members) == key and fields.text("boot_id") == Process.this().boot_id:
            return fields.text("digest")
    except (OSError, ValueError, RecursionError, MalformedError) as err:
        log.debug("%s: %s", place, err)
    return None


def _remember(key: _Key, digest_of_file: str, kind: str) -> None:
    _known[key, kind] = digest_of_file
    place = _place(key, kind)
    if place is None:
        return
    document = {"boot_id": Process.this().boot_id, **asdict(key), "digest": digest_of_file}
    temporary = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        place.parent.parent.mkdir(mode=0o700, exist_ok=True)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                file.write(json.dumps(document) + "\n")
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
        _forget_oldest(place.parent)
    except OSError as err:
        log.debug("%s: %s", place, err)  # it is read again by the next run


def _forget_oldest(place: Path) -> None:
    entries = list(place.iterdir())
    if len(entries) > MAX_KNOWN:
        for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime_ns)[:-MAX_KNOWN]:
            entry.unlink(missing_ok=True)


def _place(key: _Key, kind: str) -> Path | None:
    place = directory()
    return None if place is None else place / f"{key.device}-{key.inode}-{kind}"
