"""All errors that vbackup raises, as one tree of exceptions.

Each class owns its exit status (vbackup(1), EXIT STATUS), its code, and what a program can do about it
(vbackup-json(7), ERRORS). The text is a sentence for the administrator that says what to do; the attributes are for
programs. Only vbackup.cli prints and exits.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Collection, Mapping, Sequence
from enum import Enum, IntEnum
from typing import ClassVar

_ACTION = re.compile(r"actions\[([0-9]+)\]")


class Status(IntEnum):
    """Exit statuses of the command; a stable interface."""

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


class Retry(str, Enum):
    """What a program can do after an error; a stable interface."""

    SAME = "same"  #: give the same command again: nothing of the failed run is in its way
    LATER = "later"  #: the same, when something else has ended, or there is room again
    FULL = "full"  #: give the command with level full or auto
    BEGIN = "begin"  #: begin a new session
    NEVER = "never"  #: nothing before somebody has changed what the message names


def domain_argument(name: str) -> str:
    """Return a domain's name as it stands in a command line of virsh or vbackup, also if it begins with a dash.

    Both take --domain=NAME wherever they take DOMAIN.
    """
    return shlex.quote(f"--domain={name}" if name.startswith("-") else name)


def command(words: str, uri: str | None) -> str:
    """Return a command line of vbackup or virsh for people, with the libvirt that it is for.

    ``uri``: as the user gave it; None: the default one, which needs no option. virsh takes -c before its command only.
    """
    if uri is None:
        return words
    program, _, rest = words.partition(" ")
    option = f"-c {shlex.quote(uri)}"
    return f"{program} {option} {rest}" if program == "virsh" else f"{words} {option}"


class VbackupError(Exception):
    """Base class of all errors that vbackup raises on purpose.

    A subclass has a ``code`` that no other has and that never changes, and inherits ``status`` and ``retry`` if they
    are the same.
    """

    status: int = Status.FAILED
    code: ClassVar[str] = "FAILED"
    retry: Retry = Retry.NEVER

    def evidence(self) -> dict[str, object]:
        """Return the public attributes by name, for machine-readable output; their types are those of the schema."""
        return {
            name: value
            for name, value in vars(self).items()
            if not name.startswith("_") and name not in ("status", "retry")
        }


def error_document(err: VbackupError) -> dict[str, object]:
    """Return the error as a JSON document."""
    details = err.evidence()
    return {
        "schema": "vbackup.error/1",
        "code": err.code,
        "message": str(err),
        "status": int(err.status),
        "retry": Retry(err.retry).value,
        "details": details,
        # What the first readers of the document know.
        "error": type(err).__name__,
        "evidence": details,
    }


class UsageError(VbackupError):
    """An invalid argument; correct the command line. ``help_of``: the command whose --help has what is valid."""

    status = Status.USAGE
    code = "USAGE"

    def __init__(self, message: str, *, help_of: str | None = None) -> None:
        self._help_of = help_of
        super().__init__(message)

    @property
    def help_of(self) -> str | None:
        """The command whose --help has what is valid, if that is known."""
        return self._help_of


class ConfigError(UsageError):
    """A fault of the configuration (vbackup.toml(5)); correct the file. ``line``: 0 if it concerns the whole file."""

    code = "CONFIG"

    def __init__(self, path: str, line: int, fault: str) -> None:
        self.path = path
        self.line = line
        self.fault = fault
        super().__init__(f"{path}:{line}: {fault}" if line else f"{path}: {fault}", help_of="vbackup config")


class NoConfigError(ConfigError):
    """There is no configuration."""

    code = "NO_CONFIG"


class SecretError(VbackupError):
    """A secret that the configuration names cannot be read, or others can read it. Nothing of it is in the message."""

    code = "SECRET"

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        self.reason = reason
        super().__init__(f"The secret from {source} cannot be used: {reason}.")


class MalformedError(VbackupError):
    """Data from outside (domain XML, QMP reply) does not match its specification."""

    code = "MALFORMED"


class InstallationError(VbackupError):
    """A module that vbackup needs cannot be loaded: Python was upgraded, or a package is gone. Install it again."""

    code = "INSTALLATION"

    def __init__(self, module: str, python: str, reason: str) -> None:
        self.module = module
        needed = _ON_DEBIAN.get(module.partition(".")[0])
        on_debian = f"; on Debian, it installs {needed}" if needed else ""
        super().__init__(
            f"Python {python} cannot load {module}, which vbackup needs ({reason.rstrip('.')}). Was Python upgraded or"
            f" a package removed? Run 'make install' in the sources of vbackup again{on_debian}."
        )


#: Where each module comes from on Debian, by its top-level name.
_ON_DEBIAN = {
    "libvirt": "the package python3-libvirt",
    "tomli": "the package python3-tomli",
    "libvirtmod": "the package python3-libvirt",
    "libvirt_qemu": "the package python3-libvirt",
    "libvirtmod_qemu": "the package python3-libvirt",
    "lxml": "the package python3-lxml",
    "rich": "the package python3-rich",
    "qemu": "qemu.qmp from PyPI (from Debian 14 on, the package python3-qemu-qmp)",
}


# libvirt and the domain


class HostUnreachableError(VbackupError):
    """libvirt cannot be reached, or did not come back after the connection was lost."""

    status = Status.NOT_FOUND
    code = "HOST_UNREACHABLE"
    retry = Retry.LATER

    def __init__(self, uri: str | None, message: str, *, remedy: str | None = None) -> None:
        """``remedy``: what to do, as sentences; None: what the words of libvirt suggest."""
        self.uri = uri
        where, what = uri or "the default URI", remedy or _remedy(uri, message)
        super().__init__(f"Cannot reach libvirt at {where}: {message.rstrip('.')}. {what}")


def _remedy(uri: str | None, message: str) -> str:
    """Return what to do about libvirt's message, which the user does not choose the words of."""
    virsh = command("virsh list", uri or None)
    if "authentication" in message or "ermission denied" in message or "access denied" in message:
        return "Run vbackup as root, or as a member of the group libvirt."
    if "no connection driver available" in message or "could not parse" in message:
        return "Give a URI such as qemu:///system with -c."
    if "ailed to connect socket" in message:
        return "Is the URI right, and libvirtd (or virtqemud) running there? 'systemctl start libvirtd' starts it."
    return f"'{virsh}' has to work first."


