"""``vbackup failback``: what it prints, and what it refuses before anything is asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.builders import UUID, backup_id
from vbackup.api import Connection, FailbackRequest, RestoredInPlace
from vbackup.operations.failback import FailedBack
from vbackup.operations.full_in_place import RestoredInFull
from vbackup.operations.rollback import RolledBack

if TYPE_CHECKING:
    from tests.conftest import Command

URI = "qemu+ssh://hv2/system"
ROLLED = RolledBack("vda", backup_id(3), 65536)
FULL = RestoredInFull("vdb", backup_id(3), "it is raw", Path("/vdb.raw"), 65536, None)


def test_what_was_written_is_printed(command: Command, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[FailbackRequest] = []

    def failback(_vb: Connection, request: FailbackRequest, **_named: Any) -> FailedBack:
        asked.append(request)
        original = RestoredInPlace(backup_id(3), "web", UUID, (ROLLED,), (FULL,))
        return FailedBack(backup_id(3), URI, original, request.start)

    monkeypatch.setattr(Connection, "failback", failback)
    said = command("failback", "web", "-r", filled, "--from", URI, "--start").stdout
    written = f"The original of web is as in backup {backup_id(3)}, the standby's: 128.0 KiB written"
    assert said == f"{written}, and runs.\n"
    document = command("failback", "web", "-r", filled, "--from", URI, "--json").document
    assert [disk["full"] for disk in document["disks"]] == [None, "it is raw"]
    assert asked == [FailbackRequest("web", URI, start=True), FailbackRequest("web", URI)]


@pytest.mark.parametrize(("words", "said"), [(["web"], "--from"), (["--from", URI], "No domain given")])
def test_bad_arguments_are_refused(command: Command, filled: Path, words: list[str], said: str) -> None:
    assert said in command("failback", *words, "-r", filled, status=2).stderr
