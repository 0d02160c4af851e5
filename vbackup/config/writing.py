"""The configuration as tables again, and as TOML: what holds, with [defaults] in each job. Does no I/O.

What is written here, vbackup.config.loading reads to an equal Config. It has no secrets, because Config has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union

from vbackup.config.calendar import DAYS, Calendar, Window
from vbackup.config.keys import BELOW, JOB_COMMANDS, NUMBERS, TARGET_COMMANDS, Key
from vbackup.config.model import Config, Job, Notifier, OptionValue, Secret, TargetEntry
from vbackup.config.times import HOURLY

#: What a table has, as TOML writes it: tables, and what is in them.
Value = Union[bool, int, str, list[str], dict[str, str], dict[str, list[str]]]
Table = dict[str, Any]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_EVERY_DAY = frozenset(range(7))


def tables(config: Config) -> Table:
    """Return the tables of the configuration by kind and name; what is not set is not there."""
    found: Table = {
        "repository": {name: {"path": str(one.path)} for name, one in config.repositories.items()},
        "target": {name: _target(one) for name, one in config.targets.items()},
        "job": {name: _job(one) for name, one in config.jobs.items()},
        "notify": {name: _notifier(one) for name, one in config.notifiers.items()},
        "metrics": _set(textfile=_text(config.metrics_file)),
        "report": _set(html=_text(config.report_html), text=_text(config.report_text)),
    }
    return {name: table for name, table in found.items() if table}


def toml(config: Config) -> str:
    """Return the configuration as TOML."""
    blocks = []
    for kind, table in tables(config).items():
        if kind in ("metrics", "report"):
            blocks.append(_block((kind,), table))
        else:
            blocks += [block for name, one in table.items() for block in _blocks((kind, name), one)]
    return "\n".join(blocks)


def value(one: Value) -> str:
    """Return a value as TOML writes it in one line."""
    if isinstance(one, bool):
        return str(one).lower()
    if isinstance(one, int):
        return str(one)
    if isinstance(one, str):
        return basic(one)
    if isinstance(one, dict):
        return "{ " + ", ".join(f"{name} = {value(below)}" for name, below in one.items()) + " }"
    return "[" + ", ".join(map(basic, one)) + "]"


def basic(text: str) -> str:
    """Return a text as a string of TOML, which has nothing that steers a terminal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(one if one.isprintable() else _escaped(one) for one in escaped) + '"'


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08x}"  # noqa: PLR2004


def _blocks(path: tuple[str, ...], table: Table) -> Iterator[str]:
    """Yield a table, and the tables of commands below it."""
    below = table.keys() & BELOW.get(path[0], {}).keys()
    yield _block(path, {name: one for name, one in table.items() if name not in below})
    for name in sorted(below):
        yield _block((*path, name), table[name])


def _block(path: tuple[str, ...], table: Table) -> str:
    header = ".".join(part if _BARE.fullmatch(part) else basic(part) for part in path)
    return f"[{header}]\n" + "".join(f"{name} = {value(one)}\n" for name, one in table.items())


def _target(target: TargetEntry) -> Table:
    return {
        "url": target.url,
        **{command: _options(command, some, TARGET_COMMANDS) for command, some in target.options.items()},
    }


def _job(job: Job) -> Table:
    return {
        **_set(
            repository=job.repository,
            connect=list(job.connect),
            hosts=_text(job.hosts),
            domains=list(job.domains),
            exclude=list(job.exclude),
        ),
        **_calendar(job.calendar),
        **_set(window=_window(job.window)),
        **({"random-delay": seconds(job.random_delay_s)} if job.random_delay_s and job.calendar is not None else {}),
        **({"max-age": seconds(job.max_age_s)} if job.max_age_s is not None else {}),
        **_set(**{"copy-to": list(job.copy_to)}),
        **({"notify": list(job.notify)} if job.notify is not None else {}),
        **{command: _options(command, some, JOB_COMMANDS) for command, some in job.options.items()},
    }


def _notifier(one: Notifier) -> Table:
    return {
        "when": sorted(when.value for when in one.when),
        **_set(
            ping=_secret(one.ping),
            webhook=_secret(one.webhook),
            apprise=_secret(one.apprise),
            secret=_secret(one.secret),
            **{"mail-to": list(one.mail_to), "mail-from": one.mail_from},
            sendmail=None if one.sendmail is None else str(one.sendmail),
        ),
        "timeout": seconds(one.timeout_s),
    }


def _calendar(calendar: Calendar | None) -> Table:
    if calendar is None:
        return {}
    days = [] if calendar.days == _EVERY_DAY else [DAYS[day].lower() for day in sorted(calendar.days)]
    if calendar.times == HOURLY:
        return {"at": "hourly", **_set(on=days)}
    return {"at": [f"{one:%H:%M}" for one in calendar.times], **_set(on=days)}


def _window(window: Window | None) -> str | None:
    return None if window is None else f"{window.start:%H:%M}-{window.end:%H:%M}"


def _secret(secret: Secret | None) -> Table | None:
    if secret is None:
        return None
    command = None if secret.command is None else list(secret.command)
    return _set(file=_text(secret.file), command=command, credential=secret.credential)


def _options(command: str, options: Mapping[str, OptionValue], tables: Mapping[str, Sequence[Key]]) -> Table:
    numbers = {key.name for key in tables[command] if key.kind in NUMBERS}
    return {name: _option(one, is_number=name in numbers) for name, one in options.items()}


def _option(one: OptionValue, *, is_number: bool) -> Value:
    if isinstance(one, tuple):
        return list(one)
    return int(one) if is_number and isinstance(one, str) and one.isascii() and one.isdecimal() else one


def seconds(number_s: float) -> str:
    """Return a time as people write it: 26h, 2d, 5d13h40m, 1m30s."""
    for unit, unit_s in (("d", 86400), ("h", 3600)):
        if number_s and number_s % unit_s == 0:
            return f"{number_s / unit_s:.0f}{unit}"
    text, rest_s = "", number_s
    for unit, unit_s in (("d", 86400), ("h", 3600), ("m", 60)):
        count, rest_s = divmod(rest_s, unit_s)
        text += f"{count:.0f}{unit}" if count else ""
    return text + f"{rest_s:.9f}".rstrip("0").rstrip(".") + "s" if rest_s or not text else text


def _text(path: object) -> str | None:
    return None if path is None else str(path)


def _set(**values: Any) -> Table:
    """Return the values that are set."""
    return {name: one for name, one in values.items() if one not in (None, [], "")}
