"""The libvirt host: its connection, its domains, its events. The only importer of libvirt.

What goes to QEMU itself goes through vbackup.domain.passthrough.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

# The embedded driver logs to stderr, among much else what its exceptions say again. Whoever wants to
# read that sets the variable; libvirt looks at it at the first call.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")

import libvirt

from vbackup.errors import (
    ConnectionLostError,
    DomainGoneError,
    DomainNotFoundError,
    HostUnreachableError,
    MonitorError,
    UnsuitableError,
)
from vbackup.model import SecretRef

log = logging.getLogger(__name__)

#: How long a broken connection is tried again: libvirtd restarts in well under this.
RECONNECT_S = 20.0
#: A remote libvirtd that says nothing for interval x count seconds counts as lost.
KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 5, 3


@functools.cache
def _start_events() -> None:
    """Run libvirt's event loop in a thread, once; must be there before the first connection of the process."""
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
    """A connection to libvirt, opened anew if it breaks. A context manager.

    ``uri`` None is libvirt's own default: LIBVIRT_DEFAULT_URI, its configuration, or what it finds.
    Raises HostUnreachableError.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri
        _start_events()
        self._embedded_secrets: Any = None
        self._secrets_lock = threading.Lock()
        self._connection = self._open()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection; closing twice is fine."""
        for connection in (self._embedded_secrets, self._connection):
            try:
                if connection is not None:
                    connection.close()
            except libvirt.libvirtError as err:
                log.debug("closing the connection: %s", err)
        self._embedded_secrets = None

    @contextmanager
    def another(self) -> Iterator[Host]:
        """A connection for another thread's domain.

        One of its own: the loss of a connection is dealt with by whoever uses it (see ``reopen``), and a libvirtd
        carries out no more than five calls at once for one client (its max_client_requests), which guests that
        freeze would use up. An embedded driver is opened once for all: its connection cannot break.
        """
        if self.is_embedded:
            yield self
            return
        with Host(self.uri) as own:
            yield own

    def domains(self) -> list[DomainHandle]:
        """All domains that libvirt has, running or not, by name."""
        with self.errors("the list of domains"):
            return sorted(
                (DomainHandle(self, one) for one in self._connection.listAllDomains()), key=lambda it: it.name
            )

    def domain(self, name: str) -> DomainHandle:
        """The domain of that name or UUID. Raises DomainNotFoundError."""
        for look_up in (self._connection.lookupByName, self._connection.lookupByUUIDString):
            try:
                return DomainHandle(self, look_up(name))
            except libvirt.libvirtError as err:
                if not self.is_alive():
                    raise HostUnreachableError(self.uri, _message(err)) from err
                if err.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                    raise MonitorError(f"libvirt cannot look up domain {name}: {_message(err)}.") from err
        raise DomainNotFoundError(name, f"at {self.real_uri}", "'virsh list --all' shows those there are")

    @property
    def connection(self) -> Any:
        """Libvirt's own connection object (virConnect)."""
        return self._connection

    @property
    def real_uri(self) -> str:
        """The URI as libvirt resolved it."""
        try:
            uri: str = self._connection.getURI()
        except libvirt.libvirtError:
            return self.uri or "libvirt"
        return uri

    @property
    def is_local(self) -> bool:
        """True if paths mean the same files here and there: the URI names no host."""
        return not urlsplit(self.real_uri).hostname

    @property
    def is_embedded(self) -> bool:
        """True if the driver is in this process (qemu:///embed), where no other process can use it meanwhile."""
        return urlsplit(self.real_uri).path == "/embed"

    @property
    def passes_fds(self) -> bool:
        """True if descriptors can be handed over: the connection is a UNIX socket, or the driver is in this process.

        Read off the URI, because libvirt 9.0 does not refuse on other transports: the connection breaks.
        """
        return self.is_local and urlsplit(self.real_uri).scheme.partition("+")[2] in ("", "unix")

    @property
    def libvirt_version(self) -> str:
        """Of the library or daemon that has the domain."""
        with self.errors("the libvirt version"):
            number = self._connection.getLibVersion()
        return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"

    def secret_value(self, secret: SecretRef) -> bytes:
        """The passphrase that libvirt keeps. Raises UnsuitableError where it has none or does not give it."""
        try:
            with self.errors(f"secret {secret}"):
                value: bytes = _look_up_secret(self._secret_connection(), secret).value()
        except MonitorError as err:
            hint = _SECRET_HINTS.get(error_code(err.__cause__))
            if hint is None:
                raise
            raise UnsuitableError(f"libvirt {hint.format(secret)}.") from err
        return value

    def _secret_connection(self) -> Any:
        """The connection that knows secrets: this one, but the embedded drivers have one each.

        Opened once: at every open libvirt starts the embedded driver anew, under whatever uses the earlier one.
        """
        if not self.is_embedded:
            return self._connection
        with self._secrets_lock:
            if self._embedded_secrets is None:
                parts = urlsplit(self.real_uri)
                self._embedded_secrets = libvirt.open(f"secret://{parts.path}?{parts.query}")
            return self._embedded_secrets

    def volume_path(self, pool: str, volume: str) -> str:
        """Where a volume of a storage pool is. Raises MonitorError where the pool is not active or has none such."""
        with self.errors(f"volume {volume} of pool {pool}"):
            path: str = self._connection.storagePoolLookupByName(pool).storageVolLookupByName(volume).path()
        return path

    def is_alive(self) -> bool:
        """False once the connection is known to be broken."""
        try:
            return bool(self._connection.isAlive())
        except libvirt.libvirtError:
            return False

    def reopen(self, *, timeout_s: float | None = None) -> None:
        """Connect again after a loss. Raises HostUnreachableError after ``timeout_s`` (default: RECONNECT_S)."""
        timeout_s = RECONNECT_S if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        self.close()
        while True:
            try:
                self._connection = self._open()
                return
            except HostUnreachableError:
                if time.monotonic() >= deadline:
                    raise
                pause.wait(0.2)  # nothing tells when a daemon is back

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Turn libvirt's errors into ours; ``what`` is what was asked for."""
        try:
            yield
        except libvirt.libvirtError as err:
            if not self.is_alive():
                raise ConnectionLostError(
                    f"The connection to libvirt broke during {what}: {_message(err)}. Is libvirtd running?"
                ) from err
            raise MonitorError(f"libvirt failed at {what}: {_message(err)}.") from err

    def _open(self) -> Any:
        try:
            connection = libvirt.open(self.uri)
        except libvirt.libvirtError as err:
            raise HostUnreachableError(self.uri or os.environ.get("LIBVIRT_DEFAULT_URI"), _message(err)) from err
        try:
            connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
        except libvirt.libvirtError as err:
            log.debug("no keepalive: %s", err)  # local drivers have none
        return connection


