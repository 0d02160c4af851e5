"""A small real guest: Debian's cloud kernel, busybox, QEMU's guest agent, ext4 on two disks.

Firmware-only domains (tests.lab) show that bytes are right; this guest shows what they are for: its
filesystems can be frozen, checked and mounted again, and it boots from what was restored.

    image     builds kernel and initramfs, cached
    disks     makes the two disks: vda (qcow2, mounted on /data), vdb (raw, mounted on /log)
    machine   the domain XML, and waiting for a guest that boots
    agent     commands and files in the running guest
    init      runs inside: mounts, lists its files on the console, writes to both disks all the time

The guest writes a growing number into /data/counter and then, when that is on the disk, the same one
into /log/counter. Of one moment vdb therefore has vda's number or the one before it, never another.
"""

from tests.guest.agent import Agent
from tests.guest.disks import make_disks
from tests.guest.image import GuestImage, MissingError, build
from tests.guest.machine import Guest, domain_xml

__all__ = ["Agent", "Guest", "GuestImage", "MissingError", "build", "domain_xml", "make_disks"]
