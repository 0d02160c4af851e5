"""Try a failover without doing it: ``vbackup failover --test``. A copy of the standby boots, and nothing of it is kept.

The copy runs on the host of the standby, reads the standby's images, writes to overlays without names, and has another
name and UUID and no network (vbackup.operations.boot_test). The standby stays what it is; while the test runs, QEMU's
locks keep it from starting.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vbackup.domain import domain_xml, linked_images
from vbackup.domain.host import Host
from vbackup.domain.standby_xml import State
from vbackup.errors import DiskError, UnsuitableError
from vbackup.images.flatten import Layer
from vbackup.operations import boot_test, standby
from vbackup.operations.boot_place import BootPlace, Here
from vbackup.operations.boot_test import BootRequest
from vbackup.operations.standby import Standby
from vbackup.qemu import qcow2
from vbackup.remote.link import Link
from vbackup.report import Reporter
from vbackup.repository import chosen
from vbackup.repository.boot_result import BootResult
from vbackup.repository.choice import Wanted
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@dataclass(frozen=True)
class TriedFailover:
    """What a copy of the standby has shown."""

    name: str
    uuid: str
    uri: str
    backup_id: str  #: that the standby is as
    result: BootResult


def run(
    request: BootRequest,
    domain: str,
    uri: str,
    *,
    host: Host,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> TriedFailover:
    """Boot a copy of the standby of a domain (name or UUID) at ``uri``, whose host it is, and return what that showed.

    That a guest does not boot is a result. Raises DomainNotFoundError, UnsuitableError (the standby is half applied,
    runs, or has taken over, or its host is another one that SSH does not lead to), DiskError, and what boot_test.run
    raises; of another host also SshError, HelperError, RemoteError, LinkLostError.
    """
    uuid = repository.find(domain)
    found = standby.get(host, uuid, repository)
    standby.refuse_half_applied(found)
    if found.mark.state is State.ACTIVE:
        raise UnsuitableError(f"The standby {found.handle.name} has taken over: there is nothing to test.")
    standby.refuse_running(found)
    with chosen.held(repository, uuid, Wanted(found.mark.backup), stop=stop) as point:
        link = None
        place: BootPlace
        if host.is_local:
            place = Here(host, reporter)
        else:
            link, place = _there(host, reporter, stop)
        layers = {dev: [_layer(found, dev, link)] for dev in point.chains}
        result = boot_test.of_images(
            request, point, layers, place, host=host, repository=repository, reporter=reporter, stop=stop
        )
    return TriedFailover(found.handle.name, uuid, uri, found.mark.backup, result)


def _there(host: Host, reporter: Reporter, stop: Stop) -> tuple[Link, BootPlace]:
    """Return the link to the other host, and that host. Raises UnsuitableError if SSH does not lead to it."""
    if not host.has_link:
        raise UnsuitableError(
            f"{host.real_uri} is another host, to which a test of a failover needs SSH: use a URI such as"
            " qemu+ssh://root@HOST/system."
        )
    from vbackup.operations.boot_there import There  # which a test on this host does without

    return host.link(check=stop.check), There(host, reporter, stop=stop)


def _layer(found: Standby, dev: str, link: Link | None) -> Layer:
    """Return the image of a disk of the standby. Raises DiskError if it is not one that vbackup has made."""
    path = next((one.path for one in domain_xml.parse(found.definition()).disks if one.dev == dev), None)
    if path is None:
        makes = standby.replicate(found.handle.name, found.handle.host.uri)
        raise DiskError(dev, f"the standby has no such disk; '{makes}' makes it.")
    header = qcow2.header_of_source(Path(path)) if link is None else linked_images.header_of(link, dev, path)
    if header.backing_file is not None or header.has_data_file:
        raise DiskError(dev, f"{path} depends on another image, and the standby's own does not.")
    return Layer(Path(path), header.virtual_size_bytes)
