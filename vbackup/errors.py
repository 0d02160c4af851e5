"""Everything vbackup can refuse or fail at, as one tree of exceptions.

Each class owns the exit status that the command line gives for it (vbackup(1), EXIT STATUS); the
text is a sentence for the administrator that says what to do, the attributes are for programs.
Only vbackup.cli prints and exits.
"""

from __future__ import annotations

import re
import signal
from enum import IntEnum

_ACTION = re.compile(r"actions\[([0-9]+)\]")


class Status(IntEnum):
    """The exit statuses of the command, a stable interface."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    SOME_FAILED = 3
    NOT_FOUND = 4
    UNSUITABLE = 5
    CHAIN = 6
    STORAGE = 7
    BUSY = 8
    SCRIPT = 9
    SIGNAL = 128


class VbackupError(Exception):
    """Base of all: catch it to catch everything vbackup raises on purpose."""

    status: int = Status.FAILED

    def evidence(self) -> dict[str, object]:
        """The typed attributes, for machine-readable output."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class UsageError(VbackupError):
    """An argument that means nothing to vbackup; correct the command line."""

    status = Status.USAGE


class MalformedError(VbackupError):
    """Something from outside (domain XML, QMP reply) is not what its definition says it is."""


# libvirt and the domain


class HostUnreachableError(VbackupError):
    """libvirt cannot be reached, or stayed away after the connection was lost."""

    status = Status.NOT_FOUND

    def __init__(self, uri: str | None, message: str) -> None:
        self.uri = uri
        super().__init__(f"Cannot reach libvirt at {uri or 'the default URI'}: {message}")


class ConnectionLostError(VbackupError):
    """The connection to libvirt or QEMU broke while a command was on its way.

    Whether the command was carried out is not known; ask (query-jobs, query-block) before repeating it.
    """

    status = Status.NOT_FOUND


class DomainNotFoundError(VbackupError):
    """No such domain in libvirt, or none of that name in the repository."""

    status = Status.NOT_FOUND

    def __init__(self, domain: str, where: str, hint: str) -> None:
        self.domain = domain
        super().__init__(f"No domain {domain!r} {where}; {hint}.")


class NoBackupRunningError(VbackupError):
    """No backup of the domain runs, so there is nothing about it to change."""

    status = Status.NOT_FOUND

    def __init__(self, domain: str, which: str = "") -> None:
        self.domain = domain
        super().__init__(f"No backup of domain {domain}{which} is running; nothing was changed.")


class QemuGoneError(VbackupError):
    """What reads the disks is gone, and all that was begun in it went with it."""


class DomainGoneError(QemuGoneError):
    """The domain stopped, crashed or was destroyed while it was being backed up."""

    def __init__(self, domain: str) -> None:
        self.domain = domain
        super().__init__(
            f"Domain {domain} stopped while it was being backed up; nothing was kept of this backup."
            " Start it and run the same command again."
        )


class StorageDaemonGoneError(QemuGoneError):
    """The storage daemon that reads the disks of a domain that is off ended before it was told to."""

    def __init__(self, how: str, last_words: str) -> None:
        self.last_words = last_words
        said = f", its last words: {last_words.rstrip('.')}" if last_words else ""
        super().__init__(
            f"qemu-storage-daemon {how}{said}. Nothing was kept of an unfinished backup; run the same command again."
        )


class UnsuitableError(VbackupError):
    """The domain or a disk cannot be backed up in the way that was asked for."""

    status = Status.UNSUITABLE


class DiskError(UnsuitableError):
    """A disk that is unknown, cannot be matched to QEMU's block graph, or cannot be backed up."""

    def __init__(self, dev: str, message: str) -> None:
        self.dev = dev
        super().__init__(f"Disk {dev}: {message}")


class QuiesceError(UnsuitableError):
    """The guest's filesystems could not be frozen although that was required."""


# QEMU


class MonitorError(VbackupError):
    """The monitor could not carry a command to QEMU (libvirt's own words are in the text)."""


class FdsNotPassedError(MonitorError):
    """The way to QEMU carries no file descriptors: another host, or a libvirt before 8.2."""


class FdsNotNeededError(FdsNotPassedError):
    """A storage daemon of our own takes none: it opens files with our own rights."""


class QemuText(str):
    """What QEMU, or a QEMU tool, says went wrong.

    QEMU has one error class for nearly everything, so its words have to be matched; this is the only place that does.
    (Which action of a transaction they are about is for vbackup.qapi.actions.blame.)
    """

    __slots__ = ()

    @property
    def is_of_lock(self) -> bool:
        """True if another process has the image open: Failed to get "write" lock."""
        return "Failed to get " in self and self.rstrip(".").endswith("lock")

    @property
    def is_busy(self) -> bool:
        """True if a block job uses the node: Node 'X' is busy: block device is in use by block job: commit."""
        return "in use by block job" in self

    @property
    def is_no_space(self) -> bool:
        """True for ENOSPC."""
        return "No space left on device" in self

    @property
    def is_denied(self) -> bool:
        """True if QEMU may not open a file.

        The kernel drops a descriptor that SELinux or AppArmor keeps from QEMU, which then says that none came.
        """
        return "Permission denied" in self or "No file descriptor supplied via SCM_RIGHTS" in self

    @property
    def is_not_found(self) -> bool:
        """True for ENOENT."""
        return "No such file" in self

    @property
    def is_abort(self) -> bool:
        """True if all other actions of the transaction were prepared: Transaction aborted using Abort action."""
        return "Abort action" in self


