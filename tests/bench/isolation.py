"""Namespaces of the bench's own: a libvirtd with nobody else's domains, and nothing left however the run ends.

The runner starts itself again as the first process of a new PID namespace, with separate mounts and a separate network:
libvirt's directories are new and empty there, so virtnbdbackup and virsh find the bench's libvirtd at qemu:///system
while the system's, if there is one, goes on undisturbed. When the first process ends, by itself or killed, the kernel
kills all others and drops the mounts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import libvirt

from tests import namespaces
from tests.daemon import wait_for
from vbackup.domain.host import Host
from vbackup.errors import HostUnreachableError

INSIDE = "VBACKUP_BENCH_INSIDE"
URI = "qemu:///system"
#: Sockets and pid files of QEMU and of the bench; its real place may have too long a name for a socket.
RUN = Path("/run/libvirt")
#: A directory for servers with sockets of their own: below the bench's directory, by a short path.
SHORT = Path("/var/tmp")
#: virtnbdbackup has its scratch files in /var/tmp: they shall be on the same filesystem as everything else.
_PLACES = ("/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt", "/run/libvirt", "/var/tmp")

_QEMU_CONF = """\
user = "root"
group = "root"
stdio_handler = "file"
security_driver = "none"
namespaces = []
dynamic_ownership = 0
"""
_LIBVIRTD_CONF = """\
auth_unix_rw = "none"
log_outputs = "3:file:{log}"
"""


def reason_not_to_run() -> str | None:
    """Why nothing can be measured here; None if it can."""
    if os.geteuid() != 0:
        return "namespaces and libvirtd need root"
    tried = subprocess.run([*_unshare(), "true"], capture_output=True, text=True, check=False)
    return f"no namespaces can be made here: {tried.stderr.strip()}" if tried.returncode else None


def _unshare() -> list[str]:
    namespaces = ["--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc", "--net"]
    return ["unshare", *namespaces]


def run_inside(arguments: Sequence[str]) -> int:
    """Start the runner again in separate namespaces and wait for it; returns its exit status."""
    argv = [*_unshare(), sys.executable, "-m", "tests.bench", *arguments]
    process = subprocess.Popen(argv, env={**os.environ, INSIDE: "1"})

    def end(_signum: int, _frame: object) -> None:
        # unshare ignores the signal, its child does not: it is gone when all are that were inside.
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()), signal.SIGTERM)

    # A Ctrl-C reaches all processes of the terminal, so the one inside ends by itself.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    while True:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            continue
        return status if status >= 0 else 128 - status


def is_inside() -> bool:
    """True in the first process of the namespace."""
    return INSIDE in os.environ and os.getpid() == 1


@contextmanager
def libvirtd(directory: Path) -> Iterator[libvirt.virConnect]:
    """A libvirtd with all its files below ``directory``; the connection to it, with its events."""
    namespaces.bring_up_loopback()
    _cover(directory)
    log = directory / "libvirtd.log"
    conf = directory / "libvirtd.conf"
    conf.write_text(_LIBVIRTD_CONF.format(log=log))
    with subprocess.Popen(
        ["libvirtd", "--config", str(conf), "--pid-file", str(directory / "libvirtd.pid")],
        stderr=subprocess.DEVNULL,
        # vbackup.domain.host has its own process log to nowhere.
        env={name: value for name, value in os.environ.items() if name != "LIBVIRT_LOG_OUTPUTS"},
    ) as process:
        try:
            wait_for(lambda: _answers() or process.poll() is not None, "libvirtd's start")
            assert process.poll() is None, log.read_text()
            with Host(URI) as host:
                yield host.connection
        finally:
            process.terminate()


def _answers() -> bool:
    try:
        Host(URI).close()
    except HostUnreachableError:
        return False
    return True


def _cover(directory: Path) -> None:
    known = Path("/var/cache/libvirt/qemu/capabilities")
    if known.is_dir():
        # To find out again what this QEMU can do takes seconds; libvirt does so where the cache does not fit.
        shutil.copytree(known, directory / "private" / "var-cache-libvirt" / "qemu" / "capabilities")
    for place in _PLACES:
        private = directory / "private" / place.replace("/", "-").strip("-")
        private.mkdir(parents=True, exist_ok=True)
        Path(place).mkdir(parents=True, exist_ok=True)
        with namespaces.reachable(place) as before:
            subprocess.run(["mount", "--bind", str(private), place], check=True)
            if place == "/var/tmp":
                # This program may be there, or the directory for its results.
                namespaces.show(before, place)
    Path("/etc/libvirt/qemu.conf").write_text(_QEMU_CONF)
    Path("/var/tmp").chmod(0o1777)
    if Path("/dev/kvm").exists():
        # See tests.daemon: where KVM is there but not usable, libvirt finds out at each definition and start what QEMU
        # can do. Root may write to any file but one of a read-only mount (access(2)), so that counts as no KVM.
        cover = directory / "no-kvm"
        cover.touch(mode=0o600)
        subprocess.run(["mount", "--bind", str(cover), "/dev/kvm"], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", "/dev/kvm"], check=True)


@contextmanager
def slow_filesystem(directory: Path, *, size_mib: int, bytes_s: int) -> Iterator[Path]:
    """An empty filesystem that takes ``bytes_s`` and no more, from whomever and however it is written.

    A qemu-storage-daemon exports a file by FUSE through a throttle filter; on it is a loop device with ext4, mounted
    with "sync", so that the page cache hides nothing. It is the same for writes with O_DIRECT and without, from QEMU
    and from any program, which a cgroup's limit is not.
    """
    directory.mkdir()
    backing, exported, mountpoint = directory / "backing", directory / "exported", directory / "slow"
    with backing.open("wb") as file:
        file.truncate(size_mib * 1024 * 1024)
    exported.touch()
    mountpoint.mkdir()
    # The filesystem is made before the throttle is on.
    ext4 = ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", str(backing)]
    subprocess.run(ext4, check=True, stdout=subprocess.DEVNULL)
    group = f'{{"qom-type": "throttle-group", "id": "slow", "limits": {{"bps-write": {bytes_s}}}}}'
    daemon = subprocess.Popen(
        [
            "qemu-storage-daemon",
            *("--object", group),
            *("--blockdev", f"driver=file,node-name=file,filename={backing}"),
            *("--blockdev", "driver=throttle,node-name=slow,throttle-group=slow,file=file"),
            *("--export", f"type=fuse,id=fuse,node-name=slow,mountpoint={exported},writable=on,growable=off"),
        ]
    )
    try:
        wait_for(lambda: exported.stat().st_size > 0 or daemon.poll() is not None, "the export")
        subprocess.run(["mount", "-o", "loop,sync", str(exported), str(mountpoint)], check=True)
        try:
            yield mountpoint
        finally:
            # QEMU closes the image a moment after its job is reported as done.
            umount = ["umount", str(mountpoint)]
            wait_for(lambda: subprocess.run(umount, check=False, capture_output=True).returncode == 0, "the unmounting")
    finally:
        daemon.terminate()
        daemon.wait()
