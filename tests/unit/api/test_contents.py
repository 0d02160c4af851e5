"""What is in backups is asked for by the name of the domain; without a key what is encrypted stays closed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID
from vbackup import api
from vbackup.api import (
    CatRequest,
    Connection,
    CpRequest,
    LsRequest,
    MountRequest,
    SearchRequest,
    ServeRequest,
    UmountRequest,
    Wanted,
    parse_address,
)
from vbackup.api.contents import no_keys
from vbackup.errors import DomainNotFoundError
from vbackup.operations import cat, cp, ls, mount, search, serve, umount
from vbackup.stop import Stop

ADDRESS = parse_address("/etc/fstab")


@pytest.fixture
def vb(filled: Path) -> Connection:
    return api.connect(repository=filled)


def test_nobody_has_a_key_unless_it_is_given() -> None:
    assert no_keys("vda/1", 0) is None


def test_disks_are_shown_during_a_block(vb: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    @contextmanager
    def opened(request: Any, *, stop: Stop, **_named: object) -> Iterator[str]:
        asked.append((request.domain, stop.signum))
        yield "shown"

    monkeypatch.setattr(mount, "mounted", opened)
    monkeypatch.setattr(serve, "served", opened)
    with vb.mount(MountRequest("web", tmp_path, Wanted())) as mounted:
        assert mounted == "shown"  # type: ignore[comparison-overlap]
    with vb.serve(ServeRequest("web", tmp_path / "socket", Wanted()), stop=Stop()) as served:
        assert served == "shown"
    assert asked == [(UUID, None), (UUID, None)]
    with pytest.raises(DomainNotFoundError):
        vb.mount(MountRequest("db", tmp_path, Wanted()))


def test_mount_is_ended_without_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(umount, "run", lambda request, **_named: request)
    request = UmountRequest(tmp_path)
    assert api.connect().umount(request) is request  # type: ignore[comparison-overlap]


def test_files_of_a_guest_are_asked_for_with_a_key(vb: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    for module in (ls, cp, cat, search):
        monkeypatch.setattr(module, "run", lambda *given, keys, **_named: asked.append((*given, keys)))

    def key(_name: str, _attempt: int) -> bytes:
        return b"secret"

    written: list[bytes] = []
    pattern = SearchRequest("*.conf")
    vb.ls(LsRequest("web", Wanted(), ADDRESS))
    vb.cp(CpRequest("web", Wanted(), (ADDRESS,), Path("/to")), keys=key)
    vb.cat(CatRequest("web", Wanted(), ADDRESS), written.append, keys=key)
    vb.search("web", pattern)
    assert asked == [
        (LsRequest(UUID, Wanted(), ADDRESS), no_keys),
        (CpRequest(UUID, Wanted(), (ADDRESS,), Path("/to")), None, key),
        (CatRequest(UUID, Wanted(), ADDRESS), written.append, key),
        (UUID, pattern, no_keys),
    ]
