"""Linux namespaces for the tests: what they start and mount ends with them, and the system's libvirt is out of reach.

``enter`` puts the tests into a PID namespace. Its first process ends with the tests, or with the process that waits for
them outside, however that ends; the kernel then kills every process of the namespace, and with the last one its mounts
and the loop devices below them are gone. No clean-up has to run, so none can be missed.

``hide_system`` gives a process separate mounts and network, in which libvirt's directories are new and empty: a
libvirtd has its usual paths there, and the system's is neither seen nor touched. Each process that runs tests has one.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

_CLONE_NEWNS, _CLONE_NEWPID, _CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 1 << 5
_MS_BIND, _MS_REC, _MS_SLAVE = 1 << 12, 1 << 14, 1 << 19
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)

#: User and group of QEMU are the distribution's. A namespace for each QEMU would have no place for a covered device.
QEMU_CONF = """\
security_driver = "none"
namespaces = []
"""


@functools.cache
def reason_not_to_enter() -> str | None:
    """Why the tests get no namespaces here, or None."""
    if os.geteuid() != 0:
        return "namespaces need root"
    argv = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "true"]
    tried = subprocess.run(argv, capture_output=True, text=True, check=False)
    return f"no namespaces can be made here: {tried.stderr.strip()}" if tried.returncode else None


def enter() -> None:
    """Return in a child within a new PID namespace. The caller waits for it and exits with its status."""
    sys.stdout.flush()
    sys.stderr.flush()
    _check(_libc.unshare(_CLONE_NEWPID))
    first = os.fork()
    if first:
        # Pytest within answers Ctrl-C. Others have to end all: they reach nobody but this process.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda signum, _frame: _end(first, signum))
        _exit_with(first)
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
    _check(_libc.unshare(_CLONE_NEWNS))
    _mount("none", "/", flags=_MS_REC | _MS_SLAVE)
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    as_init()


def as_init() -> None:
    """Return in a child. The caller, first process of a PID namespace, takes in orphans and exits as the child does.

    libvirt waits for a QEMU to be gone, which a process is only when its parent has taken note.
    """
    child = os.fork()
    if child:
        # With the first process of the namespace the kernel ends all others.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda signum, _frame: _libc._exit(128 + signum))
        _exit_with(child)


def _exit_with(child: int) -> NoReturn:
    """Exit with the status of the child, when all it started is gone if it is the first of a namespace."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            _libc._exit(code if code >= 0 else 128 - code)


def _end(first: int, signum: int) -> None:
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    _libc._exit(128 + signum)


_LOCALCA = "swtpm-localca"


def hide_system() -> None:
    """Move this process to separate mounts and network, where libvirt has no state, control group or KVM."""
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET))
    bring_up_loopback()
    _mount("none", "/", flags=_MS_REC | _MS_SLAVE)
    # Two domains of one name have the same control groups; where systemd runs, they are made over its bus, in /run.
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        _, place, kind, *_ = line.split(" ")
        if kind in ("cgroup", "cgroup2"):
            _check(_libc.umount2(os.fsencode(place), _MNT_DETACH))
    with _covered("/run"):
        pass
    with _covered("/var/lib") as before:
        show(before, "/var/lib", ("libvirt", "vbackup", _LOCALCA))
        if (before / _LOCALCA).is_dir():  # swtpm makes its certificate authority there, as its own user
            owner, authority = (before / _LOCALCA).stat(), Path("/var/lib", _LOCALCA)
            authority.mkdir(mode=0o750)
            os.chown(authority, owner.st_uid, owner.st_gid)
    for place in ("/etc/libvirt", "/etc/vbackup", "/var/cache/libvirt", "/var/log/libvirt", "/var/log/swtpm"):
        if Path(place).is_dir():
            with _covered(place) as before:
                _keep_capabilities(before, Path(place))
    for made in ("/run/libvirt", "/var/lib/libvirt/qemu", "/var/log/libvirt/qemu"):
        Path(made).mkdir(parents=True, exist_ok=True)
    if Path("/etc/libvirt").is_dir():
        Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
    if Path("/dev/kvm").exists():
        # Where /dev/kvm can be opened by root but not by libvirt-qemu, or by none but access(2) says otherwise, libvirt
        # 9.0 takes what it knows of QEMU for outdated and probes again, a dozen times for each start: 45 s. On a
        # read-only mount root has no access either.
        Path("/run/no-kvm").touch(mode=0o600)
        _mount("/run/no-kvm", "/dev/kvm", flags=_MS_BIND)
        _mount("none", "/dev/kvm", flags=_MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def _keep_capabilities(before: Path, directory: Path) -> None:
    """Copy what libvirt knows of this QEMU: finding it out takes seconds. libvirt does so where it does not fit."""
    known = Path("qemu", "capabilities")
    if (before / known).is_dir():
        shutil.copytree(before / known, directory / known)


@contextmanager
def _covered(directory: str) -> Iterator[Path]:
    """Mount an empty directory there. Gives a path to what it covers."""
    with reachable(directory) as before:
        _mount("none", directory, "tmpfs", data="mode=755")
        yield before


@contextmanager
def covered_firmware() -> Iterator[Path]:
    """Hide the descriptions of firmware that libvirt can choose, in the block and from this process's children only.

    Gives an empty directory for others in their place.
    """
    directory = "/usr/share/qemu"
    with _covered(directory) as before:
        try:
            ignore = shutil.ignore_patterns("firmware")
            shutil.copytree(before, directory, symlinks=True, ignore=ignore, dirs_exist_ok=True)
            Path(directory, "firmware").mkdir()
            yield Path(directory, "firmware")
        finally:
            _check(_libc.umount2(os.fsencode(directory), _MNT_DETACH))


@contextmanager
def reachable(directory: str) -> Iterator[Path]:
    """Give a path to the directory that is valid in the block, also when something is mounted on it meanwhile."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def show(before: Path, directory: str, except_names: Collection[str] = ()) -> None:
    """Make the directories and links of a covered directory visible again in the directory that covers it."""
    for entry in os.scandir(before):
        path = Path(directory, entry.name)
        if entry.name in except_names:
            continue
        if entry.is_symlink():
            path.symlink_to(Path(entry.path).readlink())
        elif entry.is_dir():
            path.mkdir()
            _mount(entry.path, path, flags=_MS_BIND | _MS_REC)


def _mount(source: str, target: str | Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, data.encode()))


def bring_up_loopback() -> None:
    """Let the network of this process have 127.0.0.1 and ::1."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


def _check(status: int) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
