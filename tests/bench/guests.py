"""The domains that are measured: firmware only, their disks filled beforehand and written through their own devices."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from tests.bench.isolation import RUN
from tests.lab import domain_xml
from vbackup import names

MIB = 1024 * 1024
_PIECE_BYTES = 4 * MIB
#: What a bit of a dirty bitmap stands for.
EXTENT_BYTES = 65536


class Qmp:
    """A monitor of the bench's own, beside libvirt's: what it measures is QEMU, without libvirt in between."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(os.fspath(path))
        self._lines = self._socket.makefile("rb")
        self._lines.readline()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """A command; underscores in names of its arguments become dashes. Returns what QEMU returned."""
        request = {"execute": command, "arguments": {key.replace("_", "-"): arguments[key] for key in arguments}}
        self._socket.sendall(json.dumps(request).encode())
        while True:
            reply = self._read()
            if "error" in reply:
                raise RuntimeError(f"{command}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]

    def wait_for_jobs(self, ids: set[str]) -> None:
        """Wait until the jobs are concluded; an event tells each change."""
        while {job["id"] for job in self.execute("query-jobs") if job["status"] == "concluded"} < ids:
            self._read()

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise RuntimeError("QEMU has closed the monitor")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Let QEMU serve the next one."""
        self._lines.close()
        self._socket.close()


@dataclass(frozen=True)
class Guest:
    """A running domain."""

    name: str
    disks: dict[str, Path]
    domain: libvirt.virDomain
    qmp: Qmp
    run: Path = RUN  #: where RUN of the domain's host is for the bench

    @property
    def socket(self) -> Path:
        """Of its second monitor of the bench, for a separate writer."""
        return self.run / f"bench-{self.name}-writer.qmp"

    @property
    def pid(self) -> int:
        """Of its QEMU, as its host numbers it."""
        return int((self.run / "qemu" / f"{self.name}.pid").read_text())

    def qdev(self, dev: str) -> str:
        """The device of the disk, as query-block names it."""
        return f"/machine/peripheral/virtio-disk{list(self.disks).index(dev)}/virtio-backend"

    def node_name(self, dev: str) -> str:
        """The node of the disk."""
        blocks = self.qmp.execute("query-block")
        name: str = next(one for one in blocks if one.get("qdev") == self.qdev(dev))["inserted"]["node-name"]
        return name

    def qemu_io(self, dev: str, command: str) -> None:
        """As the guest would do it: through its own device."""
        said = self.qmp.execute("human-monitor-command", command_line=f'qemu-io -d {self.qdev(dev)} "{command}"')
        assert "rror" not in said, said
        assert "failed" not in said, said

    def dirty(self, dev: str, extents: Sequence[int], *, pattern: int) -> None:
        """Write one extent at each of the offsets, and let the image hold what was written."""
        for offset_bytes in extents:
            self.qemu_io(dev, f"write -q -P {pattern} {offset_bytes} {EXTENT_BYTES}")
        self.qemu_io(dev, "flush")


def scattered(*, count: int, size_bytes: int, seed: int) -> list[int]:
    """Offsets of this number of extents anywhere on a disk, the same for the same seed."""
    chosen = random.Random(seed).sample(range(size_bytes // EXTENT_BYTES), count)
    return [number * EXTENT_BYTES for number in sorted(chosen)]


@contextmanager
def running(
    connection: libvirt.virConnect, name: str, disks: dict[str, Path], *, driver: str = "", run: Path = RUN
) -> Iterator[Guest]:
    """The domain while the block runs. ``driver`` are attributes of the disks' <driver>; ``run`` as in Guest."""
    paths = [RUN / f"bench-{name}.qmp", RUN / f"bench-{name}-writer.qmp"]
    arguments = "".join(f"<qemu:arg value='-qmp'/><qemu:arg value='unix:{path},server=on,wait=off'/>" for path in paths)
    xml = domain_xml(
        name,
        [
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2' {driver}/><source file='{path}'/>"
            f"<target dev='{dev}' bus='virtio'/></disk>"
            for dev, path in disks.items()
        ],
    ).replace("</devices>", f"</devices><qemu:commandline>{arguments}</qemu:commandline>")
    # Persistent, as a checkpoint of libvirt's asks for it.
    domain = connection.defineXML(xml)
    try:
        domain.create()
        guest = Guest(name, disks, domain, Qmp(run / paths[0].name), run)
        try:
            yield guest
        finally:
            guest.qmp.close()
    finally:
        if domain.isActive():
            domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
        for path in disks.values():
            path.unlink(missing_ok=True)


def devs(count: int) -> list[str]:
    """vda, vdb, ..."""
    return [dev for dev, _ in zip(names.disk_devs(), range(count))]


def make_disk(path: Path, *, size_gib: int, data_mib: int = 0, content: str = "random") -> Path:
    """A qcow2 image with that much data in pieces of 4 MiB all over it.

    ``content`` is "random", "half text" (random and text by turns), or "files": those of this machine's /usr.
    """
    create(path, f"{size_gib}G")
    if data_mib == 0:
        return path
    raw = path.with_suffix(".raw")
    pieces = data_mib * MIB // _PIECE_BYTES
    step_bytes = size_gib * 1024 * MIB // pieces // _PIECE_BYTES * _PIECE_BYTES
    with raw.open("wb") as file:
        file.truncate(size_gib * 1024 * MIB)
        for number, piece in zip(range(pieces), _CONTENTS[content](), strict=False):
            file.seek(number * step_bytes)
            file.write(piece)
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-W", "-m", "8", str(raw), str(path)]
    subprocess.run(argv, check=True)
    raw.unlink()
    return path


def create(path: Path, size: str) -> Path:
    """An empty qcow2 image."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), size], check=True)
    return path


def _random() -> Iterator[bytes]:
    while True:
        yield os.urandom(_PIECE_BYTES)


def _half_text() -> Iterator[bytes]:
    for number in itertools.count():
        yield _words(_PIECE_BYTES, number) if number % 2 else os.urandom(_PIECE_BYTES)


def _files() -> Iterator[bytes]:
    """What the disk of a server holds for the most part; the same on the same machine, and none of it twice."""
    piece = b""
    for directory, subdirectories, names_there in os.walk("/usr"):
        subdirectories.sort()
        for name in sorted(names_there):
            path = Path(directory) / name
            if path.is_symlink() or not path.is_file():
                continue
            piece += path.read_bytes()
            while len(piece) >= _PIECE_BYTES:
                yield piece[:_PIECE_BYTES]
                piece = piece[_PIECE_BYTES:]
    raise RuntimeError("/usr is too small to fill the disk")


_CONTENTS: dict[str, Callable[[], Iterator[bytes]]] = {"random": _random, "half text": _half_text, "files": _files}


def _words(size_bytes: int, seed: int) -> bytes:
    """Text of a sort: zlib makes a third of it."""
    chosen = random.Random(seed)
    vocabulary = ["".join(chosen.choices("etaoinshrdlu", k=chosen.randint(2, 9))) for _ in range(4000)]
    made = " ".join(chosen.choices(vocabulary, k=size_bytes // 4))
    return made.encode()[:size_bytes]
