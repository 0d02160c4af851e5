"""A domain that is off, and the storage daemon that opens its disks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.fake_qemu import FakeDisk, FakeQemu
from tests.unit.builders import UUID, image_file
from vbackup.domain import access, offline, opening
from vbackup.errors import UnsuitableError
from vbackup.model import SecretRef
from vbackup.qemu import backing_chain
from vbackup.qemu.backing_chain import Image
from vbackup.qemu.monitor import Event

SecretValue = Callable[[SecretRef], bytes]


class Daemon:
    """A storage daemon; opening does what the test wants."""

    opening: Callable[[], None]
    writing: Callable[[], None]  #: is called only where an image is opened for writing

    def __init__(self, _reporter: object, *, survival: object = None, elsewhere: object = None) -> None:
        self.qemu = FakeQemu([FakeDisk(dev, path=f"/images/{dev}.qcow2") for dev in ("vda", "vdb")])
        self.chains: dict[str, list[str]] = {}
        self.opened: list[str] = []
        self.read_only: dict[str, bool] = {}

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.qemu.close()

    def execute(self, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
        return self.qemu.execute(command, arguments, fd=fd)

    def next_event(self, timeout_s: float) -> Event | None:
        return self.qemu.next_event(timeout_s)

    pid = 1

    def open(self, alias: str, images: Sequence[Image], *, secret_value: SecretValue, read_only: bool = False) -> None:
        type(self).opening()
        if not read_only:
            type(self).writing()
        for image in images:
            if image.secret is not None:
                secret_value(image.secret)
        self.opened.append(alias)
        self.read_only[alias] = read_only
        self.chains[alias] = [self.qemu.top(alias)]


class Domain:
    """A domain that is off, and its host."""

    name, uuid = "web", UUID

    def __init__(self) -> None:
        self.host = self
        self.is_local, self.has_link, self.uri = True, False, None
        self.active = False

    def is_active(self) -> bool:
        return self.active

    def live_xml(self) -> str:
        disks = "".join(
            f"<disk type='file' device='disk'><driver type='qcow2'/><source file='/images/{dev}.qcow2'/>"
            f"<target dev='{dev}'/></disk>"
            for dev in ("vda", "vdb")
        )
        return f"<domain><name>web</name><uuid>{UUID}</uuid><devices>{disks}</devices></domain>"

    def volume_path(self, pool: str, volume: str) -> str:
        raise NotImplementedError

    def secret_value(self, secret: SecretRef) -> bytes:
        raise UnsuitableError(f"libvirt has no value for secret {secret}; 'virsh secret-set-value'.")


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(Daemon, "opening", lambda: None, raising=False)
    monkeypatch.setattr(Daemon, "writing", lambda: None, raising=False)
    monkeypatch.setattr(offline, "StorageDaemon", Daemon)
    monkeypatch.setattr(backing_chain, "images_of", lambda disk, *, volume_path: (image_file(disk),))
    monkeypatch.setattr(access, "doubt", lambda _image: None)
    monkeypatch.setattr(opening, "PAUSE_S", 0.01)
    monkeypatch.setattr(opening, "READER_S", 0.02)
    return Domain()
