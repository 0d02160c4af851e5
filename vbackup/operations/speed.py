"""Change how fast a backup copies that another vbackup is making: ``vbackup speed``.

The jobs are known by their ids (vbackup.names), so the domain's lock, which the other one holds, is not needed.
vbackup.engine.latency_throttle changes the speed of a run's own jobs.
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
    """What is asked for; the fields are the arguments of ``vbackup speed``."""

    domain: str  #: name or UUID
    speed_bytes_s: int | None  #: of each disk's job; None: no limit
    disks: tuple[str, ...] = ()  #: only these, if any
    repository_id: str | None = None  #: only backups into this one


@dataclass(frozen=True)
class Changed:
    """A job that has the new speed."""

    name: JobName
    before_bytes_s: int | None  #: None: no limit


@dataclass(frozen=True)
class SpeedChanged:
    """What was done."""

    domain_name: str
    domain_uuid: str
    jobs: tuple[Changed, ...]


def run(request: SpeedRequest, *, host: Host) -> SpeedChanged:
    """Set the speed of the running jobs, and return those that took it.

    Raises DomainNotFoundError; UnsuitableError for a domain that is off, whose disks only the storage daemon of the
    other vbackup has; NoBackupRunningError; DiskError where the backup copies no such disk, or not any more.
    """
    handle = host.domain(request.domain)
    if not handle.is_active():
        raise UnsuitableError(
            f"Domain {handle.name} is off: if it is being backed up, that is done by a storage daemon which only that"
            " vbackup reaches. Nothing was changed; stop it and begin with another --speed."
        )
    with Passthrough(handle) as monitor:
        jobs = change(monitor, request, domain_name=handle.name)
    return SpeedChanged(handle.name, handle.uuid, jobs)


def change(monitor: Monitor, request: SpeedRequest, *, domain_name: str) -> tuple[Changed, ...]:
    """Set the speed of the jobs that are asked for in this QEMU. Raises NoBackupRunningError, DiskError."""
    ours = {}
    for job_id, before_bytes_s in jobs.speeds(monitor).items():
        name = names.parse_job(job_id)
        if name is not None and request.repository_id in (None, name.repository_id):
            ours[job_id] = Changed(name, before_bytes_s)
    which = f" into repository {request.repository_id}" if request.repository_id else ""
    if not ours:
        raise NoBackupRunningError(domain_name, which)
    copying = sorted({one.name.dev for one in ours.values()})
    for dev in request.disks:
        if dev not in copying:
            raise DiskError(dev, f"no backup is copying it; being copied: {', '.join(copying)}. Nothing was changed.")
    wanted = {job_id: one for job_id, one in ours.items() if not request.disks or one.name.dev in request.disks}
    changed = tuple(one for job_id, one in wanted.items() if jobs.set_speed(monitor, job_id, request.speed_bytes_s))
    if not changed:  # they have ended in this very moment
        raise NoBackupRunningError(domain_name, which)
    return changed
