"""Put a new image in the place of another one: it is made beside it, and the two exchange places in one step.

NAME is the image. The new one is .NAME.vbackup-ID until it is complete, and the old one NAME.before-ID afterwards; ID
is that of the backup. An image always has the name: first the old one gets a second name (link), then the new one the
first (rename). Where the filesystem knows no second names, there is a moment without NAME, which a run after a crash
ends. vbackup.repository.in_place_journal records what is under way.

The module is a program, too, which vbackup.images.replacement_there sends to another host: it needs Python 3.6 and the
standard library. ``python3 -IS - put PATH ID``, with this source on standard input, calls that method and prints what
it returns, or the error of the kernel, as a JSON object.
"""

import contextlib
import errno
import fcntl
import json
import os
import shlex
import struct
import sys
import tempfile
from pathlib import Path

#: Errors of a filesystem where a file has one name only.
_NO_LINKS = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL))
#: What follows from the content of a file, and must not be copied to another.
_OF_CONTENT = frozenset(("security.ima", "security.evm"))
#: linux/fs.h: the ioctl that returns the attributes of chattr(1), and those with which no name can be exchanged.
_FS_IOC_GETFLAGS = 0x80086601
_FIXED = {0x10: ("immutable", "i"), 0x20: ("append-only", "a")}
_COPIED = ("security.", "system.posix_acl_access", "user.")


class Replacement:
    """An image that is replaced, and the names that belong to it."""

    def __init__(self, path: Path, backup: str) -> None:
        """``path``: of the image, no symbolic link; ``backup``: id of the backup that the new one is of."""
        self.path, self.backup = path, backup

    @property
    def new(self) -> Path:
        """The new image until it is in its place."""
        return self.path.with_name(f".{self.path.name}.vbackup-{self.backup}")

    @property
    def kept(self) -> Path:
        """The old image afterwards."""
        return self.path.with_name(f"{self.path.name}.before-{self.backup}")

    def discard(self) -> None:
        """Remove the new image if it is not in its place yet. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self.new.unlink()

    def adopt(self, made: Path) -> None:
        """Take a file of the same filesystem for the new image. Raises OSError."""
        made.rename(self.new)
        _fsync(self.path.parent)

    def take_attributes(self) -> None:
        """Give the new image owner, mode, label, ACL and further attributes of the old one, if there is one.

        Raises OSError.
        """
        if os.path.lexists(self.path):
            with self.new.open("rb") as new:
                _give(self.path, new.fileno())
            _fsync(self.new)

    def check_attributes(self) -> None:
        """Raise OSError if a new image cannot be made there, or not with what the old one has; nothing is left."""
        with tempfile.TemporaryFile(dir=self.path.parent) as probe:
            if os.path.lexists(self.path):
                _give(self.path, probe.fileno())

    def barrier(self) -> "str | None":
        """Return why the image can get no other name, and the command that changes that; None if it can.

        Nobody, not even root, renames what has these attributes, or a file in a directory that has.
        """
        for path in (self.path.parent, self.path):
            flags = _flags(path)
            for flag, (name, letter) in _FIXED.items():
                if flags & flag:
                    return f"{path} is {name} ('chattr -{letter} {shlex.quote(str(path))}' changes that)"
        return None

    def put(self) -> None:
        """Put the new image in the place of the old one, which is kept; again, if that was interrupted. Raises OSError.

        Does nothing if the new image is in its place. The old one never loses its last name.
        """
        if not os.path.lexists(self.new):
            return
        if os.path.lexists(self.path) and os.path.lexists(self.kept):
            if not os.path.samestat(self.path.lstat(), self.kept.lstat()):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(self.kept))
        elif os.path.lexists(self.path):
            try:
                os.link(self.path, self.kept, follow_symlinks=False)
            except OSError as err:
                if err.errno not in _NO_LINKS:
                    raise
                self.path.rename(self.kept)
        _fsync(self.path.parent)  # the old image is never without a name
        self.new.replace(self.path)
        _fsync(self.path.parent)

    def remove_old(self) -> None:
        """Remove the old image. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self.kept.unlink()
        _fsync(self.path.parent)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _flags(path: Path) -> int:
    """Return the attributes of a file or directory; none if nobody may look, or the filesystem has none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return int(struct.unpack("I", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))[:4])[0])
    except OSError:
        return 0
    finally:
        os.close(fd)


def _give(old: Path, fd: int) -> None:
    status, own = old.stat(), os.fstat(fd)
    if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, status.st_mode & 0o7777)
    for name in _attributes(old):
        os.setxattr(fd, name, os.getxattr(old, name))


def _attributes(path: Path) -> "list[str]":
    try:
        names = os.listxattr(path)
    except OSError as err:
        if err.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            return []
        raise
    return [name for name in names if name.startswith(_COPIED) and name not in _OF_CONTENT]


def main(do: str, path: str, backup: str, *made: str) -> None:
    """Call a method, and print what became of it."""
    try:
        returned = getattr(Replacement(Path(path), backup), do)(*map(Path, made))
    except OSError as err:
        print(json.dumps({"errno": err.errno or 0, "text": err.strerror or str(err)}))  # noqa: T201 - the answer
    else:
        print(json.dumps({"return": returned}))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
