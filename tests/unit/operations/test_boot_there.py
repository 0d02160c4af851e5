"""A copy of a domain on another host: its writes must not fill a filesystem that the host's own guests need."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vbackup.errors import NoSpaceError
from vbackup.operations import boot_there
from vbackup.stop import Stop

GIB = 1024**3


def stub(**members: Any) -> Any:
    return SimpleNamespace(**members)


def test_copy_ends_before_what_it_writes_has_filled_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_there, "_ROOM_S", 0.0)
    free = iter((8 * GIB, 2 * GIB, GIB - 1))
    link = stub(host="root@hv2", free_bytes=lambda _path: next(free), refuse_lost=lambda: None)
    point = stub(daemon=stub(has_ended=False))
    exported = boot_there._Exported(point, link, boot_there._Room.now(link))
    exported.wait(Stop(), timeout_s=0.01)
    with pytest.raises(NoSpaceError, match=r"/var/tmp on root@hv2, .* has only 1023 MiB free"):
        exported.wait(Stop(), timeout_s=0.01)


def test_copy_does_not_start_where_nothing_is_free() -> None:
    link = stub(host="root@hv2", free_bytes=lambda _path: 0)
    with pytest.raises(NoSpaceError, match="has only 0 MiB free"):
        boot_there._Room.now(link)


def test_room_is_asked_for_once_in_a_while() -> None:
    asked: list[str] = []

    def free_bytes(path: str) -> int:
        asked.append(path)
        return 8 * GIB

    link = stub(host="root@hv2", free_bytes=free_bytes)
    room = boot_there._Room.now(link)
    room.check()
    room.check()
    assert asked == ["/var/tmp"]
