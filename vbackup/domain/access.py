"""Who else may have the images of a domain that is off open, and what follows for opening them.

That a domain is off is known from this host's libvirt only: on storage that several hosts share, another host may run
it. QEMU's file locks tell, but not everywhere: a block device has none that reach another host, and of a network file
system nobody knows. Whoever writes a bitmap into an image that another QEMU has open damages it, so such images are
only read, unless the user says that they are this host's alone. vbackup.domain.opening opens them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vbackup.qemu.backing_chain import Image

#: Filesystems that one host alone has mounted, by the names in /proc/self/mountinfo. What is not in this list may be
#: shared: nfs4, cifs, ceph, gfs2, ocfs2, 9p, virtiofs, fuse.glusterfs, ...
LOCAL_FILE_SYSTEMS = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "zfs", "f2fs", "jfs", "reiserfs", "nilfs2", "tmpfs", "ramfs",
     "overlay", "aufs", "ecryptfs", "squashfs", "erofs", "iso9660", "udf", "vfat", "exfat", "ntfs3", "hfsplus")
)  # fmt: skip
#: The longest delay until a request to stop is noticed.
TICK_S = 0.25

#: Image.identity
Identity = tuple[int, int]


def doubt(image: Image) -> str | None:
    """Return what keeps us from knowing that no other host has the image open, None if nothing does.

    The text completes "the image X ...".
    """
    if image.is_block_device:
        return "is a block device, which another host may have open"
    file_system = file_system_of(image.path)
    if file_system in LOCAL_FILE_SYSTEMS:
        return None
    return f"is on a filesystem that other hosts may share ({file_system or 'of an unknown type'})"


def has_times(path: str) -> bool:
    """Return True if the modification time of an image shows that it was written to.

    Not that of a block device, nor of a FUSE filesystem without a name: that of QEMU's own export is always "now"
    (fuse_getattr in block/export/fuse.c).
    """
    return not Path(path).is_block_device() and file_system_of(path) != "fuse"


def file_system_of(path: str) -> str | None:
    """Return the type of the filesystem that has the file, as in /proc/self/mountinfo; None if it cannot be found.

    The kernel gives the mount of an open file, which is right also for bind mounts, for what is mounted over another,
    and for subvolumes of btrfs, whose device numbers are in no list. O_PATH opens without reading.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:  # noqa: PTH123 - quick, and no path of ours
                mount_id = next((line.split()[1] for line in file if line.startswith("mnt_id:")), None)
        finally:
            os.close(fd)
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            for line in file:
                # 36 35 98:0 /root /mount/point options [optional fields] - type source options: proc(5)
                if line.split(" ", 1)[0] == mount_id:
                    return line.partition(" - ")[2].split(" ", 1)[0]
    except OSError:
        return None
    return None


class ImagesInUse:
    """The images that the backups of one command have open, each in a separate storage daemon.

    Two daemons can both read an image, as clones their template, but not while one of them can write to it: QEMU's
    locks keep the second one out. So one backup waits for the other. In a group all have to be open at the same time:
    ``shared`` has the domains, by name, of each image that several members have, and such an image is only read.
    """

    def __init__(self, shared: Mapping[Identity, Collection[str]] | None = None) -> None:
        """Without ``shared``, the backups of domains that have an image in common wait for each other."""
        self._waits = shared is None
        self._shared = shared or {}
        self._changed = threading.Condition()
        self._claims: dict[str, dict[Identity, bool]] = {}

    def others(self, domain: str, image: Image) -> list[str]:
        """Return the other domains of the same group that have the image."""
        return sorted(name for name in self._shared.get(image.identity, ()) if name != domain)

    @contextmanager
    def claims(self, domain: str) -> Iterator[None]:
        """Release at the end of the block what the domain has claimed."""
        try:
            yield
        finally:
            with self._changed:
                self._claims.pop(domain, None)
                self._changed.notify_all()

    def claim(
        self,
        domain: str,
        wanted: Mapping[Identity, bool],
        *,
        waits_for: Callable[[str], None],
        check: Callable[[], None],
    ) -> None:
        """Wait until no other domain has claimed one of the images in a way that excludes this one.

        ``wanted`` says of each image whether it is opened for writing. All are claimed at once, by a domain that has
        none yet: so no two can wait for each other. A domain that has some already does not wait; QEMU's locks decide.
        ``waits_for`` is called once with the domain that this one waits for. Raises what ``check`` raises.
        """
        told = False
        with self._changed:
            while self._waits and domain not in self._claims and (other := self._opponent(domain, wanted)) is not None:
                if not told:
                    waits_for(other)
                    told = True
                check()
                self._changed.wait(TICK_S)
            self._claims.setdefault(domain, {}).update(wanted)

    def _opponent(self, domain: str, wanted: Mapping[Identity, bool]) -> str | None:
        for other, claimed in self._claims.items():
            if other != domain and any(
                claimed[identity] or writes for identity, writes in wanted.items() if identity in claimed
            ):
                return other
        return None


@dataclass(frozen=True)
class Access:
    """How the images of a domain that is off may be opened."""

    exclusive: bool = False  #: the user says that no other host has them open
    only_reads: bool = False  #: nothing is written to them, no bitmap either
    writes_data: bool = False  #: a user's transaction may write more than bitmaps, and so to every format
    images_in_use: ImagesInUse = field(default_factory=ImagesInUse)
    check: Callable[[], None] = lambda: None  #: raises if the work has to stop, while it waits for another backup
