"""The libvirt host: its connection, its domains, its event loop. With lifecycle, the only importer of libvirt.

Commands for QEMU itself go through vbackup.domain.passthrough.
API: https://libvirt.org/html/index.html
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

# The embedded driver logs to stderr, which repeats what its exceptions say. Set the variable to see that log;
# libvirt reads it at the first call.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")

import libvirt

from vbackup import names
from vbackup.domain import linked
from vbackup.domain.linked import Linked
from vbackup.errors import (
    ConnectionLostError,
    DomainGoneError,
    DomainNotFoundError,
    HostUnreachableError,
    MigratingError,
    MonitorError,
    UnsuitableError,
    VbackupError,
    command,
    domain_argument,
)
from vbackup.files import user_name
from vbackup.model import SecretRef

if TYPE_CHECKING:
    from vbackup.remote.link import Link

log = logging.getLogger(__name__)

#: How long to retry a broken connection: libvirtd restarts in well under this.
RECONNECT_S = 20.0
#: How long one attempt to reach another host may take at least.
ATTEMPT_S = 1.0
#: How much of a stream is read at a time: the most that a message of libvirt has.
_PIECE_BYTES = 256 * 1024
#: A remote libvirtd that is silent for interval x count seconds counts as lost.
KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 5, 3


#: Held while the event loop is started: two threads may open their first connections at once.
_EVENTS = threading.Lock()


def _start_events() -> None:
    """Start libvirt's event loop in a thread, once per process; libvirt needs it before the first connection."""
    with _EVENTS:
        _started_events()


@functools.cache
def _started_events() -> None:
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()


def _run_events() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as err:
            log.warning("libvirt's event loop: %s", err)