class DomainHandle:
    """One domain of a host; survives a reconnect."""

    def __init__(self, host: Host, domain: Any) -> None:
        self.host = host
        self.name: str = domain.name()
        self.uuid: str = domain.UUIDString()
        self._domain = domain

    @property
    def domain(self) -> Any:
        """Libvirt's own domain object (virDomain)."""
        return self._domain

    def reconnect(self, *, timeout_s: float | None = None) -> None:
        """Find the domain again over a new connection. Raises HostUnreachableError, DomainGoneError."""
        self.host.reopen(timeout_s=timeout_s)
        try:
            self._domain = self.host.connection.lookupByUUIDString(self.uuid)
        except libvirt.libvirtError as err:
            raise DomainGoneError(self.name) from err

    def is_active(self) -> bool:
        """True while the domain has a QEMU (running or paused)."""
        with self.host.errors(f"the state of domain {self.name}"):
            try:
                return bool(self._domain.isActive())
            except libvirt.libvirtError as err:
                if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return False  # a transient domain is gone altogether when it stops
                raise

    def live_xml(self) -> str:
        """The XML of the domain as it runs, or as it would start where it is off."""
        with self.host.errors(f"the XML of domain {self.name}"):
            xml: str = self._domain.XMLDesc(0)
        return xml

    def definition_xml(self) -> str:
        """The XML that defines the domain anew, secrets (graphics passwords) included where libvirt gives them."""
        inactive = int(libvirt.VIR_DOMAIN_XML_INACTIVE)
        try:
            xml: str = self._domain.XMLDesc(inactive | libvirt.VIR_DOMAIN_XML_SECURE)
        except libvirt.libvirtError as err:
            log.debug("no secure XML of %s: %s", self.name, err)  # access control may forbid it
            with self.host.errors(f"the definition of domain {self.name}"):
                xml = self._domain.XMLDesc(inactive)
        return xml

    def checkpoints(self) -> frozenset[str]:
        """The names of libvirt's own checkpoints; each has a bitmap of that name on some disks."""
        try:
            return frozenset(one.getName() for one in self._domain.listAllCheckpoints())
        except libvirt.libvirtError as err:
            log.debug("no checkpoints of %s: %s", self.name, err)  # a driver or daemon without them
            return frozenset()

    def is_paused_by_io_error(self) -> bool:
        """True if QEMU stopped the guest because a write of its failed (no space, as a rule)."""
        with self.host.errors(f"the state of domain {self.name}"):
            state, reason = self._domain.state()
        return bool(state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR)

    def resume(self) -> None:
        """Let the guest go on; a write that had failed is tried again."""
        with self.host.errors(f"resuming domain {self.name}"):
            self._domain.resume()

    def has_managed_save(self) -> bool:
        """True if the domain's memory was saved (virsh managedsave): its next start goes on from there."""
        with self.host.errors(f"the saved state of domain {self.name}"):
            return bool(self._domain.hasManagedSaveImage(0))


