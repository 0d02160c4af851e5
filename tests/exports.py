"""An image whose bitmap has recorded changes, exported by a storage daemon as a session's disk is."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.unit.builders import Recorder
from vbackup.qemu.storage_daemon import StorageDaemon

TIB = 1024**4


def qemu_io(image: Path, *commands: str) -> None:
    script = "\n".join((*commands, "quit", ""))
    subprocess.run(
        ["qemu-io", "-t", "unsafe", "-f", "qcow2", str(image)], input=script, text=True, check=True, capture_output=True
    )


def image_with_changes(directory: Path, size_bytes: int, *, before: Sequence[str], changes: Sequence[str]) -> Path:
    """An image whose bitmap b has recorded the changes, and disk.raw, which is as it was before them."""
    image = directory / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(size_bytes)], check=True)
    qemu_io(image, *before)
    if size_bytes < TIB:
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(image), str(directory / "disk.raw")], check=True)
    subprocess.run(["qemu-img", "bitmap", "--add", "-g", "65536", str(image), "b"], check=True)
    qemu_io(image, *changes)
    subprocess.run(["qemu-img", "bitmap", "--disable", str(image), "b"], check=True)
    return image


@contextmanager
def exported(image: Path, address: dict[str, Any], *, tls: Path | None = None) -> Iterator[StorageDaemon]:
    """Serve the image and its bitmap as vda; ``tls``: directory of the certificates."""
    file = {"driver": "file", "filename": str(image)}
    node = {"driver": "qcow2", "node-name": "disk", "read-only": True, "discard": "unmap", "file": file}
    with StorageDaemon(Recorder(), nodes=[node]) as daemon:
        server: dict[str, Any] = {"addr": address}
        if tls is not None:
            credentials = {"qom-type": "tls-creds-x509", "id": "tls", "dir": str(tls), "endpoint": "server"}
            daemon.execute("object-add", {**credentials, "verify-peer": True})
            server["tls-creds"] = "tls"
        daemon.execute("nbd-server-start", server)
        add(daemon)
        yield daemon
        daemon.execute("nbd-server-stop")


def add(daemon: StorageDaemon) -> None:
    """Export the disk and its bitmap."""
    export = {"type": "nbd", "id": "e", "node-name": "disk", "name": "vda", "bitmaps": ["b"]}
    daemon.execute("block-export-add", export)


def remove(daemon: StorageDaemon) -> None:
    """End the export, and with it the connections to it."""
    daemon.execute("block-export-del", {"id": "e", "mode": "hard"})


def on_socket(path: Path) -> dict[str, Any]:
    return {"type": "unix", "data": {"path": str(path)}}
