"""What a restore in place makes of the answers of another host; tests/end_to_end/test_in_place_there.py has one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import disk, qcow2_image
from vbackup.errors import ChainError, RemoteError, StorageError
from vbackup.operations import full_in_place
from vbackup.operations.full_in_place import FullRequest
from vbackup.operations.in_place_host import Here, Status
from vbackup.operations.in_place_there import There
from vbackup.stop import Stop

UUID = "6f1b2b3c-0000-4000-8000-000000000001"
PATH = Path("/images/vda.qcow2")
STATUS = Status(0o100644, (1, 2), 4096)


class FakeLink:
    """Answers with ``data``, or raises ``error``."""

    host = "root@hv1"

    def __init__(self, data: bytes = b"", *, error: Exception | None = None, uid: int = 0) -> None:
        self.data, self.error, self.hello = data, error, {"host": "hv1", "uid": uid}

    def read_file(self, _path: str, *, follow: bool = True) -> Iterator[bytes]:
        del follow
        if self.error is not None:
            raise self.error
        yield self.data


def there(link: FakeLink) -> There:
    host = SimpleNamespace(real_uri="qemu+ssh://root@hv1/system", link=lambda **_: link)
    handle: Any = SimpleNamespace(name="web", uuid=UUID, host=host)
    return There(handle, stop=Stop())


def failed(reason: str, number: int = 0) -> RemoteError:
    return RemoteError("root@hv1", f"read {PATH}", reason, errno=number)


def has_snapshots(place: Any, path: Path = PATH) -> bool:
    place.doubt = lambda _image: None
    return full_in_place._look_at(path, STATUS, disk(), FullRequest(), place)


def test_header_that_could_not_be_read_is_not_one_without_snapshots() -> None:
    """The old image, with its internal snapshots, would be removed."""
    with pytest.raises(RemoteError, match="no answer within 120 s"):
        has_snapshots(there(FakeLink(error=failed("no answer within 120 s"))))
    with pytest.raises(StorageError, match=f"Cannot read the header of {PATH} on root@hv1: Input/output error"):
        has_snapshots(there(FakeLink(error=failed("Input/output error", errno.EIO))))
    for data in (b"", b"not qcow2" * 100):  # of no use to anybody
        assert not has_snapshots(there(FakeLink(data)))
    assert not has_snapshots(there(FakeLink(qcow2_image(1 << 20))))
    with pytest.raises(ChainError):
        there(FakeLink(b"")).header(PATH)


def test_header_on_this_host_that_could_not_be_read_is_not_one_without_snapshots(tmp_path: Path) -> None:
    handle: Any = SimpleNamespace(name="web", uuid=UUID)
    (path := tmp_path / "vda.qcow2").mkdir()  # which cannot be read
    with pytest.raises(StorageError, match=f"Cannot read the header of {path}: Is a directory"):
        has_snapshots(Here(handle), path)
    (raw := tmp_path / "raw").write_bytes(bytes(4096))
    assert not has_snapshots(Here(handle), raw)


@pytest.mark.parametrize(
    ("uid", "number", "said"),
    [
        (1000, errno.EACCES, "Use a URI of root."),
        (1000, errno.EPERM, "Use a URI of root."),
        (1000, errno.EIO, "Its storage may be failing: look into the kernel log."),
        (0, errno.EPERM, "The filesystem may not allow it, or the file is immutable: see 'lsattr'."),
    ],
)
def test_rights_are_those_of_the_user_there(uid: int, number: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    link: Any = FakeLink(uid=uid)
    link.lock_image = lambda _path: (_ for _ in ()).throw(failed(os.strerror(number), number))
    for own in (0, 4711):  # of no meaning there
        monkeypatch.setattr(os, "geteuid", lambda own=own: own)
        with pytest.raises(StorageError) as caught, there(link).held([PATH]):
            pass
        assert str(caught.value) == f"Cannot lock {PATH} on root@hv1: {os.strerror(number)}. {said}"


def test_rights_are_those_of_the_user_here(monkeypatch: pytest.MonkeyPatch) -> None:
    handle: Any = SimpleNamespace(name="web", uuid=UUID)
    for own, said in ((0, "see 'lsattr'"), (4711, "Run vbackup as a user with permission to do this")):
        monkeypatch.setattr(os, "geteuid", lambda own=own: own)
        with pytest.raises(StorageError, match=said), Here(handle).errors("give it an owner"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
