"""A system of an administrator's: this machine's files with others on top, the whole command, and mail that arrives.

The root directory is an overlay: what a test writes in it (/etc, /srv, the state) is gone with it, and what is
installed here is there. It shares with the tests what libvirtd and QEMU have to see: /run, /tmp, /var/tmp and libvirt's
directories, which tests.namespaces has covered.
"""

from __future__ import annotations

import email
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email import policy
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.smtp import Mailbox, smtp

TOP = Path(__file__).parents[1]
#: A filesystem that an administrator can unmount, and mount again by its name.
DISK = Path("/srv/backup")

_SHARED = ("/proc", "/dev", "/run", "/tmp", "/var/tmp", "/var/lib/libvirt")
_PROGRAM = """\
#!{python}
from vbackup.cli import command
command()
"""
_SENDMAIL = """\
#!/bin/sh
exec msmtp -C /etc/msmtprc "$@"
"""


@dataclass
class System:
    """A root directory, with a disk for backups at ``DISK``, and who gets mail from there."""

    path: Path
    mailbox: Mailbox

    def inside(self, path: str | Path) -> Path:
        """Return where a file of the system is."""
        return self.path / os.fspath(path).lstrip("/")

    def run(self, line: str, status: int = 0) -> str:
        """Return what a line of a shell prints on both outputs. Raises AssertionError if its status is another."""
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.fspath(TOP),
            "PYTHONUNBUFFERED": "1",  # both outputs are one pipe, and in the order of a terminal
        }
        done = subprocess.run(
            ["chroot", self.path, "sh", "-c", f"cd /root && {line}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, f"{line}: status {done.returncode}: {done.stdout}"
        return done.stdout

    def mails(self) -> list[tuple[str, str]]:
        """Return subject and text of the mails that have come since the last call."""
        taken = [email.message_from_bytes(content, policy=policy.default) for _, _, content in self.mailbox.mails]
        self.mailbox.mails.clear()
        return [(str(mail["Subject"]), mail.get_content().replace("\r\n", "\n")) for mail in taken]


@contextmanager
def system(daemon: Daemon, directory: Path, disk_size: str = "256m") -> Iterator[System]:
    """Yield a system whose libvirt (qemu:///system) is the daemon. Skips the test where nothing can be mounted."""
    with ExitStack() as stack:
        top = directory / "system"
        top.mkdir()
        _mount("-t", "tmpfs", "none", top)
        stack.callback(subprocess.run, ["umount", "--recursive", "--lazy", top], check=True)
        upper, work, root = (top / name for name in ("upper", "work", "root"))
        for one in (upper, work, root):
            one.mkdir()
        _mount("-t", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", "none", root)
        for shared in (*_SHARED, os.fspath(TOP), sys.prefix):
            place = root / shared.lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
            _mount("--rbind", "--make-rslave", shared, place)
        for empty in ("etc/vbackup", "var/lib/vbackup", "srv"):
            (root / empty).mkdir(parents=True, exist_ok=True)
            _mount("-t", "tmpfs", "none", root / empty)
        mailbox = stack.enter_context(smtp(directory))
        made = System(root, mailbox)
        _furnish(made, directory, disk_size)
        socket = Path("/run/libvirt/libvirt-sock")
        socket.symlink_to(daemon.directory / "libvirt-sock")
        stack.callback(socket.unlink)
        made.run(f"mkdir {DISK} && mount {DISK}")
        yield made


def _furnish(made: System, directory: Path, disk_size: str) -> None:
    for name, text in (("bin/vbackup", _PROGRAM.format(python=sys.executable)), ("sbin/sendmail", _SENDMAIL)):
        program = made.inside(f"/usr/{name}")
        program.unlink(missing_ok=True)  # a link, where a package has one
        program.write_text(text)
        program.chmod(0o755)
    made.inside("/etc/msmtprc").write_text((directory / "msmtprc").read_text())
    # Unmounted, it keeps what it has: the filesystem is mounted elsewhere, too.
    disk = made.inside("/srv/.disk")
    disk.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={disk_size}", "none", disk)
    made.inside("/etc/fstab").write_text(f"/srv/.disk {DISK} none bind 0 0\n")


def _mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
