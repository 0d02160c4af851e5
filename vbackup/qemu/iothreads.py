"""Find the iothread of a disk in QEMU.

A disk on virtio-blk has it in its device, one on virtio-scsi in its controller. (A device with an iothread for each of
its queues, iothread-vq-mapping, exists since QEMU 9.0, where nobody has to ask.)
"""

from __future__ import annotations

from vbackup.errors import QmpError
from vbackup.qemu.monitor import Monitor


def iothread_of(monitor: Monitor, alias: str) -> str | None:
    """Return the name of the iothread that the device with this alias is configured with, used or not; else None."""
    if not monitor.execute("query-iothreads"):
        return None
    device = f"/machine/peripheral/{alias}"
    bus = _property(monitor, device, "parent_bus")
    paths = [device, *([bus.rpartition("/")[0]] if bus else [])]
    for path in paths:
        iothread = _property(monitor, path, "iothread")
        if iothread:
            return iothread.rpartition("/")[2]
    return None


def _property(monitor: Monitor, path: str, name: str) -> str | None:
    """Return a link of a device (QOM); None if it has none of this name."""
    try:
        value = monitor.execute("qom-get", {"path": path, "property": name})
    except QmpError:
        return None
    return value if isinstance(value, str) else None