class SshError(VbackupError):
    """ssh cannot connect to a hypervisor, or does not trust it; ``ssh_message``: ssh's own words."""

    status = Status.NOT_FOUND
    code = "SSH_FAILED"
    retry = Retry.LATER

    def __init__(self, host: str, ssh_message: str, *, try_first: str, remedy: str | None = None) -> None:
        """``remedy``: what to do, as sentences; None: try ``try_first``."""
        self.host = host
        self.ssh_message = ssh_message
        what = remedy or f"'{try_first}' has to work first, without a question."
        super().__init__(f"ssh cannot connect to {host}: {ssh_message.rstrip('.') or 'it said nothing'}. {what}")


class LinkLostError(VbackupError):
    """The SSH connection to a hypervisor broke or fell silent; what vbackup had begun there is undone there."""

    status = Status.NOT_FOUND
    code = "LINK_LOST"
    retry = Retry.SAME

    def __init__(self, host: str, how: str) -> None:
        self.host = host
        self.how = how
        super().__init__(
            f"The SSH connection to {host} {how}. vbackup's helper there thaws the guest, ends the jobs and closes what"
            " was opened; no base is lost. Run the same command again when the host can be reached."
        )


class RemoteError(VbackupError):
    """Something on a hypervisor failed; ``reason``: what its kernel or a program there says. ``errno``: 0 if none."""

    code = "REMOTE_FAILED"

    def __init__(self, host: str, what: str, reason: str, *, errno: int = 0) -> None:
        self.host = host
        self.reason = reason
        self.errno = errno
        super().__init__(f"vbackup could not {what} on {host}: {reason.rstrip('.')}.")


class ConnectionLostError(VbackupError):
    """The connection to libvirt or QEMU broke during a command.

    Whether the command was executed is unknown; query the state (query-jobs, query-block) before repeating it.
    """

    status = Status.NOT_FOUND
    code = "CONNECTION_LOST"
    retry = Retry.SAME


class DomainNotFoundError(VbackupError):
    """There is no such domain in libvirt or in the repository. ``domain``: None if the user named none."""

    status = Status.NOT_FOUND
    code = "DOMAIN_NOT_FOUND"

    def __init__(self, domain: str | None, where: str, hint: str) -> None:
        self.domain = domain
        super().__init__(f"No domain {'' if domain is None else f'{domain!r} '}{where}; {hint}.")


class AmbiguousNameError(DomainNotFoundError):
    """Several domains of the repository have this name; give a UUID."""

    code = "NAME_AMBIGUOUS"

    def __init__(self, domain: str, repository: str, uuids: list[str], *, source_option: str = "") -> None:
        self.uuids = uuids
        super().__init__(
            domain,
            f"with a unique name in {repository}",
            f"several domains have had this name, as 'vbackup list {domain_argument(domain)}{source_option}' shows;"
            f" give the UUID: {', '.join(uuids)}",
        )


class NoBackupRunningError(VbackupError):
    """No backup of the domain is running, so there is no speed to change."""

    status = Status.NOT_FOUND
    code = "NO_BACKUP_RUNNING"

    def __init__(self, domain: str, which: str = "") -> None:
        self.domain = domain
        super().__init__(f"No backup of domain {domain}{which} is running; nothing was changed.")


class QemuGoneError(VbackupError):
    """The QEMU process that reads the disks has ended, and with it all jobs and nodes in it."""

    code = "QEMU_GONE"
    retry = Retry.SAME


class DomainGoneError(QemuGoneError):
    """The domain stopped, crashed or was destroyed while it was being backed up."""

    code = "DOMAIN_GONE"

    def __init__(self, domain: str) -> None:
        self.domain = domain
        super().__init__(
            f"Domain {domain} stopped while it was being backed up; nothing was kept of this backup."
            " Start the domain and run the same command again."
        )


