"""Decide where each disk of a restore goes: to a file in the output directory, to the user's path, or to a pool.

A volume of a pool of files is a new file in the pool's directory, and libvirt looks at the pool when it is complete: so
a restore that is killed leaves nothing under the name of a volume. Only logical volumes are made by libvirt, before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from vbackup import files
from vbackup.domain import pools
from vbackup.domain.pools import Pool
from vbackup.images import destination
from vbackup.images.destination import Destination
from vbackup.images.restoring import needed_bytes
from vbackup.model import ImageFormat
from vbackup.qemu.qemu_img import Output
from vbackup.report import Reporter
from vbackup.repository.history import Link
from vbackup.repository.repository import Repository


@dataclass(frozen=True)
class Places:
    """What the user says of the places of disks."""

    output: Path  #: absolute
    image_format: ImageFormat = ImageFormat.QCOW2
    paths: Mapping[str, Path] = field(default_factory=dict)  #: of disks (dev): a block device, or a new file
    pool: Pool | None = None  #: for the others; None: the output directory


def plan(
    places: Places, chains: Mapping[str, Sequence[Link]], *, name: str, repository: Repository
) -> list[Destination]:
    """Return where each disk goes, in the order of ``chains``; ``name`` is that of the restored domain.

    Raises StorageError if a disk cannot go there or something is there already, NoSpaceError if the pool is too small,
    UnsuitableError if a volume cannot have its name.
    """
    planned = volumes(places, chains, name=name, repository=repository)
    if places.pool is not None and planned and not places.pool.has_block_devices:
        files.refuse_unwritable(places.pool.target)
    return [
        planned[dev]
        if dev in planned
        else destination.of_path(dev, places.paths[dev], places.image_format)
        if dev in places.paths
        else Destination(dev, places.output / f"{dev}.{places.image_format.value}", places.image_format)
        for dev in chains
    ]


def volumes(
    places: Places, chains: Mapping[str, Sequence[Link]], *, name: str, repository: Repository
) -> dict[str, Destination]:
    """Return the volumes of the pool for disks without another place, by dev; none without a pool.

    Raises StorageError if it has one of them, NoSpaceError, UnsuitableError.
    """
    pool = places.pool
    if pool is None:
        return {}
    sizes = {dev: links[0].image.virtual_size_bytes for dev, links in chains.items() if dev not in places.paths}
    wanted = {dev: pool.wanted(name, dev, places.image_format, size) for dev, size in sizes.items()}
    pool.refuse_existing(wanted.values())
    takes = sizes if pool.has_block_devices else {dev: needed_bytes(chains[dev], repository) for dev in sizes}
    pool.refuse_full(sum(takes.values()))
    output = Output.DEVICE if pool.has_block_devices else Output.NEW
    return {
        dev: Destination(dev, pool.likely_path(one), one.image_format, output, one.name) for dev, one in wanted.items()
    }


@contextmanager
def made(
    planned: Sequence[Destination], places: Places, chains: Mapping[str, Sequence[Link]], *, reporter: Reporter
) -> Iterator[list[Destination]]:
    """Make the volumes that libvirt has to make, and yield where the disks go; if the block fails, they are removed.

    Without a failure, libvirt knows all volumes at the end. Raises StorageError, ConnectionLostError.
    """
    pool = places.pool
    if pool is None:
        yield [*planned]
        return
    wanted = {
        one.dev: pools.Wanted(one.volume, one.image_format, chains[one.dev][0].image.virtual_size_bytes)
        for one in planned
        if one.volume is not None and one.output is Output.DEVICE
    }
    with pool.created(wanted, reporter=reporter) as paths:
        yield [replace(one, path=paths.get(one.dev, one.path)) for one in planned]
