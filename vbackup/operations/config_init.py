"""Propose a configuration from what libvirt has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from vbackup.config.template import FoundDomain, template
from vbackup.domain import domain_xml, selection
from vbackup.domain.host import DomainHandle, Host
from vbackup.errors import VbackupError

#: Where backups are proposed to lie.
REPOSITORY = Path("/var/backups/vbackup")


def propose(uris: Sequence[str], *, repository: Path | None = None) -> str:
    """Return the text of a configuration for the domains of these hosts; none: those of libvirt's default.

    Raises HostUnreachableError.
    """
    found: list[FoundDomain] = []
    reached = []
    for uri in uris or ("",):
        with Host(uri or None) as host:
            reached.append(host.real_uri)
            found += _domains(host)
    path = (REPOSITORY if repository is None else repository).absolute()
    return template(
        found, repository=os.fspath(path), free_bytes=_free_bytes(path), connect=uris, where=", ".join(reached)
    )


def _domains(host: Host) -> list[FoundDomain]:
    reasons = {one.uuid: one.reason for one in selection.those_of_all(host, ()).skipped}
    return [_found(handle, reasons.get(handle.uuid)) for handle in sorted(host.domains(), key=lambda one: one.name)]


def _found(handle: DomainHandle, reason: str | None) -> FoundDomain:
    try:
        disks = domain_xml.parse(handle.live_xml()).disks
        sizes = [handle.capacity_bytes(disk.dev) for disk in disks]
        size = sum(one for one in sizes if one is not None) if None not in sizes else None
        return FoundDomain(handle.name, handle.is_active(), len(disks), size, reason)
    except VbackupError as err:
        return FoundDomain(handle.name, False, 0, None, reason or str(err))


def _free_bytes(path: Path) -> int | None:
    """Return the free room where the directory is, or would be."""
    try:
        return shutil.disk_usage(next(one for one in (path, *path.parents) if one.is_dir())).free
    except OSError:
        return None
