"""Other hosts for the tests: hypervisors with a network, an sshd, a libvirtd and processes that only they have.

A hypervisor is a set of Linux namespaces (network, mounts, processes, host name). The process that runs the tests is
the backup host: a veth pair leads from it to each hypervisor, with IPv4 and IPv6. The file system is the same one, but
libvirt's directories, ``/run`` and the directories that are to be hidden are new and empty on each hypervisor, so the
tests' repositories are not there. What a test looks at, such as images, is in ``Hypervisor.directory``, which both see.

The user's ssh is configured by ``/etc/ssh/ssh_config``, which covers the system's for the tests alone: it knows each
hypervisor by name (``hv1``), with its address, key and host key.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import gc
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import libvirt

from tests import namespaces
from tests.delayed_link import DelayedLink
from tests.lab import Machine
from vbackup.domain.host import Host

_PROGRAMS = ("sshd", "ssh", "ssh-keygen", "ip", "nft", "nsenter", "unshare", "libvirtd", "virtlogd", "virt-ssh-helper")

#: No PAM: the accounts of a container often have no password, and PAM may refuse them.
_SSHD_CONFIG = """\
Port 22
Port 2222
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
Subsystem sftp internal-sftp
"""

#: Each hypervisor is found under its name, as a user would have it.
_SSH_CONFIG = """\
Host {name}
    HostName {address}
    User root
Host *
    IdentityFile {directory}/id
    IdentitiesOnly yes
    UserKnownHostsFile {directory}/known_hosts
    StrictHostKeyChecking yes
"""


@functools.cache
def reason_not_to_start() -> str | None:
    """Why no hypervisors can be started here; None if they can."""
    reason = namespaces.reason_not_to_enter()
    if reason is not None:
        return reason
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    return f"{', '.join(missing)} not installed" if missing else None


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _run(*argv: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done


def _wait_for(condition: Callable[[], bool], what: str, *, timeout_s: float = 30.0) -> None:
    deadline, pause = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        pause.wait(0.02)


class Hosts:
    """Hypervisors, and the configuration of ssh that reaches them. Root and namespaces are needed."""

    def __init__(self, directory: Path, hidden: Sequence[Path]) -> None:
        """``directory`` is new and has a short path: there are sockets below it. ``hidden``: not on hypervisors."""
        self.directory = directory
        directory.chmod(0o755)
        self.hidden = hidden
        self.hypervisors: list[Hypervisor] = []
        self._cover_ssh_config()
        for name in ("id", "other"):  # two keys of the user; ``id`` is the one that ssh_config names
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name)

    def start(self, name: str) -> Hypervisor:
        """Start another hypervisor."""
        made = Hypervisor(self, name, number=len(self.hypervisors) + 1)
        self.hypervisors.append(made)
        self.write_config()
        return made

    def write_config(self, more: str = "") -> None:
        """Write ssh_config, with further lines at its beginning, where they take precedence; and known_hosts."""
        hosts = "".join(
            _SSH_CONFIG.partition("Host *")[0].format(name=one.name, address=one.ipv4) for one in self.hypervisors
        )
        general = "Host *" + _SSH_CONFIG.partition("Host *")[2].format(directory=self.directory)
        Path("/etc/ssh/ssh_config").write_text(more + hosts + general)
        known = [line for one in self.hypervisors for line in one.known_hosts()]
        (self.directory / "known_hosts").write_text("".join(f"{line}\n" for line in known))

    @contextlib.contextmanager
    def configured(self, more: str) -> Iterator[None]:
        """Have further lines in ssh_config during the block."""
        self.write_config(more)
        try:
            yield
        finally:
            self.write_config()

    def close(self) -> None:
        """End all hypervisors, and remove the directory."""
        for one in self.hypervisors:
            one.close()
        for place in self._covered:
            _run("umount", "--lazy", place)
        shutil.rmtree(self.directory)

    def _cover_ssh_config(self) -> None:
        """In this process's mount namespace only; what a developer has in ~/.ssh must not matter, nor be changed."""
        home = Path(pwd.getpwuid(os.getuid()).pw_dir, ".ssh")
        self._covered = [Path("/etc/ssh"), *([home] if home.is_dir() else [])]
        for place in self._covered:
            _run("mount", "-t", "tmpfs", "-o", "mode=755", "none", place)


#: The second number of the addresses of links, and of those that are slow.
_NET, _FAR_NET = 213, 214


@dataclasses.dataclass(frozen=True)
class _Cable:
    """The addresses of one hypervisor's link."""

    number: int
    net: int = _NET

    def ipv4(self, end: int) -> str:
        return f"10.{self.net}.{self.number}.{end}"

    def ipv6(self, end: int) -> str:
        return f"fd77:{self.number}::{end}"


