"""Roll the disks of a domain on another host back, through the link to it, by writing only what differs.

The storage daemon that has the images runs there. One here reads the repository, and its jobs write through NBD
(vbackup.engine.rollback_reach). A disk that needs a full restore is not written here: its new image would be made
beside the old one, and exchanged with it, by a vbackup on that host.
"""

from __future__ import annotations

import itertools
import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from vbackup.domain import source
from vbackup.domain.access import Access
from vbackup.domain.host import DomainHandle
from vbackup.domain.offline import OffSource
from vbackup.engine.rollback_reach import There
from vbackup.errors import BusyError, DiskError, RemoteError, domain_argument
from vbackup.hooks import half_restored
from vbackup.operations import rollback
from vbackup.operations.rollback import Rollback, RollbackRequest, RolledBack
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.report import Reporter
from vbackup.repository.chosen import Chosen
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

log = logging.getLogger(__name__)

_NUMBERS = itertools.count(1)


@contextmanager
def prepared(
    request: RollbackRequest,
    handle: DomainHandle,
    point: Chosen,
    *,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> Iterator[Rollback]:
    """Find out what is to be done, as vbackup.operations.rollback.prepared, for images on the host of libvirt.

    SSH leads to that host. Raises DiskError if a disk needs a full restore; what rollback.prepared raises; SshError,
    HelperError, LinkLostError, RemoteError.
    """
    rollback.refuse_running(handle)
    link = handle.host.link(check=stop.check)
    access = Access(request.exclusive, writes_data=True, check=stop.check)
    with (
        source.open_source(handle, reporter=reporter, access=access) as opened,
        StorageDaemon(reporter, is_only_read=True) as here,
        ExitStack() as stack,
    ):
        if not isinstance(opened, OffSource):
            raise BusyError(f"Domain {handle.name} has been started; run the same command again when it is off.")
        path = f"{link.directory()}/rollback-{next(_NUMBERS)}"
        opened.monitor.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": path}}})
        ready = rollback.planned(
            request,
            opened,
            point,
            stack,
            repository=repository,
            reporter=reporter,
            stop=stop,
            reach=There(here, opened.monitor, stack.enter_context(link.connected(path))),
            instead=_instead(handle, point),
        )
        _refuse_full(ready, handle, point)
        yield ready


def run(ready: Rollback, handle: DomainHandle, *, command: str, stop: Stop) -> list[RolledBack]:
    """Write the disks, and return what was done. Raises what Rollback.run raises.

    ``command`` restores them if this run is interrupted. Until they are whole, the hook script of that host refuses to
    start the domain, if it is installed there.
    """
    link = handle.host.link(check=stop.check)
    record = os.fspath(half_restored.DIRECTORY / handle.uuid)

    def about_to_write(devs: Sequence[str]) -> None:
        text = half_restored.text(devs, domain=handle.name, command=command)
        try:
            link.run(["mkdir", "-p", "-m", "0700", os.fspath(half_restored.DIRECTORY)])
            link.write_file(record, [text.encode()])
        except RemoteError as err:  # a user who is not root, as on this host
            log.debug("%s", err)

    done = ready.run(about_to_write=about_to_write)
    try:
        link.remove_file(record)
    except RemoteError as err:
        log.debug("%s", err)
    return done


def _refuse_full(ready: Rollback, handle: DomainHandle, point: Chosen) -> None:
    for dev, reason in ready.reasons.items():
        raise DiskError(
            dev,
            f"only changed blocks can be restored in place on {handle.host.link().host}, and this disk needs a full"
            f" restore, since {reason.rstrip('.')}. Run vbackup on that host, or {_instead(handle, point)}.",
        )


def _instead(handle: DomainHandle, point: Chosen) -> str:
    """Return how the domain gets new images of the point; undefining it leaves its files as they are."""
    name, uri = domain_argument(handle.name), shlex.quote(handle.host.real_uri)
    return (
        f"restore to a new directory DIR there: run 'virsh -c {uri} undefine {name} --keep-nvram', and then 'vbackup"
        f" restore {name} --backup {point.backup.id} --define -c {uri} --output DIR'"
    )
