"""Mark the disk devices of a QEMU, so that a later backup knows whether they have been there all the time.

While a device exists, QEMU has its backing chain open: snapshots and block jobs change the chain below the device, but
nobody else does. So the mark has to begin and end with the device. Of what QMP can set and read there, the boundaries
of a latency histogram are all that disturbs nothing: one boundary of about 150 years, with a random part, so that all
flushes are counted in one bin. Migration does not carry it along, and a process id would be known only on QEMU's host.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Mapping

from vbackup.errors import MalformedError, QmpError
from vbackup.fields import Fields, objects
from vbackup.qemu.block_graph import alias_of
from vbackup.qemu.monitor import Monitor

log = logging.getLogger(__name__)

#: Longer than any request takes, in nanoseconds. A single boundary above it is a mark.
_AGES_NS = 1 << 62


def read(monitor: Monitor) -> Mapping[str, str]:
    """Return the marks by device alias. Raises MalformedError if the reply does not match QAPI."""
    return {alias: str(boundary) for alias, (_, boundary) in _boundaries(monitor).items() if boundary > _AGES_NS}


def ensure(monitor: Monitor, aliases: Collection[str]) -> None:
    """Mark those of the devices that have no mark; QEMU is not asked about none.

    A device that already has another histogram, or that refuses, stays without: that costs fulls, and no more.
    """
    for alias, (qdev, boundary) in _boundaries(monitor).items() if aliases else ():
        if alias not in aliases or boundary:
            continue
        mark = _AGES_NS + 1 + secrets.randbelow(_AGES_NS - 1)
        try:
            monitor.execute("block-latency-histogram-set", {"id": qdev, "boundaries-flush": [mark]})
        except QmpError as err:
            log.warning("Device %s could not be marked: %s", alias, err)


def _boundaries(monitor: Monitor) -> dict[str, tuple[str, int]]:
    """Return qdev and boundary of each device by its alias; the boundary is 0 without a histogram, 1 if it has more."""
    found = {}
    for entry in objects(monitor.execute("query-blockstats"), "query-blockstats", MalformedError):
        qdev = entry.optional_text("qdev")
        if not qdev:
            continue
        stats = entry.object("stats")
        boundary = 0
        if "flush_latency_histogram" in stats:
            boundary = _boundary(stats.object("flush_latency_histogram"))
        found[alias_of(qdev)] = qdev, boundary
    return found


def _boundary(histogram: Fields) -> int:
    """Return its boundary, 1 if it has several or one that vbackup never sets (QAPI's uint64 can be larger)."""
    try:
        boundaries = histogram.integers("boundaries")
    except MalformedError:
        return 1
    return boundaries[0] if len(boundaries) == 1 else 1