class LiveRestoreEndedError(QemuGoneError):
    """A domain that is being restored live has ended before all of its data was at home."""

    code = "LIVE_RESTORE_ENDED"
    retry = Retry.NEVER

    def __init__(self, domain: str, *, advice: str) -> None:
        self.domain = domain
        super().__init__(
            f"Domain {domain} has ended before all of its data was at home. What it has written is safe. {advice}"
        )


class ConsumerGoneError(VbackupError):
    """Whoever reads the stream on standard output has gone (EPIPE); the backup was undone."""

    status = Status.SIGNAL + signal.SIGPIPE
    code = "CONSUMER_GONE"
    retry = Retry.SAME

    def __init__(self) -> None:
        super().__init__("The reader of the stream has gone. Nothing was kept of this backup; its base is as it was.")


class StorageDaemonGoneError(QemuGoneError):
    """The storage daemon that reads the disks of a domain that is off, or of a backup, ended unexpectedly."""

    code = "STORAGE_DAEMON_GONE"

    def __init__(self, how: str, last_words: str, *, remedy: str | None = None) -> None:
        self.how = how
        self.last_words = last_words
        message = f": {last_words.rstrip('.')}" if last_words else ""
        remedy = remedy or "Nothing was kept of an unfinished backup; run the same command again."
        super().__init__(f"qemu-storage-daemon {how}{message}. {remedy}")


class ApplianceError(VbackupError):
    """libguestfs's appliance, which reads the file systems of a guest, cannot be started, has ended or hangs."""

    code = "APPLIANCE_FAILED"


class ApplianceRefusedError(ApplianceError):
    """A command of guestfish failed; the appliance goes on. ``reason``: libguestfs's words, without a full stop."""

    code = "APPLIANCE_REFUSED"

    def __init__(self, command: str, reason: str) -> None:
        self.command = command
        self.reason = reason.rstrip(".")
        super().__init__(f"libguestfs could not carry out {command}: {self.reason}.")

    @property
    def is_not_found(self) -> bool:
        """True for ENOENT and ENOTDIR."""
        return "No such file or directory" in self.reason or "Not a directory" in self.reason


class UnsuitableError(VbackupError):
    """The domain or a disk cannot be backed up in the requested way."""

    status = Status.UNSUITABLE
    code = "UNSUITABLE"


class HelperError(UnsuitableError):
    """vbackup's helper cannot run on a hypervisor: no Python, a forced command; ``reason``: what was said there."""

    code = "HELPER_FAILED"

    def __init__(self, host: str, reason: str) -> None:
        self.host = host
        self.reason = reason
        super().__init__(
            f"vbackup's helper cannot run on {host}: {reason.rstrip('.')}. The user of the URI must be able to run"
            f" 'python3' (3.6 or later) there by ssh, so no command may be forced on the key; 'ssh {host} python3"
            " --version' has to work first."
        )


class ForwardingError(UnsuitableError):
    """sshd on a hypervisor does not forward a socket; ``ssh_message``: ssh's own words."""

    code = "FORWARDING_REFUSED"

    def __init__(self, host: str, ssh_message: str) -> None:
        self.host = host
        self.ssh_message = ssh_message
        super().__init__(
            f"ssh does not forward a socket to {host}: {ssh_message.rstrip('.')}. Allow it there (sshd_config:"
            " AllowStreamLocalForwarding and DisableForwarding; authorized_keys: with 'restrict', add"
            " 'port-forwarding')."
        )


class DiskError(UnsuitableError):
    """A disk is unknown, cannot be found in QEMU's block graph, or cannot be backed up."""

    code = "DISK_UNSUITABLE"

    def __init__(self, dev: str, message: str, *, cause: str | None = None) -> None:
        self.dev = dev
        self._cause = (message if cause is None else cause).rstrip(".")
        super().__init__(f"Disk {dev}: {message}")

    @property
    def cause(self) -> str:
        """The message without what a backup can do about it."""
        return self._cause


class CorruptImageError(DiskError):
    """QEMU found a disk's image corrupt while it had it open, and has closed it."""

    code = "IMAGE_CORRUPT"

    def __init__(self, dev: str, filename: str | None) -> None:
        self.filename = filename
        super().__init__(
            dev,
            f"QEMU found its image{f' {filename}' if filename else ''} corrupt and closed it, so nothing can be read"
            f" from it or written to it. Shut the domain off, and run 'qemu-img check -r all {filename or 'IMAGE'}'; if"
            f" that does not repair it, restore the disk. Until then, --exclude-disk {dev} backs up the other disks.",
        )


class QuiesceError(UnsuitableError):
    """The guest's filesystems could not be frozen, although ``--quiesce required`` was given."""

    code = "QUIESCE_FAILED"
    retry = Retry.SAME


# QEMU


class MonitorError(VbackupError):
    """A command did not reach QEMU or libvirt refused it; the text has libvirt's message."""

    code = "MONITOR_REFUSED"


