"""Put into words what there is to say: a title that says what, a first line that says what to do, then the facts.

Does no I/O. Whoever reads it may have been woken by it. Names and messages come from guests and other programs, so that
control characters in them are escaped: a line of the text is one line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime

from vbackup import amounts
from vbackup.config.model import When
from vbackup.notices.occasion import BAD, Occasion, is_bad
from vbackup.overview.state import DomainState
from vbackup.runs.record import DomainResult, Fault, Outcome, Run, Step, StepKind

#: So many names stand in a title.
_NAMES = 3
_MAX_TITLE = 180
#: So many lines of a list stand in the text; the report has all.
_MAX_LINES = 60
_MINUTE_S = 60
_MAX_MINUTES = 120
_MAX_HOURS = 48

_WORDS = {
    When.FAILURE: "FAILED",
    When.OVERDUE: "OVERDUE",
    When.UNUSUAL: "UNUSUAL",
    When.RECOVERY: "works again",
    When.ALWAYS: "OK",
}
_STEPS = {
    StepKind.BACKUP: "backup",
    StepKind.PRUNE: "prune",
    StepKind.COPY: "copy",
    StepKind.COPY_PRUNE: "prune of the copies",
    StepKind.VERIFY: "verify",
    StepKind.COPY_VERIFY: "verify of the copies",
    StepKind.AUDIT: "audit",
    StepKind.METRICS: "metrics",
    StepKind.REPORT: "report",
}
_OUTCOMES = {
    Outcome.DONE: "done",
    Outcome.SOME_FAILED: "some failed",
    Outcome.FAILED: "failed",
    Outcome.SKIPPED: "skipped",
    Outcome.INTERRUPTED: "interrupted",
    Outcome.RUNNING: "running",
}


def title(occasion: Occasion, host: str) -> str:
    """Return the subject: "vbackup nightly on hv1: FAILED: web, db not backed up"."""
    run = occasion.run
    about = f"vbackup {run.job} on {host}" if run is not None else f"vbackup on {host}"
    reason = occasion.reasons[0] if occasion.reasons else When.ALWAYS
    if run is not None and is_bad(run):
        said = f"{_WORDS[When.FAILURE]}: {failed(run)}"
    elif reason is When.OVERDUE:
        said = f"{_WORDS[reason]}: {_listed([one.name for one in occasion.overdue])}"
    elif reason is When.UNUSUAL:
        said = f"{_WORDS[reason]}: {occasion.unusual[0]}"
    elif reason is When.RECOVERY and occasion.failed_since is None:
        said = f"{_listed(occasion.recovered)} no longer overdue"
    else:
        said = f"{_WORDS[reason]}: {done(run)}" if run is not None else _WORDS[reason]
    return _short(plain(f"{about}: {said}"))


def text(occasion: Occasion, host: str, *, log_tail: str = "", given: tuple[str, ...] = ()) -> str:
    """Return the whole message: what to do, the facts, where to look, and the tail of the log.

    ``given``: the option that names the configuration, for the commands that are in it.
    """
    parts = [
        list(_what_to_do(occasion, given)),
        list(_facts(occasion, host)),
        *_lists(occasion),
        list(_where(occasion, given)),
    ]
    if log_tail.strip():
        parts.append(["LAST LINES OF THE LOG", *(f"  {plain(line)}" for line in log_tail.rstrip().splitlines())])
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def failed(run: Run) -> str:
    """Return what a bad run did not do, as a phrase."""
    names = [one.name for one in run.domains if one.outcome in BAD]
    steps = [one for one in run.steps if one.outcome in BAD]
    said = []
    if names and len(names) == len(run.domains) and len(names) > 1:
        said.append(f"none of {len(names)} domains was backed up")
    elif names:
        said.append(f"{_listed(names)} not backed up")
    elif any(one.kind is StepKind.BACKUP for one in steps):
        said.append("nothing was backed up" if not run.domains else "the backup failed")
    others = [_step(one) for one in steps if one.kind is not StepKind.BACKUP]
    if others:
        said.append(f"{_listed(others)} failed")
    if run.outcome is Outcome.INTERRUPTED:
        said.insert(0, "interrupted")
    return "; ".join(said) or f"exit status {run.status}"


def done(run: Run) -> str:
    """Return what a good run did, as a phrase."""
    backups = [one for one in run.domains if one.backup is not None]
    if not backups:
        return "all steps done"
    total = sum(one.size_bytes or 0 for one in backups)
    return f"{len(backups)} {'domain' if len(backups) == 1 else 'domains'} backed up, {amounts.size(total)}"


def faults(run: Run) -> list[Fault]:
    """Return the faults of a run, each once, the most important first: what stopped a step, then its domains'."""
    of_steps = [fault for step in run.steps if step.outcome in BAD for fault in step.faults]
    of_domains = [one.fault for one in run.domains if one.outcome in BAD and one.fault is not None]
    ordered = [
        *(one for one in of_steps if one.domain is None),
        *of_domains,
        *(one for one in of_steps if one.domain is not None),
    ]
    return list({(one.domain, one.message): one for one in ordered}.values())


def plain(line: str) -> str:
    """Return the line with control characters escaped."""
    if line.isprintable():
        return line
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "replace").decode() for one in line)


