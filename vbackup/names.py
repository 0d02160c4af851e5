"""The names that vbackup gives to things in the repository and in QEMU.

The name of every object that vbackup makes in QEMU starts with ``vbackup-`` and the repository's id. So repositories do
not interfere with each other, libvirt's own checkpoints are never touched, and what a killed run left behind can be
recognised. The name of a checkpoint's bitmap also has the ``dev`` of the disk, and a token that is recorded only in the
manifest of its backup. Bitmaps travel with images: without these, a bitmap that another disk, another domain or a copy
of the repository got in the same second would be mistaken for it, and the incremental would be wrong. The last four
digits of a token tell the path of the repository: a copy, which has the same id, does not remove what the original has.

The name of an end mark (vbackup.engine.endmark) has the size of the disk, because it only watches that end.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vbackup.model import Level

BACKUP_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-(full|incremental|differential|copy)")
REPOSITORY_ID = re.compile(r"[0-9a-f]{12}")
#: A tracker (vbackup.sessions) has what a repository has in QEMU, under an id that no repository can have.
TRACKER_ID = re.compile(r"t[0-9a-f]{11}")
#: What the client of pull sessions calls itself; also the name of a file.
TRACKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,62}")
#: The id of a pull session; also the name of a directory, and the beginning of the names of its exports.
SESSION_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}")
TOKEN = re.compile(r"[0-9a-f]{12}(?:[0-9a-f]{4})?")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

#: Disk names that libvirt accepts, and that are short enough for a node name (QEMU: 31 bytes).
DEV = re.compile(r"[a-z][a-z0-9_]{0,9}")

#: Beginning of the names of the domains that boot tests run.
BOOT_COPY_PREFIX = "vbackup-boot-"

#: What an audit is named by in QEMU; the repository has nothing of this name.
_AUDIT_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-audit")

#: The id in the names: of a repository, or of a tracker.
_OWNER = rf"(?:{REPOSITORY_ID.pattern}|{TRACKER_ID.pattern})"
_PREFIX = re.compile(rf"vbackup-{_OWNER}-")
_BITMAP = re.compile(
    rf"vbackup-(?P<repository>{_OWNER})-(?P<backup>{BACKUP_ID.pattern}|{_AUDIT_ID.pattern})"
    rf"-(?P<dev>{DEV.pattern})-(?:(?P<token>{TOKEN.pattern})|working|allocated)"
)
_END_MARK = re.compile(rf"vbackup-(?P<repository>{_OWNER})-end-(?P<dev>{DEV.pattern})-(?P<size>[1-9][0-9]{{0,18}})")

_ROLLBACK = re.compile(
    rf"vbackup-(?P<repository>{_OWNER})-(?P<backup>{BACKUP_ID.pattern})-(?P<dev>{DEV.pattern})-rollback"
)
_JOB = re.compile(
    rf"vbackup-(?P<repository>{_OWNER})-(?P<backup>{BACKUP_ID.pattern}|{_AUDIT_ID.pattern})"
    rf"-(?P<dev>{DEV.pattern})"
)


def new_repository_id() -> str:
    """Return twelve random hexadecimal digits."""
    import secrets  # its imports take a tenth of the start-up time of a command that needs no new names

    return secrets.token_hex(6)


def new_token(place: str = "") -> str:
    """Return twelve random hexadecimal digits, new for every backup, and those of the place (Naming.place)."""
    return new_repository_id() + place


def place_of(path: str) -> str:
    """Return four hexadecimal digits that tell the path of a repository from those of its copies."""
    return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:4]


def new_group_id() -> str:
    """Return twelve random hexadecimal digits."""
    return new_repository_id()


#: Characters that make a word a pattern (see fnmatch), unless a domain has exactly that name.
_WILDCARDS = frozenset("*?[")


def tracker_id(name: str) -> str:
    """Return the id that stands for a tracker in the names of what it has in QEMU."""
    return "t" + hashlib.sha256(name.encode()).hexdigest()[:11]


def new_session_id(time: datetime) -> str:
    """Return the id of a pull session: its beginning, and six random hexadecimal digits."""
    return f"{stamp(time)}-{new_repository_id()[:6]}"


def is_tracker(owner: str) -> bool:
    """Return True if the id in a name is that of a tracker, False if it is that of a repository."""
    return TRACKER_ID.fullmatch(owner) is not None


def is_pattern(word: str) -> bool:
    """Return True if the word contains wildcards; it is then a pattern unless a domain has that name."""
    return not _WILDCARDS.isdisjoint(word)


def closest(word: str, known: Iterable[str]) -> str:
    """Return what to add to an error about an unknown word: "; the closest is 'X'", or "" if nothing is like it."""
    import difflib  # which only an error needs

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; the closest is {close[0]!r}" if close and close[0] != word else ""


def stamp(time: datetime) -> str:
    """Return the moment in UTC in the format with which backup ids start: 20261123T101500Z."""
    return time.astimezone(timezone.utc).strftime("%Y%m%dT%H%M%SZ")


def backup_id(time: datetime, level: Level) -> str:
    """Return the id of a backup, which is also the name of its checkpoint."""
    return f"{stamp(time)}-{level.value}"


def audit_id(time: datetime) -> str:
    """Return the id of an audit, which takes the place of a backup's id in the names of its jobs and bitmaps."""
    return f"{stamp(time)}-audit"