class StateLockedError(MonitorError):
    """libvirt did not let the command through: another operation has held the domain's lock for half a minute."""

    status = Status.BUSY
    code = "STATE_LOCKED"
    retry = Retry.LATER

    def __init__(self, domain: str, message: str) -> None:
        self.domain = domain
        super().__init__(
            f"Domain {domain} is busy with another operation of libvirt ({message}); run the same command again when"
            " that has ended."
        )


class FdsNotPassedError(MonitorError):
    """The connection to QEMU cannot carry file descriptors: another host, or libvirt before 8.2."""

    code = "FDS_NOT_PASSED"


class FdsNotNeededError(FdsNotPassedError):
    """vbackup's storage daemon accepts no file descriptors: it opens files with vbackup's rights."""

    code = "FDS_NOT_NEEDED"


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
    def is_io_error(self) -> bool:
        """True for EIO."""
        return "Input/output error" in self

    @property
    def is_of_performance(self) -> bool:
        """True if QEMU does not take x-perf as it is: Parameter 'actions[1].data.x-perf' is unexpected."""
        return "x-perf" in self or "max-chunk" in self or "max-workers" in self

    @property
    def is_denied(self) -> bool:
        """True if QEMU may not open a file.

        The kernel drops a descriptor that SELinux or AppArmor keeps from QEMU, which then says that none came.
        """
        return "Permission denied" in self or "No file descriptor supplied via SCM_RIGHTS" in self

    @property
    def is_unwritable(self) -> bool:
        """True if a file cannot be opened for writing: EACCES, EROFS, or EPERM (chattr +i)."""
        return any(text in self for text in ("Permission denied", "Read-only file system", "Operation not permitted"))

    @property
    def is_not_found(self) -> bool:
        """True for ENOENT."""
        return "No such file" in self

    @property
    def is_of_disabled_command(self) -> bool:
        """True if the guest agent did not carry out the command at all: its owner, or a freeze, has disabled it.

        Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state (qga/main.c; without the reason
        before QEMU 6.0).
        """
        return "has been disabled" in self

    @property
    def is_no_bitmap(self) -> bool:
        """True if the bitmap does not exist: Dirty bitmap 'X' not found."""
        return self.startswith("Dirty bitmap '") and self.rstrip(".").endswith("' not found")

    @property
    def is_no_node(self) -> bool:
        """True if the node does not exist: Failed to find node with node-name='X'."""
        return self.startswith("Failed to find node with node-name=")

    @property
    def ejected_node(self) -> str | None:
        """The node whose image QEMU found corrupt and closed: Block device X is ejected."""
        match = re.fullmatch(r"Block device (.+) is ejected\.?", self)
        return match[1] if match else None

    @property
    def is_abort(self) -> bool:
        """True if all other actions of the transaction were prepared: Transaction aborted using Abort action."""
        return self.rstrip(".") == "Transaction aborted using Abort action"


class QmpError(VbackupError):
    """QEMU answered a command with an error; the command had no effect."""

    code = "QMP_REFUSED"

    def __init__(self, command: str, error_class: str, description: str) -> None:
        self.command = command
        self.error_class = error_class
        self.description = QemuText(description)
        super().__init__(f"QEMU refused {command}: {description}")


class TransactionError(VbackupError):
    """A command, usually a transaction, that QEMU would refuse; detected before anything is sent.

    ``path`` names the member as QEMU's messages do ("actions[3].data.bitmap-mode"). ``action`` is the index of the
    action that contains it, or None.
    """

    status = Status.USAGE
    code = "TRANSACTION_INVALID"

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        self._reason = message
        match = _ACTION.match(path)
        self.action = int(match[1]) if match else None
        super().__init__(f"{path}: {message}")

    @property
    def reason(self) -> str:
        """The message without the path."""
        return self._reason


class TransactionRefusedError(VbackupError):
    """QEMU refused a user's transaction, which therefore had no effect.

    ``index`` is the index of the action that QEMU's message is about, or None if it does not say. ``at`` is what the
    user calls that action, if the transaction is not the user's own.
    """

    code = "TRANSACTION_REFUSED"

    def __init__(self, description: str, index: int | None, kind: str | None, *, at: str | None = None) -> None:
        self.description = description
        self.index = index
        if at is None:
            at = "the transaction" if index is None else f"actions[{index}] ({kind})"
        super().__init__(f"QEMU refused {at}: {description.rstrip('.')}. The transaction had no effect.")


class UnsafeError(UnsuitableError):
    """A transaction or command that would damage something that libvirt, a repository or the user relies on."""

    code = "TRANSACTION_UNSAFE"

    def __init__(self, path: str, message: str, *, instead: str = "--unsafe sends it anyway") -> None:
        self.path = path
        super().__init__(f"{path}: {message}; {instead}.")


class JobError(VbackupError):
    """A backup job failed; all jobs of that backup were cancelled and undone."""

    code = "JOB_FAILED"
    retry = Retry.SAME

    def __init__(self, dev: str, reason: str) -> None:
        self.dev = dev
        self._reason = QemuText(reason)
        super().__init__(
            f"Disk {dev}: the backup job failed: {reason}. Nothing was kept of this backup, and the disk's earlier"
            " backups are untouched; fix the cause and run the same command again."
        )

    @property
    def reason(self) -> QemuText:
        """What QEMU said of the job."""
        return self._reason