class Host:
    """A connection to libvirt that can be reopened after a loss. A context manager.

    If ``uri`` is None, libvirt chooses: LIBVIRT_DEFAULT_URI, its configuration, or the first driver that works.
    Raises HostUnreachableError if libvirt cannot be reached.
    """

    def __init__(self, uri: str | None = None, *, linked: Linked | None = None) -> None:
        """``linked``: makes the link to the host for several connections, whose owner ends it."""
        self.uri = uri
        self._linked = linked or Linked()
        self._owns_link = linked is None
        _start_events()
        self._embedded_secrets: Any = None
        self._told: dict[str, Any] = {}  #: what does not change while the connection lasts
        self._secrets_lock = threading.Lock()
        self._connection = self._open()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; closing twice is fine."""
        self._disconnect()
        if self._owns_link:
            self._linked.close()

    def _disconnect(self) -> None:
        for connection in (self._embedded_secrets, self._connection):
            try:
                if connection is not None:
                    connection.close()
            except libvirt.libvirtError as err:
                log.debug("closing the libvirt connection: %s", err)
        self._embedded_secrets = None
        self._told = {}

    @contextmanager
    def another(self) -> Iterator[Host]:
        """Yield a host for another thread, connected to the same URI; it is closed at the end of the block.

        Each thread gets a separate connection, because the thread that uses a connection also handles its loss (see
        ``reopen``), and because libvirtd runs at most five calls of one client at once (its max_client_requests),
        which freezing guests would use up. An embedded driver is shared: its connection cannot break.
        Raises HostUnreachableError.
        """
        if self.is_embedded:
            yield self
            return
        with Host(self.uri, linked=self._linked) as host:
            yield host

    def domains(self) -> list[DomainHandle]:
        """Return all domains of the host, running or not, sorted by name.

        Raises ConnectionLostError, MonitorError.
        """
        with self.errors("list the domains"):
            handles = [DomainHandle(self, domain) for domain in self._connection.listAllDomains()]
            return sorted(handles, key=lambda handle: handle.name)

    def domain(self, name: str) -> DomainHandle:
        """Return the domain with this name or UUID.

        Raises DomainNotFoundError if there is no such domain, HostUnreachableError if the connection is broken,
        MonitorError for any other error of libvirt.
        """
        for look_up in (self._connection.lookupByName, self._connection.lookupByUUIDString):
            try:
                return DomainHandle(self, look_up(name))
            except libvirt.libvirtError as err:
                if not self.is_alive():
                    raise _unreachable(self.uri, err) from err
                if err.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                    raise MonitorError(f"libvirt could not look up domain {name}: {_message(err)}.") from err
        raise DomainNotFoundError(name, f"at {self.real_uri}{self._closest(name)}", self.elsewhere())

    def _closest(self, name: str) -> str:
        try:
            return names.closest(name, (handle.name for handle in self.domains()))
        except VbackupError:
            return ""

    def elsewhere(self) -> str:
        """Return where the domain may be instead: each user has a libvirt that knows nothing of the system's."""
        uri = self.real_uri
        if urlsplit(uri).path != "/session":
            return f"'{command('virsh list --all', uri)}' lists all domains"
        return (
            f"that is the libvirt of the user {user_name(os.geteuid())} alone. The domains of the system are at"
            " qemu:///system: run vbackup as root, or with -c qemu:///system as a member of the group libvirt"
        )

    def command(self, words: str) -> str:
        """Return a command line of vbackup or virsh for people, with the URI that the user gave for this host."""
        return command(words, self.uri)

    def start_transient(self, xml: str) -> DomainHandle:
        """Start a domain that is defined as long as it runs, and ends with this connection at the latest.

        The embedded driver does not end it (VIR_DOMAIN_START_AUTODESTROY: "not supported for embedded drivers yet").
        Raises MonitorError if libvirt refuses, ConnectionLostError.
        """
        flags = 0 if self.is_embedded else int(libvirt.VIR_DOMAIN_START_AUTODESTROY)
        with self.errors("start a domain"):
            return DomainHandle(self, self._connection.createXML(xml, flags))

    def capabilities(self) -> str:
        """Return what libvirt says of the host, as XML (virConnectGetCapabilities)."""
        with self.errors("read the capabilities of the host"):
            xml: str = self._connection.getCapabilities()
        return xml

    @property
    def connection(self) -> Any:
        """The connection object of libvirt (virConnect)."""
        return self._connection

    @property
    def real_uri(self) -> str:
        """The URI as libvirt resolved it (virConnectGetURI); the requested one if the connection is broken."""
        try:
            uri: str = self._connection.getURI()
        except libvirt.libvirtError:
            return self.uri or "libvirt"
        return uri

    @property
    def is_local(self) -> bool:
        """True if libvirt runs on this host, so that a path names the same file for both: the URI names no host."""
        return not urlsplit(self.real_uri).hostname

    @property
    def has_link(self) -> bool:
        """True if libvirt is on another host that SSH leads to."""
        return linked.has_address(self.real_uri)

    def link(self, *, check: Callable[[], None] = lambda: None) -> Link:
        """Return the link to that host, which all its connections share (vbackup.domain.linked); ``has_link`` is True.

        ``check`` is called while it is made, and raises to give up. Raises SshError, HelperError.
        """
        return self._linked.link(self.real_uri, check=check)

    @property
    def hostname(self) -> str:
        """Name of the host that libvirt runs on (virConnectGetHostname)."""
        name: str = self._asked_once("get the host's name", self._connection.getHostname)
        return name

    def _asked_once(self, what: str, ask: Callable[[], Any]) -> Any:
        """Return what libvirt answers; to ask another host takes a round trip. Raises as ``errors``."""
        if what not in self._told:
            with self.errors(what):
                self._told[what] = ask()
        return self._told[what]

    @property
    def is_embedded(self) -> bool:
        """True if the driver runs in this process (qemu:///embed); no other process can use it at the same time."""
        return urlsplit(self.real_uri).path == "/embed"

    @property
    def passes_fds(self) -> bool:
        """True if the connection carries file descriptors: it is a UNIX socket, or the driver runs in this process.

        The URI decides: on other transports libvirt 9.0 does not refuse descriptors, but the connection breaks.
        """
        return self.is_local and urlsplit(self.real_uri).scheme.partition("+")[2] in ("", "unix")

    @property
    def libvirt_version(self) -> str:
        """Version of the library or daemon that runs the domains, as "9.0.0" (virConnectGetLibVersion)."""
        number = self._asked_once("get the libvirt version", self._connection.getLibVersion)
        return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"

    def secret_value(self, secret: SecretRef) -> bytes:
        """Return the passphrase that libvirt stores for ``secret`` (virSecretGetValue).

        Raises UnsuitableError, with the remedy in its text, if libvirt has no value or keeps it private;
        ConnectionLostError or MonitorError for other errors.
        """
        try:
            with self.errors(f"read secret {secret}"):
                value: bytes = _look_up_secret(self._secret_connection(), secret).value()
        except MonitorError as err:
            hint = _SECRET_HINTS.get(error_code(err.__cause__))
            if hint is None:
                raise
            define, value_of = (self.command(f"virsh secret-{word}") for word in ("define", "set-value"))
            raise UnsuitableError(f"libvirt {hint.format(secret, define=define, set_value=value_of)}.") from err
        return value

    def _secret_connection(self) -> Any:
        """Return the connection for secrets: this one, or a second one for the embedded secret driver.

        The second one is opened once: every open restarts the embedded driver, even while it is in use.
        """
        if not self.is_embedded:
            return self._connection
        with self._secrets_lock:
            if self._embedded_secrets is None:
                parts = urlsplit(self.real_uri)
                self._embedded_secrets = libvirt.open(f"secret://{parts.path}?{parts.query}")
            return self._embedded_secrets

    def volume_path(self, pool: str, volume: str) -> str:
        """Return the path of a volume of a storage pool (virStorageVolGetPath).

        Raises MonitorError if the pool is not active or has no such volume, ConnectionLostError.
        """
        with self.errors(f"look up volume {volume} of pool {pool}"):
            path: str = self._connection.storagePoolLookupByName(pool).storageVolLookupByName(volume).path()
        return path

    def is_alive(self) -> bool:
        """Return False once the connection is known to be broken (virConnectIsAlive)."""
        try:
            return bool(self._connection.isAlive())
        except libvirt.libvirtError:
            return False

    def reopen(self, *, timeout_s: float | None = None) -> None:
        """Connect again after a loss, trying for ``timeout_s`` seconds (default: RECONNECT_S).

        Raises HostUnreachableError if libvirt does not come back in that time.
        """
        timeout_s = RECONNECT_S if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        is_local = self.is_local
        self._disconnect()
        while True:
            try:
                if is_local:
                    self._connection = self._open()
                else:
                    self._connection = self._open_within(max(ATTEMPT_S, deadline - time.monotonic()))
                return
            except HostUnreachableError:
                if time.monotonic() >= deadline:
                    raise
                pause.wait(0.2)  # there is no notification of a daemon's return

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Translate libvirt's errors in the block; ``what`` completes "libvirt could not ...".

        Raises ConnectionLostError if the connection broke: whether the call took effect is unknown. Raises
        MonitorError for any other error; its cause is libvirt's exception (see ``error_code``).
        """
        try:
            yield
        except libvirt.libvirtError as err:
            if not self.is_alive():
                raise ConnectionLostError(
                    f"The connection to libvirt broke when vbackup tried to {what}: {_message(err)}. Is libvirtd"
                    " running?"
                ) from err
            raise MonitorError(f"libvirt could not {what}: {_message(err)}.") from err

    def _open_within(self, limit_s: float) -> Any:
        """Return a new connection, or give up: libvirt, and its ssh, wait as long as the kernel does for a silent host.

        The attempt goes on in its thread until then. What it opens too late is closed.
        """
        opened: queue.SimpleQueue[Any] = queue.SimpleQueue()
        given_up = threading.Event()

        def attempt() -> None:
            try:
                connection = self._open()
            except HostUnreachableError as err:
                opened.put(err)
                return
            opened.put(connection)
            if given_up.is_set():
                with suppress(queue.Empty, libvirt.libvirtError):
                    opened.get_nowait().close()

        threading.Thread(target=attempt, name="libvirt-open", daemon=True).start()
        try:
            got = opened.get(timeout=limit_s)
        except queue.Empty:
            given_up.set()
            raise HostUnreachableError(self.uri, f"it did not answer within {limit_s:.0f} s") from None
        if isinstance(got, HostUnreachableError):
            raise got
        return got

    def _open(self) -> Any:
        try:
            connection = libvirt.open(self.uri)
        except libvirt.libvirtError as err:
            raise _unreachable(self.uri or os.environ.get("LIBVIRT_DEFAULT_URI"), err) from err
        try:
            connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
        except libvirt.libvirtError as err:
            log.debug("no keepalive: %s", err)  # local drivers do not support it
        return connection


class DomainHandle:
    """One domain of a host, running or not. It stays valid after a reconnect.

    Methods that ask libvirt raise ConnectionLostError or MonitorError (see ``Host.errors``).
    """

    def __init__(self, host: Host, domain: Any) -> None:
        self.host = host
        self.name: str = domain.name()
        self.uuid: str = domain.UUIDString()
        self._domain = domain

    def virsh(self, word: str) -> str:
        """Return a command of virsh about the domain, such as ``resume``, as a command line for people."""
        return self.host.command(f"virsh {word} {domain_argument(self.name)}")

    @property
    def domain(self) -> Any:
        """The domain object of libvirt (virDomain)."""
        return self._domain

    def reconnect(self, *, timeout_s: float | None = None) -> None:
        """Open a new connection, trying for ``timeout_s`` seconds (see ``Host.reopen``), and look the domain up again.

        Raises HostUnreachableError if libvirt stays away, DomainGoneError if it no longer has the domain.
        """
        self.host.reopen(timeout_s=timeout_s)
        try:
            self._domain = self.host.connection.lookupByUUIDString(self.uuid)
        except libvirt.libvirtError as err:
            raise DomainGoneError(self.name) from err

    def is_active(self) -> bool:
        """Return True while the domain has a QEMU process, running or paused (virDomainIsActive)."""
        with self.host.errors(f"read the state of domain {self.name}"):
            try:
                return bool(self._domain.isActive())
            except libvirt.libvirtError as err:
                if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return False  # a transient domain disappears when it stops
                raise

    def live_xml(self) -> str:
        """Return the XML of the running domain, or the XML that it would start with if it is off."""
        with self.host.errors(f"read the XML of domain {self.name}"):
            xml: str = self._domain.XMLDesc(0)
        return xml

    def definition_xml(self) -> str:
        """Return the XML that can define the domain again, with graphics passwords if libvirt discloses them.

        Flags: VIR_DOMAIN_XML_INACTIVE and, where access control allows it, VIR_DOMAIN_XML_SECURE.
        """
        inactive = int(libvirt.VIR_DOMAIN_XML_INACTIVE)
        try:
            xml: str = self._domain.XMLDesc(inactive | libvirt.VIR_DOMAIN_XML_SECURE)
        except libvirt.libvirtError as err:
            log.debug("no XML with secrets of %s: %s", self.name, err)  # access control may forbid it
            with self.host.errors(f"read the definition of domain {self.name}"):
                xml = self._domain.XMLDesc(inactive)
        return xml

    def autostart(self) -> bool | None:
        """Return True if libvirt starts the domain with the host (virDomainGetAutostart).

        None if it does not say: a transient domain has no such flag.
        """
        try:
            return bool(self._domain.autostart())
        except libvirt.libvirtError as err:
            log.debug("no autostart of %s: %s", self.name, err)
            return None

    def checkpoints(self) -> frozenset[str]:
        """Return the names of libvirt's own checkpoints; each has a bitmap of the same name on some disks.

        Empty if the driver or daemon has no checkpoints.
        """
        try:
            return frozenset(checkpoint.getName() for checkpoint in self._domain.listAllCheckpoints())
        except libvirt.libvirtError as err:
            log.debug("no checkpoints of %s: %s", self.name, err)
            return frozenset()

    def is_paused_by_io_error(self) -> bool:
        """Return True if QEMU paused the guest because one of its writes failed, usually for lack of space.

        That is VIR_DOMAIN_PAUSED_IOERROR; ``resume`` retries the write.
        """
        with self.host.errors(f"read the state of domain {self.name}"):
            state, reason = self._domain.state()
        return bool(state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR)

    def refuse_migration(self) -> None:
        """Raise MigratingError if the domain is just migrating, here or away.

        Where it arrives, libvirt lets no monitor command through: it would wait 30 s for the lock, in vain. From where
        it leaves, a migration fails while a job has a disk. Both calls answer at once, whoever holds the lock, except
        in the last moments of a migration, in which QEMU answers nobody.
        """
        try:
            operation = self._domain.jobStats().get(libvirt.VIR_DOMAIN_JOB_OPERATION)
        except libvirt.libvirtError as err:
            # "migration statistics are available only on the source host"
            incoming = err.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED and self._waits_for_migration()
            if not incoming:
                log.debug("no job statistics of %s: %s", self.name, err)
                return
            operation = libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN
        if operation == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN:
            raise MigratingError(self.name, incoming=True)
        if operation == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT:
            raise MigratingError(self.name, incoming=False)

    def _waits_for_migration(self) -> bool:
        """Return True if it is paused for a migration, as it is also after ``virsh restore --paused``."""
        with self.host.errors(f"read the state of domain {self.name}"):
            state, reason = self._domain.state()
        return bool(state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_MIGRATION)

    def halted(self) -> str | None:
        """Return why no code of the guest runs, as in "the domain is paused"; None if it runs."""
        with self.host.errors(f"read the state of domain {self.name}"):
            state, _reason = self._domain.state()
        return _HALTED.get(state)

    def resume(self) -> None:
        """Resume the guest; QEMU retries a write that had failed (virDomainResume)."""
        with self.host.errors(f"resume domain {self.name}"):
            self._domain.resume()

    def destroy(self) -> None:
        """End the domain as a power cut does (virDomainDestroy). One that has ended stays so."""
        try:
            with self.host.errors(f"destroy domain {self.name}"):
                self._domain.destroy()
        except MonitorError as err:
            if error_code(err.__cause__) not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                raise

    def screenshot(self, *, max_bytes: int) -> bytes:
        """Return a picture of the first screen, PNG or PPM as QEMU makes it (virDomainScreenshot).

        Raises MonitorError if there is no screen, or if the picture is larger.
        """
        with self.host.errors(f"take a screenshot of domain {self.name}"):
            stream = self.host.connection.newStream(0)
            self._domain.screenshot(stream, 0)
            data = bytearray()
            while piece := stream.recv(_PIECE_BYTES):
                data += piece
                if len(data) > max_bytes:
                    stream.abort()
                    raise MonitorError(f"The screenshot of domain {self.name} is larger than {max_bytes} bytes.")
            stream.finish()
        return bytes(data)

    def capacity_bytes(self, dev: str) -> int | None:
        """Return the size of a disk as the guest sees it; None if libvirt does not know it."""
        try:
            return int(self.domain.blockInfo(dev)[0])
        except libvirt.libvirtError as err:
            log.debug("size of disk %s: %s", dev, err)
            return None

    def has_managed_save(self) -> bool:
        """Return True if the domain has a managed save image (virsh managedsave), from which its next start resumes."""
        with self.host.errors(f"read the saved state of domain {self.name}"):
            return bool(self._domain.hasManagedSaveImage(0))


def library_version() -> int:
    """Return the version of the libvirt library of this host, such as 9000000 for 9.0.0 (virGetVersion)."""
    version: int = libvirt.getVersion()
    return version


#: The driver (another hypervisor's) or the daemon (an old one) lacks the function.
NO_SUPPORT = int(libvirt.VIR_ERR_NO_SUPPORT)
#: Descriptors were sent over a connection that cannot carry them, or to a daemon before 8.2.
FDS_NOT_PASSED = frozenset((int(libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED), NO_SUPPORT))

#: The guest agent replied with an error; an agent that does not answer has other numbers. VIR_ERR_AGENT_COMMAND_FAILED
#: (113) is libvirt's since 11.2; the daemon can be newer than the library, which has no name for it then.
AGENT_REPLIED = frozenset((int(libvirt.VIR_ERR_INTERNAL_ERROR), 113))

#: A flag or an argument that libvirt, perhaps an older one, does not take.
INVALID_ARGUMENT = int(libvirt.VIR_ERR_INVALID_ARG)

#: libvirt has no such domain, or no longer.
NO_DOMAIN = int(libvirt.VIR_ERR_NO_DOMAIN)

#: Defining checks the XML with libvirt's schema, too.
DEFINE_VALIDATE = int(libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
#: Undefining removes neither UEFI variables nor the state of a TPM: KEEP_NVRAM, and KEEP_TPM (64), which is libvirt's
#: since 8.9. The daemon can be newer than the library, which has no name for it then, or take fewer of them.
UNDEFINE_FLAGS = (int(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM) | 64, int(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM), 0)
#: Undefining removes all that libvirt has of a domain, but no UEFI variables: VIR_DOMAIN_UNDEFINE_TPM (32), too.
_UNDEFINE_ALL = int(
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
)
UNDEFINE_ALL_FLAGS = (_UNDEFINE_ALL | 32, _UNDEFINE_ALL)

#: Another operation had the domain's lock for 30 s (QEMU_JOB_WAIT_TIME): "cannot acquire state change lock".
OPERATION_TIMEOUT = int(libvirt.VIR_ERR_OPERATION_TIMEOUT)

#: There is no such storage pool, or volume in it.
NO_STORAGE_POOL = int(libvirt.VIR_ERR_NO_STORAGE_POOL)
NO_STORAGE_VOLUME = int(libvirt.VIR_ERR_NO_STORAGE_VOL)

#: The operating system reported an error, such as on the socket to a QEMU that ends.
SYSTEM_ERROR = int(libvirt.VIR_ERR_SYSTEM_ERROR)


#: The states in which a domain has a QEMU and its guest, with the agent in it, does not run.
_HALTED = {
    int(libvirt.VIR_DOMAIN_PAUSED): "paused",
    int(libvirt.VIR_DOMAIN_PMSUSPENDED): "suspended by its guest",
    int(libvirt.VIR_DOMAIN_CRASHED): "crashed",
}


def error_code(err: BaseException | None) -> int:
    """Return libvirt's error number (virErrorNumber) of an exception that libvirt raised, 0 for any other."""
    code: int = err.get_error_code() if isinstance(err, libvirt.libvirtError) else 0
    return code


