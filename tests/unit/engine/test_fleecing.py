"""Fleecing areas: what QEMU must have for them, the files in them, and when they are full."""

from __future__ import annotations

import copy
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests import qapi
from tests.fake_qemu import FakeQemu
from vbackup.engine import fleecing
from vbackup.engine.plan import FleecingAbilities
from vbackup.errors import JobError, NoSpaceError, StorageError, UnsuitableError


class Asked(FakeQemu):
    """Answers with another schema."""

    def __init__(self, schema: list[dict[str, Any]]) -> None:
        super().__init__()
        self._schema = schema

    def execute(self, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
        if command == "query-qmp-schema":
            return self._schema
        assert command in ("query-version", "query-commands")
        return [str(uuid.uuid4())]  # of a QEMU that was not met yet


def with_members(*names: str) -> list[dict[str, Any]]:
    """The captured schema, with further members of blockdev-backup."""
    schema = copy.deepcopy(qapi.schema())
    types = {entry["name"]: entry for entry in schema}
    members = types[types["blockdev-backup"]["arg-type"]]["members"]
    members += [{"name": name, "default": None, "type": "bool"} for name in names]
    return schema


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ((), FleecingAbilities(spares_guest=False, tells_zeros=False)),
        (("discard-source",), FleecingAbilities(spares_guest=False, tells_zeros=True)),
        (("discard-source", "on-cbw-error"), FleecingAbilities(spares_guest=True, tells_zeros=True)),
    ],
    ids=["7.2", "10.0", "11.1"],
)
def test_abilities_are_read_off_the_schema(members: tuple[str, ...], expected: FleecingAbilities) -> None:
    assert fleecing.abilities(Asked(with_members(*members))) == expected


def test_qemu_without_views_is_unsuitable() -> None:
    schema = copy.deepcopy(qapi.schema())
    drivers = next(one for one in schema if "snapshot-access" in one.get("values", ()))
    drivers["members"] = [one for one in drivers["members"] if one["name"] != "snapshot-access"]
    with pytest.raises(UnsuitableError, match="lacks snapshot-access"):
        fleecing.abilities(Asked(schema))


def test_file_has_no_name(tmp_path: Path) -> None:
    fd = fleecing._nameless(tmp_path)
    assert list(tmp_path.iterdir()) == []
    os.close(fd)


def test_file_loses_its_name_where_it_must_have_one_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O_TMPFILE is not for every filesystem."""
    real = os.open

    def without(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", without)
    fd = fleecing._nameless(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    os.close(fd)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "nothing"):
        with pytest.raises(StorageError, match="is not a directory"):
            fleecing.free_bytes(path)


def test_area_is_full_before_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [4000]
    monkeypatch.setattr(fleecing, "free_bytes", lambda _directory: free[0])
    watch = fleecing.SpaceWatch.over(tmp_path, is_guest_stopped=None)
    free[0] = 1000
    watch.check()
    free[0] = 999
    with pytest.raises(NoSpaceError, match="is too small for what the guest overwrites"):
        watch.check()


def test_guest_that_stands_still_ends_the_backup(tmp_path: Path) -> None:
    stopped = [False]
    watch = fleecing.SpaceWatch(tmp_path, 0, lambda: stopped[0])
    watch.check()
    stopped[0] = True
    with pytest.raises(NoSpaceError):
        watch.check()


def test_only_a_view_that_broke_is_the_areas_fault(tmp_path: Path) -> None:
    watch = fleecing.SpaceWatch(tmp_path, 0, None)
    assert watch.explain(JobError("vda", "Input/output error")) is None
    assert watch.explain(JobError("vda", "Permission denied")) is not None
