"""Look into the file systems of a backup: its disks in a storage daemon, and libguestfs's appliance on them.

``vbackup ls``, ``cp``, ``cat`` and ``search`` stand on this. The appliance gets the disks as NBD exports, read-only, so
that neither it nor what it runs has a path to the repository. It takes some seconds to start: one serves a command.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from vbackup.images import appliance, guest_address, scratch
from vbackup.images.appliance import Drive
from vbackup.images.flatten import layers_of
from vbackup.images.guest import Guest, Keys
from vbackup.images.guest_files import GuestFiles
from vbackup.images.opened_point import OpenedPoint
from vbackup.model import Backup
from vbackup.report import Reporter
from vbackup.repository import chosen
from vbackup.repository.choice import Wanted
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class Inside:
    """A backup that is looked into."""

    backup: Backup
    guest: Guest
    files: GuestFiles


@contextmanager
def opened(
    domain: str,
    wanted: Wanted,
    *,
    where: str | None,
    keys: Keys,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> Iterator[Inside]:
    """Open a backup of a domain (name or UUID) during the block; nothing is mounted yet.

    ``where``: what of it will be mounted; if that is on one disk, the appliance gets no other. Raises what
    vbackup.repository.chosen.shown raises, UnsuitableError if guestfish or the storage daemon is not installed,
    StorageDaemonGoneError if an image cannot be opened, ApplianceError if the appliance does not start.
    """
    appliance.refuse_missing()
    uuid = repository.find(domain)
    with (
        chosen.shown(repository, uuid, wanted, reporter=reporter, stop=stop) as found,
        ExitStack() as stack,
    ):
        if where is not None:
            guest_address.refuse_unknown_disk(where, found.choice.disks, backup_id=found.backup.id)
        head = (where or "").partition("/")[0]
        devs = [head] if head in found.choice.disks else list(found.choice.disks)
        layers = {dev: layers_of(found.paths(repository, dev), repository.served) for dev in devs}
        directory = stack.enter_context(scratch.directory(scratch.place_of_sockets()))
        point = stack.enter_context(OpenedPoint(layers, reporter=reporter))
        point.listen(directory / "nbd")
        for dev in devs:
            point.export_nbd(dev)
        drives = [Drive(directory / "nbd", dev) for dev in devs]
        session = stack.enter_context(appliance.session(drives, stop=stop, step=reporter.step))
        yield Inside(found.backup, Guest(session, devs, keys=keys, warn=reporter.warning), GuestFiles(session))
