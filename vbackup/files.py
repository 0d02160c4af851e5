"""Open untrusted files safely: only regular ones, no symbolic links, no blocking. Digest and store files.

A repository may come from a broken or hostile disk. In place of a file, a FIFO would block forever, a device can act
when it is opened, a symbolic link can lead out of the repository.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from vbackup.errors import NoSpaceError, StorageError, VbackupError

#: How many files are put on the disk at once: the filesystem's journal takes them together.
MAX_FSYNCS = 8
#: How much of a file is read at once before it counts as large.
_SMALL_BYTES = 64 * 1024
#: How much of a file is read at a time, into memory that is used again: new memory costs page faults.
_PIECE_BYTES = 1024 * 1024

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}


def open_regular(path: Path | str, flags: int = os.O_RDONLY, *, dir_fd: int | None = None) -> int:
    """Open the file and return its descriptor; a new file (O_CREAT) has mode 0600.

    ``dir_fd``: the open directory in which the path is, as for os.open.

    Raises OSError if it cannot be opened or is not a regular file. The type is checked before opening, which may
    already have an effect, and again afterwards, because the file may have been replaced.
    """
    try:
        _check(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    try:
        _check(os.fstat(fd).st_mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_block_device(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a block device, which the user has named, and return its descriptor. Symbolic links are followed.

    Raises OSError if it cannot be opened or is not a block device.
    """
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK), os.fspath(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_regular(path: Path | str, *, max_bytes: int) -> bytes:
    """Return the content of the file. Raises OSError as ``open_regular``, and if it is larger than ``max_bytes``."""
    fd = open_regular(path)
    try:
        data = os.read(fd, min(max_bytes + 1, _SMALL_BYTES))
        if len(data) == _SMALL_BYTES:  # nearly every one is smaller, and does without a buffered file
            with os.fdopen(fd, "rb", closefd=False) as file:
                data += file.read(max_bytes + 1 - len(data))
    finally:
        os.close(fd)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, "it is larger than any file that vbackup writes")
    return data


def nameless(directory: Path) -> int:
    """Return a descriptor, for reading and writing, of a file without a name (on NFS the name is removed at once).

    It is gone when nobody has it open any more. Raises OSError.
    """
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as err:
        if err.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    import tempfile  # which few filesystems need

    fd, path = tempfile.mkstemp(prefix="vbackup-", dir=directory)
    os.unlink(path)  # noqa: PTH108 - the name is mkstemp's own
    return fd


def is_regular(path: Path) -> bool:
    """Return True if ``path`` is a regular file, and not a symbolic link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def is_directory(path: Path) -> bool:
    """Return True if ``path`` is a directory, and not a symbolic link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def is_missing(path: Path | str) -> bool:
    """Return True if there is nothing at ``path``, which can be any text; False also if that cannot be told."""
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError as err:
        return err.errno in (errno.ENAMETOOLONG, errno.ELOOP)
    return False


def refuse_link(directory: Path) -> None:
    """Raise StorageError if the directory of a domain is a symbolic link, whatever is behind it."""
    if directory.is_symlink():
        raise StorageError(" ".join(of_link(directory)))


def of_link(directory: Path) -> tuple[str, str]:
    """Return why the directory of a domain is no symbolic link, and what to do, as sentences."""
    return (
        f"{directory} is a symbolic link, which could lead out of the repository; vbackup does not follow it.",
        "Put the directory itself in its place, or use 'mount --bind' if it has to be elsewhere.",
    )


def refuse_unwritable(directory: Path) -> None:
    """Raise StorageError if nothing can be created in the directory, or in the nearest one above it that exists."""
    with storage_errors(f"write to {directory}"):
        nearest = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(nearest))
        if os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
            return
        code = errno.EROFS if os.statvfs(nearest).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(code, os.strerror(code), os.fspath(directory / ".vbackup"))