#: What libvirt says of a function that the driver (another hypervisor's) or the daemon (an old one) does not have.
NO_SUPPORT = int(libvirt.VIR_ERR_NO_SUPPORT)
#: What libvirt says of descriptors over a connection that cannot carry them, or to a daemon before 8.2.
FDS_NOT_PASSED = frozenset((int(libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED), NO_SUPPORT))

#: What libvirt makes of a guest agent's own error reply; an agent that does not answer has other numbers.
INTERNAL_ERROR = int(libvirt.VIR_ERR_INTERNAL_ERROR)

#: What libvirt makes of an error of the operating system's, such as that of the socket to a QEMU that ends.
SYSTEM_ERROR = int(libvirt.VIR_ERR_SYSTEM_ERROR)


def error_code(err: BaseException | None) -> int:
    """Libvirt's number (virErrorNumber) of an exception it raised; 0 for any other."""
    code: int = err.get_error_code() if isinstance(err, libvirt.libvirtError) else 0
    return code


#: What to say where libvirt does not give a secret away, by its error.
_SECRET_HINTS = {
    int(libvirt.VIR_ERR_NO_SECRET): (
        "has no value of secret {0}; define it ('virsh secret-define') and give its value ('virsh secret-set-value')"
    ),
    int(libvirt.VIR_ERR_INVALID_SECRET): (
        "keeps secret {0} to itself (private='yes'); start the domain, or define the secret anew without that and give"
        " its value again ('virsh secret-define', 'virsh secret-set-value')"
    ),
}


def _look_up_secret(connection: Any, secret: SecretRef) -> Any:
    if secret.uuid is not None:
        return connection.secretLookupByUUIDString(secret.uuid)
    return connection.secretLookupByUsage(libvirt.VIR_SECRET_USAGE_TYPE_VOLUME, secret.usage)


def _message(err: Exception) -> str:
    text = err.get_error_message() if isinstance(err, libvirt.libvirtError) else None
    return (text or str(err)).strip().rstrip(".")
