"""Read the configuration: what keys and values mean, with every fault and its place.

vbackup.config.documents finds the files and reads them as one document, vbackup.config.keys says what there can be.
What needs libvirt, a repository or a target is for ``vbackup config check`` (vbackup.operations.config_check).
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vbackup import names
from vbackup.config import documents, keys, programs, times
from vbackup.config.calendar import Calendar, Window
from vbackup.config.documents import Document, dotted
from vbackup.config.model import (
    Config,
    Job,
    Notifier,
    Options,
    Place,
    RepositoryEntry,
    Secret,
    TargetEntry,
    When,
)
from vbackup.config.typed import InvalidValueError, name_fault, typed
from vbackup.config.values import age_s, delay_s, positive_seconds
from vbackup.errors import ConfigError, NoConfigError

_Path = tuple[str, ...]

#: What a run may be late by, beyond the time between two runs, before a backup is overdue.
LATE_S = 2 * 3600.0
_TOLD = frozenset({When.FAILURE, When.RECOVERY, When.OVERDUE, When.UNUSUAL})


@dataclass(frozen=True)
class Loaded:
    """A configuration as far as it could be read, and what is wrong with it.

    ``config`` lacks the keys and tables that have faults; nothing is run with it unless there are none.
    """

    config: Config
    faults: tuple[ConfigError, ...]


def read(paths: Sequence[Path] | None = None) -> Config:
    """Return the configuration of the files; None: this user's (documents.default_paths).

    Raises ConfigError, with the first fault and the number of others; NoConfigError if there are no files.
    """
    loaded = load(paths)
    if not loaded.faults:
        return loaded.config
    first, more = loaded.faults[0], len(loaded.faults) - 1
    if not more:
        raise first
    check = shlex.join(("vbackup", "config", "check", *loaded.config.given))
    count = (
        f"There is 1 more fault: '{check}' lists both."
        if more == 1
        else f"There are {more} more faults: '{check}' lists all."
    )
    raise ConfigError(first.path, first.line, f"{first.fault} {count}")


def load(paths: Sequence[Path] | None = None) -> Loaded:
    """Return the configuration of the files with all its faults, in the order of files and lines.

    Raises NoConfigError if there are no files, ConfigError if it cannot be seen which there are.
    """
    files = documents.default_paths() if paths is None else tuple(paths)
    if not files:
        file = documents.directory() / documents.FILE
        raise NoConfigError(
            os.fspath(file), 0, "There is no configuration: 'vbackup config init' writes one from what libvirt has."
        )
    absolute = tuple(path.absolute() for path in files)
    document = documents.read(absolute)
    loaded = _loaded(document, absolute)
    config, refused = programs.refuse(loaded.config, document)
    loaded = Loaded(config, _in_order([*loaded.faults, *refused], config))
    if paths is None:
        return loaded
    given = tuple(word for path in absolute for word in ("--config", os.fspath(path)))
    return replace(loaded, config=replace(loaded.config, given=given))


def parsed(path: Path, text: str) -> Loaded:
    """Return the configuration in a text, which is that of a file."""
    document = Document()
    document.add(path, text)
    return _loaded(document, (path,))


def _loaded(document: Document, paths: tuple[Path, ...]) -> Loaded:
    reader = _Reader(document)
    config = reader.config(paths)
    return Loaded(config, _in_order([*document.faults, *reader.faults], config))


def _in_order(faults: Sequence[ConfigError], config: Config) -> tuple[ConfigError, ...]:
    """Return the faults in the order of files and lines."""
    order = {os.fspath(path): number for number, path in enumerate(config.paths)}
    return tuple(sorted(faults, key=lambda fault: (order.get(fault.path, len(order)), fault.line)))


@dataclass
class _Table:
    """A table of the document, checked: its keys as typed values, and the tables below it."""

    path: _Path
    place: Place
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    below: dict[str, _Table] = field(default_factory=dict)

    def options(self) -> dict[str, Options]:
        """Return the options of the commands."""
        return {command: dict(table.values) for command, table in self.below.items()}


class _Reader:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._origins: dict[str, Place] = {}
        self.faults: list[ConfigError] = []

    def config(self, paths: tuple[Path, ...]) -> Config:
        """Return the configuration, without what has faults."""
        for name in self._document.tables:
            if name not in keys.NAMED and name not in keys.SINGLE:
                known = (*keys.NAMED, *keys.SINGLE)
                self._fault((name,), f"Unknown table or key {name!r}{names.closest(name, known) or _one_of(known)}.")
        single = {name: self._single(name) for name in keys.SINGLE}
        tables = {kind: dict(self._named(kind)) for kind in keys.NAMED}
        repositories = {name: self._repository(name, table) for name, table in tables["repository"].items()}
        self._refuse_twice(repositories)
        targets = {name: self._target(name, table) for name, table in tables["target"].items()}
        notifiers = {name: self._notifier(name, table) for name, table in tables["notify"].items()}
        jobs = {}
        for name, table in tables["job"].items():
            _inherit(table, single["defaults"])
            jobs[name] = self._job(name, table, tables)
        for table in (*(one for some in tables.values() for one in some.values()), single["metrics"], single["report"]):
            self._note_origins(table)
        return Config(
            paths=paths,
            repositories={name: one for name, one in repositories.items() if one is not None},
            targets={name: one for name, one in targets.items() if one is not None},
            jobs={name: one for name, one in jobs.items() if one is not None},
            notifiers={name: one for name, one in notifiers.items() if one is not None},
            metrics_file=_path(single["metrics"].values.get("textfile")),
            report_html=_path(single["report"].values.get("html")),
            report_text=_path(single["report"].values.get("text")),
            origins=self._origins,
        )

    # Tables

    def _single(self, name: str) -> _Table:
        value = self._document.tables.get(name, {})
        return self._table((name,), value, keys.SINGLE[name], keys.BELOW.get(name, {}))

    def _named(self, kind: str) -> Iterator[tuple[str, _Table]]:
        tables = self._document.tables.get(kind, {})
        if not isinstance(tables, dict):
            self._fault((kind,), f"{kind!r} should be tables with a name: [{kind}.NAME].")
            return
        for name, value in tables.items():
            fault = name_fault(name)
            if fault is not None:
                self._fault((kind, name), f"{name!r} cannot be a name of [{kind}.NAME]: {fault}.")
            elif not isinstance(value, dict):
                self._fault((kind, name), f"{name!r} should be a table with a name: [{kind}.NAME].")
            else:
                yield name, self._table((kind, name), value, keys.NAMED[kind], keys.BELOW.get(kind, {}))

    def _table(
        self, path: _Path, value: Any, known: Sequence[keys.Key], below: Mapping[str, Sequence[keys.Key]]
    ) -> _Table:
        table = _Table(path, self._document.place(path))
        if not isinstance(value, dict):
            self._fault(path, f"{path[-1]!r} should be a table: [{dotted(path)}].")
            return table
        by_name = {key.name: key for key in known}
        for name, one in value.items():
            here = (*path, name)
            if name in below:
                table.below[name] = self._table(here, one, below[name], {})
            elif name in by_name:
                self._key(table, by_name[name], one)
            else:
                all_known = (*by_name, *below)
                hint = names.closest(name, all_known) or _one_of(all_known)
                self._fault(here, f"Unknown {_what(one)} {name!r} in [{dotted(path)}]{hint}.")
        self._refuse_conflicts(table)
        return table

    def _key(self, table: _Table, key: keys.Key, value: Any) -> None:
        here = (*table.path, key.name)
        try:
            table.values[key.name] = self._secret(here, value) if key.kind is keys.Kind.SECRET else typed(key, value)
            table.places[key.name] = self._document.place(here)
        except InvalidValueError as err:
            item = here if err.item is None else (*here, str(err.item))
            self._fault(item, f"{key.name!r} in [{dotted(table.path)}] should be {key.kind.value}: {err}.")

    def _secret(self, path: _Path, value: Any) -> Secret:
        if not isinstance(value, dict):
            raise InvalidValueError("the configuration has no secrets, it says where they are")
        table = self._table(path, value, keys.SECRET, {})
        if len(value) != 1 or len(table.values) != 1:
            raise InvalidValueError("it has to have exactly one of these")
        return Secret(
            file=_path(table.values.get("file")),
            command=table.values.get("command"),
            credential=table.values.get("credential"),
        )

    def _refuse_conflicts(self, table: _Table) -> None:
        command = table.path[-1]
        for of, one, other in keys.EXCLUSIVE:
            if of == command and table.values.get(one) and table.values.get(other):
                self._fault(
                    (*table.path, other), f"{one!r} and {other!r} in [{dotted(table.path)}] exclude each other."
                )

    # Entries

    def _required(self, table: _Table, name: str) -> bool:
        if name in table.values:
            return True
        if not self._has_fault(table, name):
            self._fault(table.path, f"[{dotted(table.path)}] has no {name!r}.")
        return False

    def _repository(self, name: str, table: _Table) -> RepositoryEntry | None:
        if not self._required(table, "path"):
            return None
        return RepositoryEntry(name, Path(table.values["path"]), table.place)

    def _refuse_twice(self, repositories: Mapping[str, RepositoryEntry | None]) -> None:
        """Note a fault for each repository that is there under two names, also by a symbolic link."""
        seen: dict[str, RepositoryEntry] = {}
        for entry in repositories.values():
            if entry is None:
                continue
            first = seen.setdefault(os.path.realpath(entry.path), entry)
            if first is not entry:
                self._fault(
                    ("repository", entry.name, "path"),
                    f"{entry.path} is also repository {first.name!r} ({first.place}): use one name for it.",
                )

    def _target(self, name: str, table: _Table) -> TargetEntry | None:
        if not self._required(table, "url"):
            return None
        _open_alike(table)
        if "prune" in table.below:
            self._refuse_no_rule(table.below["prune"])
        return TargetEntry(name, table.values["url"], table.options(), table.place)

    def _notifier(self, name: str, table: _Table) -> Notifier | None:
        ways = [way for way in keys.WAYS if table.values.get(way)]
        if len(ways) != 1:
            if ways or not any(self._has_fault(table, way) for way in keys.WAYS):
                self._fault(
                    table.path if not ways else (*table.path, ways[1]),
                    f"[{dotted(table.path)}] should have exactly one of {', '.join(map(repr, keys.WAYS))};"
                    f" it has {' and '.join(map(repr, ways)) or 'none'}.",
                )
            return None
        for key, way in (("mail-from", "mail-to"), ("sendmail", "mail-to"), ("secret", "webhook")):
            if key in table.values and ways != [way]:
                self._fault((*table.path, key), f"{key!r} in [{dotted(table.path)}] is for {way!r} only.")
        when = table.values.get("when")
        timeout = table.values.get("timeout")
        return Notifier(
            name,
            table.place,
            _TOLD if when is None else frozenset(map(When, when)),
            ping=table.values.get("ping"),
            webhook=table.values.get("webhook"),
            apprise=table.values.get("apprise"),
            mail_to=table.values.get("mail-to", ()),
            mail_from=table.values.get("mail-from"),
            sendmail=_path(table.values.get("sendmail")),
            secret=table.values.get("secret"),
            timeout_s=30.0 if timeout is None else positive_seconds(timeout),
        )

    def _job(self, name: str, table: _Table, tables: Mapping[str, Mapping[str, _Table]]) -> Job | None:
        repository = self._repository_of(table, tables["repository"])
        for key, kind in (("copy-to", "target"), ("notify", "notify")):
            for number, word in enumerate(table.values.get(key, ())):
                if word not in tables[kind]:
                    self._unknown(table, key, word, known=tables[kind], kind=kind, number=number)
        if table.values.get("connect") and table.values.get("hosts"):
            self._fault_at(table, "hosts", f"'connect' and 'hosts' of [{dotted(table.path)}] exclude each other.")
        if table.values.get("domains") == ():
            self._fault_at(table, "domains", "'domains' is empty: leave it out for all domains.")
        for command, below in table.below.items():
            self._refuse_lonely(command, below)
        if "prune" in table.below:
            self._refuse_no_rule(table.below["prune"])
        calendar, window = self._calendar(table)
        wait_s = 0.0 if calendar is None else delay_s(table.values.get("random-delay", "0"))
        if repository is None:
            return None
        hosts = table.values.get("hosts")
        return Job(
            name,
            repository,
            table.place,
            connect=table.values.get("connect", ()),
            hosts=_path(hosts),
            domains=table.values.get("domains", ()),
            exclude=table.values.get("exclude", ()),
            calendar=calendar,
            window=window,
            random_delay_s=wait_s,
            max_age_s=_max_age_s(table, calendar, wait_s),
            copy_to=tuple(dict.fromkeys(table.values.get("copy-to", ()))),
            notify=table.values.get("notify"),
            options=table.options(),
        )

    def _repository_of(self, table: _Table, known: Mapping[str, _Table]) -> str | None:
        name: str | None = table.values.get("repository")
        if name is None:
            if len(known) == 1 and not self._has_fault(table, "repository"):
                return next(iter(known))
            if not self._has_fault(table, "repository"):
                why = "there is none: add [repository.NAME]" if not known else f"there are {', '.join(known)}"
                self._fault(table.path, f"[{dotted(table.path)}] has no 'repository', and {why}.")
            return None
        if name not in known:
            self._unknown(table, "repository", name, known=known, kind="repository")
            return None
        return name

    def _unknown(
        self, table: _Table, key: str, word: str, *, known: Mapping[str, object], kind: str, number: int | None = None
    ) -> None:
        what = f"[{kind}.NAME]"
        hint = names.closest(word, known) or (_one_of(tuple(known)) if known else "")
        self._fault_at(
            table, key, f"{key!r} of [{dotted(table.path)}] names {word!r}, which is no {what}{hint}.", number
        )

    def _calendar(self, table: _Table) -> tuple[Calendar | None, Window | None]:
        at, on, window = (table.values.get(name) for name in ("at", "on", "window"))
        if at is None:
            for name in ("on", "random-delay"):
                if not self._is_own(table, name):  # a default of the jobs that have a time
                    table.values.pop(name, None)
                    table.places.pop(name, None)
                elif not self._has_fault(table, "at"):
                    self._fault_at(table, name, f"{name!r} of [{dotted(table.path)}] needs 'at', the time of day.")
            return None, window
        if window is not None and at == times.HOURLY:
            at = tuple(time for time in at if times.contains(window, time))
            if not at:
                self._fault_at(table, "window", f"No full hour lies in the window of [{dotted(table.path)}].")
                return None, window
        outside = [] if window is None else [time for time in at if not times.contains(window, time)]
        if window is not None and outside:
            self._fault_at(
                table,
                "window",
                f"The job runs at {', '.join(f'{time:%H:%M}' for time in outside)}, which is not in its window"
                f" {window.start:%H:%M}-{window.end:%H:%M}.",
            )
        return Calendar(at, on if on is not None else frozenset(range(7))), window

    def _refuse_no_rule(self, table: _Table) -> None:
        if not keys.RULES & table.values.keys() and not self._written(table.path).keys() - table.values.keys():
            self._fault(
                table.path,
                f"[{dotted(table.path)}] has no rule, so it would keep everything; add one such as keep-daily, or leave"
                " out the table.",
            )

    def _refuse_lonely(self, command: str, table: _Table) -> None:
        """Note a fault for options that need another one."""
        for of, name, other, value in keys.NEEDS:
            if of != command or not table.values.get(name):
                continue
            given = table.values.get(other) or _default(of, other)
            if not given or value not in (None, given):
                needed = f"{other} = true" if value is None else f'{other} = "{value}"'
                self._fault_at(table, name, f"{name!r} in [{dotted(table.path)}] is only for {needed}.")

    # Places

    def _note_origins(self, table: _Table) -> None:
        for name, place in table.places.items():
            self._origins[dotted((*table.path, name))] = place
        for below in table.below.values():
            self._note_origins(below)

    def _is_own(self, table: _Table, name: str) -> bool:
        """Return True if the key is the table's own, and not one of [defaults]."""
        return name in table.values and (*table.path, name) in self._document.places

    def _has_fault(self, table: _Table, name: str) -> bool:
        """Return True if the key is there, and is not valid."""
        return self._written(table.path).get(name) is not None and name not in table.values

    def _written(self, path: _Path) -> Mapping[str, Any]:
        """Return the table as the files have it, with what is not valid; empty if there is none."""
        value: Any = self._document.tables
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}

    def _fault_at(self, table: _Table, name: str, fault: str, number: int | None = None) -> None:
        """Note a fault of a key, which may come from [defaults]."""
        place = table.places.get(name)
        own = self._document.place((*table.path, name))
        if number is not None and place == own:
            place = self._document.place((*table.path, name, str(number)))
        self._note(place or table.place, fault)

    def _fault(self, path: _Path, fault: str) -> None:
        self._note(self._document.place(path), fault)

    def _note(self, place: Place, fault: str) -> None:
        found = ConfigError(os.fspath(place.path), place.line, fault)
        if str(found) not in map(str, self.faults):
            self.faults.append(found)


