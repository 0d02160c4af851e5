"""A domain with UEFI variables, a TPM and autostart in a libvirtd of the tests, and its backup."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import DiskSpec, Machine, domain_xml
from tests.unit.builders import UUID

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.daemon import Daemon

SEABIOS = Path("/usr/share/seabios/bios-256k.bin")


def backed_up(
    daemon: Daemon, command: Command, repository: Path, images: Path, *, devices: str = ""
) -> tuple[Machine, DiskSpec]:
    """Back up a domain web that runs, end it, and return it with its disk; its variables are in images/vars.fd."""
    spec, code, variables = DiskSpec(images / "vda.qcow2", size="8M"), images / "code.fd", images / "vars.fd"
    spec.create()
    code.write_bytes(SEABIOS.read_bytes())
    variables.write_bytes(b"variable" * 64 * 1024)
    tpm = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>"
    xml = domain_xml("web", [spec.xml()], devices=devices + tpm, top=f"<uuid>{UUID}</uuid>")
    firmware = f"<loader readonly='yes' type='pflash'>{code}</loader><nvram>{variables}</nvram>"
    machine = daemon.define(xml.replace("</type></os>", f"</type>{firmware}</os>"))
    machine.handle.domain.setAutostart(1)
    machine.handle.domain.create()
    machine.write("vda", "write -P 1 0 1M")
    command("-c", daemon.uri, "-q", "backup", "web", "-r", repository)
    machine.destroy()
    return machine, spec