@dataclasses.dataclass(frozen=True)
class FarHypervisor:
    """A hypervisor as it is reached by a link that is slow, and can be cut."""

    name: str  #: for ssh
    address: str
    uri: str
    link: DelayedLink


class Hypervisor:
    """A host with libvirt, reached by ssh as root; also directly, by its libvirt's socket, for the tests' own needs."""

    def __init__(self, hosts: Hosts, name: str, *, number: int) -> None:
        self.name = name
        self.hosts = hosts
        self.directory = hosts.directory / name  #: seen by both: images, sockets, logs
        self.link = f"vbh{number}"
        self._cable = cable = _Cable(number)
        self.ipv4, self.ipv6 = cable.ipv4(2), cable.ipv6(2)
        self.uri = f"qemu+ssh://root@{name}/system"
        self.directory.mkdir(mode=0o755)
        for below in ("run", "images"):
            (self.directory / below).mkdir(mode=0o755)
        self.images = self.directory / "images"
        self._make_keys()
        self._process = self._enter()
        try:
            self.pid = self._first_process()
            self._connect(cable)
            assert self._process.stdin is not None
            self._process.stdin.write("start\n")
            self._process.stdin.flush()
            self.direct_uri = f"qemu+unix:///system?socket={self.directory}/run/libvirt-sock"
            _wait_for(lambda: self._answers() or self._process.poll() is not None, f"the start of {name}")
            assert self._process.poll() is None, self.log()
        except BaseException:
            self._process.kill()
            raise
        self.host = Host(self.direct_uri)

    def _make_keys(self) -> None:
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.directory / "host_key")
        (self.directory / "sshd_config").write_text(_SSHD_CONFIG.format(directory=self.directory))
        self.authorize()

    def authorize(self, options: str = "", *, key: str = "id") -> None:
        """Let exactly one key of the user in, with these options (``restrict``, ``command="..."``)."""
        public = (self.hosts.directory / f"{key}.pub").read_text()
        (self.directory / "authorized_keys").write_text(f"{options} {public}".lstrip())

    def known_hosts(self) -> list[str]:
        """The lines of known_hosts for its names, addresses and ports."""
        key = " ".join((self.directory / "host_key.pub").read_text().split()[:2])
        names = [self.name, self.ipv4, self.ipv6]
        return [f"{name} {key}" for name in [*names, *(f"[{name}]:2222" for name in names)]]

    def _enter(self) -> subprocess.Popen[str]:
        argv = [
            *("unshare", "--mount", "--net", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"),
            *(sys.executable, "-m", "tests.hosts", self.name, str(self.directory), *map(str, self.hosts.hidden)),
        ]
        environment = {name: value for name, value in os.environ.items() if name != "LIBVIRT_LOG_OUTPUTS"}
        with (self.directory / "log").open("w") as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**environment, "PATH": _PATH},
                cwd=Path(__file__).parents[1],
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "namespaces\n", self.log()
        return process

    def _first_process(self) -> int:
        """The process that is number 1 on the hypervisor, as this process sees it."""
        text = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return int(text.split()[0])

    def _connect(self, cable: _Cable) -> None:
        peer = ("type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        _run("ip", "link", "add", "name", self.link, *peer, env={"PATH": _PATH})
        for end, inside, link in ((1, (), self.link), (2, self.inside, "eth0")):
            _run(*inside, "ip", "addr", "add", f"{cable.ipv4(end)}/24", "dev", link)
            _run(*inside, "ip", "addr", "add", f"{cable.ipv6(end)}/64", "dev", link, "nodad")
            _run(*inside, "ip", "link", "set", link, "up")

    @property
    def inside(self) -> tuple[str, ...]:
        """The beginning of a command that is to run on the hypervisor."""
        return ("nsenter", "--target", str(self.pid), "--all", "--")

    def run(self, *argv: str | Path) -> str:
        """Run a command on the hypervisor; returns what it prints."""
        return _run(*self.inside, *argv).stdout

    def _answers(self) -> bool:
        if not (self.directory / "run" / "libvirt-sock").exists():
            return False
        try:
            libvirt.open(self.direct_uri).close()
        except libvirt.libvirtError:
            return False
        with contextlib.suppress(OSError), socket.create_connection((self.ipv4, 22), timeout=5) as client:
            return client.recv(4) == b"SSH-"
        return False

    def log(self) -> str:
        """What its daemons have said."""
        return (self.directory / "log").read_text()

    # The cable

    def pull_cable(self) -> None:
        """Drop all packets from now on, in both directions: nothing is refused, no connection ends."""
        for where, link in self._ends:  # each end drops what comes in, so that no sender gets an error
            rule = f"chain in {{ type filter hook input priority 0; iifname {link} drop; }}"
            _run(*where, "nft", f"table inet {self.link} {{ {rule}; }}")

    def plug_cable(self) -> None:
        """Let packets through again; does nothing if they are let through."""
        for where, _link in self._ends:
            subprocess.run([*where, "nft", "delete", "table", "inet", self.link], capture_output=True, check=False)

    @contextlib.contextmanager
    def far_away(self, delay_s: float) -> Iterator[FarHypervisor]:
        """Yield a second name of the hypervisor, by which each round trip takes longer by ``delay_s``."""
        cable = _Cable(self._cable.number, net=_FAR_NET)
        here, there = f"{self.link}far", "far0"
        name = f"{self.name}-far"
        alias = f"Host {name}\n    HostName {cable.ipv4(2)}\n    HostKeyAlias {self.name}\n    User root\n"
        with DelayedLink(here, there, pid=self.pid, delay_s=delay_s) as link, self.hosts.configured(alias):
            for end, inside, device in ((1, (), here), (2, self.inside, there)):
                _run(*inside, "ip", "addr", "add", f"{cable.ipv4(end)}/24", "dev", device)
                # As many segments as a connection has under way.
                _run(*inside, "ip", "link", "set", device, "txqueuelen", "10000", "up")
            try:
                yield FarHypervisor(name, cable.ipv4(2), f"qemu+ssh://root@{name}/system", link)
            finally:
                # A connection of libvirt ends with the last object that was made by it: now, and not without the link.
                gc.collect()

    @property
    def _ends(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        return ((), self.link), (self.inside, "eth0")

    # Processes

    def processes(self, word: str) -> list[int]:
        """The processes of the hypervisor whose command line contains the word, as this process numbers them."""
        own = Path(f"/proc/{self.pid}/ns/pid").readlink()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (entry / "ns/pid").readlink() == own and word.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return sorted(found)

    def kill(self, word: str, signum: signal.Signals = signal.SIGKILL) -> int:
        """Signal those processes; returns their number."""
        pids = self.processes(word)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        return len(pids)

    @contextlib.contextmanager
    def without(self, program: str) -> Iterator[None]:
        """Have a program not to be found there during the block: nobody may run it."""
        paths = {os.path.realpath(found) for found in self._all(program)}
        for path in paths:
            self.run("mount", "--bind", "/dev/null", path)
        try:
            yield
        finally:
            for path in paths:
                self.run("umount", path)

    @staticmethod
    def _all(program: str) -> list[str]:
        places = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
        return [found for place in places if (found := shutil.which(program, path=place)) is not None]

    # Domains, as in tests.daemon

    def start(self, xml: str) -> Machine:
        """Start a transient domain."""
        return Machine(self.host.domain(self.host.connection.createXML(xml).name()))

    def defined_later(self, name: str) -> None:
        """A domain that somebody else may define; it is undefined after the test."""

    def define(self, xml: str) -> Machine:
        """Define a domain, which is off then."""
        return Machine(self.host.domain(self.host.connection.defineXML(xml).name()))

    def clear(self) -> None:
        """Plug the cable in, end all domains, undefine all, remove images, and let the user's key in."""
        self.plug_cable()
        self.authorize()
        if not self.host.is_alive():
            self.host.reopen()
        connection: Any = self.host.connection
        from tests.daemon import end_domains

        end_domains(connection)
        for domain in connection.listAllDomains():  # what a command under test has defined, too
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
        for path in self.images.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def close(self) -> None:
        """End everything on the hypervisor: with its first process the kernel ends all others."""
        self.host.close()
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def _main(name: str, directory: str, *hidden: str) -> None:
    """Be the first process of a hypervisor: hide what is not there, start the daemons, take in orphans."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    socket.sethostname(name)
    namespaces.hide_system()
    _run("mount", "--bind", f"{directory}/run", "/run/libvirt")
    for place in hidden:
        _run("mount", "-t", "tmpfs", "-o", "mode=755", "none", place)
    if (startup := Path(pwd.getpwuid(os.getuid()).pw_dir, ".bashrc")).exists():  # it may find other programs
        _run("mount", "--bind", "/dev/null", startup)
    Path("/run/sshd").mkdir(mode=0o755)
    print("namespaces", flush=True)
    assert sys.stdin.readline() == "start\n"
    (conf := Path("/etc/libvirt/libvirtd.conf")).write_text('auth_unix_rw = "none"\nlisten_tls = 0\n')
    sshd = shutil.which("sshd")  # it starts itself again for each connection, and has to know its path
    assert sshd is not None
    with Path(directory, "log").open("a") as log:
        for argv in (
            ["virtlogd", "--pid-file", "/run/virtlogd.pid"],
            ["libvirtd", "--config", str(conf), "--pid-file", "/run/libvirtd.pid"],
            [sshd, "-D", "-e", "-f", f"{directory}/sshd_config"],
        ):
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    while True:
        with contextlib.suppress(ChildProcessError):
            os.wait()


if __name__ == "__main__":
    _main(*sys.argv[1:])
