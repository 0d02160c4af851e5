"""A first configuration, with comments, from what libvirt has. Does no I/O.

A line that begins with "# " is for people; one that begins with "#" and a key is a proposal that is not used yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vbackup import amounts
from vbackup.config.writing import basic

#: Longer lists of domains are cut in the comment.
_MAX_LISTED = 100


@dataclass(frozen=True)
class FoundDomain:
    """A domain that libvirt has."""

    name: str
    is_running: bool
    disks: int
    size_bytes: int | None  #: of all disks; None if libvirt does not know that of one
    reason: str | None = None  #: why it cannot be backed up; None: it can


def template(
    domains: Sequence[FoundDomain],
    *,
    repository: str,
    free_bytes: int | None = None,
    connect: Sequence[str] = (),
    where: str = "here",
) -> str:
    """Return the text of the file.

    ``free_bytes``: where the repository is or will be. ``connect``: URIs, if they are not libvirt's default. ``where``:
    how libvirt was reached.
    """
    parts = [
        _HEAD,
        _REPOSITORY.format(path=basic(repository), room=_room(domains, free_bytes)),
        _COPIES,
        _JOB.format(
            domains="\n".join(_domains(domains, where)),
            connect="".join(f"connect = [{', '.join(map(basic, connect))}]\n" if connect else ""),
        ),
        _TOLD,
    ]
    return "\n".join(parts)


def _room(domains: Sequence[FoundDomain], free_bytes: int | None) -> str:
    sizes = [one.size_bytes for one in domains if one.size_bytes is not None and one.reason is None]
    disks = (
        f"The disks below have {amounts.size(sum(sizes))}; a full backup takes what is in use of them." if sizes else ""
    )
    free = f" {amounts.size(free_bytes)} are free there." if free_bytes is not None else ""
    return f"# {disks}{free}\n".replace("#  ", "# ") if disks or free else ""


def _domains(domains: Sequence[FoundDomain], where: str) -> list[str]:
    if not domains:
        return [f"# All domains. libvirt has none now ({_plain(where)})."]
    lines = [f"# All domains, also those that are defined later. Now libvirt has ({_plain(where)}):"]
    width = min(max(len(_plain(one.name)) for one in domains), 40)
    lines += [f"#   {_line(one, width)}" for one in domains[:_MAX_LISTED]]
    if len(domains) > _MAX_LISTED:
        lines.append(f"#   and {len(domains) - _MAX_LISTED} more")
    names = ", ".join(basic(one.name) for one in domains[:2])
    return [
        *lines,
        "# To back up only some: names, UUIDs or patterns.",
        f"#domains = [{names}]",
        '#exclude = ["test-*"]',
    ]


def _line(one: FoundDomain, width: int) -> str:
    state = "running" if one.is_running else "shut off"
    name = _plain(one.name).ljust(width)
    if one.reason is not None:
        return f"{name}  cannot be backed up: {_plain(one.reason)}"
    disks = "1 disk" if one.disks == 1 else f"{one.disks} disks"
    size = "" if one.size_bytes is None else f", {amounts.size(one.size_bytes)}"
    return f"{name}  {state.ljust(8)}  {disks}{size}"


def _plain(text: str) -> str:
    """Return a text as it can stand in a comment."""
    return "".join(one if one.isprintable() else "?" for one in text)


_HEAD = """\
# Configuration of vbackup: what is backed up, when, where to, and who is told. vbackup.toml(5) explains all keys.
# 'vbackup config check' says what is wrong with it, 'vbackup config show --origin' what holds.
"""

_REPOSITORY = """\
# Where backups are. 'vbackup init -r DIR' makes the repository, best on another disk than the virtual machines.
{room}[repository.main]
path = {path}
"""

_COPIES = """\
# A copy at another place, to which 'copy-to' below sends each backup: a directory, ssh://HOST/DIR, s3://BUCKET/PREFIX.
#[target.offsite]
#url = "ssh://backup@backup.example.com/srv/copies"
#[target.offsite.copy]
#full-every = 30
#bwlimit = "20M"
#[target.offsite.prune]
#keep-daily = 30
"""

_JOB = """\
# Every night. 'vbackup schedule install nightly' makes a timer of it, 'vbackup run nightly' runs it now.
[job.nightly]
repository = "main"
{domains}
{connect}at = ["01:00"]
#random-delay = "10m"
#window = "22:00-06:00"
#copy-to = ["offsite"]

# How backups are made. Each key is the long option of 'vbackup backup'.
[job.nightly.backup]
quiesce = "auto"
#full-every = "90d"
#compress = "zstd"

# What is kept: the newest backup of each of the last 7 days, 4 weeks and 12 months.
[job.nightly.prune]
keep-daily = 7
keep-weekly = 4
keep-monthly = 12

# After each run: read this part of the images and compare it with what was recorded, in percent.
[job.nightly.verify]
sample = 2

# And this part of what has not changed on the disks of the virtual machines, as QEMU's bitmaps say.
[job.nightly.audit]
sample = 1
"""

_TOLD = """\
# Who is told, and of what. No secret is in this file: it says where they are. 'vbackup notify test' sends a message.
#[notify.mail]
#mail-to = ["root"]
#when = ["failure", "recovery", "overdue", "unusual"]
#[notify.healthchecks]
#ping = { file = "/etc/vbackup/ping-url" }

# Figures for Prometheus' node exporter, and a page for people, after each run.
#[metrics]
#textfile = "/var/lib/prometheus/node-exporter/vbackup.prom"
#[report]
#html = "/var/lib/vbackup/report.html"
"""
