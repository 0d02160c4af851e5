"""Find the scripts of a domain, and refuse what others could change.

    DIRECTORY/PHASE.d/NAME                   for all domains
    DIRECTORY/domains/DOMAIN/PHASE.d/NAME    for the domain with this name or UUID

A script, and every directory on the way to it, is one that nobody but root and the caller can change
(vbackup.trusted).
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from vbackup import names, trusted
from vbackup.errors import UnsafeScriptError, UsageError
from vbackup.files import storage_errors

#: Where scripts are looked for without --scripts.
DIRECTORY = Path("/etc/vbackup/scripts.d")
DOMAINS = "domains"
#: Names that editors, packages and people leave beside scripts.
_IGNORED = (".*", "*~", "*.dpkg-*", "README")


class ScriptPhase(Enum):
    """When a script is run."""

    PRE_BACKUP = "pre-backup"  #: before anything is done for the backup; can stop it
    POST_FREEZE = "post-freeze"  #: while the guest's filesystems are frozen, just before the moment of the backup
    POST_THAW = "post-thaw"  #: after post-freeze, when they are thawed again
    POST_BACKUP = "post-backup"  #: when the backup is complete
    ON_FAILURE = "on-failure"  #: when a backup or restore has failed
    PRE_RESTORE = "pre-restore"  #: before anything is restored; can stop it
    POST_RESTORE = "post-restore"  #: when the restore is complete

    @property
    def directory(self) -> str:
        """The name of the directory with its scripts."""
        return f"{self.value}.d"


@dataclass(frozen=True)
class Script:
    """A program of the user's."""

    phase: ScriptPhase
    path: Path


@dataclass(frozen=True)
class Found:
    """The scripts of a domain, in the order in which they are run."""

    scripts: Mapping[ScriptPhase, tuple[Script, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  #: about what is there and is not run


def find(directory: Path, domain: Sequence[str] = (), *, is_wanted: bool) -> Found:
    """Return the scripts in the directory for all domains, and those for the domain with these names.

    They are in the order of their names; of two with the same name, the one for all domains comes first.
    ``is_wanted``: the user has named the directory. Raises UsageError if a directory that is wanted is missing,
    UnsafeScriptError, StorageError.
    """
    directory = directory.absolute()
    with storage_errors(f"read the scripts in {directory}"):
        if not directory.is_dir():
            if is_wanted:
                raise UsageError(f"There is no directory {directory} with scripts; create it, or leave out --scripts.")
            return Found()
        search = _Search()
        search.look_into(directory)
        for one in filter(_is_file_name, domain):
            own = directory / DOMAINS / one
            if own.is_dir():
                search.look_into(own)
    for scripts in search.scripts.values():
        scripts.sort(key=lambda script: script.path.name)  # which keeps the order of those with one name
    return Found({phase: tuple(found) for phase, found in search.scripts.items()}, tuple(search.warnings))


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


class _Search:
    """What was found so far. Each of its methods may raise OSError and UnsafeScriptError."""

    def __init__(self) -> None:
        self.scripts: dict[ScriptPhase, list[Script]] = {}
        self.warnings: list[str] = []
        self._trusted: set[Path] = set()
        self._seen: set[str] = set()

    def look_into(self, directory: Path) -> None:
        """Take the scripts of all phases in a directory, once: the name and the UUID of a domain can lead to one."""
        real = os.path.realpath(directory)
        if real in self._seen:
            return
        self._seen.add(real)
        self._refuse_unsafe(directory)
        phases = {phase.directory: phase for phase in ScriptPhase}
        for entry in _entries(directory):
            if entry.name in phases:
                self._take(phases[entry.name], Path(entry.path))
            elif entry.name != DOMAINS:
                hint = names.closest(entry.name, list(phases))
                self.warnings.append(f"{entry.path} is not the directory of a phase, so nothing in it is run{hint}.")

    def _take(self, phase: ScriptPhase, directory: Path) -> None:
        if not directory.is_dir():
            self.warnings.append(f"{directory} is not a directory, so no {phase.value} script is run.")
            return
        self._refuse_unsafe(directory)
        for entry in _entries(directory):
            path = Path(entry.path)
            try:
                mode = path.stat().st_mode
            except FileNotFoundError:
                self.warnings.append(f"{path} leads to nothing, so it is not run.")
                continue
            if not stat.S_ISREG(mode):
                self.warnings.append(f"{path} is not a file, so it is not run.")
            elif not os.access(path, os.X_OK, effective_ids=True):
                self.warnings.append(f"{path} is not executable, so it is not run; 'chmod u+x' changes that.")
            else:
                self._refuse_unsafe(path)
                self.scripts.setdefault(phase, []).append(Script(phase, path))

    def _refuse_unsafe(self, path: Path) -> None:
        """Raise UnsafeScriptError if others can change what is at the path, or put something else there."""
        found = trusted.doubt(path, self._trusted)
        if found is not None:
            raise UnsafeScriptError(os.fspath(found.path), found.reason)


def _entries(directory: Path) -> Sequence[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        found = [
            entry for entry in entries if not any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in _IGNORED)
        ]
    return sorted(found, key=lambda entry: entry.name)
