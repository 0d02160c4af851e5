"""The state of everything as metrics of Prometheus, by prometheus-client, which is an extra. Does no I/O.

Names, labels and units are as https://prometheus.io/docs/practices/naming has them; vbackup-metrics(7) lists them.
A domain is told by name and UUID, since two can have had a name, and by its repository. What is not known is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import vbackup
from vbackup.errors import MissingPackageError
from vbackup.overview import answer
from vbackup.overview.state import DomainState, JobState, Overview, RepositoryState

if TYPE_CHECKING:
    from datetime import datetime

#: Not "job", which Prometheus itself gives to what it scrapes.
_JOB_LABEL = "backup_job"
_DOMAIN = ("domain", "uuid", "repository", _JOB_LABEL)
_TARGET = (*_DOMAIN, "target")
_JOB = (_JOB_LABEL, "repository")
_REPOSITORY = ("repository", "path")
_DAY_S = 86400

#: All metrics: their help, and their labels. Each is a gauge.
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "vbackup_info": ("Version of vbackup; always 1.", ("version",)),
    "vbackup_health": ("The worst of all: 0 ok, 1 warning, 2 critical, 3 nothing to judge.", ()),
    "vbackup_status_timestamp_seconds": ("When all this was found out.", ()),
    "vbackup_warnings": ("Number of warnings, such as a host that could not be asked for its domains.", ()),
    "vbackup_domain_health": ("How a domain is: 0 ok, 1 warning, 2 critical, 3 not known.", _DOMAIN),
    "vbackup_domain_backups": ("Number of backups of a domain; 0: it was never backed up.", _DOMAIN),
    "vbackup_domain_last_backup_timestamp_seconds": ("The moment of the newest good backup.", _DOMAIN),
    "vbackup_domain_last_backup_size_bytes": ("Size of its images.", _DOMAIN),
    "vbackup_domain_last_backup_changed_bytes": ("Data that it copied.", _DOMAIN),
    "vbackup_domain_max_age_seconds": ("How old the newest backup may be, as the job promises.", _DOMAIN),
    "vbackup_domain_overdue": ("1 if it is older than that.", _DOMAIN),
    "vbackup_domain_gone": ("1 if libvirt does not have the domain any more.", _DOMAIN),
    "vbackup_domain_failed": ("1 if the last run could not back it up.", _DOMAIN),
    "vbackup_domain_unusual": ("1 if much more than usual has changed.", _DOMAIN),
    "vbackup_domain_size_bytes": ("Size of the images of all backups.", _DOMAIN),
    "vbackup_domain_chain_images": ("Number of images that the newest backup is restored from.", _DOMAIN),
    "vbackup_domain_damaged_backups": ("Number of backups in which a verify has found damage.", _DOMAIN),
    "vbackup_domain_remembered": ("1 if its repository cannot be read now, and all this is from before.", _DOMAIN),
    "vbackup_domain_last_verify_timestamp_seconds": ("When the last verify of one of its backups ended.", _DOMAIN),
    "vbackup_copy_newest_timestamp_seconds": ("The moment of the newest backup at a target.", _TARGET),
    "vbackup_copy_missing_backups": ("Number of newer backups that are not there.", _TARGET),
    "vbackup_job_health": ("How a job is: 0 ok, 1 warning, 2 critical.", _JOB),
    "vbackup_job_running": ("1 if it runs now.", _JOB),
    "vbackup_job_missed": ("1 if its last time has passed, and no run has begun since.", _JOB),
    "vbackup_job_last_run_timestamp_seconds": ("When its last run began.", _JOB),
    "vbackup_job_last_run_duration_seconds": ("How long that took.", _JOB),
    "vbackup_job_last_run_status": ("Exit status of that.", _JOB),
    "vbackup_job_last_success_timestamp_seconds": ("When the last run without a failure began.", _JOB),
    "vbackup_job_next_run_timestamp_seconds": ("When it runs next.", _JOB),
    "vbackup_repository_up": ("1 if the repository can be read.", _REPOSITORY),
    "vbackup_repository_health": ("How it is: 0 ok, 1 warning, 2 critical.", _REPOSITORY),
    "vbackup_repository_free_bytes": ("Free space on its filesystem.", _REPOSITORY),
    "vbackup_repository_filesystem_size_bytes": ("Size of its filesystem.", _REPOSITORY),
    "vbackup_repository_backups_size_bytes": ("Size of the images of all backups.", _REPOSITORY),
    "vbackup_repository_growth_bytes_per_second": ("By how much its filesystem fills up.", _REPOSITORY),
    "vbackup_repository_full_timestamp_seconds": ("When it is full if that goes on.", _REPOSITORY),
}

#: Name, values of the labels, value.
_Sample = tuple[str, tuple[str, ...], float]


def samples(overview: Overview) -> Iterator[_Sample]:
    """Yield all samples."""
    yield "vbackup_info", (vbackup.__version__,), 1.0
    yield "vbackup_health", (), float(overview.health)
    yield "vbackup_status_timestamp_seconds", (), overview.time.timestamp()
    yield "vbackup_warnings", (), float(len(overview.warnings))
    for domain in overview.domains:
        yield from _domain(domain)
    for job in overview.jobs:
        yield from _labelled("vbackup_job_", _job(job), (job.name, job.repository))
    for repository in overview.repositories:
        values = _repository(repository, overview.time)
        yield from _labelled("vbackup_repository_", values, (repository.name, repository.path))


def exposition(overview: Overview) -> bytes:
    """Return the text that Prometheus and node-exporter read. Raises MissingPackageError."""
    client, core = _client()
    families = {
        name: core.GaugeMetricFamily(name, documentation, labels=labels)
        for name, (documentation, labels) in METRICS.items()
    }
    for name, labels, value in samples(overview):
        families[name].add_metric([_as_utf8(label) for label in labels], value)
    registry = core.CollectorRegistry()
    registry.register(_Collected([family for family in families.values() if family.samples]))
    text: bytes = client.generate_latest(registry)
    return text


def _as_utf8(label: str) -> str:
    """Return a label with what is not UTF-8, as a path can have, escaped as messages escape it."""
    return label.encode(errors="backslashreplace").decode()


def require() -> None:
    """Raise MissingPackageError if prometheus-client is missing."""
    _client()


class _Collected:
    """What prometheus-client collects from."""

    def __init__(self, families: Iterable[Any]) -> None:
        self._families = families

    def collect(self) -> Iterable[Any]:
        """Return the metrics."""
        return self._families


def _client() -> tuple[Any, Any]:
    try:
        import prometheus_client
        from prometheus_client import core
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] != "prometheus_client":
            raise
        raise MissingPackageError(
            "prometheus-client",
            "Metrics are written by prometheus-client",
            debian="python3-prometheus-client",
            purpose="do that",
        ) from err
    return prometheus_client, core


def _labelled(prefix: str, values: dict[str, float | None], labels: tuple[str, ...]) -> Iterator[_Sample]:
    for name, value in values.items():
        if value is not None:
            yield prefix + name, labels, float(value)


def _domain(one: DomainState) -> Iterator[_Sample]:
    labels = (one.name, one.uuid or "", one.repository, one.job or "")
    changed = one.changed_bytes[-1][1] if one.changed_bytes else None
    values = {
        "health": answer.state_of(one),
        "backups": one.backups,
        "last_backup_timestamp_seconds": _seconds(one.last.time) if one.last is not None else None,
        "last_backup_size_bytes": one.last.size_bytes if one.last is not None else None,
        "last_backup_changed_bytes": changed,
        "max_age_seconds": one.max_age_s,
        "overdue": one.is_overdue,
        "gone": one.is_gone,
        "failed": one.fault is not None,
        "unusual": bool(one.unusual),
        "size_bytes": one.size_bytes,
        "chain_images": one.chain_images,
        "damaged_backups": len(one.damaged),
        "remembered": one.last_read is not None,
        "last_verify_timestamp_seconds": _seconds(one.verified),
    }
    yield from _labelled("vbackup_domain_", values, labels)
    for copy in one.copies:
        of_copy = {"newest_timestamp_seconds": _seconds(copy.time), "missing_backups": copy.behind}
        yield from _labelled("vbackup_copy_", of_copy, (*labels, copy.target))


def _job(one: JobState) -> dict[str, float | None]:
    values = {
        "health": one.health,
        "running": one.is_running,
        "missed": one.is_missed,
        "last_success_timestamp_seconds": _seconds(one.last_good),
        "next_run_timestamp_seconds": _seconds(one.next_run),
    }
    run = one.last_run
    if run is not None:
        values["last_run_timestamp_seconds"] = _seconds(run.started)
    if run is not None and run.ended is not None:
        values["last_run_duration_seconds"] = (run.ended - run.started).total_seconds()
        values["last_run_status"] = run.status
    return values


def _repository(one: RepositoryState, now: datetime) -> dict[str, float | None]:
    growth, days = one.growth_bytes_day, one.days_until_full
    return {
        "up": one.fault is None,
        "health": one.health,
        "free_bytes": one.free_bytes,
        "filesystem_size_bytes": one.size_bytes,
        "backups_size_bytes": one.backups_bytes,
        "growth_bytes_per_second": growth / _DAY_S if growth is not None else None,
        "full_timestamp_seconds": now.timestamp() + days * _DAY_S if days is not None else None,
    }


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
