"""Volumes of a libvirt storage pool for restored disks: the pool has to be active, and its storage within reach.

The images are written by path, on this host by this process; so only pools will do whose volumes have one. What is
a file in the directory of its pool is a volume when libvirt has looked at the pool again; libvirt has to make the
others, logical volumes, before they are written.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, unescape

from vbackup import names
from vbackup.domain.host import NO_STORAGE_POOL, NO_STORAGE_VOLUME, Host, error_code
from vbackup.errors import MonitorError, NoSpaceError, StorageError, UnsuitableError, VbackupError
from vbackup.model import ImageFormat
from vbackup.report import Reporter

#: Kinds of pools whose volumes are files in a directory, and logical volumes.
_OF_FILES, _LOGICAL = frozenset(("dir", "fs", "netfs")), "logical"
#: What LVM allows in the name of a logical volume.
_LV_NAME = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*", re.ASCII)
_TARGET = re.compile(r"<target>\s*<path>([^<]*)</path>")
_KIND = re.compile(r"\s*<pool type=['\"]([a-z-]+)['\"]", re.ASCII)


@dataclass(frozen=True)
class Wanted:
    """A volume to make."""

    name: str
    image_format: ImageFormat
    size_bytes: int  #: of the disk


@dataclass(frozen=True)
class Pool:
    """An active storage pool."""

    name: str
    kind: str  #: libvirt's type: dir, logical, ...
    available_bytes: int
    host: Host
    pool: Any  #: virStoragePool
    target: Path = Path("/")  #: where its volumes are

    @property
    def has_block_devices(self) -> bool:
        """True if its volumes are block devices, which are raw and take all of their size at once."""
        return self.kind == _LOGICAL

    def wanted(self, domain: str, dev: str, image_format: ImageFormat, size_bytes: int) -> Wanted:
        """Return the volume for a disk: DOMAIN-DEV, and .qcow2 for that format.

        Raises UnsuitableError if a volume cannot be named after the domain.
        """
        image_format = ImageFormat.RAW if self.has_block_devices else image_format
        name = f"{domain}-{dev}" + (".qcow2" if image_format is ImageFormat.QCOW2 else "")
        if not names.is_file_name(name) or (self.has_block_devices and not _LV_NAME.fullmatch(name)):
            raise UnsuitableError(
                f"Disk {dev}: no volume of pool {self.name} can have the name {name!r}. Restore it to a path, with"
                f" --disk {dev}=PATH."
            )
        return Wanted(name, image_format, size_bytes)

    def refuse_existing(self, wanted: Iterable[Wanted]) -> None:
        """Raise StorageError if the pool has one of the volumes; all that it has are named."""
        existing = [one.name for one in wanted if self._has(one.name)]
        if not existing:
            return
        volumes, them = ("a volume", "it") if len(existing) == 1 else ("the volumes", "them")
        # A restore makes logical volumes before it writes them, and other volumes when they are complete.
        who = (
            f"Another restore may still be writing {them}. If an interrupted one has left {them}"
            if self.has_block_devices
            else f"If nothing needs {them} any more"
        )
        raise StorageError(
            f"Pool {self.name} already has {volumes} {', '.join(existing)}, and vbackup never overwrites volumes."
            f" {who}, remove {them}: {' && '.join(self._removal(name) for name in existing)}."
        )

    def _has(self, name: str) -> bool:
        try:
            with self.host.errors(f"look up volume {name} of pool {self.name}"):
                self.pool.storageVolLookupByName(name)
        except MonitorError as err:
            if error_code(err.__cause__) == NO_STORAGE_VOLUME:
                return False
            raise
        return True

    def _removal(self, name: str) -> str:
        """Return the command that removes a volume."""
        virsh = ["virsh", *([] if self.host.uri is None else ["-c", self.host.uri])]
        return shlex.join([*virsh, "vol-delete", "--pool", self.name, name])

    def likely_path(self, one: Wanted) -> Path:
        """Return the path that a volume will have; that of a logical one is libvirt's to decide when it makes it."""
        return self.target / one.name

    @contextmanager
    def created(self, wanted: Mapping[str, Wanted], *, reporter: Reporter) -> Iterator[dict[str, Path]]:
        """Let libvirt make volumes with all of their room, and yield their paths by dev.

        They are removed if the block fails. At the end libvirt looks at the pool again, and finds what else has been
        written to it. Raises StorageError, ConnectionLostError.
        """
        with ExitStack() as stack:
            paths = {}
            for dev, one in wanted.items():
                volume = self._create(one)
                stack.callback(self._delete, volume, one.name, reporter)
                with self.host.errors(f"get the path of volume {one.name}"):
                    paths[dev] = Path(volume.path())
            yield paths
            stack.pop_all()
        self.refresh()

    def _create(self, one: Wanted) -> Any:
        xml = (
            f"<volume><name>{escape(one.name)}</name><capacity unit='bytes'>{one.size_bytes}</capacity>"
            f"<allocation unit='bytes'>{one.size_bytes}</allocation>"
            f"<target><format type='{one.image_format.value}'/></target></volume>"
        )
        try:
            with self.host.errors(f"make volume {one.name} of pool {self.name}"):
                return self.pool.createXML(xml, 0)
        except MonitorError as err:
            raise StorageError(f"{err} Nothing was kept; fix the cause, or give another place.") from err

    def _delete(self, volume: Any, name: str, reporter: Reporter) -> None:
        try:
            with self.host.errors(f"remove volume {name} of pool {self.name}"):
                volume.delete(0)
        except VbackupError as err:
            remedy = f"remove it with '{self._removal(name)}'"
            reporter.warning(f"Volume {name} of pool {self.name} is left over; {remedy}: {err}")

    def refresh(self) -> None:
        """Let libvirt see which volumes there are, and how large; it does so by itself when it starts the pool."""
        try:
            with self.host.errors(f"refresh pool {self.name}"):
                self.pool.refresh(0)
        except VbackupError:
            return

    def refuse_full(self, needed_bytes: int) -> None:
        """Raise NoSpaceError if the pool has less available."""
        if needed_bytes > self.available_bytes:
            raise NoSpaceError(
                f"Pool {self.name} has {self.available_bytes} bytes available, and the disks need {needed_bytes}."
                " Nothing was written. Free some space, or give another pool."
            )


