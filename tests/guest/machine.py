"""The guest as a libvirt domain: its XML, and waiting for it to say on its console that it is ready."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from tests.guest.agent import AGENT_PORT, ANSWER_S, Agent
from tests.guest.image import GuestImage
from tests.lab import DiskSpec, Machine

#: How often the console's file is looked at; nothing tells when QEMU has written to it.
LOOK_AGAIN_S = 0.05
#: Where the guest's first process takes lines to run (see init).
INIT_PORT = "org.vbackup.guest.0"
COMMAND_LINE = "console=ttyS0 quiet panic=-1 mitigations=off"


def domain_xml(name: str, image: GuestImage, disks: Sequence[DiskSpec], *, serial: Path) -> str:
    """The domain: direct kernel boot, channels for the agent and to init, the console into ``serial``."""
    return f"""\
<domain type='qemu'>
  <name>{escape(name)}</name>
  <memory unit='MiB'>128</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{escape(os.fspath(image.kernel))}</kernel>
    <initrd>{escape(os.fspath(image.initramfs))}</initrd>
    <cmdline>{COMMAND_LINE}</cmdline>
  </os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot>
  <devices>
    {"".join(disk.xml() for disk in disks)}
    <channel type='unix'><target type='virtio' name='{AGENT_PORT}'/></channel>
    <channel type='unix'><target type='virtio' name='{INIT_PORT}'/></channel>
    <serial type='file'><source path={quoteattr(os.fspath(serial))}/></serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""


@dataclass(frozen=True)
class Guest:
    """A running guest."""

    machine: Machine
    serial: Path

    @property
    def agent(self) -> Agent:
        """Its agent; wait for it before the first command."""
        return Agent(self.machine.handle.domain)

    def obey(self, line: str) -> None:
        """Have init run a shell command; the agent is not asked. AssertionError where it fails."""
        root = ElementTree.fromstring(self.machine.handle.live_xml())
        source = root.find(f"devices/channel/target[@name='{INIT_PORT}']/../source")
        assert source is not None
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(source.attrib["path"])
            connection.sendall(f"{line}\n".encode())
            status = connection.recv(16).strip()
        assert status == b"0", f"{line} in the guest: {status!r}"

    def wait(self, timeout_s: float = 60) -> None:
        """Until it has mounted its disks and its agent answers. Raises TimeoutError."""
        wait_ready(self.serial, timeout_s)
        self.agent.wait(timeout_s)


def console(serial: Path) -> list[str]:
    """What the guest has said so far, without the kernel's own lines."""
    text = serial.read_text(errors="replace") if serial.exists() else ""
    # The last piece is a line that is not complete yet, or empty.
    lines = [line.strip() for line in text.split("\n")[:-1]]
    return [line[len("guest: ") :] for line in lines if line.startswith("guest: ")]


def files_of(lines: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of each file by path, as the guest listed them on its console when it booted."""
    listed = (line.split(" ", 2) for line in lines if line.startswith("file: "))
    return {path: sha256 for _, sha256, path in listed}


def wait_ready(serial: Path, timeout_s: float = 60) -> list[str]:
    """Until the guest says that it is ready; returns what it has said. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while True:
        lines = console(serial)
        if any(line.startswith("ready ") for line in lines):
            return lines
        if time.monotonic() > deadline:
            said = serial.read_text(errors="replace")[-2000:] if serial.exists() else ""
            raise TimeoutError(
                f"The guest was not ready within {timeout_s:.0f} s; its console says: {said or 'nothing'}"
            )
        pause.wait(LOOK_AGAIN_S)