def stamp_of(backup: str) -> str:
    """Return the stamp with which the id of a backup starts."""
    return backup.partition("-")[0]


def time_of(backup: str) -> datetime:
    """Return the moment in the id of a backup, in UTC. Raises ValueError for another text."""
    return datetime.strptime(stamp_of(backup), "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)


def is_ours(name: str) -> bool:
    """Return True for a job, node or bitmap of vbackup, of any repository."""
    return _PREFIX.match(name) is not None


@dataclass(frozen=True)
class Naming:
    """Makes the names of a repository's jobs, nodes and bitmaps in QEMU; no other code does."""

    repository_id: str
    place: str = ""  #: of the repository (place_of); "" if it does not matter

    @property
    def prefix(self) -> str:
        """The start of all names that vbackup gives in QEMU for this repository."""
        return f"vbackup-{self.repository_id}-"

    def bitmap(self, checkpoint: str, dev: str, token: str) -> str:
        """Return the name of a checkpoint's bitmap on disk ``dev``, with the token of its backup."""
        return f"{self.prefix}{checkpoint}-{dev}-{token}"

    def working_bitmap(self, backup: str, dev: str) -> str:
        """Return the name of the working bitmap, which drives the copy and exists as long as the job."""
        return f"{self.job(backup, dev)}-working"

    def rollback_mark(self, backup: str, dev: str) -> str:
        """Return the name of the bitmap that disk ``dev`` has while it is rolled back to that backup."""
        return f"{self.job(backup, dev)}-rollback"

    def allocation_bitmap(self, backup: str, dev: str) -> str:
        """Return the name of the bitmaps, on all layers of disk ``dev``, of what the layers have allocated."""
        return f"{self.job(backup, dev)}-allocated"

    def allocation_job(self, backup: str, dev: str) -> str:
        """Return the id of the job that finds out what a layer of disk ``dev`` has allocated."""
        return f"{self.job(backup, dev)}-allocation"

    def job(self, backup: str, dev: str) -> str:
        """Return the id of the job that copies disk ``dev``."""
        return f"{self.prefix}{backup}-{dev}"

    def target_node(self, dev: str) -> str:
        """Return the name of the target node of disk ``dev``; at most 31 bytes (QEMU's limit)."""
        return f"{self.prefix}{dev}"

    def is_target_node(self, name: str) -> bool:
        """Return True for the name of a target node of this repository."""
        return name.startswith(self.prefix) and DEV.fullmatch(name[len(self.prefix) :]) is not None

    def fleecing_job(self, backup: str, dev: str) -> str:
        """Return the id of the job that saves what the guest is about to overwrite on disk ``dev``."""
        return f"{self.job(backup, dev)}-fleecing"

    def fleecing_node(self, index: int) -> str:
        """Return the name of the fleecing image's node. It cannot be a target's: no disk's name starts with a digit."""
        return f"{self.prefix}{index}-aside"

    def fleecing_filter(self, index: int) -> str:
        """Return the name of the filter node that QEMU inserts above the disk for the fleecing job."""
        return f"{self.prefix}{index}-filter"

    def fleecing_view(self, index: int) -> str:
        """Return the name of the node that shows the disk as it was at the moment of the backup."""
        return f"{self.prefix}{index}-view"

    def lock_node(self, index: int) -> str:
        """Return the name of the node that keeps others from writing to a disk (vbackup.engine.session_lock)."""
        return f"{self.prefix}{index}-lock"

    def audit_copy(self, index: int) -> str:
        """Return the name of the node that receives what an audit reads of a disk."""
        return f"{self.prefix}{index}-audit"

    def audit_bits(self, index: int) -> str:
        """Return the name of the node with the bitmaps of an audit: which blocks it reads, and which have changed."""
        return f"{self.prefix}{index}-bits"

    def end_mark(self, dev: str, size_bytes: int) -> str:
        """Return the name of the bitmap that shows whether disk ``dev`` has been smaller since it had this size."""
        return f"{self.prefix}end-{dev}-{size_bytes}"

    def scratch_node(self, number: int) -> str:
        """Return the name of a node on which an end mark is prepared. No target's: no ``dev`` has a dot or a dash."""
        return f"{self.prefix}end.{number}"

    def extended_node(self, index: int) -> str:
        """Return the name of a node as large as a disk that has smaller layers (vbackup.engine.allocation)."""
        return f"{self.prefix}alloc.{index}"

    def file_data_node(self, index: int) -> str:
        """Return the name of the node whose bitmap shows where a raw image has data."""
        return f"{self.prefix}alloc-{index}"

    @property
    def allocation_sink(self) -> str:
        """The name of the node that fails every write of a job that asks what a layer has allocated."""
        return f"{self.prefix}alloc-sink"

    @property
    def scratch_source(self) -> str:
        """The name of the node that is copied to a scratch node."""
        return f"{self.prefix}end-source"

    @property
    def scratch_window(self) -> str:
        """The name of the node that maps the last granule of a scratch node."""
        return f"{self.prefix}end-window"

    @property
    def scratch_job(self) -> str:
        """The id of the job that copies the source to the window, and the name of the scratch node's bitmap."""
        return f"{self.prefix}end"


@dataclass(frozen=True)
class EndMark:
    """The parts of an end mark's name."""

    repository_id: str
    dev: str
    size_bytes: int


@dataclass(frozen=True)
class BitmapName:
    """The parts of the name of a checkpoint's bitmap or a working bitmap."""

    repository_id: str
    checkpoint: str
    dev: str
    token: str | None  #: None for a bitmap that only its own backup needs

    @property
    def working(self) -> bool:
        """True for a bitmap that drives a copy, or that such a one is merged from; False for a checkpoint's."""
        return self.token is None

    @property
    def is_of_audit(self) -> bool:
        """True for the working bitmap of an audit."""
        return _AUDIT_ID.fullmatch(self.checkpoint) is not None

    def is_of_other_place(self, naming: Naming) -> bool:
        """Return True if a copy of the repository made it, or this one before it was moved."""
        place = (self.token or "")[12:]
        return self.repository_id == naming.repository_id and "" not in (place, naming.place) and place != naming.place


def parse_bitmap(name: str) -> BitmapName | None:
    """Return the parts of the name of a checkpoint's bitmap or a working bitmap; None for any other name."""
    match = _BITMAP.fullmatch(name)
    if match is None:
        return None
    return BitmapName(match["repository"], match["backup"], match["dev"], match["token"])


@dataclass(frozen=True)
class JobName:
    """The parts of the id of a job that copies a disk."""

    repository_id: str
    backup_id: str
    dev: str


def parse_job(name: str) -> JobName | None:
    """Return the parts of the id of a job that copies a disk for vbackup; None for any other id."""
    match = _JOB.fullmatch(name)
    if match is None:
        return None
    return JobName(match["repository"], match["backup"], match["dev"])


def parse_end_mark(name: str) -> EndMark | None:
    """Return the parts of an end mark's name; None for any other name."""
    match = _END_MARK.fullmatch(name)
    return None if match is None else EndMark(match["repository"], match["dev"], int(match["size"]))


@dataclass(frozen=True)
class RollbackMark:
    """The parts of the name of a rollback's mark."""

    repository_id: str
    backup_id: str
    dev: str


def parse_rollback_mark(name: str) -> RollbackMark | None:
    """Return the parts of the name of a rollback's mark; None for any other name."""
    match = _ROLLBACK.fullmatch(name)
    return None if match is None else RollbackMark(match["repository"], match["backup"], match["dev"])


def repository_of(bitmap_name: str) -> str | None:
    """Return the id of the repository that a bitmap of any kind belongs to; None if vbackup did not make it."""
    parsed = parse_bitmap(bitmap_name) or parse_end_mark(bitmap_name) or parse_rollback_mark(bitmap_name)
    return parsed.repository_id if parsed is not None else None


def disk_devs() -> Iterator[str]:
    """Yield names for disks without one: vda ... vdz, vdaa, ... as the kernel counts (sd_format_disk_name)."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "vd" + "".join(letters)


def is_printable_part(text: str, *, max_bytes: int) -> bool:
    """Return True for text that can be a part of the name of a file, and that a person can read."""
    size_bytes = len(text.encode(errors="replace"))
    return bool(text.strip()) and "/" not in text and text.isprintable() and size_bytes <= max_bytes


def is_file_name(text: str) -> bool:
    """Return True for the name of a file that is not hidden, and that a person can read."""
    return is_printable_part(text, max_bytes=255) and not text.startswith(".")
