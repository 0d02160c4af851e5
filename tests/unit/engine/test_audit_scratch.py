"""Where an audit keeps what it reads, and what cannot be such a place."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, cast

import pytest

from tests.fake_qemu import FakeQemu
from vbackup.engine import audit_copy
from vbackup.engine.audit_scratch import LocalScratch, RemoteScratch
from vbackup.errors import NoSpaceError, RemoteError, StorageError


class Helper:
    """The link of a hypervisor with this much space, or this trouble."""

    host = "root@hv1"

    def __init__(self, free_bytes: int = 1 << 40, number: int = 0) -> None:
        self._free_bytes, self._number = free_bytes, number

    def free_bytes(self, directory: str) -> int:
        return self._free_bytes

    def nameless_file(self, directory: str) -> int:
        raise RemoteError(self.host, f"make a file in {directory}", "it failed", errno=self._number)


def remote(here: Path, **helper: int) -> RemoteScratch:
    return RemoteScratch(cast(Any, Helper(**helper)), "uuid", "/var/tmp", here, is_running=True)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not a directory"):
        LocalScratch(tmp_path / "nothing").free_bytes()
    with pytest.raises(StorageError, match="is not a directory"):
        remote(tmp_path / "nothing").rooms()


def test_both_hosts_need_the_space(tmp_path: Path) -> None:
    audit_copy._refuse_full(remote(tmp_path), 1 << 20)
    with pytest.raises(NoSpaceError, match=r"/var/tmp on root@hv1 has 1 MiB.*another directory with --scratch"):
        audit_copy._refuse_full(remote(tmp_path, free_bytes=1 << 20), 2 << 20)
    with pytest.raises(NoSpaceError, match=f"{tmp_path} has .*give it a smaller --sample[.]$"):
        audit_copy._refuse_full(remote(tmp_path, free_bytes=1 << 62), 1 << 60)
    watch = audit_copy.SpaceWatch(remote(tmp_path, free_bytes=1), 2)
    with pytest.raises(NoSpaceError, match="/var/tmp on root@hv1 is getting full"):
        watch.check()


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpaceError), (errno.ENOENT, StorageError)])
def test_trouble_there_has_its_status(tmp_path: Path, number: int, kind: type[StorageError]) -> None:
    with pytest.raises(StorageError, match="make a file in /var/tmp on root@hv1") as caught:
        remote(tmp_path, number=number).lend(FakeQemu([]), 3, "node", check=lambda: None)
    assert type(caught.value) is kind