class JobStalledError(VbackupError):
    """No job made progress within the limit; all were cancelled."""

    code = "JOB_STALLED"
    retry = Retry.SAME

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        super().__init__(
            f"No byte was copied for {limit_s:.0f} s; is the storage of the repository or of the disk hanging?"
        )


# repository and chain


class ChainError(VbackupError):
    """A backup, or one that it depends on, is unknown, missing, altered, or belongs elsewhere."""

    status = Status.CHAIN
    code = "CHAIN_BROKEN"


class StreamError(ChainError):
    """A stream is cut, reordered, of another domain, damaged or no stream of vbackup; nothing of it was kept."""

    code = "STREAM_INVALID"


class StreamNotPendingError(ChainError):
    """No stream of that job waits for its commit: it failed, was undone, or the next backup has taken its place."""

    code = "STREAM_NOT_PENDING"

    def __init__(self, domain: str, job: str, *, why: str) -> None:
        self.domain = domain
        self.job = job
        super().__init__(f"The stream of job {job} of domain {domain} {why}")


class MissingPackageError(VbackupError):
    """A package is missing that only some backups or commands need: nothing is wrong with the backup."""

    code = "PACKAGE_MISSING"

    def __init__(self, package: str, why: str, *, debian: str | None, purpose: str = "read that") -> None:
        self.package = package
        from_debian = f"install the Debian package {debian}, or " if debian is not None else ""
        super().__init__(
            f"{why}, and this Python has no {package} to {purpose}: {from_debian}run 'pip install {package}'."
        )


class IdentityError(ChainError):
    """The identity (--identity) cannot be read, or does not open the copy; nothing was fetched."""

    code = "IDENTITY_UNUSABLE"


class IdentityNeededError(IdentityError):
    """The copy is encrypted, and no identity was given; nothing was fetched."""

    code = "IDENTITY_NEEDED"

    def __init__(self, target: str) -> None:
        self.target = target
        super().__init__(
            f"What is in {target} is encrypted: give the identity that opens it, with --identity FILE (as age-keygen"
            " writes it) or --identity command:PROGRAM. Nothing was fetched."
        )


class SealedError(ChainError):
    """An encrypted object of a copy was changed or cut, or is no age file of vbackup."""

    code = "OBJECT_DAMAGED"

    def __init__(self, target: str, key: str, why: str) -> None:
        self.target = target
        self.key = key
        self.why = why
        super().__init__(
            f"{key} in {target} is damaged: {why}. Restore another point, or copy this one again: remove it there with"
            " 'vbackup prune --at' first."
        )


class DamagedError(ChainError):
    """A block that a restore needs is damaged in the repository; nothing was restored."""

    code = "BACKUP_DAMAGED"

    def __init__(self, dev: str, *, image: str, backup: str, start_bytes: int, length_bytes: int) -> None:
        self.dev = dev
        self.image = image  #: path of the image that holds the damage
        self.backup = backup  #: whose image that is
        self.start_bytes = start_bytes  #: first damaged byte of the disk, as the guest sees it
        self.length_bytes = length_bytes
        super().__init__(
            f"Disk {dev}: the image {image} of backup {backup} was altered or is damaged: bytes {start_bytes} to"
            f" {start_bytes + length_bytes - 1} of the disk cannot be read, or are not what its block list says."
            " Nothing was restored. Restore the file from a copy of the repository, or another backup: 'vbackup verify'"
            " shows which ones are affected."
        )


class OutputDiffersError(ChainError):
    """A restored image is not what was written to it, although the backup is good; nothing was restored.

    ``was_written``: it is the disk itself, which a rollback has written.
    """

    code = "OUTPUT_DIFFERS"
    retry = Retry.SAME

    def __init__(self, dev: str, output: str, start_bytes: int, *, was_written: bool = False) -> None:
        self.dev = dev
        self.output = output
        self.start_bytes = start_bytes  #: first byte of the disk that differs
        end = "" if was_written else " Nothing was restored."
        super().__init__(
            f"Disk {dev}: {output} does not contain what was written to it, from byte {start_bytes} of the disk on,"
            " although the images of the backup are good there. Its storage or the memory of this host may be failing:"
            f" see the kernel log.{end}"
        )


class NeededError(ChainError):
    """A backup that was to be removed has to stay: it is protected, or something needs it. Nothing was removed."""

    code = "BACKUP_NEEDED"

    def __init__(self, backup: str, reasons: Sequence[str], remedy: str = "") -> None:
        self.backup = backup
        self.reasons = list(reasons)
        super().__init__(
            f"Backup {backup} has to stay: {'; '.join(self.reasons)}. Nothing was removed. {remedy}".rstrip()
        )


