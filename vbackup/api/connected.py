"""What all calls of a connection have in common: libvirt, the repository, and the names of domains in both."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from vbackup import names
from vbackup.api.hosts import Hosts
from vbackup.errors import AmbiguousNameError, DomainNotFoundError, UsageError, VbackupError
from vbackup.report import Labelled, Labelling, Reporter, Silent
from vbackup.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vbackup.domain.host import Host
    from vbackup.repository.repository import Repository
    from vbackup.scripts.runner import DomainScripts, Settings


class Connected:
    """A connection without its calls, which are in the modules beside this one."""

    def __init__(
        self,
        uri: str | None = None,
        *,
        repository: str | os.PathLike[str] | Repository | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.uri = uri  #: of libvirt, as it was given
        self._hosts = Hosts(uri)
        self._reporter_of_calls = Silent() if reporter is None else reporter
        self._stop_of_calls = stop
        self._repository: Repository | None = None
        self._path: str | None = None
        if isinstance(repository, (str, os.PathLike)):
            self._path = os.fspath(repository)
        else:
            self._repository = repository

    def close(self) -> None:
        """Close the connections to libvirt; twice is fine. No call may be running in another thread."""
        self._hosts.close()

    @property
    def has_repository(self) -> bool:
        """True if a repository was given."""
        return self._repository is not None or bool(self._path)

    @property
    def repository(self) -> Repository:
        """The repository, opened when it is first needed.

        Raises UsageError if no path was given, StorageError if the path has no repository, or it cannot be read.
        """
        if self._repository is None:
            if not self._path:
                raise UsageError("This needs a repository: give connect() the directory of one.")
            from pathlib import Path

            from vbackup.repository.repository import Repository

            self._repository = Repository.open(Path(self._path))
        return self._repository

    def uuid_of(self, domain: str, *, reporter: Reporter | None = None) -> str:
        """Return the UUID of a domain of the repository, given by name, former name or UUID.

        Of several domains that have had the name, it is the one that libvirt has under this name now, which a warning
        says. Raises DomainNotFoundError; AmbiguousNameError if libvirt has none of them, or cannot be reached.
        """
        if self._is_uuid(domain):
            return domain
        try:
            return self.repository.find(domain)
        except AmbiguousNameError as err:
            try:
                with self._host() as host:
                    uuid = host.domain(domain).uuid
            except VbackupError:
                raise err from None
            if uuid not in err.uuids:
                raise
            others = ", ".join(other for other in err.uuids if other != uuid)
            self._reporter(reporter).warning(
                f"Several domains have had the name {domain}. This is {uuid}, which libvirt has now; give the UUID"
                f" for another: {others}."
            )
            return uuid

    def uuids_of(self, words: Sequence[str], *, reporter: Reporter | None = None) -> list[str]:
        """Return the UUIDs of the domains of the repository that words name, each once.

        A word is a name, a UUID, or a pattern such as "web*" that the newest name of domains matches. Raises what
        ``uuid_of`` raises, also if nothing matches a pattern.
        """
        found: dict[str, None] = {}
        for word in listed(words):
            try:
                found[self.uuid_of(word, reporter=reporter)] = None
            except DomainNotFoundError:
                known = [*self.repository.uuids(), *self.repository.linked()]
                matching = [uuid for uuid in known if fnmatchcase(self.repository.name_of(uuid), word)]
                if not (names.is_pattern(word) and matching):
                    raise
                found.update(dict.fromkeys(matching))
        return list(found)

    def connect_to_libvirt(self) -> None:
        """Connect to libvirt now, not with the first call that needs it. Raises HostUnreachableError."""
        with self._host():
            pass

    def _is_uuid(self, domain: str) -> bool:
        """Return True for a UUID of which the repository has an entry; what is no directory, operations refuse."""
        return bool(names.UUID.fullmatch(domain)) and os.path.lexists(self.repository.path / domain)

    def _host(self) -> AbstractContextManager[Host]:
        """Return a context manager that yields a connection to libvirt for this thread."""
        return self._hosts.one()

    def _reporter(self, reporter: Reporter | None) -> Reporter:
        return self._reporter_of_calls if reporter is None else reporter

    def _labelling(self, reporter: Reporter | None) -> Labelling:
        """Return the reporter for several domains; one that cannot tell them apart gets their names in its texts."""
        return labelling(self._reporter(reporter))

    def _stop(self, stop: Stop | None) -> Stop:
        """Return what stops the call; without one, what nobody can request."""
        if stop is not None:
            return stop
        return Stop() if self._stop_of_calls is None else self._stop_of_calls

    def _domain_scripts(
        self,
        scripts: Settings | DomainScripts | None,
        *,
        work: str,
        domain: str,
        reporter: Reporter | None,
        stop: Stop | None,
    ) -> DomainScripts:
        """Return the user's scripts of one call; ``work``: backup or restore."""
        from vbackup.scripts import runner

        if isinstance(scripts, runner.DomainScripts):
            return scripts
        settings = runner.Settings() if scripts is None else scripts
        return runner.DomainScripts(
            settings, reporter=self._reporter(reporter), stop=self._stop(stop), work=work, domain=domain
        )


def labelling(reporter: Reporter) -> Labelling:
    """Return the reporter for several domains; one that cannot tell them apart gets their names in its texts."""
    return _Labelling(reporter) if getattr(reporter, "labelled", None) is None else reporter  # type: ignore[return-value]


def listed(words: Sequence[str]) -> list[str]:
    """Return the words as a list; a single one that was given in place of a list is that word, and not its letters."""
    return [words] if isinstance(words, str) else list(words)


class _Labelling:
    """A reporter for several domains, made of one that knows nothing of domains."""

    def __init__(self, reporter: Reporter) -> None:
        self.step, self.warning, self.progress = reporter.step, reporter.warning, reporter.progress
        self._reporter = reporter

    def labelled(self, domain: str) -> Reporter:
        """Return a reporter that puts the domain in front."""
        return Labelled(self._reporter, domain)
