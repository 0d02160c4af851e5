"""Is everything backed up? The answer for people, for Nagios and for Prometheus. No connection is needed for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vbackup.config.model import Config
    from vbackup.operations.metrics import MetricsServer
    from vbackup.operations.status import StatusRequest
    from vbackup.overview.state import Overview
    from vbackup.stop import Stop


def status(
    request: StatusRequest | None = None,
    *,
    config: Config | str | os.PathLike[str] | None = None,
    repository: str | os.PathLike[str] | None = None,
    uris: Sequence[str] = (),
) -> Overview:
    """Return the state of all that is configured, or of a repository of which nothing is.

    ``config``: the configuration, or its file (default: that of this user). ``repository``: a directory in place of a
    configuration; with ``request.max_age_s``, all domains of ``uris`` (default: libvirt's default) are to be backed up
    to it. libvirt is asked for a few seconds; that it does not answer is no error, but a warning in the answer, and so
    is a repository that cannot be read. Raises ConfigError, UsageError for a job that does not exist.
    """
    from vbackup.operations import status as operation

    asked = operation.StatusRequest() if request is None else request
    if repository is not None:
        return operation.of_repository(asked, Path(repository), uris)
    from vbackup.config import loading
    from vbackup.runs.store import default_directory

    if config is None or isinstance(config, (str, os.PathLike)):
        config = loading.read(None if config is None else [Path(config)])
    return operation.gather(asked, config, state=default_directory())


def status_sentence(overview: Overview) -> str:
    """Return the first line of ``vbackup status``: whether everything is backed up."""
    from vbackup.overview import answer

    return answer.sentence(overview)


def nagios_line(overview: Overview) -> str:
    """Return the state as a plugin of Nagios prints it; its exit status is ``overview.health``."""
    from vbackup.overview import nagios

    return nagios.line(overview)


def nagios_unknown(message: str) -> str:
    """Return the line for a state that could not be found out; its exit status is Health.UNKNOWN."""
    from vbackup.overview import nagios

    return nagios.unknown(message)


def metrics_text(overview: Overview) -> bytes:
    """Return the state as Prometheus reads it. Raises MissingPackageError without prometheus-client."""
    from vbackup.overview import metrics

    return metrics.exposition(overview)


def write_metrics(path: str | os.PathLike[str], overview: Overview) -> None:
    """Write that where node-exporter reads it, in one step, and readable for all.

    Raises MissingPackageError, StorageError, NoSpaceError.
    """
    from vbackup.operations import metrics

    metrics.write(Path(path), overview)


def serve_metrics(
    host: str,
    port: int,
    gather: Callable[[], Overview],
    on_ready: Callable[[MetricsServer], None],
    *,
    stop: Stop | None = None,
) -> None:
    """Answer GET /metrics until ``stop`` is requested; ``on_ready`` gets the address before.

    ``host``: 127.0.0.1 or ::1, as others must not reach it. ``port``: 0 is any that is free. ``gather``: finds the
    state out when somebody asks. Raises UsageError for another host, or a port that is taken, and MissingPackageError.
    """
    from vbackup.operations import metrics
    from vbackup.stop import Stop

    metrics.serve(host, port, gather, on_ready, stop=Stop() if stop is None else stop)


def report_html(overview: Overview) -> str:
    """Return the state and the backups of each domain as one page, which runs and loads nothing."""
    from vbackup.operations import report

    return report.html(overview)


def report_text(overview: Overview) -> str:
    """Return the state as text of 80 columns, such as for a mail."""
    from vbackup.operations import report

    return report.text(overview)


def write_report(path: str | os.PathLike[str], content: str) -> None:
    """Write a report in one step, readable for this user only. Raises StorageError, NoSpaceError."""
    from vbackup.operations import report

    report.write(Path(path), content)
