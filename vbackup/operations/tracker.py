"""List the trackers of pull sessions, or forget one with everything that it has in a domain."""

from __future__ import annotations

from vbackup.domain import source
from vbackup.domain.access import Access
from vbackup.domain.host import DomainHandle, Host
from vbackup.engine import leftovers
from vbackup.errors import DomainNotFoundError, StorageError, UsageError, VbackupError, domain_argument
from vbackup.operations import session_recovery
from vbackup.report import Reporter
from vbackup.sessions.store import Store
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop


def trackers(*, store: Store, reporter: Reporter, uuid: str | None = None) -> list[Tracker]:
    """Return the trackers of all domains, or of one; one that is damaged is a warning. Raises StorageError."""
    uuids = store.uuids() if uuid is None else [uuid]
    for each in uuids:
        for err in store.damaged_trackers(each):
            reporter.warning(str(err))
    return [tracker for each in uuids for tracker in store.trackers(each)]


def forget(
    domain_name: str, name: str, *, host: Host, store: Store, exclusive: bool, reporter: Reporter, stop: Stop
) -> Tracker:
    """Remove a tracker, and its bitmaps from the domain's disks; return it as it was. Its next session is full.

    One that is damaged is returned without checkpoints, and a warning says why. The domain need not be there any more;
    its disks are left alone then. Raises UnknownTrackerError, SessionAliveError if a session of it is open,
    DomainNotFoundError if the domain is unknown to libvirt and to the trackers, and what opening the disks raises.
    """
    handle, uuid = _domain(domain_name, name, host, store)
    known_as = domain_name if handle is None else handle.name
    try:
        tracker = store.tracker(uuid, name, domain_name=known_as)
    except StorageError as err:
        reporter.warning(str(err))
        tracker = Tracker(name, known_as, uuid)
    with store.locked(uuid, stop=stop, name=known_as) as domain:
        session_recovery.refuse_alive(domain, handle, name, reporter=reporter)
        # First: whatever happens then, no bitmap of it is a base any more.
        domain.forget_tracker(name)
        if handle is None:
            return tracker
        try:
            with source.open_source(handle, reporter=reporter, access=Access(exclusive, check=stop.check)) as opened:
                naming = session_recovery.naming_of(name)
                nodes = opened.disk_nodes(opened.domain.disks)
                for removed in leftovers.remove_all(opened.monitor, nodes, naming):
                    reporter.step(f"Removed bitmap {removed}.")
        except VbackupError as err:
            reporter.warning(
                f"Tracker {name} is forgotten, but its bitmaps stay: {err} They do no harm;"
                f" '{handle.host.command(f'vbackup bitmap remove {domain_argument(handle.name)} NAME')}' removes each."
            )
    return tracker


def _domain(domain_name: str, name: str, host: Host, store: Store) -> tuple[DomainHandle | None, str]:
    """Return the domain, None if it is gone, and its UUID, which the tracker knows then.

    Raises DomainNotFoundError, UsageError if domains with several UUIDs had the name.
    """
    try:
        handle = host.domain(domain_name)
    except DomainNotFoundError:
        uuids = [uuid for uuid in store.uuids() if _is_of(store, uuid, domain_name, name)]
        if not uuids:
            raise
    else:
        return handle, handle.uuid
    if len(uuids) > 1:
        raise UsageError(f"Several domains had the name {domain_name!r}: give the UUID of one: {', '.join(uuids)}.")
    try:
        return host.domain(uuids[0]), uuids[0]  # it has another name by now
    except DomainNotFoundError:
        return None, uuids[0]


def _is_of(store: Store, uuid: str, domain_name: str, name: str) -> bool:
    """Return True if a domain has such a tracker, and has or had this name or UUID."""
    try:
        tracker = store.tracker_or_none(uuid, name)
    except StorageError:  # the UUID is in the path of the file, the name is not
        return uuid == domain_name
    return tracker is not None and domain_name in (tracker.domain_name, uuid)
