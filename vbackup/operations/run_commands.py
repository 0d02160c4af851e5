"""The steps of a run as command lines of vbackup, from the configuration. Executes nothing.

A step has exactly the meaning of the command: whoever wants to know what a step does can give the same line by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from os import fspath
from typing import NamedTuple

from vbackup.config.arguments import argv
from vbackup.config.keys import OPENING, RULES
from vbackup.config.model import Config, Job, Options, OptionValue, TargetEntry
from vbackup.runs.record import StepKind

#: A command line without the program.
Argv = tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """A step that a run of a job has."""

    kind: StepKind
    target: str | None = None  #: name of the target, for copies


class StepDomains(NamedTuple):
    """What the steps after the backup are about."""

    uuids: list[str]  #: of the domains of the job that are in the repository
    are_all: bool  #: no other domain is there


def steps(job: Job, config: Config) -> list[Planned]:
    """Return the steps of a run, in their order; those that follow it are not among them."""
    planned = [Planned(StepKind.BACKUP)]
    if _has_rules(job.options.get("prune", {})):
        planned.append(Planned(StepKind.PRUNE))
    for name in job.copy_to:
        planned.append(Planned(StepKind.COPY, name))
        if _has_rules(config.targets[name].options.get("prune", {})):
            planned.append(Planned(StepKind.COPY_PRUNE, name))
    if "verify" in job.options:
        planned.append(Planned(StepKind.VERIFY))
    planned += [Planned(StepKind.COPY_VERIFY, name) for name in job.copy_to if "verify" in config.targets[name].options]
    if "audit" in job.options:
        planned.append(Planned(StepKind.AUDIT))
    return planned


def _has_rules(options: Options) -> bool:
    return not RULES.isdisjoint(options) or "max-chain" in options


def backup(job: Job, config: Config, *, until: datetime | None = None) -> Argv:
    """Return what backs up the domains of the job; no domain is begun at ``until`` or later."""
    words = ["--all"] if not job.domains else []
    words += [f"--exclude={word}" for word in job.exclude]
    words += [f"--until={until.isoformat(timespec='seconds')}"] if until is not None else []
    words += [f"--connect={uri}" for uri in job.connect]
    words += [f"--hosts={fspath(job.hosts)}"] if job.hosts is not None else []
    named = ["--", *job.domains] if job.domains else []
    return (*argv("backup", job.options.get("backup", {})), "--strict", _repository(job, config), *words, *named)


def prune(job: Job, config: Config, domains: Sequence[str] | None) -> Argv:
    """Return what applies the rules to domains of the repository, by UUID; None: all that are there."""
    options = job.options.get("prune", {})
    return (*argv("prune", options), _repository(job, config), *_one_host(job), *_domains(domains))


def verify(job: Job, config: Config, domains: Sequence[str] | None) -> Argv:
    """Return what reads a sample of the backups."""
    options = job.options.get("verify", {})
    return (*argv("verify", options), _repository(job, config), *_one_host(job), *_domains(domains))


def audit(job: Job, config: Config, domain: str, uri: str | None) -> Argv:
    """Return what audits a domain; ``uri``: of its host, if there are several."""
    options = job.options.get("audit", {})
    host = (f"--connect={uri}",) if uri is not None else _one_host(job)
    return (*argv("audit", options), _repository(job, config), *host, f"--domain={domain}")


def copy(job: Job, config: Config, target: str, domains: Sequence[str] | None) -> Argv:
    """Return what brings backups to a target."""
    entry = config.targets[target]
    return (*_there("copy", entry), _repository(job, config), f"--to={entry.url}", *_domains(domains))


def copy_prune(job: Job, config: Config, target: str, domains: Sequence[str]) -> Argv:
    """Return what applies the rules of the target to domains there."""
    entry = config.targets[target]
    return (*_there("prune", entry), _repository(job, config), f"--at={entry.url}", *_domains(domains))


def copy_verify(job: Job, config: Config, target: str, domains: Sequence[str]) -> Argv:
    """Return what reads the copies of domains."""
    entry = config.targets[target]
    return (*_there("verify", entry), _repository(job, config), f"--from={entry.url}", *_domains(domains))


def _there(command: str, entry: TargetEntry) -> list[str]:
    """Return the command with its options; those that open the target hold for all its commands."""
    opening: dict[str, OptionValue] = {}
    for options in entry.options.values():
        opening.update({name: value for name, value in options.items() if name in OPENING})
    return argv(command, {**opening, **entry.options.get(command, {})})


def _repository(job: Job, config: Config) -> str:
    return f"--repository={fspath(config.repositories[job.repository].path)}"


def _one_host(job: Job) -> Argv:
    """Return -c if the job has one host: prune and verify work on one, and most of what they do needs none."""
    return (f"--connect={job.connect[0]}",) if len(job.connect) == 1 and job.hosts is None else ()


def _domains(domains: Sequence[str] | None) -> Argv:
    return ("--all",) if domains is None else ("--", *domains)


def has_all(job: Job) -> bool:
    """Return True if every domain of the repository belongs to the job."""
    return not job.domains and not job.exclude


def belonging(job: Job, known: Mapping[str, str]) -> list[str]:
    """Return the UUIDs of the domains of a repository that belong to the job; ``known`` has their names by UUID.

    Two jobs can share a repository, and neither applies its rules to the domains of the other.
    """
    return [
        uuid
        for uuid, name in known.items()
        if (not job.domains or _matches(job.domains, name, uuid)) and not _matches(job.exclude, name, uuid)
    ]


def contested(job: Job, config: Config, known: Mapping[str, str]) -> dict[str, str]:
    """Return those of the domains that also belong to another job with the same repository and other rules, by UUID.

    The values are the names of these jobs. Each job would remove what the other one keeps, so that together they keep
    only what both of them do: nothing is removed of such a domain.
    """
    if not _rules(job):
        return {}
    others = [
        one
        for one in config.jobs.values()
        if one.name != job.name and one.repository == job.repository and _rules(one) not in ({}, _rules(job))
    ]
    return {uuid: one.name for one in others for uuid in belonging(one, known)}


def contradiction(domain: str, job: str, other: str) -> str:
    """Return why no backup of a domain is removed that two jobs with other rules share."""
    return (
        f"No backup of domain {domain} is removed: it belongs to jobs {job} and {other}, which have one repository"
        " and other rules. Give both the same rules, or exclude it from one."
    )


def _rules(job: Job) -> Options:
    return {name: value for name, value in job.options.get("prune", {}).items() if name in RULES}


def _matches(words: Sequence[str], name: str, uuid: str) -> bool:
    return any(word == name or word.lower() == uuid or fnmatchcase(name, word) for word in words)
