"""The names vbackup gives to things, in the repository and inside QEMU.

All that vbackup makes in QEMU carries ``vbackup-`` and the repository's id, so that two repositories
never meet, libvirt's own checkpoints are never touched, and what a killed run left behind is known
for ours. A checkpoint's bitmap carries its disk's ``dev`` as well, and a token that only the manifest of
its backup repeats: bitmaps travel with images, and one that another disk, another domain or a copy of
the repository has got in the same second would otherwise be taken for it, and the incremental be wrong.

An end mark (vbackup.engine.endmark) carries the disk's size: it tells of that end only.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from vbackup.model import Level

BACKUP_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-(full|incremental|differential|copy)")
REPOSITORY_ID = re.compile(r"[0-9a-f]{12}")
TOKEN = re.compile(r"[0-9a-f]{12}")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

#: Disk names that libvirt accepts, so short that a node name (QEMU: 31 bytes) can bear them.
DEV = re.compile(r"[a-z][a-z0-9_]{0,9}")

_PREFIX = re.compile(rf"vbackup-{REPOSITORY_ID.pattern}-")
_OURS = re.compile(
    rf"vbackup-(?P<repository>{REPOSITORY_ID.pattern})-(?P<backup>{BACKUP_ID.pattern})-(?P<dev>{DEV.pattern})"
    rf"-(?:(?P<token>{TOKEN.pattern})|working)"
)
_END = re.compile(
    rf"vbackup-(?P<repository>{REPOSITORY_ID.pattern})-end-(?P<dev>{DEV.pattern})-(?P<size>[1-9][0-9]{{0,18}})"
)

_JOB = re.compile(
    rf"vbackup-(?P<repository>{REPOSITORY_ID.pattern})-(?P<backup>{BACKUP_ID.pattern})-(?P<dev>{DEV.pattern})"
)


def new_repository_id() -> str:
    """Twelve random hexadecimal digits."""
    import secrets  # what it imports takes a tenth of the start of a command that makes no names

    return secrets.token_hex(6)


def new_token() -> str:
    """Twelve random hexadecimal digits, anew for every backup."""
    return new_repository_id()


def new_group_id() -> str:
    """Twelve random hexadecimal digits."""
    return new_repository_id()


def stamp(time: datetime) -> str:
    """The moment in UTC as backup ids begin: 20261123T101500Z."""
    return time.astimezone(timezone.utc).strftime("%Y%m%dT%H%M%SZ")


def backup_id(time: datetime, level: Level) -> str:
    """The id of a backup, which is also the name of its checkpoint."""
    return f"{stamp(time)}-{level.value}"


def stamp_of(backup: str) -> str:
    """The moment that a backup's id begins with."""
    return backup.partition("-")[0]


def is_ours(name: str) -> bool:
    """True for a job, node or bitmap of vbackup's, for whatever repository."""
    return _PREFIX.match(name) is not None


@dataclass(frozen=True)
class Naming:
    """How a repository's jobs, nodes and bitmaps in QEMU are called: every such name is made here."""

    repository_id: str

    @property
    def prefix(self) -> str:
        """How everything begins that vbackup makes in QEMU for this repository."""
        return f"vbackup-{self.repository_id}-"

    def bitmap(self, checkpoint: str, dev: str, token: str) -> str:
        """The bitmap of a checkpoint on disk ``dev``; the token is the backup's own."""
        return f"{self.prefix}{checkpoint}-{dev}-{token}"

    def working_bitmap(self, backup: str, dev: str) -> str:
        """The bitmap that drives the copy; it lives as long as the job."""
        return f"{self.job(backup, dev)}-working"

    def job(self, backup: str, dev: str) -> str:
        """The job that copies disk ``dev``."""
        return f"{self.prefix}{backup}-{dev}"

    def target_node(self, dev: str) -> str:
        """The node of the target image of disk ``dev``; at most 31 bytes (QEMU's limit)."""
        return f"{self.prefix}{dev}"

    def fleecing_job(self, backup: str, dev: str) -> str:
        """The job that puts aside what the guest is about to overwrite on disk ``dev``."""
        return f"{self.job(backup, dev)}-fleecing"

    def fleecing_node(self, index: int) -> str:
        """The node of the image that this is put into. No disk's name begins with a digit."""
        return f"{self.prefix}{index}-aside"

    def fleecing_filter(self, index: int) -> str:
        """The node that QEMU puts above the disk for that job."""
        return f"{self.prefix}{index}-filter"

    def fleecing_view(self, index: int) -> str:
        """The node that shows the disk as it was at the moment of the backup."""
        return f"{self.prefix}{index}-view"

    def end_mark(self, dev: str, size_bytes: int) -> str:
        """The bitmap that tells whether disk ``dev``, once of that size, has been smaller since."""
        return f"{self.prefix}end-{dev}-{size_bytes}"

    def scratch_node(self, number: int) -> str:
        """The node on which an end mark is made. No ``dev`` has a dot or a dash, so it is no target's."""
        return f"{self.prefix}end.{number}"

    @property
    def scratch_source(self) -> str:
        """The node that is copied onto a scratch node."""
        return f"{self.prefix}end-source"

    @property
    def scratch_window(self) -> str:
        """The node that stands for the last piece of a scratch node."""
        return f"{self.prefix}end-window"

    @property
    def scratch_job(self) -> str:
        """The job that copies the one onto the other, and also the name of the scratch node's bitmap."""
        return f"{self.prefix}end"


@dataclass(frozen=True)
class EndMark:
    """The name of an end mark, taken apart."""

    repository_id: str
    dev: str
    size_bytes: int


@dataclass(frozen=True)
class BitmapName:
    """A bitmap name of ours, taken apart."""

    repository_id: str
    checkpoint: str
    dev: str
    token: str | None  #: None for a working bitmap

    @property
    def working(self) -> bool:
        """True if it drives a copy and is no checkpoint's."""
        return self.token is None


def parse_bitmap(name: str) -> BitmapName | None:
    """Take the name of a checkpoint's or a working bitmap apart; None if vbackup did not give it."""
    match = _OURS.fullmatch(name)
    if match is None:
        return None
    return BitmapName(match["repository"], match["backup"], match["dev"], match["token"])


@dataclass(frozen=True)
class JobName:
    """The id of a job of ours, taken apart."""

    repository_id: str
    backup_id: str
    dev: str


def parse_job(name: str) -> JobName | None:
    """Take a job's id apart; None if it is none that copies a disk for vbackup."""
    match = _JOB.fullmatch(name)
    if match is None:
        return None
    return JobName(match["repository"], match["backup"], match["dev"])


def parse_end_mark(name: str) -> EndMark | None:
    """Take an end mark's name apart; None if it is none."""
    match = _END.fullmatch(name)
    return None if match is None else EndMark(match["repository"], match["dev"], int(match["size"]))


def repository_of(bitmap_name: str) -> str | None:
    """The id of the repository that a bitmap belongs to, whatever it is for; None if vbackup did not make it."""
    ours = parse_bitmap(bitmap_name) or parse_end_mark(bitmap_name)
    return ours.repository_id if ours is not None else None


def disk_devs() -> Iterator[str]:
    """Names for disks that have none: vda ... vdz, vdaa, ... as the kernel counts (sd_format_disk_name)."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "vd" + "".join(letters)
