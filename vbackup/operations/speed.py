"""Change the speed of a running backup, which is that of another vbackup process: ``vbackup speed``.

The ids of the jobs show that they are vbackup's (vbackup.names), so this does not need the domain's lock, which the
other process holds. vbackup.engine.latency_throttle changes the speed of a process's own jobs.
"""

from __future__ import annotations

from dataclasses import dataclass

from vbackup import names
from vbackup.domain.host import Host
from vbackup.domain.passthrough import Passthrough
from vbackup.errors import DiskError, NoBackupRunningError, UnsuitableError
from vbackup.names import JobName
from vbackup.qemu import jobs
from vbackup.qemu.monitor import Monitor


@dataclass(frozen=True)
class SpeedRequest:
    """The arguments of ``vbackup speed``."""

    domain: str  #: name or UUID
    speed_bytes_s: int | None  #: for each disk's job; None: no limit
    disks: tuple[str, ...] = ()  #: only these; empty: all
    repository_id: str | None = None  #: only backups to this repository; None: to all


@dataclass(frozen=True)
class Changed:
    """A job that got the new speed."""

    name: JobName
    before_bytes_s: int | None  #: None: no limit


@dataclass(frozen=True)
class SpeedChanged:
    """The domain, and its jobs that got the new speed."""

    domain_name: str
    domain_uuid: str
    jobs: tuple[Changed, ...]


def run(request: SpeedRequest, *, host: Host) -> SpeedChanged:
    """Set the speed of the running jobs, and return those that got it.

    Raises DomainNotFoundError, UnsuitableError (the domain is off, so the jobs run in a storage daemon that only the
    other vbackup can reach), MigratingError, NoBackupRunningError, and DiskError (the backup does not, or no longer,
    copy the disk).
    """
    handle = host.domain(request.domain)
    if not handle.is_active():
        raise UnsuitableError(
            f"Domain {handle.name} is off: if it is being backed up, the jobs run in a storage daemon that only that"
            " vbackup can reach. Nothing was changed; stop that backup and start it again with another --speed."
        )
    handle.refuse_migration()  # before a monitor command waits for it, in vain
    with Passthrough(handle) as monitor:
        changed = change(monitor, request, domain_name=handle.name)
    return SpeedChanged(handle.name, handle.uuid, changed)


def change(monitor: Monitor, request: SpeedRequest, *, domain_name: str) -> tuple[Changed, ...]:
    """Set the speed of the requested jobs in this QEMU; return those that got it.

    Raises NoBackupRunningError, DiskError.
    """
    running = {}
    for job_id, before_bytes_s in jobs.speeds(monitor).items():
        name = names.parse_job(job_id)
        if name is not None and request.repository_id in (None, name.repository_id):
            running[job_id] = Changed(name, before_bytes_s)
    which = f" to repository {request.repository_id}" if request.repository_id else ""
    if not running:
        raise NoBackupRunningError(domain_name, which)
    devs = sorted({job.name.dev for job in running.values()})
    for dev in request.disks:
        if dev not in devs:
            raise DiskError(
                dev, f"no backup is copying it; disks being copied: {', '.join(devs)}. Nothing was changed."
            )
    wanted = {job_id: job for job_id, job in running.items() if not request.disks or job.name.dev in request.disks}
    changed = tuple(job for job_id, job in wanted.items() if jobs.set_speed(monitor, job_id, request.speed_bytes_s))
    if not changed:  # they ended in the meantime
        raise NoBackupRunningError(domain_name, which)
    return changed