class QmpError(VbackupError):
    """QEMU answered a command with an error; nothing of that command was carried out."""

    def __init__(self, command: str, error_class: str, description: str) -> None:
        self.command = command
        self.error_class = error_class
        self.description = QemuText(description)
        super().__init__(f"QEMU refused {command}: {description}")


class TransactionError(VbackupError):
    """A command that QEMU would refuse, a transaction above all, found before anything is sent.

    ``path`` names the member as QEMU's own messages do ("actions[3].data.bitmap-mode"), ``action`` is the
    number of the action that it belongs to, None if it belongs to none.
    """

    status = Status.USAGE

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        match = _ACTION.match(path)
        self.action = int(match[1]) if match else None
        super().__init__(f"{path}: {message}")


class TransactionRefusedError(VbackupError):
    """QEMU refused a transaction of the user's own, and so carried out none of it.

    ``index`` is the action that its words are about, None where they do not tell.
    """

    def __init__(self, description: str, index: int | None, kind: str | None) -> None:
        self.description = description
        self.index = index
        at = "the transaction" if index is None else f"actions[{index}] ({kind})"
        super().__init__(f"QEMU refused {at}: {description.rstrip('.')}. Nothing of the transaction was carried out.")


class UnsafeError(UnsuitableError):
    """A transaction or a command that would damage what libvirt, a repository or the user relies on."""

    def __init__(self, path: str, message: str, *, instead: str = "--unsafe sends it all the same") -> None:
        self.path = path
        super().__init__(f"{path}: {message}; {instead}.")


class JobError(VbackupError):
    """A backup job ended with an error; all jobs of that backup were cancelled and undone."""

    def __init__(self, dev: str, reason: str) -> None:
        self.dev = dev
        self._reason = QemuText(reason)
        super().__init__(
            f"Disk {dev}: the backup job failed: {reason}. Nothing was kept of this backup and the disk's"
            " earlier backups are untouched; mend the cause and run the same command again."
        )

    @property
    def reason(self) -> QemuText:
        """What QEMU said of the job."""
        return self._reason


class JobStalledError(VbackupError):
    """No job made progress for longer than the limit; all were cancelled."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        super().__init__(
            f"No byte was copied for {limit_s:.0f} s; is the storage of the repository or of the disk hanging?"
        )


# repository and chain


class ChainError(VbackupError):
    """A backup, or a link that it needs, is unknown, missing, altered or foreign."""

    status = Status.CHAIN


class BaseError(ChainError):
    """A level asked for by name has no trustworthy base on a disk (``auto`` would take a full)."""

    def __init__(self, dev: str, level: str, checkpoint: str | None, reason: str) -> None:
        self.dev = dev
        self.level = level
        self.checkpoint = checkpoint  #: that of the base it would start from, None if there is none
        self.reason = reason
        since = f" since {checkpoint}" if checkpoint and checkpoint not in reason else ""
        super().__init__(
            f"Disk {dev}: no {level} backup{since} is possible: {reason}. Take a full backup, or use --level auto,"
            " which takes a full of just the disks that need one."
        )


class StorageError(VbackupError):
    """The repository or the output cannot be used: not there, no space, no permission, exists."""

    status = Status.STORAGE


class NoSpaceError(StorageError):
    """The filesystem of the repository or of the output is full."""


class BusyError(VbackupError):
    """Another vbackup, or another block job, has the domain."""

    status = Status.BUSY


class DiskBusyError(BusyError):
    """A block job of somebody else works on a disk; found before anything was begun."""

    def __init__(self, dev: str, job_type: str, job_id: str, *, by_libvirt: bool) -> None:
        self.dev = dev
        self.job_type = job_type  #: QAPI JobType: commit, mirror, stream, backup, ...
        self.job_id = job_id
        what = "libvirt's own backup" if by_libvirt else f"a {job_type} job"
        super().__init__(f"Disk {dev} is busy with {what} ({job_id}); try again when it is done.")


class GroupError(VbackupError):
    """Another domain of the group failed, and all backups of the group were undone for it."""

    def __init__(self, domain: str, cause: VbackupError) -> None:
        self.domain = domain
        self.status = cause.status
        super().__init__(f"Domain {domain} of the same group failed, so all of the group were undone: {cause}")


class InterruptedBySignalError(VbackupError):
    """The user or the system asked vbackup to stop; everything begun was undone."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        self.status = Status.SIGNAL + signum
        super().__init__(f"Stopped by {signal.Signals(signum).name}; nothing was kept of the unfinished work.")
