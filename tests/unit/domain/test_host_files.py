"""Files of the domain's host, here and through a link."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from vbackup.domain.host_files import FilesHere, FileStatus, FilesThere, HostFiles
from vbackup.errors import LinkLostError, RemoteError


class Helper:
    """A link whose other end has the files of this host."""

    is_lost = False
    more = b""  #: what a file seems to have beyond its size

    def stat(self, path: str, *, follow: bool = True) -> Mapping[str, int]:
        found = self._carried_out(Path(path).stat if follow else Path(path).lstat)
        return {"mode": found.st_mode, "size": found.st_size, "mtime_ns": found.st_mtime_ns}

    def names_in(self, directory: str) -> list[str]:
        return sorted(self._carried_out(lambda: [one.name for one in Path(directory).iterdir()]))

    def read_file(self, path: str, *, follow: bool = True) -> Iterator[bytes]:
        data = self._carried_out(Path(path).read_bytes) + self.more
        yield data[:3]
        yield data[3:]

    def _carried_out(self, do: Any) -> Any:
        if self.is_lost:
            raise LinkLostError("hv1", "has ended")
        try:
            return do()
        except OSError as err:
            raise RemoteError("hv1", "do it", str(err.strerror), errno=err.errno or 0) from err


@pytest.fixture(params=["here", "there"])
def files(request: pytest.FixtureRequest) -> HostFiles:
    return FilesHere() if request.param == "here" else FilesThere(cast(Any, Helper()))


def test_content_and_status(files: HostFiles, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(b"content")
    (tmp_path / "link").symlink_to(path)
    assert files.read(str(path), max_bytes=7) == files.read_any(str(path), max_bytes=7) == b"content"
    before, *pieces, after = files.pieces(str(tmp_path / "link"), max_bytes=7)
    assert before == after == FileStatus(7, path.stat().st_mtime_ns)
    assert b"".join(cast("list[bytes]", pieces)) == b"content"
    assert files.read(files.real(str(path)), max_bytes=100) == b"content"


def test_what_is_too_large_missing_or_no_file_is_an_os_error(files: HostFiles, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(b"content")
    for read in (files.read, files.read_any, lambda name, max_bytes: list(files.pieces(name, max_bytes=max_bytes))):
        with pytest.raises(OSError, match="arge") as caught:
            read(str(path), max_bytes=6)
        assert caught.value.errno == errno.EFBIG
        with pytest.raises(FileNotFoundError):
            read(str(tmp_path / "nothing"), max_bytes=6)
        with pytest.raises(OSError, match=r"not a regular file|directory"):
            read(str(tmp_path), max_bytes=6)


def test_directory(files: HostFiles, tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    (tmp_path / "a").mkdir()
    assert files.entries(str(tmp_path)) == {"a": True, "b": False}
    assert not files.is_missing(str(tmp_path / "b"))
    assert files.is_missing(str(tmp_path / "c"))
    with pytest.raises(FileNotFoundError):
        files.entries(str(tmp_path / "c"))


def test_symbolic_links_are_not_followed_where_a_machine_may_have_made_them(files: HostFiles, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"content")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "file").symlink_to(tmp_path / "secret")
    (tmp_path / "state" / "loop").symlink_to(tmp_path / "state")
    assert files.entries(str(tmp_path / "state")) == {"file": False, "loop": False}
    with pytest.raises(OSError, match=r"not a regular file|symbolic links"):
        files.read(str(tmp_path / "state" / "file"), max_bytes=100)


def test_file_that_goes_on_behind_its_end_is_too_large(tmp_path: Path) -> None:
    helper = Helper()
    helper.more = b"and so on"
    (tmp_path / "file").write_bytes(b"content")
    pieces = FilesThere(cast(Any, helper)).pieces(str(tmp_path / "file"), max_bytes=1000)
    assert isinstance(next(pieces), FileStatus)
    assert next(pieces) == b"con"
    with pytest.raises(OSError, match="too large"):
        next(pieces)


def test_link_that_is_lost_is_no_missing_file() -> None:
    helper = Helper()
    helper.is_lost = True
    with pytest.raises(LinkLostError):
        FilesThere(cast(Any, helper)).is_missing("/file")