def _inherit(table: _Table, defaults: _Table) -> None:
    """Give the job what it has not by itself, key by key."""
    excluded = {
        theirs
        for of, one, other in keys.EXCLUSIVE
        for own, theirs in ((one, other), (other, one))
        if of == table.path[-1] and table.values.get(own)
    }
    for of, name, other, needed in keys.NEEDS:
        if of == table.path[-1] and needed is not None and table.values.get(other, needed) != needed:
            excluded.add(name)  # the job's own value of the other one leaves it without a meaning
    for name, value in defaults.values.items():
        if name not in table.values and name not in excluded:
            table.values[name] = value
            table.places[name] = defaults.places[name]
    for command, below in defaults.below.items():
        own = table.below.setdefault(command, _Table((*table.path, command), below.place))
        _inherit(own, below)


def _default(command: str, name: str) -> str | None:
    return next(key.default for key in keys.JOB_COMMANDS[command] if key.name == name)


def _open_alike(table: _Table) -> None:
    """Let what opens the target hold for all its commands, if one of them has it."""
    for name in keys.OPENING:
        having = [below for below in table.below.values() if name in below.values]
        for below in table.below.values():
            if having and name not in below.values:
                below.values[name], below.places[name] = having[0].values[name], having[0].places[name]


def _max_age_s(table: _Table, calendar: Calendar | None, wait_s: float) -> float | None:
    value: str | None = table.values.get("max-age")
    if value is not None:
        return age_s(value)
    return None if calendar is None else calendar.longest_interval_s + wait_s + LATE_S


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _what(value: object) -> str:
    return "table" if isinstance(value, dict) else "key"


def _one_of(known: Sequence[str]) -> str:
    return f"; there are: {', '.join(known)}"
