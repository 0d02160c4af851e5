"""Delete checkpoints of a tracker: what the client does not need any more costs the guest nothing then."""

from __future__ import annotations

from collections.abc import Sequence

from vbackup.domain import source
from vbackup.domain.access import Access
from vbackup.domain.host import Host
from vbackup.engine import leftovers
from vbackup.errors import VbackupError
from vbackup.operations import session_recovery
from vbackup.report import Reporter
from vbackup.sessions.store import Store
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop


def delete(
    domain_name: str,
    name: str,
    ids: Sequence[str],
    *,
    host: Host,
    store: Store,
    exclusive: bool,
    reporter: Reporter,
    stop: Stop,
) -> Tracker:
    """Delete checkpoints of a tracker, and their bitmaps; return the tracker as it is then.

    Without its newest one, the next session starts from the one before, unless the client names another. Raises
    UnknownTrackerError, UnknownCheckpointError before anything is deleted, SessionAliveError if a session of it is
    open.
    """
    handle = host.domain(domain_name)
    store.tracker(handle.uuid, name, domain_name=handle.name)
    with store.locked(handle.uuid, stop=stop, name=handle.name) as domain:
        tracker = domain.tracker(name, domain_name=handle.name).without(ids)
        session_recovery.refuse_alive(domain, handle, name, reporter=reporter)
        domain.write_tracker(tracker)
        try:
            with source.open_source(handle, reporter=reporter, access=Access(exclusive, check=stop.check)) as opened:
                nodes = opened.disk_nodes(opened.domain.disks)
                naming = session_recovery.naming_of(name)
                for removed in leftovers.remove_uncommitted(
                    opened.monitor, nodes, tracker.ids, naming, sizes=tracker.sizes
                ):
                    reporter.step(f"Removed bitmap {removed}.")
        except VbackupError as err:
            reporter.warning(
                f"The checkpoints are deleted, but their bitmaps stay until the next session of tracker {name}: {err}"
            )
    return tracker
