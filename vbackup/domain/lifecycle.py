"""Start and pause a domain, and let libvirt pull the content of its disks' backing files.

A pull is libvirt's own block job (virDomainBlockPull), so that its XML has no backing file when it has ended. Methods
raise ConnectionLostError or MonitorError (see ``Host.errors``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import libvirt

from vbackup.domain.host import DomainHandle


@dataclass(frozen=True)
class Pull:
    """How far a pull is."""

    done_bytes: int
    total_bytes: int


def start_paused(handle: DomainHandle) -> None:
    """Start the domain; its guest does not run before ``DomainHandle.resume``."""
    with handle.host.errors(f"start domain {handle.name}"):
        handle.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)


def suspend(handle: DomainHandle) -> None:
    """Pause the guest."""
    with handle.host.errors(f"pause domain {handle.name}"):
        handle.domain.suspend()


def start_pull(handle: DomainHandle, dev: str, speed_bytes_s: int | None) -> None:
    """Begin to copy what the backing files of a disk hold into its active image."""
    with handle.host.errors(f"pull the data of disk {dev} of domain {handle.name}"):
        handle.domain.blockPull(dev, speed_bytes_s or 0, libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)


def pull_of(handle: DomainHandle, dev: str) -> Pull | None:
    """Return how far the pull of a disk is, None if none runs."""
    with handle.host.errors(f"ask how far disk {dev} of domain {handle.name} is"):
        info: Any = handle.domain.blockJobInfo(dev)
    return Pull(int(info["cur"]), int(info["end"])) if info else None


def end_pull(handle: DomainHandle, dev: str) -> None:
    """End the pull of a disk where it is: what has been copied stays. Nothing is done if none runs."""
    if pull_of(handle, dev) is None:
        return
    with handle.host.errors(f"end the pull of disk {dev} of domain {handle.name}"):
        handle.domain.blockJobAbort(dev)
