"""The first configuration is about the domains that libvirt has, with their sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.operations.test_config_check import FakeHost
from vbackup.config import loading
from vbackup.errors import MalformedError
from vbackup.operations import config_init


class Host(FakeHost):
    """A libvirt that knows the sizes of disks."""

    def __enter__(self) -> Host:
        for handle in self.handles:
            handle.capacity_bytes = lambda _dev: 2 * 1024**3  # type: ignore[attr-defined]
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def test_domains_of_all_hosts_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Host] = []

    def connect(uri: str | None) -> Host:
        made.append(Host(uri or "qemu:///system", "web", "xen-old"))
        return made[-1]

    monkeypatch.setattr(config_init, "Host", connect)
    text = config_init.propose(["qemu:///a", "qemu:///b"], repository=tmp_path / "new" / "repository")
    assert all(host.is_closed for host in made)
    lines = text.split("\n")
    assert len([line for line in lines if line.startswith("#   web ")]) == 2
    assert "running   3 disks, 6.0 GiB" in next(line for line in lines if line.startswith("#   web "))
    assert "cannot be backed up: it runs in xen" in next(line for line in lines if line.startswith("#   xen-old"))
    assert " are free there." in text
    config = loading.parsed(Path("/x"), text).config
    assert config.repositories["main"].path == tmp_path / "new" / "repository"
    assert config.jobs["nightly"].connect == ("qemu:///a", "qemu:///b")
    assert not (tmp_path / "new").exists()


def test_domain_that_cannot_be_read_is_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host("qemu:///system", "web")

    def live_xml() -> str:
        raise MalformedError("its XML is broken")

    host.handles[0].live_xml = live_xml  # type: ignore[method-assign]
    monkeypatch.setattr(config_init, "Host", lambda _uri: host)
    text = config_init.propose([])
    assert "#   web  cannot be backed up: its XML is broken" in text
    assert loading.parsed(Path("/x"), text).config.repositories["main"].path == Path("/var/backups/vbackup")
