"""A libvirtd for the tests alone at qemu:///system, where a daemon is the subject: QEMU without
privileges, two clients at once, the daemon restarted, another host's connection, storage pools.

libvirt has no way to move all its directories, so it uses the system's paths. tests.namespaces covers them with empty
directories; where no namespaces can be made, it is only started if no other libvirtd runs. Domains and pools in it are
transient where that will do; those that have to be defined, and secrets, are removed after each test.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt

from tests.lab import Machine
from vbackup.domain.host import Host

CONF = """\
unix_sock_dir = "{directory}"
auth_unix_rw = "none"
listen_tls = 0
listen_tcp = 1
tcp_port = "{port}"
listen_addr = "127.0.0.1"
auth_tcp = "none"
log_outputs = "3:file:{directory}/libvirtd.log"
"""


def wait_for(condition: Callable[[], bool], what: str, *, timeout_s: float = 30.0) -> None:
    """Poll a condition of another process that tells nobody when it changes."""
    deadline, pause = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        pause.wait(0.05)


def end_domains(connection: Any) -> None:
    """End all domains, also one that is on its way to its end or to another host at this moment."""
    active = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE

    def are_ended() -> bool:
        for domain in connection.listAllDomains(active):
            try:
                domain.destroy()
            except libvirt.libvirtError as err:
                if err.get_error_code() not in {libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN}:
                    raise
        return not connection.listAllDomains(active)

    wait_for(are_ended, "the end of all domains")


def _environment() -> dict[str, str]:
    """Without what vbackup.domain.host sets for its own process: the daemons shall log as they are configured."""
    return {name: value for name, value in os.environ.items() if name != "LIBVIRT_LOG_OUTPUTS"}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Daemon:
    """libvirtd and virtlogd in the foreground of separate processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = _free_port()
        self._defined: list[str] = []
        self._secrets: list[str] = []
        self.uri = f"qemu+unix:///system?socket={directory}/libvirt-sock"
        self.tcp_uri = f"qemu+tcp://127.0.0.1:{self.port}/system"
        (directory / "libvirtd.conf").write_text(CONF.format(directory=directory, port=self.port))
        self.start_virtlogd()
        self._libvirtd = self._start()
        self.host = Host(self.uri)

    def _start(self) -> subprocess.Popen[bytes]:
        conf = f"{self.directory}/libvirtd.conf"
        process = subprocess.Popen(
            ["libvirtd", "--listen", "--config", conf, "--pid-file", f"{self.directory}/libvirtd.pid"],
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
        wait_for(lambda: self._answers() or process.poll() is not None, "libvirtd's start")
        assert process.poll() is None, (self.directory / "libvirtd.log").read_text()
        return process

    def _answers(self) -> bool:
        try:
            libvirt.open(self.uri).close()
        except libvirt.libvirtError:
            return False
        return True

    def start_virtlogd(self) -> None:
        """It takes what QEMU prints; libvirtd starts no domain without it."""
        path = Path("/run/libvirt/virtlogd-sock")
        path.unlink(missing_ok=True)  # of one that was killed
        argv = ["virtlogd", "--pid-file", f"{self.directory}/virtlogd.pid"]
        self._virtlogd = subprocess.Popen(argv, env=_environment())
        wait_for(path.exists, "virtlogd's start")

    @contextlib.contextmanager
    def without_virtlogd(self) -> Iterator[None]:
        """As if it crashed, and nobody started it again."""
        self._virtlogd.kill()
        self._virtlogd.wait()
        try:
            yield
        finally:
            self.start_virtlogd()

    def kill(self) -> None:
        """As if it crashed: domains go on running."""
        self._libvirtd.send_signal(signal.SIGKILL)
        self._libvirtd.wait()

    def restart(self) -> None:
        """Start it again after ``kill``."""
        self._libvirtd = self._start()

    def start(self, xml: str) -> Machine:
        """Start a transient domain."""
        made: list[Any] = []

        def start() -> bool:
            try:
                made.append(self.host.connection.createXML(xml))
            except libvirt.libvirtError as err:
                # The one of the same name whose QEMU was killed is not active any more, and still there.
                if "is already being removed" not in str(err):
                    raise
            return bool(made)

        wait_for(start, "the removal of the domain that had the name")
        return Machine(self.host.domain(made[0].name()))

    def define(self, xml: str) -> Machine:
        """Define a domain, which is off then."""
        name: str = self.host.connection.defineXML(xml).name()
        self._defined.append(name)
        return Machine(self.host.domain(name))

    def defined(self, name: str) -> Machine:
        """A domain that somebody else has defined; it is undefined after the test."""
        self._defined.append(name)
        return Machine(self.host.domain(name))

    def defined_later(self, name: str) -> None:
        """A domain that somebody else may define; it is undefined after the test."""
        self._defined.append(name)

    def secret(self, xml: str, value: bytes) -> str:
        """Define a secret and give its value; returns its UUID."""
        secret = self.host.connection.secretDefineXML(xml)
        secret.setValue(value, 0)
        self._secrets.append(secret.UUIDString())
        return self._secrets[-1]

    def clear(self) -> None:
        """End all domains and pools, and undefine what was defined."""
        if not self.host.is_alive():
            self.host.reopen()
        connection: Any = self.host.connection
        while self._secrets:
            connection.secretLookupByUUIDString(self._secrets.pop()).undefine()
        while self._defined:
            name = self._defined.pop()
            if name not in {one.name() for one in connection.listAllDomains()}:
                continue  # the test has undefined it
            domain = connection.lookupByName(name)
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
        end_domains(connection)
        for pool in connection.listAllStoragePools():
            pool.destroy()

    def close(self) -> None:
        """End everything that was started."""
        try:
            self.clear()
            self.host.close()
        finally:
            for process in (self._libvirtd, self._virtlogd):
                process.terminate()
                process.wait(timeout=30)
            shutil.rmtree(self.directory)


def reason_not_to_start() -> str | None:
    """Why no daemon can be started here; None if one can."""
    if os.geteuid() != 0:
        return "a libvirtd for qemu:///system needs root"
    if Path("/run/libvirt/libvirt-sock").exists() and _somebody_listens("/run/libvirt/libvirt-sock"):
        return "a libvirtd of the system runs here and must not be disturbed"
    return None


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
    return True