class CopiedError(ChainError):
    """A backup in the repository is a copy of one that is, or was, being made elsewhere; nothing was changed."""

    code = "REPOSITORY_COPIED"

    def __init__(self, repository: str, backup_id: str, domain_uuid: str, *, uri: str | None = None) -> None:
        self.repository = repository
        self.backup_id = backup_id
        self.domain_uuid = domain_uuid
        recover = f"vbackup recover -r {shlex.quote(repository)}"
        discard = command(f"{recover} {domain_uuid} --abort", uri)
        super().__init__(
            f"The unfinished backup {backup_id} of domain {domain_uuid} in {repository} is a copy: the repository was"
            " copied in the middle of that backup, or has been moved or restored since. What QEMU has of it belongs to"
            f" the original, so nothing was changed. If there is an original, '{recover} --adopt' makes this copy a"
            f" separate repository; if not, '{discard}' discards the unfinished backup. Then run"
            " the same command again."
        )


class NewerJournalError(ChainError):
    """A newer vbackup began the unfinished backup, and only it knows what it has done; nothing was changed."""

    status = Status.STORAGE
    code = "JOURNAL_NEWER"

    def __init__(self, backup_id: str, domain_uuid: str, *, schema: str, known: str) -> None:
        self.backup_id = backup_id
        self.domain_uuid = domain_uuid
        super().__init__(
            f"The journal of backup {backup_id}, of domain {domain_uuid}, has format {schema[:50]}, but this vbackup"
            f" only knows {known}; use the newer vbackup that began it. Nothing was changed."
        )


class BaseError(ChainError):
    """The requested level has no usable base on a disk (``auto`` would take a full backup)."""

    code = "BASE_UNUSABLE"
    retry = Retry.FULL

    def __init__(self, dev: str, level: str, checkpoint: str | None, reason: str, *, noun: str = "backup") -> None:
        self.dev = dev
        self.level = level
        self.checkpoint = checkpoint  #: of the base that the backup would start from, or None
        self.reason = reason
        since = f" since {checkpoint}" if checkpoint and checkpoint not in reason else ""
        verb = "Take" if noun == "backup" else "Begin"
        super().__init__(
            f"Disk {dev}: no {level} {noun}{since} is possible: {reason}. {verb} a full {noun}, or use --level auto,"
            " which is full for only those disks that need it."
        )


class PartialBackupError(UnsuitableError):
    """The newest backup leaves out disks of the domain, so that it is not the whole machine."""

    code = "BACKUP_PARTIAL"

    def __init__(
        self, backup: str, missing: Sequence[str], *, complete: str | None, never_backed_up: Sequence[str] = ()
    ) -> None:
        self.backup = backup
        self.missing = list(missing)
        self.complete = complete  #: id of the newest backup with all disks, or None
        self.never_backed_up = list(never_backed_up)  #: those of the missing disks that no backup has
        disks = f"disk{'s' if len(self.missing) > 1 else ''} {', '.join(self.missing)}"
        ways = [f"only some disks with --disk, or this backup without {disks} with --backup {backup}"]
        if not self.never_backed_up:
            ways.insert(0, "each disk from its newest backup with --mixed (the disks are then of different moments)")
        if complete is not None:
            whole = f"The newest backup with all disks is {complete}: restore it with --backup {complete}. Or restore"
        elif self.never_backed_up:
            whole = f"No backup has {', '.join(self.never_backed_up)}. Restore"
        else:
            whole = "No backup has all disks. Restore"
        super().__init__(
            f"Backup {backup} was made without {disks}, so it is not the whole domain. {whole} {', '.join(ways)}."
        )


class AmbiguousHostError(UnsuitableError):
    """Several hosts have backups of this UUID that do not continue each other: they can be different machines."""

    code = "HOST_AMBIGUOUS"

    def __init__(self, newest: Mapping[str, str], first: str, *, is_mixed: bool = False) -> None:
        self.newest = dict(newest)  #: for each host the id of its newest backup
        self.first = first  #: id of the first backup that does not continue the other host's
        each = ", ".join(f"{host} (newest: {backup})" for host, backup in self.newest.items())
        # With --mixed, the disks can be of other backups than the one that was named.
        or_backup = "" if is_mixed else ", or a backup with --backup"
        super().__init__(
            "Several hosts have backups of a domain with this UUID that do not continue each other, as two copies of"
            f" one machine have: {each}. Choose one with --host (name or machine id){or_backup}."
        )


class SameUuidError(UnsuitableError):
    """Several hosts have a domain with this UUID and none of them runs: nothing tells which is the machine.

    ``standby``: name of the host whose domain is a standby that has taken over.
    """

    code = "UUID_ON_SEVERAL_HOSTS"

    def __init__(self, domain: str, uuid: str, hosts: Sequence[str], *, standby: str | None = None) -> None:
        self.domain = domain
        self.uuid = uuid
        self.hosts = list(hosts)  #: their names
        if standby is not None:
            super().__init__(
                f"Domain {domain} is off on {' and '.join(self.hosts)}, and that on {standby} is a standby that has"
                " taken over. Neither was backed up: bring it back to the original with 'vbackup failback', or back up"
                " the one that is to go on with -c of its host alone."
            )
            return
        super().__init__(
            f"Domain {domain} is off on {' and '.join(self.hosts)}, with the same UUID {uuid}. Nothing tells which is"
            " the machine, and which a copy or what a migration has left, so neither was backed up. Undefine what is"
            " left ('virsh undefine'), give the copy a new UUID, or back up the right one with -c of its host alone."
        )