def refresh_of(host: Host, paths: Iterable[Path]) -> None:
    """Let libvirt see what has become of those files that it knows as volumes. What it refuses is left as it is."""
    for path in paths:
        try:
            with host.errors(f"refresh the pool of {path}"):
                host.connection.storageVolLookupByPath(os.fspath(path)).storagePoolLookupByVolume().refresh(0)
        except VbackupError:
            continue


def opened(host: Host, name: str, *, by_link: bool = False) -> Pool:
    """Return the pool with this name. Raises UnsuitableError if no volumes can be made in it for us to write.

    ``by_link``: files of another host can be written, through the link to it.
    """
    is_there = not host.is_local
    if is_there and not (by_link and host.has_link):
        raise UnsuitableError(
            f"{host.real_uri} is another host, and volumes of its pools are written from here only by SSH, as those of"
            " a domain that --define or --start defines there. Run vbackup there."
        )
    try:
        with host.errors(f"look up pool {name}"):
            pool = host.connection.storagePoolLookupByName(name)
    except MonitorError as err:
        if error_code(err.__cause__) != NO_STORAGE_POOL:
            raise
        with host.errors("list the storage pools"):
            known = sorted(one.name() for one in host.connection.listAllStoragePools())
        raise UnsuitableError(
            f"libvirt has no storage pool {name!r}{names.closest(name, known)};"
            f" {'its pools are ' + ', '.join(known) if known else 'it has none at all'}."
        ) from err
    with host.errors(f"look at pool {name}"):
        if not pool.isActive():
            raise UnsuitableError(
                f"Storage pool {name} is not active. Start it"
                f" ('{host.command(f'virsh pool-start {shlex.quote(name)}')}') and run the same command again."
            )
        pool.refresh(0)
        xml = pool.XMLDesc(0)
        match, target = _KIND.match(xml), _TARGET.search(xml)
        available_bytes = int(pool.info()[3])
    kind = match[1] if match is not None else "unknown"
    if kind not in _OF_FILES and kind != _LOGICAL:
        raise UnsuitableError(
            f"Storage pool {name} is of type {kind}. Volumes can be made and written in pools of the types"
            f" {', '.join(sorted(_OF_FILES))} and {_LOGICAL}; give another one, or a path with --disk DEV=PATH."
        )
    if is_there and kind == _LOGICAL:
        raise UnsuitableError(
            f"Storage pool {name} is of type {kind}, and on another host only files are written, of pools of the types"
            f" {', '.join(sorted(_OF_FILES))}. Run vbackup there, or give another pool."
        )
    return Pool(name, kind, available_bytes, host, pool, Path("/", unescape(target[1]) if target is not None else ""))
