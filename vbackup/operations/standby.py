"""A standby of a domain: find it in the libvirt of another host, and read what it is. ``vbackup replicate``.

The standby has the name and UUID of its domain, because it can become that domain. Its definition says what it is like
(vbackup.domain.standby_xml); a domain without that mark is never touched.
"""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

from vbackup.domain import defining, identity, standby_xml
from vbackup.domain.host import DomainHandle, Host
from vbackup.domain.standby_xml import Mark, State
from vbackup.errors import ChainError, DomainNotFoundError, StorageError, UnsuitableError, domain_argument
from vbackup.report import Reporter
from vbackup.repository import standbys
from vbackup.repository.repository import Repository

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standby:
    """A standby that libvirt has."""

    handle: DomainHandle
    mark: Mark

    @property
    def directory(self) -> Path:
        """Where its images are."""
        return Path(self.mark.directory)

    def definition(self) -> str:
        """Return its XML as it is defined. Raises what libvirt's calls raise."""
        return self.handle.definition_xml()


def find(host: Host, uuid: str, repository: Repository) -> Standby | None:
    """Return the standby of a domain at that libvirt, None if that has no domain with this UUID.

    Raises UnsuitableError if it has the domain itself, or the standby of another repository; what libvirt's calls
    raise.
    """
    handle = next((one for one in host.domains() if one.uuid == uuid), None)
    if handle is None:
        return None
    mark = standby_xml.read(handle.definition_xml())
    if mark is None:
        raise UnsuitableError(
            f"Domain {handle.name} ({uuid}) at {host.real_uri} is not a standby: vbackup did not make it, and leaves it"
            " alone. Give the libvirt of another host, or undefine it there."
        )
    if mark.repository != repository.id:
        raise UnsuitableError(
            f"The standby {handle.name} at {host.real_uri} is made from another repository, with the id"
            f" {mark.repository}: give that one with -r, or undefine the standby."
        )
    return Standby(handle, mark)


def get(host: Host, uuid: str, repository: Repository) -> Standby:
    """Return the standby of a domain at that libvirt. Raises DomainNotFoundError if there is none, and as ``find``."""
    found = find(host, uuid, repository)
    if found is None:
        name = repository.name_of(uuid)
        raise DomainNotFoundError(
            name, f"at {host.real_uri}", f"'{replicate(name, host.uri)} --directory DIR' makes a standby"
        )
    return found


def replicate(name: str, uri: str | None) -> str:
    """Return the command that brings the standby of a domain at that libvirt up to date, for people."""
    return f"vbackup replicate {domain_argument(name)} --to {'HOST' if uri is None else shlex.quote(uri)}"


def refuse_half_applied(found: Standby) -> None:
    """Raise UnsuitableError if the images of a standby are in the middle of a backup."""
    if found.mark.state is State.HALF_APPLIED:
        raise UnsuitableError(
            f"The standby {found.handle.name} is half applied: some blocks of its disks are as in backup"
            f" {found.mark.backup}, and others as before. Run '{replicate(found.handle.name, found.handle.host.uri)}'"
            " first, which ends it; it needs the repository only."
        )


def refuse_running(found: Standby) -> None:
    """Raise UnsuitableError if a standby that has not taken over runs, or has saved memory."""
    from vbackup.operations import rollback  # which no backup needs

    if found.handle.is_active():
        again = replicate(found.handle.name, found.handle.host.uri)
        raise UnsuitableError(
            f"The standby {found.handle.name} at {found.handle.host.uri} runs, but has not taken over: it was started"
            f" by hand. Shut it down, with '{found.handle.virsh('shutdown')}', and run '{again}', which undoes what its"
            " guest has written."
        )
    rollback.refuse_running(found.handle)


def warn_taken_over(handle: DomainHandle, repository: Repository, reporter: Reporter) -> None:
    """Warn if a standby of the domain has taken over, and this is not it: what the original still writes is lost."""
    try:
        active = [one for one in standbys.read(repository.path / handle.uuid) if one.taken_over is not None]
    except (ChainError, StorageError) as err:  # which is no reason for no backup
        log.debug("%s", err)
        return
    if not active or standby_xml.read(handle.live_xml()) is not None:
        return
    for one in active:
        assert one.taken_over is not None
        reporter.warning(
            f"The standby at {one.uri} has taken over since {one.taken_over.astimezone():%Y-%m-%d %H:%M:%S}, and this"
            f" is a backup of the original {handle.name}, whose changes since then are lost with a failback."
        )


def refuse_backup(handle: DomainHandle) -> None:
    """Raise UnsuitableError if the domain is a standby that has not taken over: what it is like is a backup already."""
    mark = standby_xml.read(handle.live_xml())
    if mark is not None and mark.state is not State.ACTIVE:
        raise UnsuitableError(
            f"Domain {handle.name} at {handle.host.real_uri} is a standby, as at backup {mark.backup}: back up the"
            " original, with -c for its libvirt. 'vbackup failover' makes the standby the domain."
        )


def define(host: Host, xml: str, handle: DomainHandle | None) -> DomainHandle:
    """Define the standby in the place of what it was. Raises what libvirt's calls raise.

    A domain that was given another name is undefined first: libvirt does not rename it by a definition.
    """
    if handle is not None and handle.name != identity.of(xml).name:
        defining.undefine(handle)
    return defining.define(host, xml)
