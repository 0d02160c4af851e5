"""Where a fleecing area is, and what cannot be one."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, cast

import pytest

from tests.fake_qemu import FakeQemu
from vbackup.engine.fleecing_area import LocalArea, RemoteArea
from vbackup.errors import NoSpaceError, RemoteError, StorageError


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "nothing"):
        with pytest.raises(StorageError, match="is not a directory"):
            LocalArea(path).free_bytes()


class Helper:
    """The link of a hypervisor whose directory has this trouble."""

    host = "root@hv1"

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def free_bytes(self, directory: str) -> int:
        return 1 << 30 if not self.number else self._fail(directory)

    def pass_file(self, uuid: str, opaque: str, directory: str, size_bytes: int) -> int:
        assert (uuid, opaque, size_bytes) == ("uuid", "node", 65536)
        return 7 if not self.number else self._fail(directory)

    def _fail(self, directory: str) -> int:
        raise RemoteError(self.host, f"use {directory}", "it failed", errno=self.number)


def remote(number: int = 0) -> RemoteArea:
    return RemoteArea(cast(Any, Helper(number)), "uuid", "/var/tmp")


def test_area_of_a_hypervisor() -> None:
    assert remote().place == "/var/tmp on root@hv1"
    assert remote().free_bytes() == 1 << 30
    assert remote().make_image(FakeQemu([]), "node", 65536) == "/dev/fdset/7"


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpaceError), (errno.ENOENT, StorageError)])
def test_trouble_there_has_its_status(number: int, kind: type[StorageError]) -> None:
    with pytest.raises(StorageError, match="use /var/tmp") as caught:
        remote(number).make_image(FakeQemu([]), "node", 65536)
    assert type(caught.value) is kind
    with pytest.raises(StorageError):
        remote(number).free_bytes()