def _what_to_do(occasion: Occasion, given: tuple[str, ...]) -> Iterator[str]:
    """Yield the first lines. The message of a fault says what to do."""
    run = occasion.run
    if run is not None and is_bad(run):
        found = faults(run)
        if found:
            yield _about(found[0])
        elif run.outcome is Outcome.INTERRUPTED:
            yield f"The run was interrupted. Run it again: {_command('run', run.job, *given)}"
        else:
            yield f"See what failed below, and run it again: {_command('run', run.job, *given)}"
        others = len(found) - 1
        if others > 0:
            yield f"{others} more {'fault is' if others == 1 else 'faults are'} below."
    elif When.OVERDUE in occasion.reasons:
        late = occasion.overdue[0]
        job = f": {_command('run', late.job, *given)}" if late.job else " with 'vbackup backup'"
        yield f"Back up {plain(late.name)}{job}"
    elif When.UNUSUAL in occasion.reasons:
        yield f"Look whether this is what you expect: {plain(occasion.unusual[0])}"
    elif When.RECOVERY in occasion.reasons:
        yield f"Nothing to do: {_recovery(occasion)}"
    else:
        yield f"Nothing to do: {done(run)}." if run is not None else "Nothing to do."


def _recovery(occasion: Occasion) -> str:
    if occasion.run is not None and occasion.failed_since is not None:
        unsent = "" if occasion.was_told else " (the message on that could not be sent)"
        return f"{plain(occasion.run.job)} works again. It had failed since {_local(occasion.failed_since)}{unsent}."
    return f"{_listed(occasion.recovered)} no longer overdue."


def _facts(occasion: Occasion, host: str) -> Iterator[str]:
    run = occasion.run
    if run is None:
        yield f"Host        {plain(host)}"
        return
    yield f"Job         {plain(run.job)}"
    yield f"Host        {plain(host)}"
    yield f"Repository  {plain(run.repository)}"
    if run.scheduled is not None:
        yield f"Scheduled   {_local(run.scheduled)}"
    yield f"Started     {_local(run.started)}"
    if run.ended is not None:
        yield f"Took        {_duration((run.ended - run.started).total_seconds())}"
    yield f"Result      {_OUTCOMES[run.outcome]} (exit status {run.status})"
    if is_bad(run) and occasion.failed_since is not None:
        yield f"Fails since {_local(occasion.failed_since)}"


def _lists(occasion: Occasion) -> Iterator[list[str]]:
    """Yield the lists with their headings."""
    run = occasion.run
    if run is not None:
        yield _list("NOT BACKED UP", [_domain(one) for one in run.domains if one.outcome in BAD])
        told = {one.fault.message for one in run.domains if one.fault is not None}
        yield _list("FAULTS", [_about(one) for one in faults(run) if one.message not in told])
        yield _list("STEPS", [_line(one) for one in run.steps])
    yield _list("OVERDUE", [_overdue(one) for one in occasion.overdue])
    if occasion.recovered and occasion.failed_since is not None:
        yield _list("NO LONGER OVERDUE", [plain(one) for one in occasion.recovered])
    yield _list("UNUSUAL", [plain(one) for one in occasion.unusual])
    if run is not None:
        yield _list("WARNINGS", [plain(one) for step in run.steps for one in step.warnings])


def _list(heading: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    more = [f"and {len(lines) - _MAX_LINES} more"] if len(lines) > _MAX_LINES else []
    return [heading, *(f"  {one}" for one in [*lines[:_MAX_LINES], *more])]


def _where(occasion: Occasion, given: tuple[str, ...]) -> Iterator[str]:
    words = (*(() if occasion.run is None else (occasion.run.job,)), *given)
    yield f"State of everything:  {_command('status', *words)}"
    if occasion.run is not None:
        yield f"Run it again:         {_command('run', *words)}"


def _domain(one: DomainResult) -> str:
    why = one.fault.message if one.fault is not None else _OUTCOMES[one.outcome]
    return plain(f"{one.name}: {why}")


def _about(fault: Fault) -> str:
    is_named = fault.domain is None or _has_word(fault.message, fault.domain)
    return plain(fault.message if is_named else f"{fault.domain}: {fault.message}")


def _has_word(sentence: str, word: str) -> bool:
    """Return True if the word is in the sentence, and not only a part of a path or of another name."""
    return re.search(rf"(?<![\w/-]){re.escape(word)}(?![\w-]|\.\w)", sentence) is not None


def _line(step: Step) -> str:
    said = step.reason if step.outcome is Outcome.SKIPPED else step.summary
    return plain(f"{_step(step)}: {_OUTCOMES[step.outcome]}{f': {said}' if said else ''}")


def _step(step: Step) -> str:
    return f"{_STEPS[step.kind]}{f' ({step.target})' if step.target else ''}"


def _overdue(one: DomainState) -> str:
    promise = f"; {one.job or 'its job'} promises {_duration(one.max_age_s)}" if one.max_age_s is not None else ""
    last = f"last backed up {_local(one.last.time)}" if one.last is not None else "never backed up"
    age = f" ({_duration(one.age_s)} ago)" if one.age_s is not None else ""
    return plain(f"{one.name}: {last}{age}{promise}")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES
    shown = ", ".join(plain(one) for one in names[:_NAMES])
    return f"{shown} and {more} more" if more > 0 else shown


def _short(line: str) -> str:
    return line if len(line) <= _MAX_TITLE else line[: _MAX_TITLE - 3].rstrip() + "..."


def _command(*words: str) -> str:
    return plain(shlex.join(("vbackup", *words)))


def _local(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _duration(seconds: float) -> str:
    """Return 5400 as "90 min": exact enough to be compared with what was promised."""
    minutes = round(seconds / _MINUTE_S)
    if minutes < 1:
        return f"{max(seconds, 0):.0f} s"
    if minutes < _MAX_MINUTES:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < _MAX_HOURS:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
