"""Start, ask and end the demo's guest: a process that holds the embedded libvirt for a moment.

    python -m tests.demo.domain start DIR DOMAIN_XML   boot a guest and wait until its agent answers
    python -m tests.demo.domain run DIR ARGV...        run a program in the guest, print what it printed
    python -m tests.demo.domain status DIR             whether the guest's filesystems are frozen
    python -m tests.demo.domain end DIR                destroy and undefine every domain

DIR is the root of the embedded driver (see tests.lab), CONSOLE below it the guest's console.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.guest.machine import Guest
from tests.lab import Machine, write_qemu_conf
from vbackup.domain.host import Host
from vbackup.errors import InterruptedBySignalError, VbackupError
from vbackup.stop import Stop, on_signals

# isort: split
import libvirt  # after vbackup.domain.host, which says where libvirt logs to

NAME = "demo"
CONSOLE = "console"


def uri(root: Path) -> str:
    """How libvirt is reached there."""
    return f"qemu:///embed?root={root}"


def prepare(root: Path) -> None:
    """Make the driver's configuration."""
    write_qemu_conf(root)
    with (root / "etc" / "qemu.conf").open("a") as file:
        # Files belong to who made them, and libvirt need not remember their owners in extended attributes.
        file.write("dynamic_ownership = 0\n")


def start(host: Host, root: Path, arguments: Sequence[str]) -> None:
    """Boot."""
    (root / CONSOLE).unlink(missing_ok=True)
    with on_signals(Stop()) as stop:  # libvirt is not cut off while it starts QEMU
        host.connection.defineXML(Path(arguments[0]).read_text()).create()
    stop.check()
    _guest(host, root).wait()


def run(host: Host, root: Path, arguments: Sequence[str]) -> None:
    """Run a program in the guest."""
    print(_guest(host, root).agent.run(*arguments), end="")


def status(host: Host, root: Path, _arguments: Sequence[str]) -> None:
    """Tell "frozen" or "thawed"."""
    print(_guest(host, root).agent.filesystem_status())


def end(host: Host, _root: Path, _arguments: Sequence[str]) -> None:
    """Leave no domain."""
    for domain in host.connection.listAllDomains():
        if domain.isActive():
            domain.destroy()
        if domain.isPersistent():
            domain.undefine()


def _found_again(host: Host) -> None:
    """libvirt finds running domains again in separate threads; a monitor command waits for them, others do not."""
    for domain in host.connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        Machine(host.domain(domain.name())).execute("query-status")


def _guest(host: Host, root: Path) -> Guest:
    return Guest(Machine(host.domain(NAME)), root / CONSOLE)


COMMANDS: dict[str, Callable[[Host, Path, Sequence[str]], None]] = {
    "start": start,
    "run": run,
    "status": status,
    "end": end,
}


def main(arguments: Sequence[str]) -> int:
    """Do one thing; returns the exit status."""
    command, root = COMMANDS[arguments[0]], Path(arguments[1])
    try:
        with Host(uri(root)) as host:
            _found_again(host)
            command(host, root, arguments[2:])
    except InterruptedBySignalError as err:
        return err.status
    except (VbackupError, libvirt.libvirtError, TimeoutError, AssertionError) as err:
        print(f"demo: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
