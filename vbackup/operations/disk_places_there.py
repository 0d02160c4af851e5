"""Decide where each disk of a restore to another host goes: to the output directory, the user's path, or a pool.

All are new files there, which a directory beside each has until they are complete. So a volume of a pool is a file in
the pool's directory, and libvirt looks at the pool afterwards.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vbackup.errors import NoSpaceError, StorageError, UnsuitableError
from vbackup.images.destination import Destination
from vbackup.images.restoring import needed_bytes
from vbackup.operations import disk_places
from vbackup.operations.disk_places import Places
from vbackup.remote.link import Link
from vbackup.repository.history import Link as ChainLink
from vbackup.repository.repository import Repository


def plan(
    places: Places,
    chains: Mapping[str, Sequence[ChainLink]],
    *,
    name: str,
    repository: Repository,
    link: Link,
    is_missing: Callable[[str | Path], bool],
) -> list[Destination]:
    """Return where each disk goes, in the order of ``chains``; ``name`` is that of the restored domain.

    ``is_missing`` says whether that host has no such file. Raises what disk_places.plan raises, UnsuitableError also
    for a block device, RemoteError, LinkLostError.
    """
    volumes = disk_places.volumes(places, chains, name=name, repository=repository)
    return [
        volumes[dev]
        if dev in volumes
        else _of_path(dev, places, link, is_missing)
        if dev in places.paths
        else Destination(dev, places.output / f"{dev}.{places.image_format.value}", places.image_format)
        for dev in chains
    ]


def _of_path(dev: str, places: Places, link: Link, is_missing: Callable[[str | Path], bool]) -> Destination:
    path = places.paths[dev]
    refuse_relative(path, option=f"--disk {dev}=")
    if not is_missing(path) and stat.S_ISBLK(link.stat(os.fspath(path))["mode"]):
        raise UnsuitableError(
            f"Disk {dev}: {path} is a block device of {link.host}, and there only new files are written. Run vbackup on"
            " that host."
        )
    if is_missing(path.parent) or not stat.S_ISDIR(link.stat(os.fspath(path.parent))["mode"]):
        raise StorageError(
            f"Disk {dev}: there is no directory {path.parent} on {link.host}; make it, or give another path."
        )
    return Destination(dev, path, places.image_format)


def refuse_no_room(
    destinations: Sequence[Destination],
    chains: Mapping[str, Sequence[ChainLink]],
    *,
    repository: Repository,
    link: Link,
    is_missing: Callable[[str | Path], bool],
) -> None:
    """Raise NoSpaceError if the files do not fit on the file systems that they will be on."""
    needed: dict[int, int] = {}
    for one in destinations:
        directory = os.fspath(existing(one.path.parent, is_missing))
        device, free_bytes = link.stat(directory)["dev"], link.free_bytes(directory)
        needed[device] = needed.get(device, 0) + needed_bytes(chains[one.dev], repository)
        if free_bytes < needed[device]:
            raise NoSpaceError(
                f"{directory} on {link.host} has {free_bytes} bytes free, but the disks take up to {needed[device]}:"
                " free some space there, or give another directory with --output."
            )


def existing(path: Path, is_missing: Callable[[str | Path], bool]) -> Path:
    """Return the nearest directory that is there, from ``path`` upwards."""
    return next(one for one in (path, *path.parents) if not is_missing(one))


def refuse_relative(path: Path, *, option: str) -> None:
    """Raise UnsuitableError if a path depends on where vbackup was started. ``option``: with what it was given."""
    if not path.is_absolute() or ".." in path.parts:
        raise UnsuitableError(
            f"The path {path} would be on the host of libvirt: give it as an absolute path, such as"
            f" {option}/var/lib/libvirt/images/web."
        )