# pull sessions


class UnknownSessionError(ChainError):
    """There is no session with that id; it may have ended long ago."""

    code = "SESSION_UNKNOWN"

    def __init__(self, session: str) -> None:
        self.session = session
        super().__init__(f"No session {session!r}; 'vbackup session list' lists them.")


class UnknownTrackerError(ChainError):
    """The domain has no tracker of that name: no session of it was ever committed."""

    code = "TRACKER_UNKNOWN"

    def __init__(self, tracker: str, domain: str, known: Sequence[str]) -> None:
        self.tracker = tracker
        self.known = list(known)
        has = f"it has {', '.join(self.known)}" if self.known else "it has none"
        super().__init__(f"Domain {domain} has no tracker {tracker!r}; {has}.")


class UnknownCheckpointError(ChainError):
    """The tracker has no such checkpoint, or a disk of its session does not; take another one, or all of the disk."""

    code = "CHECKPOINT_UNKNOWN"
    retry = Retry.FULL

    def __init__(
        self, checkpoint: str, tracker: str, known: Sequence[str], *, dev: str | None = None, advice: str = ""
    ) -> None:
        """``dev``: the disk of a session of which they are ``known``. ``advice`` follows the sentence."""
        self.checkpoint = checkpoint
        self.tracker = tracker
        self.known = list(known)
        has = f"it has {', '.join(self.known)}" if self.known else "it has none"
        whose = f"Tracker {tracker} has" if dev is None else f"Disk {dev} of this session of tracker {tracker} has"
        super().__init__(f"{whose} no checkpoint {checkpoint!r}; {has}.{advice and ' '}{advice}")


class SessionEndedError(ChainError):
    """The session has ended, so it cannot be committed or renewed any more; the tracker's base is as it was.

    ``retry`` is what the client does: begin another one, or never for a session that was committed.
    """

    code = "SESSION_ENDED"
    retry = Retry.BEGIN

    def __init__(self, session: str, state: str, reason: str | None = None, *, retry: Retry = Retry.BEGIN) -> None:
        self.session = session
        self.state = state
        self.retry = retry
        why = f": {reason.rstrip('.')}" if reason else ""
        then = "; begin another one" if retry is Retry.BEGIN else ""
        super().__init__(f"Session {session} is {state}{why}{then}.")


class StorageError(VbackupError):
    """The repository, the output or a hook script cannot be used: missing, full, no permission, exists already."""

    status = Status.STORAGE
    code = "STORAGE_UNUSABLE"


class StoreUnreachableError(StorageError):
    """The place of copies cannot be reached, or refuses its key or certificate. ``store``: its host."""

    status = Status.NOT_FOUND
    code = "STORE_UNREACHABLE"
    retry = Retry.LATER

    def __init__(self, store: str, reason: str) -> None:
        self.store = store
        super().__init__(f"Cannot reach {store}: {reason.rstrip('.')}.")


class UnsafeScriptError(StorageError):
    """A script of the user's, or a directory on the way to it, can be changed by others, so none is run."""

    code = "SCRIPT_UNSAFE"

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(
            f"{path} {reason}, so scripts from there are not run. Nothing was changed. Give it to root and remove the"
            " permission with 'chown root' and 'chmod go-w', or give --no-scripts."
        )


class ScriptError(VbackupError):
    """A script of the user's stopped the work before it began. ``state`` says in a sentence what has become of it."""

    status = Status.SCRIPT
    code = "SCRIPT_FAILED"
    retry = Retry.LATER

    def __init__(self, phase: str, script: str, failure: str, *, exit_status: int | None, state: str) -> None:
        self.phase = phase
        self.script = script
        self.exit_status = exit_status  #: None if it did not end by itself
        super().__init__(f"The {phase} script {script} {failure}. {state}")


class NoticeError(VbackupError):
    """A message to a notifier was not sent; backups are not touched by that. ``reason`` never has a part of its URL.

    ``retry``: never, where somebody has to change the configuration or the server first.
    """

    code = "NOTICE_NOT_SENT"
    retry = Retry.LATER

    def __init__(
        self, notifier: str, reason: str, *, retry: Retry = Retry.LATER, not_before_s: float | None = None
    ) -> None:
        self.notifier = notifier
        self.reason = reason
        self.retry = retry
        self._not_before_s = not_before_s
        super().__init__(f"The message to notifier {notifier} was not sent: {reason.rstrip('.')}.")

    @property
    def not_before_s(self) -> float | None:
        """In how many seconds the server wants to be asked again; None: it did not say."""
        return self._not_before_s


class RestoredOnlyError(VbackupError):
    """A domain was restored, but libvirt did not define or start it: what was restored stays. ``left``: what to do."""

    code = "RESTORED_ONLY"

    def __init__(self, cause: VbackupError, left: str) -> None:
        self.status = cause.status
        self.cause = cause.code  #: as in the next ones: the code of the error behind this one
        super().__init__(f"{cause} {left}")


