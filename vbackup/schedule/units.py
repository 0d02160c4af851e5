"""What a job needs beside the units that vbackup ships: drop-ins for its service and its timer. Does no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from vbackup.schedule import quoting

#: The first line of each drop-in; a file without it is somebody else's.
MARKER = "# Written by 'vbackup schedule install', which replaces it; other files beside it are left alone.\n"
#: ProtectSystem=full makes them read-only.
_READ_ONLY = tuple(map(PurePath, ("/usr", "/boot", "/efi", "/etc")))

#: What takes back the settings of a user's service that imply NoNewPrivileges: with them, no mail would be sent, as
#: Postfix' postdrop has a group of its own, and Exim is root's.
_MAY_CHANGE_GROUP = (
    "NoNewPrivileges=no",
    "LockPersonality=no",
    "RestrictRealtime=no",
    "RestrictSUIDSGID=no",
    "RestrictNamespaces=no",
    "RestrictAddressFamilies=",
    "SystemCallArchitectures=",
    "SystemCallFilter=",
)

#: What systemd accepts in an argument, but not in the path of a program.
_NOT_IN_A_PROGRAM = "\"'\\"


@dataclass(frozen=True)
class Credential:
    """A credential that the service of a job loads."""

    name: str
    path: Path
    is_encrypted: bool = False  #: by systemd-creds


@dataclass(frozen=True)
class Needs:
    """What the service of a job needs."""

    job: str
    command: tuple[str, ...]  #: the words of vbackup, without those of the run
    environment: tuple[tuple[str, str], ...] = ()
    writable: tuple[Path, ...] = ()  #: directories that it writes to
    credentials: tuple[Credential, ...] = ()
    on_calendar: tuple[str, ...] = field(default=())
    random_delay_s: float = 0.0
    sends_mail: bool = False  #: in the service of a user, where sendmail has to be able to change its group


def argv(needs: Needs) -> tuple[str, ...]:
    """Return the command of a job that is started by a timer or by cron."""
    return (*needs.command, "run", "--due", quoting.job(needs.job))


def service(needs: Needs) -> str:
    """Return the drop-in of the service. Raises UsageError for a path or name that cannot stand in a unit."""
    words = argv(needs)
    if any(one in words[0] for one in _NOT_IN_A_PROGRAM):
        words = ("/usr/bin/env", *words)
    lines = ["[Service]", "ExecStart=", f"ExecStart=:{' '.join(map(quoting.unit_word, words))}"]
    lines += [f"Environment={quoting.unit_word(f'{name}={value}')}" for name, value in needs.environment]
    lines += _MAY_CHANGE_GROUP if needs.sends_mail else ()
    inside = [path for path in needs.writable if any(top in (path, *path.parents) for top in _READ_ONLY)]
    # "-": a directory that is missing is for the run to report, not for systemd.
    lines += [f"ReadWritePaths={quoting.unit_word(f'-{path}')}" for path in sorted(set(inside))]
    for one in needs.credentials:
        kind = "LoadCredentialEncrypted" if one.is_encrypted else "LoadCredential"
        lines += [
            f"{kind}={one.name}:{_path(one.path)}",
            # In place of a file that is missing: the run says so; a service that is not started could not.
            f"SetCredential={one.name}:\\n",
        ]
    return _text(lines)


def timer(needs: Needs) -> str:
    """Return the drop-in of the timer with the times of the job."""
    times = ["OnCalendar=", *(f"OnCalendar={one}" for one in needs.on_calendar)]
    delay = [f"RandomizedDelaySec={needs.random_delay_s:g}s"] if needs.random_delay_s else []
    return _text(["[Timer]", *times, *delay])


def _path(path: Path) -> str:
    # This setting knows no quotes.
    return quoting.unit_word(str(path)).strip('"')


def _text(lines: Sequence[str]) -> str:
    return MARKER + "\n".join(("", *lines)) + "\n"