#: Why libvirt does not disclose a secret, and the remedy, by error number.
_SECRET_HINTS = {
    int(libvirt.VIR_ERR_NO_SECRET): (
        "has no value for secret {0}; define it ('{define}') and set its value ('{set_value}')"
    ),
    int(libvirt.VIR_ERR_INVALID_SECRET): (
        "does not disclose secret {0} (private='yes'); start the domain, or define the secret again without that and"
        " set its value again ('{define}', '{set_value}')"
    ),
}


def _look_up_secret(connection: Any, secret: SecretRef) -> Any:
    if secret.uuid is not None:
        return connection.secretLookupByUUIDString(secret.uuid)
    return connection.secretLookupByUsage(libvirt.VIR_SECRET_USAGE_TYPE_VOLUME, secret.usage)


def _unreachable(uri: str | None, err: Exception) -> HostUnreachableError:
    """Return the error, in which the banner of libvirt's ssh about a changed host key is one sentence."""
    from vbackup.remote import address, host_key  # which most commands do without

    said = _message(err)
    place = address.parse(uri or os.environ.get("LIBVIRT_DEFAULT_URI", ""))
    key = None if place is None else host_key.changed(said, place)
    if key is None:
        return HostUnreachableError(uri, said)
    return HostUnreachableError(uri, key.reason, remedy=key.remedy)


def _message(err: Exception) -> str:
    text = err.get_error_message() if isinstance(err, libvirt.libvirtError) else None
    return (text or str(err)).strip().rstrip(".")
