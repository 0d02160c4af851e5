"""An archive has its files again, is always the same, and leads nowhere else."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbackup import archive

some_files = st.dictionaries(st.text("abcä. ", min_size=1).filter(lambda name: name not in (".", "..")), st.binary())


@given(some_files)
def test_round_trip(files: dict[str, bytes]) -> None:
    assert archive.unpack(archive.pack(files)) == files


def test_archive_is_the_same_whatever_the_order_and_the_time() -> None:
    assert archive.pack({"a": b"1", "b/c": b"2"}) == archive.pack({"b/c": b"2", "a": b"1"})
    assert archive.unpack(archive.pack({"b/c": b"2"})) == {"b/c": b"2"}


def member(name: str, kind: bytes = tarfile.REGTYPE, **more: Any) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as made:
        entry = tarfile.TarInfo(name)
        entry.type, entry.size = kind, 1 if kind == tarfile.REGTYPE else 0
        for attribute, value in more.items():
            setattr(entry, attribute, value)
        made.addfile(entry, io.BytesIO(b"x"))
    return packed.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        member("../x"),
        member("/etc/x"),
        member("a/../../x"),
        member("a//x"),
        member("."),
        member("x", tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("x", tarfile.LNKTYPE, linkname="/etc/passwd"),
        member("x", tarfile.FIFOTYPE),
        member("x", tarfile.CHRTYPE),
        member("x", tarfile.DIRTYPE),
        member("x", tarfile.CONTTYPE),
        member("x", tarfile.GNUTYPE_SPARSE),
        member("x", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1024**2)}),
        archive.pack({"a": b"", "a/b": b""}),
        member("x")[:1024] + member("x"),
        b"not a tar archive" * 100,
        member("x")[:512],
    ],
    ids=lambda data: data[:8].strip(b"\0").decode(),
)
def test_archive_that_pack_does_not_make_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="it "):
        archive.unpack(data)


def test_number_of_files_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 2)
    assert len(archive.unpack(archive.pack({"a": b"", "b": b""}))) == 2
    with pytest.raises(ValueError, match="more than 2 files"):
        archive.unpack(archive.pack({"a": b"", "b": b"", "c": b""}))