class PartlyCopiedError(VbackupError):
    """Of several files of a guest one could not be copied; those that were copied before stay, and would be in the way.

    ``made``: which.
    """

    code = "PARTLY_COPIED"

    def __init__(self, cause: VbackupError, made: str) -> None:
        self.status = cause.status
        self.cause = cause.code
        super().__init__(f"{cause} {made}.")


class NoSpaceError(StorageError):
    """The filesystem of the repository or of the output is full."""

    code = "NO_SPACE"
    retry = Retry.LATER


class BusyError(VbackupError):
    """Another vbackup or another block job is using the domain."""

    status = Status.BUSY
    code = "BUSY"
    retry = Retry.LATER


class SessionAliveError(BusyError):
    """Another session of the tracker is open; commit it, abort it, or wait until it expires."""

    code = "SESSION_OPEN"

    def __init__(self, session: str, tracker: str, expires: str) -> None:
        self.session = session
        self.tracker = tracker
        self.expires = expires
        super().__init__(
            f"Session {session} of tracker {tracker} is open until {expires}. Commit it, or abort it: vbackup session"
            f" abort {session}."
        )


class DiskBusyError(BusyError):
    """A block job that is not vbackup's is running on a disk; detected before anything was started."""

    code = "DISK_BUSY"

    def __init__(self, dev: str, job_type: str, job_id: str, *, by_libvirt: bool) -> None:
        self.dev = dev
        self.job_type = job_type  #: QAPI JobType: commit, mirror, stream, backup, ...
        self.job_id = job_id
        what = "libvirt's own backup" if by_libvirt else f"a {job_type} job"
        super().__init__(f"Disk {dev} is busy with {what} ({job_id}); try again when it is done.")


class MigratingError(BusyError):
    """The domain is on its way from or to another host; detected before anything was sent to QEMU."""

    code = "MIGRATING"

    def __init__(self, domain: str, *, incoming: bool) -> None:
        self.domain = domain
        self.incoming = incoming
        super().__init__(
            f"Domain {domain} is being migrated {'from' if incoming else 'to'} another host. Run the same command again"
            f" when the migration has ended{'' if incoming else ', on the host where the domain is then'}."
        )


class InactiveError(BusyError):
    """QEMU has handed its images over, or not yet taken them over: they are not its own to write bitmaps to.

    ``run_state`` is QEMU's (QAPI RunState), "" if that is not known.
    """

    code = "DOMAIN_INACTIVE"

    def __init__(self, qemu: str, run_state: str, *, resume: str) -> None:
        self.run_state = run_state
        remedy = f"Resume the guest ({resume}), and run the same command again."
        if run_state in ("inmigrate", "finish-migrate"):
            why, remedy = "it is being migrated", "Run the same command again when the migration has ended."
        elif run_state == "postmigrate":
            why = (
                "its memory was migrated, or was saved in a dump or snapshot while it was paused, and it has not run"
                " since"
            )
            remedy = f"If it runs on another host now, run vbackup there. Otherwise, {remedy[0].lower()}{remedy[1:]}"
        else:
            why = "it arrived paused, by a migration or from saved memory, and has not run since"
        super().__init__(
            f"{qemu} does not have its images to itself: {why}. QEMU shows no stored bitmaps then, and a bitmap added"
            f" now could keep the guest from resuming. Nothing was changed. {remedy}"
        )


class NotLoadedError(BusyError):
    """QEMU has not loaded the bitmaps that an image stores, so a new one could collide with one of them."""

    code = "BITMAPS_NOT_LOADED"

    def __init__(self, dev: str, filename: str, names: Collection[str]) -> None:
        self.dev = dev
        self.names = sorted(names)
        stored = f" has bitmaps that QEMU has not loaded ({', '.join(self.names)})" if names else " is inactive in QEMU"
        super().__init__(
            f"Disk {dev}: its image {filename}{stored}. Nothing was changed. If the guest is paused, resume it;"
            " otherwise, shut it off and start it again; then run the same command again."
        )


class GroupError(VbackupError):
    """Another domain of the group failed, so all backups of the group were undone."""

    code = "GROUP_MEMBER_FAILED"

    def __init__(self, domain: str, cause: VbackupError) -> None:
        self.domain = domain
        self.status = cause.status
        self.retry = cause.retry
        self.cause = cause.code
        super().__init__(f"Domain {domain} of the same group failed, so all backups of the group were undone: {cause}")


class InterruptedBySignalError(VbackupError):
    """A signal asked vbackup to stop; everything that it had started was undone, unless ``state`` says otherwise."""

    code = "INTERRUPTED"
    retry = Retry.SAME

    def __init__(
        self, signum: int, *, state: str = "nothing was kept of the unfinished work", retry: Retry = Retry.SAME
    ) -> None:
        self.signum = signum
        self.retry = retry
        self.status = Status.SIGNAL + signum
        super().__init__(f"Stopped by {signal.Signals(signum).name}; {state}.")
