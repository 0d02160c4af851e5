"""The configuration as values, as vbackup.config.loading has checked them. Does no I/O.

Values of an option of a command keep the text that the option takes, so that there is one grammar for both:
``Job.options["backup"]["freeze-limit"] == "30s"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Union

from vbackup.config.calendar import Calendar, Window

#: The value of an option: of a flag, of one that takes a text or number, of one that takes several.
OptionValue = Union[bool, str, tuple[str, ...]]
#: The options of a command, by name without the dashes.
Options = Mapping[str, OptionValue]


class When(Enum):
    """What somebody is told."""

    FAILURE = "failure"
    RECOVERY = "recovery"  #: the first good run after a failure
    OVERDUE = "overdue"  #: a domain is not backed up within the time that its job promises
    UNUSUAL = "unusual"  #: a backup changed much more than usual, or the clock jumped
    ALWAYS = "always"  #: every run


@dataclass(frozen=True)
class Place:
    """Where something of the configuration was written."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Secret:
    """Where a secret is. It is read when it is needed, and is never part of the configuration.

    Exactly one of the members is set.
    """

    file: Path | None = None
    command: tuple[str, ...] | None = None  #: prints it on standard output
    credential: str | None = None  #: name of a credential of systemd (LoadCredential=)


@dataclass(frozen=True)
class RepositoryEntry:
    """``[repository.NAME]``."""

    name: str
    path: Path
    place: Place = field(compare=False)  #: where it was written, which is no part of what it says


@dataclass(frozen=True)
class TargetEntry:
    """``[target.NAME]``: a target of copies.

    ``options``: by command: ``copy`` (full-every, bwlimit, recipient, ...), ``prune`` (the retention there), ``verify``
    (a sample there); the last two commands run only if they are there.
    """

    name: str
    url: str  #: a directory or a URL, as --to takes it
    options: Mapping[str, Options]
    place: Place = field(compare=False)  #: where it was written, which is no part of what it says


@dataclass(frozen=True)
class Job:
    """``[job.NAME]``.

    ``options``: by command, of those that a run of it executes: ``backup``, ``prune``, ``verify``, ``audit``. Without
    rules in ``prune``, without ``verify`` or ``audit``, that step does not exist.
    """

    name: str
    repository: str  #: name of its RepositoryEntry
    place: Place = field(compare=False)  #: where it was written, which is no part of what it says
    connect: tuple[str, ...] = ()  #: libvirt URIs; empty: libvirt's default
    hosts: Path | None = None  #: file of libvirt URIs
    domains: tuple[str, ...] = ()  #: names, UUIDs and patterns; empty: all
    exclude: tuple[str, ...] = ()
    calendar: Calendar | None = None  #: when it is to run; None: only when somebody runs it
    window: Window | None = None  #: when backups may begin
    random_delay_s: float = 0.0
    max_age_s: float | None = None  #: what it promises: the age of a domain's newest backup; None: no promise
    copy_to: tuple[str, ...] = ()  #: names of TargetEntries
    notify: tuple[str, ...] | None = None  #: names of Notifiers; None: all
    options: Mapping[str, Options] = field(default_factory=dict)


@dataclass(frozen=True)
class Notifier:
    """``[notify.NAME]``: exactly one of ``ping``, ``webhook``, ``apprise`` and ``mail_to`` is set."""

    name: str
    place: Place = field(compare=False)  #: where it was written, which is no part of what it says
    when: frozenset[When]
    ping: Secret | None = None  #: a URL as of healthchecks.io: URL/start, URL, URL/fail
    webhook: Secret | None = None  #: a URL that gets the report of the run by POST
    apprise: Secret | None = None  #: a URL of apprise
    mail_to: tuple[str, ...] = ()  #: through sendmail
    mail_from: str | None = None
    sendmail: Path | None = None  #: the program; None: where it usually is
    secret: Secret | None = None  #: signs what a webhook gets
    timeout_s: float = 30.0  #: for all attempts together


@dataclass(frozen=True)
class Config:
    """The whole configuration."""

    paths: tuple[Path, ...] = field(compare=False)  #: the files, in the order in which they were read
    repositories: Mapping[str, RepositoryEntry]
    targets: Mapping[str, TargetEntry]
    jobs: Mapping[str, Job]
    notifiers: Mapping[str, Notifier]
    metrics_file: Path | None = None  #: [metrics] textfile: written after every run
    report_html: Path | None = None  #: [report] html
    report_text: Path | None = None  #: [report] text
    origins: Mapping[str, Place] = field(default_factory=dict, compare=False)  #: of "job.nightly.prune.keep-daily"
    given: tuple[str, ...] = field(
        default=(), compare=False
    )  #: the option that names its file; empty: vbackup finds it