def make_private(directory: Path) -> None:
    """Make a directory, and those above it that are missing, for its owner only (mode 0700), unless it exists.

    Raises OSError, and StorageError if others could replace what is in it.
    """
    for missing in reversed([one for one in (directory, *directory.parents) if not one.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    status = directory.stat()
    is_open = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
    if is_open or status.st_uid not in (os.geteuid(), 0):
        raise StorageError(
            f"Others can replace what is in {directory}: it has to be yours, and writable only for you"
            f" ('chown {os.geteuid()} {directory} && chmod go-w {directory}'). Look at what is in it first."
        )


def closed_directories(path: Path) -> tuple[Path, ...]:
    """Return the directory and those above it that only their owner or group can enter, the outermost first."""
    return tuple(one for one in reversed((path, *path.parents)) if not one.stat().st_mode & stat.S_IXOTH)


def _check(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file")


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Translate OSError into StorageError, and ENOSPC and EDQUOT into NoSpaceError; ``what`` completes "Cannot ..."."""
    try:
        yield
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                f"Cannot {what}: no space left. Free some space and run the same command again."
            ) from err
        raise StorageError(f"Cannot {what}: {err.strerror or err}.{_hint(err)}") from err


#: What the kernel says where a storage fails under a filesystem, or a network filesystem has lost its server.
_LOST = frozenset((errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENXIO, errno.EREMOTEIO, errno.EHOSTDOWN))


def reported(err: BaseException) -> VbackupError:
    """Return the error to report for one that may be of any kind: what is not ours is a bug, or a storage that is gone.

    Where a storage fails, any access to a file can, also those that otherwise never do.
    """
    if isinstance(err, VbackupError):
        return err
    if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {os.fspath(err.filename)}" if isinstance(err.filename, (str, os.PathLike)) else ""
        return NoSpaceError(f"No space left{where}. Free some space and run the same command again.")
    if isinstance(err, OSError) and err.errno in _LOST and isinstance(err.filename, (str, os.PathLike)):
        return StorageError(f"Cannot access {os.fspath(err.filename)}: {err.strerror}.{_hint(err)}")
    return VbackupError(f"Unexpected {type(err).__name__}: {err}. This is a bug in vbackup; -v shows where.")


def _hint(err: OSError) -> str:
    """Return what can be done about the error, with a blank in front; "" if nothing is known."""
    if err.errno == errno.EACCES and isinstance(err.filename, str):
        return f" {why_denied(Path(err.filename))}"
    return {
        errno.EACCES: " Run vbackup as a user with permission to do this.",
        errno.EPERM: " The filesystem may not allow it, or the file is immutable: see 'lsattr'.",
        errno.EROFS: " It is mounted read-only.",
        errno.EEXIST: " Give another path, or move away what is there.",
        errno.ENOTDIR: " A part of the path is not a directory: check it.",
        errno.EIO: " Its storage may be failing: look into the kernel log.",
        errno.ESTALE: " The network filesystem has lost it: mount it again.",
        errno.ENOTCONN: " What served the filesystem has ended: mount it again.",
    }.get(err.errno or 0, "")


#: The bits of the rights, and what they are called.
_ACCESS = {"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}
_RIGHTS = {"x": "enter the directory", "wx": "write to the directory", "r": "read", "rw": "read and write"}


#: Directories with what root runs, such as libvirt's hook scripts.
_SYSTEM = (("/",), *(("/", name) for name in ("bin", "boot", "etc", "lib", "lib64", "root", "sbin", "usr")))


def why_denied(path: Path, wanted: str = "rw") -> str:
    """Return who is denied which right on what, and the command that gives it, as sentences.

    ``wanted``: the rights that this process wants on the file at ``path``. The kernel is asked (faccessat), so access
    control lists and servers of network filesystems are heeded.
    """
    import shlex

    uid = os.geteuid()
    user = user_name(uid)
    path = path.absolute()
    for place in (*reversed(path.parents), path):
        missing = not os.path.lexists(place)  # it was to be made there
        barrier, right = (place.parent, "wx") if missing else (place, wanted if place == path else "x")
        if os.access(barrier, sum(_ACCESS[one] for one in right), effective_ids=True):
            if missing:
                break
            continue
        status = _status(barrier)
        owner = user_name(status.st_uid)
        denied = (
            f"vbackup runs as {user}, who may not {_RIGHTS[right]} {barrier} (owner {owner}, mode"
            f" {stat.S_IMODE(status.st_mode):04o})."
        )
        if uid == 0:
            return (
                f"{denied} Its storage does not let root in, as NFS with root_squash does: export it with"
                f" no_root_squash, or run vbackup as {owner}."
            )
        if status.st_uid == uid:  # an ACL is about others than the owner
            return f"{denied} Run: chmod u+{right} {shlex.quote(str(barrier))}."
        if "w" in right and barrier.parts[:2] in _SYSTEM:  # whoever may write there might become root
            return f"{denied} Run vbackup as root."
        return f"{denied} Run vbackup as root, or as root run: setfacl -m u:{user}:{right} {shlex.quote(str(barrier))}."
    return f"vbackup runs as {user}, whom no file mode stops; the kernel log shows whether AppArmor or SELinux does."


def _status(path: Path) -> os.stat_result:
    """Return what the kernel says of a path; of a link that it does not follow (fs.protected_symlinks), of the link."""
    try:
        return path.stat()
    except OSError:
        return path.lstat()


def user_name(uid: int) -> str:
    """Return the name of a user, the number of one that has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def digest_of(data: bytes) -> str:
    """Return the digest of a file's content in the form that manifests have."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest(path: Path, *, check: Callable[[], None], progress: Callable[[int], None] | None = None) -> str:
    """Return the digest of a file in the form that manifests have.

    ``check`` is called between pieces and may raise; ``progress`` gets the number of bytes read so far. Raises
    StorageError.
    """
    sha256 = hashlib.sha256()
    done_bytes = 0
    with storage_errors(f"read {path}"), os.fdopen(open_regular(path), "rb", buffering=0) as file:
        for piece in _pieces(file):
            check()
            sha256.update(piece)
            done_bytes += len(piece)
            if progress is not None:
                progress(done_bytes)
    return "sha256:" + sha256.hexdigest()


def _pieces(file: FileIO) -> Iterator[memoryview]:
    """Yield the content of the file in pieces, each valid until the next one.

    The next piece of a large file is read meanwhile: copying from the page cache takes a fifth of the time of a digest.
    """
    buffers = [bytearray(_PIECE_BYTES)]
    length = file.readinto(buffers[0])
    if length < _PIECE_BYTES:  # a thread is not worth it
        while length:
            yield memoryview(buffers[0])[:length]
            length = file.readinto(buffers[0])
        return
    from concurrent.futures import ThreadPoolExecutor  # what reads only small files does without

    buffers.append(bytearray(_PIECE_BYTES))
    with ThreadPoolExecutor(max_workers=1) as pool:
        while length:
            following = pool.submit(file.readinto, buffers[1])
            yield memoryview(buffers[0])[:length]
            length = following.result()
            buffers.reverse()


def replace_text(path: Path, text: str) -> None:
    """Write a small text so that a reader sees either the old or the new content."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a small file so that a reader sees either the old or the new content."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # left by a dead run, or planted by another user
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Write a small file that does not exist yet, with mode 0600, and put it on the disk. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    fsync(path)


def fsync(path: Path) -> None:
    """Flush a file or a directory to storage (fsync)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
