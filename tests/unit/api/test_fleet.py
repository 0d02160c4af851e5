"""Several hosts in one call: each is connected to once, and one that is out of reach is an answer, not an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import backup as a_backup
from tests.unit.domain.test_fleet import FakeHost
from vbackup import api
from vbackup.domain import host as hosts
from vbackup.errors import HostUnreachableError, StorageError, UsageError
from vbackup.operations import backup
from vbackup.repository.repository import Repository


class Libvirts:
    """What opening a URI gives."""

    def __init__(self) -> None:
        self.known: dict[str | None, Any] = {}
        self.opened: list[str | None] = []

    def open(self, uri: str | None, **_linked: Any) -> Any:
        self.opened.append(uri)
        if uri not in self.known:
            raise HostUnreachableError(uri, "refused")
        return self.known[uri]


class Connected(FakeHost):
    is_embedded = False

    def is_alive(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing is open."""

    def another(self) -> Any:
        from contextlib import nullcontext

        return nullcontext(self)


@pytest.fixture
def libvirts(monkeypatch: pytest.MonkeyPatch) -> Libvirts:
    made = Libvirts()
    made.known = {"one": Connected("hv1", "web"), "two": Connected("hv2", "db")}
    monkeypatch.setattr(hosts, "Host", made.open)

    def run(request: Any, *, host: Any, **_given: Any) -> Any:
        assert any(one.name == request.domain for one in host.handles)
        return a_backup(1, domain_name=request.domain)

    monkeypatch.setattr(backup, "run", run)
    return made


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "r")


def test_backups_of_all_hosts(libvirts: Libvirts, repository: Repository) -> None:
    with api.connect_all(["one", "two", "lost", "one"], repository=repository) as vb:
        assert vb.uris == ["one", "two", "lost"]
        selected = vb.select_all()
        assert [type(one.error) for one in selected.hosts] == [type(None), type(None), HostUnreachableError]
        results = vb.backup_all(selected, parallel=2, parallel_per_host=1)
        assert [(one.host, one.domain.name, one.error) for one in results] == [
            ("hv1", "web", None),
            ("hv2", "db", None),
        ]
        assert sorted(map(str, libvirts.opened)) == ["lost", "one", "two"]  # connections are used again


def test_host_that_is_lost_after_the_selection_fails_its_domains(libvirts: Libvirts, repository: Repository) -> None:
    with api.connect_all(["one", "two"], repository=repository) as vb:
        selected = vb.select(["*"])
        del libvirts.known["two"]
        vb.close()
    with api.connect_all(["one", "two"], repository=repository) as vb:
        results = vb.backup_all(selected)
    assert [(one.host, type(one.error)) for one in results] == [("hv1", type(None)), ("hv2", HostUnreachableError)]


def test_what_is_no_fleet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No host given"):
        api.connect_all([])
    with pytest.raises(StorageError):
        api.connect_all(["one"], repository=tmp_path / "none")


def test_hosts_are_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("qemu:///system # this one\n")
    assert api.read_hosts(tmp_path / "hosts") == ["qemu:///system"]
