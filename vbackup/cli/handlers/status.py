"""``vbackup status``: print whether everything is backed up, on one screen."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime

from vbackup import api
from vbackup.api import DomainState, Health, JobState, Overview, RepositoryState, documents
from vbackup.cli import output, overviews
from vbackup.cli.context import Context
from vbackup.errors import Status, UsageError

#: Up to so many domains are shown, also if all is well with them. Of more, so many are that are not as they should be,
#: and so many reasons: without --all it is one screen.
DOMAINS, WRONG, REASONS = 20, 10, 6
_NONE = "-"
_BARS, _PLAIN_BARS = "▁▂▃▄▅▆▇█", "12345678"
#: Backups whose changes are drawn.
_CHANGES = 8
_HOUR_S, _DAY_S, _HOURS = 3600, 86400, 72


def run(options: argparse.Namespace, context: Context) -> int:
    """Return 0 if all is well and 1 if not; with --nagios the status of a plugin."""
    if options.nagios:
        return _nagios(options, context)
    overview = overviews.found(options, context)
    is_well = overview.health is Health.OK
    if context.as_json:
        context.print_document("vbackup.status/1", documents.overview(overview))
    elif not (context.is_quiet and is_well):
        _print(overview, is_all=options.all)
    with context.reporting(steps=False) as reporter:
        for warning in overview.warnings:
            reporter.warning(warning)
    return Status.DONE if is_well else Status.FAILED


def _nagios(options: argparse.Namespace, context: Context) -> int:
    if context.as_json:
        raise UsageError("--nagios prints a line, and --json a document: give one of them.")
    overview = overviews.found(options, context)
    print(api.nagios_line(overview))
    return int(overview.health)


def _print(overview: Overview, *, is_all: bool) -> None:
    for line in output.wrapped(api.status_sentence(overview), output.columns()):
        print(output.plain(line))
    _print_reasons(overview, None if is_all else REASONS)
    if overview.jobs:
        print()
        output.table(
            ("JOB", "LAST RUN", "RESULT", "LAST GOOD RUN", "NEXT RUN"), [_job_row(one) for one in overview.jobs]
        )
    if overview.domains:
        print()
        _print_domains(overview, is_all=is_all)
    if overview.repositories:
        print()
        output.table(
            ("REPOSITORY", "FREE", "OF", "BACKUPS", "GROWS A DAY", "FULL IN"),
            [_repository_row(one) for one in overview.repositories],
        )


def _print_reasons(overview: Overview, limit: int | None) -> None:
    """Print what is not well, the worst first."""
    entries: list[tuple[Health, str, str]] = []
    for kind, found in (("repository ", overview.repositories), ("job ", overview.jobs), ("", overview.domains)):
        entries += [(one.health, kind + one.name, sentence) for one in found for sentence in one.reasons]
    entries.sort(key=lambda entry: -entry[0])
    for _, name, sentence in entries[:limit]:
        output.labelled(f"  {output.plain(name)}: ", sentence)
    if limit is not None and len(entries) > limit:
        print(f"  and {len(entries) - limit} more; --all shows them.")


# tables


def _job_row(one: JobState) -> tuple[str, ...]:
    run = one.last_run
    return (
        one.name,
        _time(run.started if run is not None else None),
        run.outcome.value.replace("_", " ") if run is not None else "never ran",
        _time(one.last_good),
        _time(one.next_run),
    )


def _print_domains(overview: Overview, *, is_all: bool) -> None:
    is_long = len(overview.domains) > DOMAINS and not is_all
    shown = [one for one in overview.domains if one.health is not Health.OK] if is_long else overview.domains
    shown = shown[:WRONG] if is_long else shown
    has_copies = any(one.copies for one in shown)
    if shown:
        if is_all:
            output.table(_WIDE, [_wide_row(one, overview) for one in shown])
        else:
            headings = ("DOMAIN", "AGE", "CHAIN", "VERIFIED", *(("COPIED",) if has_copies else ()), "CHANGES", "STATE")
            output.table(headings, [_row(one, overview, has_copies=has_copies) for one in shown])
    rest = len(overview.domains) - len(shown)
    if rest:
        what = "other domains" if shown else "domains"
        is_well = all(one.health is Health.OK and one.last_read is None for one in overview.domains if one not in shown)
        print(f"{rest} {what}{' are backed up as they should be' if is_well else ''}; --all shows them.")


def _row(one: DomainState, overview: Overview, *, has_copies: bool) -> tuple[str, ...]:
    promise = f" of {_span(one.max_age_s)}" if one.max_age_s is not None and one.age_s is not None else ""
    return (
        one.name,
        _NONE if one.age_s is None else _span(one.age_s) + promise,
        str(one.chain_images or _NONE),
        _ago(one.verified, overview.time),
        *((_copied(one, overview.time),) if has_copies else ()),
        _changes(one) or _NONE,
        _state(one),
    )


_WIDE = (
    *("DOMAIN", "REPOSITORY", "JOB", "LAST BACKUP", "AGE", "PROMISED", "BACKUPS", "SIZE", "CHAIN", "VERIFIED"),
    *("RESULT", "COPIES", "CHANGES", "STATE"),
)


def _wide_row(one: DomainState, overview: Overview) -> tuple[str, ...]:
    copies = [
        f"{copy.target} {_ago(copy.time, overview.time)}{f' ({copy.behind} behind)' if copy.behind else ''}"
        for copy in one.copies
    ]
    return (
        one.name,
        one.repository or _NONE,
        one.job or _NONE,
        _time(one.last.time if one.last is not None else None),
        _NONE if one.age_s is None else _span(one.age_s),
        _NONE if one.max_age_s is None else _span(one.max_age_s),
        str(one.backups),
        output.size(one.size_bytes) if one.backups else _NONE,
        str(one.chain_images or _NONE),
        _time(one.verified),
        one.verdict,
        ", ".join(copies) or _NONE,
        _changes(one) or _NONE,
        _state(one),
    )


def _state(one: DomainState) -> str:
    """Return the state in one or two words: the worst."""
    words = (
        (one.is_gone, "gone"),
        (one.last is None, "never"),
        (one.is_overdue, "overdue"),
        (bool(one.damaged), "damaged"),
        (one.health is Health.CRITICAL, "broken"),
        (one.fault is not None, "failed"),
        (bool(one.unusual), "unusual"),
        (one.health is Health.WARNING and one.job is None, "no job"),
        (one.health is Health.WARNING, "warning"),
        (one.last_read is not None, "not known"),
    )
    return next((word for is_so, word in words if is_so), "ok")


def _repository_row(one: RepositoryState) -> tuple[str, ...]:
    if one.free_bytes is None or one.size_bytes is None or one.backups_bytes is None:
        return (one.name, "cannot be read", _NONE, _NONE, _NONE, _NONE)
    growth = one.growth_bytes_day
    return (
        one.name,
        output.size(one.free_bytes),
        output.size(one.size_bytes),
        output.size(one.backups_bytes),
        _NONE if growth is None else f"{'-' if growth < 0 else ''}{output.size(abs(int(growth)))}",
        _NONE if one.days_until_full is None else _span(one.days_until_full * _DAY_S),
    )


# cells


def _changes(one: DomainState) -> str:
    """Return what the latest backups copied as bars, the newest last."""
    sizes = [size for _, size in one.changed_bytes[-_CHANGES:]]
    bars = _BARS if "utf" in (sys.stdout.encoding or "").lower() else _PLAIN_BARS
    top = max(sizes, default=0)
    return "".join(bars[min(len(bars) - 1, size * len(bars) // top)] if top else bars[0] for size in sizes)


def _copied(one: DomainState, now: datetime) -> str:
    """Return how old the oldest of the newest copies is."""
    if not one.copies:
        return _NONE
    times = [copy.time for copy in one.copies]
    return "never" if None in times else _ago(min(time for time in times if time is not None), now)


def _ago(time: datetime | None, now: datetime) -> str:
    return _NONE if time is None else _span(max(0.0, (now - time).total_seconds()))


def _time(time: datetime | None) -> str:
    return _NONE if time is None else output.local_minute(time)


def _span(elapsed_s: float) -> str:
    """Return a time in the unit in which it was promised: 40 min, 26 h, 9 d."""
    if elapsed_s < _HOUR_S:
        return f"{elapsed_s / 60:.0f} min"
    return f"{elapsed_s / _HOUR_S:.0f} h" if elapsed_s < _HOURS * _HOUR_S else f"{elapsed_s / _DAY_S:.0f} d"
