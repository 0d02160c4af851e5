"""The configuration with which a director, Bacula or Bareos, lets vbackup make its backups: ``vbackup engine config``.

Each line that is not usual there is the answer to a trap that vbackup-engines(7) describes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from vbackup.errors import UsageError

#: What can be in the name of a resource, and in a plugin's text, whose parts a colon separates.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+@-]*")
#: The longest name of a domain: that of a resource has at most 127 bytes, and "vbackup-" and "-restore" around it.
_MAX_DOMAIN_BYTES = 127 - 16
_NEEDS = "it needs letters, digits and . _ + @ - only, and one of the former in front"
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_.+@/-]+")


class Director(Enum):
    """What the configuration is for."""

    BACULA = "bacula"
    BAREOS = "bareos"


@dataclass(frozen=True)
class Names:
    """Resources that the director has already, and where things are."""

    director: str
    client: str
    address: str
    catalog: str
    storage: str
    pool: str
    messages: str
    schedule: str | None
    command: Path  #: the program vbackup
    stage: Path | None  #: None: the default
    where: Path  #: directory for restores on the client


def text(kind: Director, domains: Sequence[str], names: Names, *, password: str) -> str:
    """Return the resources for the director's configuration, and after a line, those for the file daemon's.

    Raises UsageError for a name that cannot be in it.
    """
    for name in (names.director, names.client, names.address, names.catalog, names.storage, names.pool, names.messages):
        _refuse_odd(name)
    for path in (names.command, names.where, *([] if names.stage is None else [names.stage])):
        if not _PLAIN_PATH.fullmatch(str(path)):
            raise UsageError(
                f"The path {str(path)!r} cannot be in the configuration of a director: it needs an absolute path of"
                " letters, digits and . _ + @ - only."
            )
    if names.schedule is not None:
        _refuse_odd(names.schedule)
    for domain in domains:
        if not is_plain(domain):
            raise UsageError(
                f"The domain {domain!r} cannot be in the configuration of a director: {_NEEDS}, {_MAX_DOMAIN_BYTES} at"
                " most; give its UUID."
            )
    own = kind.value
    parts = [
        f"# ---- {own}-dir.conf, on the director ----",
        _client(names, password),
        *(part for domain in domains for part in _of_domain(kind, domain, names)),
        f"# ---- {own}-fd.conf, on {names.address} ----",
        f"# FileDaemon there needs its 'Plugin Directory' (/usr/lib/{own}), and has to run as root.",
        f'Director {{\n  Name = {names.director}\n  Password = "{password}"\n}}',
    ]
    return "\n\n".join(parts) + "\n"


def is_plain(domain: str) -> bool:
    """Return True if a domain can have this name in the configuration."""
    return _PLAIN.fullmatch(domain) is not None and len(domain) <= _MAX_DOMAIN_BYTES


def _refuse_odd(name: str) -> None:
    if not _PLAIN.fullmatch(name):
        raise UsageError(f"The name {name!r} cannot be in the configuration of a director: {_NEEDS}.")


def _client(names: Names, password: str) -> str:
    return (
        "Client {\n"
        f"  Name = {names.client}\n"
        f"  Address = {names.address}\n"
        f"  Catalog = {names.catalog}\n"
        f'  Password = "{password}"\n'
        "  Maximum Concurrent Jobs = 10\n"
        "}"
    )


def _of_domain(kind: Director, domain: str, names: Names) -> list[str]:
    stage = "" if names.stage is None else f" --stage {names.stage}"
    # Without a shell, "exec" would be the name of a program.
    program = str(names.command) if kind is Director.BAREOS else f"exec {names.command}"
    # A constant name would lose the chain: a restore gives one file of each name.
    file = f"/vbackup/{domain}/%i-%l.tar"
    # Times without colons, which separate the parts of the text. That in the name of a job is earlier than its start,
    # which a later job has as %s; that of the clock can be on either side.
    times = "--since $(echo %s | tr -c 0-9 .) --begun $(echo %j | tr -c 0-9 .)"
    reader = f"{program} engine read --domain {domain} --job-id %i --level %l {times}{stage}"
    # The director expands the line once, the file daemon the writer a second time.
    writer = f"{program} engine write --domain {domain} --where %%w"
    plugin = (
        f"bpipe:file={file}:reader={reader}:writer={writer}"
        if kind is Director.BAREOS
        else f"bpipe:{file}:{reader}:{writer}"
    )
    finish = f"{names.command} engine finish --domain {domain} --job-id %i --level %l{stage} --exit '%e'"
    job = f"vbackup-{domain}"
    schedule = "" if names.schedule is None else f"  Schedule = {names.schedule}\n"
    common = (
        f"  Client = {names.client}\n  FileSet = {job}\n  Storage = {names.storage}\n  Pool = {names.pool}\n"
        f"  Messages = {names.messages}\n"
    )
    return [
        (
            "FileSet {\n"
            f"  Name = {job}\n"
            "  Ignore FileSet Changes = yes\n"
            "  Include {\n"
            "    Options {\n"
            "      Signature = SHA256\n"
            "    }\n"
            # The director runs it, and knows when its last good job began.
            f'    Plugin = "|/bin/sh -c \'echo \\"{plugin}\\"\'"\n'
            "  }\n"
            "}"
        ),
        (
            "Job {\n"
            f"  Name = {job}\n"
            "  Type = Backup\n"
            "  Level = Incremental\n"
            f"{common}{schedule}"
            "  Accurate = no\n"
            "  Allow Duplicate Jobs = no\n"
            "  Rerun Failed Levels = yes\n"
            "  RunScript {\n"
            "    RunsWhen = After\n"
            "    RunsOnClient = yes\n"
            "    RunsOnSuccess = yes\n"
            "    RunsOnFailure = yes\n"
            "    FailJobOnError = yes\n"
            f'    Command = "{finish}"\n'
            "  }\n"
            "}"
        ),
        (f"Job {{\n  Name = {job}-restore\n  Type = Restore\n{common}  Where = {names.where}\n}}"),
    ]
