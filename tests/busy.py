"""A guest of one boot sector that writes to its first disk and reads it back, for ever.

It needs a second to start, and does what firmware-only domains (tests.lab) do not: a driver in the guest uses the disk,
so that an iothread is in use, and the guest itself sees an error of its disk, and says so on its serial port.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from tests.end_to_end.chains import Chain
from tests.lab import DiskSpec, Lab, domain_xml

if TYPE_CHECKING:
    from tests.conftest import Command

#: Where it writes: 8 KiB after 8 KiB, round and round. Nothing else may be written there.
FIRST_BYTE, LENGTH_BYTES = 1 << 20, 4 << 20

#: 16-bit code for address 0x7c00, with what ``as`` makes it of. After it: the counter, the disk address packet of
#: INT 13h (16 sectors, at 0x7c83), and the drive.
CODE = """
31c0 8ed8 8ec0 8ed0     xor %ax,%ax; mov %ax,%ds; mov %ax,%es; mov %ax,%ss
bc007c                  mov $0x7c00,%sp
8816937c                mov %dl,drive
fc                      next: cld
66ff067f7c              incl counter
66a17f7c                mov counter,%eax
bf0080 b90008 66f3ab    mov $0x8000,%di; mov $0x800,%cx; rep stosl      8 KiB of the counter
6625ff010000            and $0x1ff,%eax
66c1e004                shl $4,%eax
660500080000            add $0x800,%eax
66a38b7c                mov %eax,lba
c706877c0080            movw $0x8000,buffer
b443 e82c00 7226        mov $0x43,%ah; call disk; jc error              extended write
c706877c00a0            movw $0xa000,buffer
b442 e81f00 7219        mov $0x42,%ah; call disk; jc error              extended read
be0080 bf00a0 b90008    mov $0x8000,%si; mov $0xa000,%di; mov $0x800,%cx
fc 66f3a7               cld; repe cmpsl
b02e 7402 b058          mov $'.',%al; je say; mov $'X',%al
baf803 ee eba6          say: mov $0x3f8,%dx; out %al,(%dx); jmp next
b045 ebf6               error: mov $'E',%al; jmp say
30c0 c706857c1000       disk: xor %al,%al; movw $16,sectors
8a16937c be837c         mov drive,%dl; mov $packet,%si
cd13 c3                 int $0x13; ret
00000000
1000 1000 0000 0000 00000000 00000000
00
"""


def boot_sector() -> bytes:
    """The 512 bytes."""
    # What is hexadecimal ends at two spaces, or at the end of the line.
    code = bytes.fromhex("".join(line.split("  ", 1)[0] for line in CODE.splitlines()))
    return code.ljust(510, b"\0") + b"\x55\xaa"


@dataclass(frozen=True)
class BusyDisk(DiskSpec):
    """A disk with this guest on it."""

    def create(self) -> None:
        super().create()
        sector = self.path.with_suffix(".sector")
        sector.write_bytes(boot_sector())
        argv = ["qemu-io", "-f", self.format, "-c", f"write -q -s {sector} 0 512", os.fspath(self.path)]
        subprocess.run(argv, check=True)


class BusyChain(Chain):
    """Backups of a machine whose first disk is a BusyDisk; its SCSI controller has iothread 1."""

    def __init__(self, lab: Lab, command: Command, repository: Path, tmp_path: Path, specs: Sequence[DiskSpec]) -> None:
        self.serial = tmp_path / "serial"
        super().__init__(lab, command, repository, tmp_path, specs)
        self.works()

    def xml(self) -> str:
        controller = "<controller type='scsi' index='0' model='virtio-scsi'><driver iothread='1'/></controller>"
        serial = f"<serial type='file'><source path={quoteattr(os.fspath(self.serial))}/></serial>"
        return domain_xml(
            "bases",
            [spec.xml() for spec in self.specs],
            devices=controller + serial,
            top=f"<uuid>{self.uuid}</uuid><iothreads>1</iothreads>",
        )

    def said(self) -> bytes:
        """What the guest has said: a dot a write that it read back, E for an error, X for other bytes than it wrote."""
        return self.serial.read_bytes() if self.serial.exists() else b""

    def works(self, rounds: int = 20) -> None:
        """Wait until it has written and read back that many times from now on."""
        before, deadline, pause = self.said().count(b"."), time.monotonic() + 30, threading.Event()
        while self.said().count(b".") < before + rounds:
            assert time.monotonic() < deadline, f"the guest stands still; it said {self.said()[-50:]!r}"
            pause.wait(0.02)

    def is_well(self) -> None:
        """It goes on, and its disk never failed."""
        self.works()
        assert self.said().strip(b".") == b""
