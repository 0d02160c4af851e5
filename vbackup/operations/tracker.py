"""List the trackers of pull sessions, or forget one with everything that it has in a domain."""

from __future__ import annotations

from vbackup.domain import source
from vbackup.domain.access import Access
from vbackup.domain.host import Host
from vbackup.engine import leftovers
from vbackup.errors import SessionAliveError, VbackupError
from vbackup.operations import session_recovery
from vbackup.report import Reporter
from vbackup.sessions.checkpoint import iso
from vbackup.sessions.store import Store
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop


def trackers(*, store: Store, uuid: str | None = None) -> list[Tracker]:
    """Return the trackers of all domains, or of one. Raises StorageError."""
    uuids = store.uuids() if uuid is None else [uuid]
    return [tracker for each in uuids for tracker in store.trackers(each)]


def forget(
    domain_name: str, name: str, *, host: Host, store: Store, exclusive: bool, reporter: Reporter, stop: Stop
) -> Tracker:
    """Remove a tracker, and its bitmaps from the domain's disks; return it as it was. Its next session is full.

    Raises UnknownTrackerError, SessionAliveError if a session of it is open, and what opening the disks raises.
    """
    handle = host.domain(domain_name)
    tracker = store.tracker(handle.uuid, name, domain_name=handle.name)
    with store.locked(handle.uuid, stop=stop, name=handle.name) as domain:
        for session in session_recovery.settle(domain, handle, reporter=reporter):
            if session.tracker == name:
                raise SessionAliveError(session.id, name, iso(session.expires))
        # First: whatever happens then, no bitmap of it is a base any more.
        domain.forget_tracker(name)
        try:
            with source.open_source(handle, reporter=reporter, access=Access(exclusive, check=stop.check)) as opened:
                naming = session_recovery.naming_of(name)
                nodes = opened.disk_nodes(opened.domain.disks)
                for removed in leftovers.remove_all(opened.monitor, nodes, naming):
                    reporter.step(f"Removed bitmap {removed}.")
        except VbackupError as err:
            reporter.warning(
                f"Tracker {name} is forgotten, but its bitmaps stay: {err} They do no harm; 'vbackup bitmap remove'"
                " removes them."
            )
    return tracker
