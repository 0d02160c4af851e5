"""Look for what is wrong with a configuration where only libvirt, repositories, targets and files can tell.

vbackup.config.loading finds what the files themselves show. Nothing is changed here: no target is made, nothing sent.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from vbackup.config import secrets, times
from vbackup.config.documents import dotted
from vbackup.config.loading import Loaded
from vbackup.config.model import Config, Job, Notifier, OptionValue, Place, Secret, TargetEntry
from vbackup.copies import target as targets
from vbackup.copies.place import TargetPlace
from vbackup.domain import hosts_file, selection
from vbackup.domain.host import Host
from vbackup.domain.selection import Selection
from vbackup.errors import ConfigError, MissingPackageError, NoticeError, UsageError, VbackupError
from vbackup.notices import mail, others, requests
from vbackup.operations import run, run_commands
from vbackup.repository.repository import Repository
from vbackup.scripts import finding
from vbackup.stop import Stop
from vbackup.stores import key_files, settings
from vbackup.stores.key_files import COMMAND
from vbackup.stores.sealed import Keys

#: How long a program that prints a secret may take.
SECRET_S = 30.0


@dataclass(frozen=True)
class CheckedDomain:
    """A domain of a job."""

    name: str
    host: str  #: the URI by which libvirt was reached
    left_out: str | None = None  #: why the job does not back it up


@dataclass(frozen=True)
class CheckedJob:
    """What a job would do now."""

    name: str
    repository: str
    domains: tuple[CheckedDomain, ...]
    next: datetime | None  #: when it runs next; None: when somebody runs it


@dataclass(frozen=True)
class CheckedConfig:
    """What is wrong with a configuration: ``faults`` have to be put right, ``warnings`` are worth knowing."""

    paths: tuple[Path, ...]
    faults: tuple[ConfigError, ...]
    warnings: tuple[ConfigError, ...] = ()
    jobs: tuple[CheckedJob, ...] = ()
    is_offline: bool = False  #: only the files were looked at
    #: those of ``faults`` with which nothing is run; where the others are, runs would fail as things are now
    refused: tuple[ConfigError, ...] = ()


def check(loaded: Loaded, *, is_offline: bool = False, stop: Stop | None = None) -> CheckedConfig:
    """Return all that is wrong; ``is_offline``: only with the files, without asking anybody.

    Raises InterruptedBySignalError.
    """
    config = loaded.config
    refused = loaded.faults
    if not config.jobs and not refused:  # a job that has a fault is not in the configuration
        refused = (ConfigError(os.fspath(config.paths[0]), 0, run.NO_JOB),)
    checking = _Checking(config, stop or Stop())
    jobs = () if is_offline else checking.all()
    checking.check_addresses()
    order = {os.fspath(path): number for number, path in enumerate(config.paths)}

    def place(fault: ConfigError) -> tuple[int, int]:
        return order.get(fault.path, len(order)), fault.line

    return CheckedConfig(
        config.paths,
        tuple(sorted((*refused, *checking.faults), key=place)),
        tuple(sorted(checking.warnings, key=place)),
        jobs,
        is_offline,
        refused,
    )


@dataclass
class _Reached:
    """The hosts of a job, and what they have."""

    hosts: list[tuple[str, Host]]
    is_complete: bool  #: all of them


@dataclass
class _Checking:
    config: Config
    stop: Stop
    faults: list[ConfigError] = field(default_factory=list)
    warnings: list[ConfigError] = field(default_factory=list)
    _repositories: dict[str, Repository] = field(default_factory=dict)
    _hosts: dict[str, Host | None] = field(default_factory=dict)

    def all(self) -> tuple[CheckedJob, ...]:
        """Look at everything; return what each job would do."""
        try:
            self._check_repositories()
            self._check_targets()
            jobs = tuple(self._job(job) for job in self.config.jobs.values())
            self._check_covered(jobs)
            self._check_contested(jobs)
            for notifier in self.config.notifiers.values():
                self._check_notifier(notifier)
            self._check_outputs()
        finally:
            for host in self._hosts.values():
                if host is not None:
                    host.close()
        return jobs

    def check_addresses(self) -> None:
        """Note invalid mail addresses, which the files alone show."""
        for notifier in self.config.notifiers.values():
            sender = () if notifier.mail_from is None else (notifier.mail_from,)
            for key, addresses in (("mail-to", notifier.mail_to), ("mail-from", sender)):
                for address in addresses:
                    try:
                        mail.check_address(notifier.name, address)
                    except NoticeError as err:
                        self._fault(self._place("notify", notifier.name, key), f"{err.reason}.")

    # Places

    def _place(self, *path: str) -> Place:
        """Return where a key is, or its table."""
        origin = self.config.origins.get(dotted(path))
        if origin is not None:
            return origin
        kind, name = path[0], path[1] if len(path) > 1 else ""
        entries: Mapping[str, Mapping[str, object]] = {
            "repository": self.config.repositories,
            "target": self.config.targets,
            "job": self.config.jobs,
            "notify": self.config.notifiers,
        }
        place: Place = getattr(entries.get(kind, {}).get(name), "place", Place(self.config.paths[0], 0))
        return place

    def _fault(self, place: Place, message: str) -> None:
        self._add(self.faults, place, message)

    def _warn(self, place: Place, message: str) -> None:
        self._add(self.warnings, place, message)

    @staticmethod
    def _add(found: list[ConfigError], place: Place, message: str) -> None:
        fault = ConfigError(os.fspath(place.path), place.line, message)
        if str(fault) not in map(str, found):
            found.append(fault)

    def _attempt(self, place: Place, what: str, attempt: Callable[[], object]) -> None:
        """Note what goes wrong as a fault."""
        self.stop.check()
        try:
            attempt()
        except VbackupError as err:
            self._fault(place, f"{what}: {err}")

    # Repositories and targets

    def _check_repositories(self) -> None:
        for name, entry in self.config.repositories.items():
            self.stop.check()
            try:
                repository = Repository.open(entry.path)
            except VbackupError as err:
                self._fault(self._place("repository", name, "path"), f"Repository {name!r}: {err}")
                continue
            self._repositories[name] = repository
            if not os.access(repository.path, os.W_OK | os.X_OK):
                self._fault(
                    self._place("repository", name, "path"),
                    f"Repository {name!r}: this user cannot write to {repository.path}.",
                )

    def _check_targets(self) -> None:
        for name, entry in self.config.targets.items():
            sources = {job.repository for job in self.config.jobs.values() if name in job.copy_to}
            place = self._place("target", name, "url")
            if len(sources) > 1:
                self._fault(
                    place,
                    f"Target {name!r} would get copies of the repositories {', '.join(sorted(sources))}: give each a"
                    " target.",
                )
            if not sources:
                self._warn(place, f"No job copies to target {name!r}.")
            before = len(self.faults)
            for command, options in entry.options.items():
                config = options.get("target-config")
                if config is not None:
                    self._attempt(
                        self._place("target", name, command, "target-config"),
                        f"Target {name!r}",
                        lambda config=config: settings.read(Path(str(config))),  # type: ignore[misc]
                    )
            if len(self.faults) > before:
                continue
            self._attempt(
                place,
                f"Target {name!r}",
                lambda name=name, entry=entry, sources=sources: self._open_target(name, entry, sources),  # type: ignore[misc]
            )

    def _open_target(self, name: str, entry: TargetEntry, sources: set[str]) -> None:
        """Look at what is at a target. Raises VbackupError."""
        copy = entry.options.get("copy", {})
        keys = Keys(
            key_files.recipients(
                _several(copy.get("recipient")), list(map(Path, _several(copy.get("recipients-file"))))
            ),
            # A program that prints an identity may ask for a passphrase; copying does without.
            key_files.identities([word for word in _several(copy.get("identity")) if not word.startswith(COMMAND)]),
        )
        if (keys.recipients or keys.identities) and not _is_installed("cryptography"):
            raise MissingPackageError(
                "cryptography", "The copy is encrypted", debian="python3-cryptography", purpose="seal or open it"
            )
        config = copy.get("target-config")
        path = Path(entry.url.removeprefix("file://"))
        if entry.url.startswith(("/", "file://")) and not path.exists():
            is_made = path.parent.is_dir()
            then = "; the first copy makes it." if is_made else f", nor {path.parent}, in which a copy could make it."
            self._warn(
                self._place("target", name, "url"),
                f"Target {name!r}: there is no directory {path}{then} Is the disk mounted?",
            )
            return
        with TargetPlace(entry.url, keys, Path(str(config)) if config else None).opened() as store:
            if store.size(targets.MARKER) is None:
                targets.refuse_other(store)
                return
            for source in sources & self._repositories.keys():
                targets.opened_for(store, self._repositories[source].ids, create=False, keys=keys)

    # Jobs

    def _job(self, job: Job) -> CheckedJob:
        reached = self._reach(job)
        selections = []
        for uri, host in reached.hosts:
            self.stop.check()
            try:
                selections.append((uri, _selected(job, host)))
            except VbackupError as err:
                reached.is_complete = False
                self._fault(self._place("job", job.name, "connect"), f"Job {job.name}: {err}")
        if reached.is_complete:
            self._check_selection(job, [one for _, one in selections])
        self._check_files(job, is_local=all(host.is_local for _, host in reached.hosts))
        self._check_times(job)
        if job.notify == () or (job.notify is None and not self.config.notifiers):
            self._warn(job.place, f"Nobody is told if job {job.name} fails: add a [notify.NAME].")
        now = datetime.now(timezone.utc)
        return CheckedJob(
            job.name,
            job.repository,
            tuple(domain for uri, one in selections for domain in _domains(uri, one)),
            None if job.calendar is None else job.calendar.after(now),
        )

    def _reach(self, job: Job) -> _Reached:
        """Return the hosts of a job that can be reached."""
        uris: Sequence[str] = job.connect or ("",)
        if job.hosts is not None:
            try:
                uris = hosts_file.read(os.fspath(job.hosts))
            except UsageError as err:
                self._fault(self._place("job", job.name, "hosts"), f"Job {job.name}: {err}")
                return _Reached([], is_complete=False)
        key = "connect" if job.hosts is None else "hosts"
        found: list[tuple[str, Host]] = []
        for uri in uris:
            host = self._host(uri, self._place("job", job.name, key), job)
            if host is not None:
                found.append((host.real_uri, host))
        return _Reached(found, is_complete=len(found) == len(uris))

    def _host(self, uri: str, place: Place, job: Job) -> Host | None:
        if uri not in self._hosts:
            self.stop.check()
            self._hosts[uri] = None
            try:
                self._hosts[uri] = Host(uri or None)
            except VbackupError as err:
                self._fault(place, f"Job {job.name}: {err}")
        return self._hosts[uri]

    def _check_selection(self, job: Job, selections: Sequence[Selection]) -> None:
        """Note words that name or match no domain of any host, and that there is nothing to back up."""
        unmatched = [set(one.unmatched) for one in selections]
        nowhere = set.intersection(*unmatched) if unmatched else set()
        known = {chosen.name for one in selections for chosen in one.chosen if chosen.uuid is not None}
        known |= {skipped.name for one in selections for skipped in one.skipped}
        lacking = {chosen.name for one in selections for chosen in one.chosen if chosen.uuid is None} - known
        for word in job.domains:
            if word in nowhere:
                self._fault(self._place("job", job.name, "domains"), f"Job {job.name}: {word!r} matches no domain.")
            elif word in lacking:
                self._fault(self._place("job", job.name, "domains"), f"Job {job.name}: libvirt has no domain {word!r}.")
        for word in job.exclude:
            if word in nowhere:
                self._warn(
                    self._place("job", job.name, "exclude"), f"Job {job.name}: {word!r} in 'exclude' matches no domain."
                )
        if not any(chosen.uuid is not None for one in selections for chosen in one.chosen):
            self._fault(self._place("job", job.name, "domains"), f"Job {job.name}: there is no domain to back up.")

    def _check_covered(self, jobs: Sequence[CheckedJob]) -> None:
        """Warn of domains that no job backs up, if any job is about some domains only."""
        covered = {(one.host, one.name) for job in jobs for one in job.domains if one.left_out is None}
        for host in self._hosts.values():
            if host is None:
                continue
            try:
                able = selection.those_of_all(host, ())
            except VbackupError:  # it was noted where a job asked
                continue
            for one in able.chosen:
                if (host.real_uri, one.name) not in covered:
                    self._warn(Place(self.config.paths[0], 0), f"No job backs up domain {one.name} at {host.real_uri}.")

    def _check_contested(self, jobs: Sequence[CheckedJob]) -> None:
        """Warn of domains of which nothing is removed, as two jobs with one repository have other rules for them."""
        for checked in jobs:
            job = self.config.jobs[checked.name]
            known = {one.name: one.name for one in checked.domains if one.left_out is None}
            for domain, other in run_commands.contested(job, self.config, known).items():
                if checked.name < other:  # once for both
                    place = self._place("job", job.name, "prune")
                    self._warn(place, run_commands.contradiction(domain, job.name, other))

    def _check_files(self, job: Job, *, is_local: bool) -> None:
        """Look for the files and directories that a job names."""
        backup = job.options.get("backup", {})
        for command, name, is_here in (
            ("backup", "fleecing", is_local),
            ("backup", "tls-creds", True),
            ("audit", "scratch", True),
        ):
            value = job.options.get(command, {}).get(name)
            if value is not None and is_here and not Path(str(value)).is_dir():
                self._fault(self._place("job", job.name, command, name), f"There is no directory {value}.")
        if "scripts" in backup:
            self._attempt(
                self._place("job", job.name, "backup", "scripts"),
                f"Job {job.name}",
                lambda: finding.find(Path(str(backup["scripts"])), is_wanted=True),
            )
        if job.options.get("verify", {}).get("fsck") and shutil.which("guestfish") is None:
            self._fault(
                self._place("job", job.name, "verify", "fsck"),
                "'fsck' needs guestfish, which is not installed: on Debian, the package libguestfs-tools.",
            )

    def _check_times(self, job: Job) -> None:
        if job.calendar is None or job.window is None or not job.random_delay_s:
            return
        for at in job.calendar.times:
            latest = (datetime.combine(datetime(2000, 1, 1), at) + timedelta(seconds=job.random_delay_s)).time()  # noqa: DTZ001
            if not times.contains(job.window, latest):
                self._warn(
                    self._place("job", job.name, "random-delay"),
                    f"Job {job.name}: with its random delay, the run of {at:%H:%M} can begin after its window.",
                )

    # Who is told, and what is written

    def _check_notifier(self, notifier: Notifier) -> None:
        for way in ("ping", "webhook", "apprise", "secret"):
            secret: Secret | None = getattr(notifier, way)
            if secret is not None:
                self._check_secret(notifier, way, secret)
        if notifier.apprise is not None and not _is_installed("apprise"):
            self._fault(
                self._place("notify", notifier.name, "apprise"),
                "'apprise' needs the Python package apprise, which is not installed: on Debian, apprise.",
            )
        if notifier.sendmail is not None:
            if not os.access(notifier.sendmail, os.X_OK):
                self._fault(
                    self._place("notify", notifier.name, "sendmail"),
                    f"{notifier.sendmail} is not a program that can be run.",
                )
        elif notifier.mail_to and not _has_sendmail():
            self._fault(
                self._place("notify", notifier.name, "mail-to"),
                "'mail-to' needs sendmail, which is not installed: a mail server has it, or msmtp-mta.",
            )

    def _check_secret(self, notifier: Notifier, way: str, secret: Secret) -> None:
        place = self._place("notify", notifier.name, way)
        if secret.credential is not None and secrets.CREDENTIALS not in os.environ:
            self._warn(
                place, f"Credential {secret.credential!r} can only be seen in the service: 'vbackup schedule' loads it."
            )
            return
        self.stop.check()
        try:
            text = secrets.read(secret, SECRET_S)
        except VbackupError as err:
            self._fault(place, str(err))
            return
        try:
            if way in ("ping", "webhook"):
                requests.check_url(notifier.name, text)
            elif way == "apprise" and _is_installed("apprise"):
                others.check_url(notifier.name, text, SECRET_S)
        except NoticeError as err:
            self._fault(place, f"The secret from {secrets.describe(secret)} cannot be used: {err.reason}.")

    def _check_outputs(self) -> None:
        for path, key in (
            (self.config.metrics_file, ("metrics", "textfile")),
            (self.config.report_html, ("report", "html")),
            (self.config.report_text, ("report", "text")),
        ):
            if path is None:
                continue
            if not path.parent.is_dir():
                self._fault(self._place(*key), f"There is no directory {path.parent} for {path.name}.")
            elif path.is_dir():
                self._fault(self._place(*key), f"{path} is a directory: give the path of a file.")


def _has_sendmail() -> bool:
    return shutil.which("sendmail") is not None or os.access(mail.USUAL, os.X_OK)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def _selected(job: Job, host: Host) -> Selection:
    if not job.domains:
        return selection.those_of_all(host, job.exclude)
    return selection.those_of_words(job.domains, host, job.exclude)


def _domains(uri: str, selected: Selection) -> list[CheckedDomain]:
    chosen = [CheckedDomain(one.name, uri) for one in selected.chosen if one.uuid is not None]
    return chosen + [CheckedDomain(one.name, uri, one.reason) for one in selected.skipped]


def _several(value: OptionValue | None) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else ()
