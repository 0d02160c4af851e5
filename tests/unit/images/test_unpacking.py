"""Archives that nobody vouches for: what they write, where, and as whom."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbackup.errors import InterruptedBySignalError, StorageError, UnsuitableError
from vbackup.images import unpacking
from vbackup.images.unpacking import Keep, Unpacked

MIB = 1024 * 1024
MTIME_S = 1_600_000_000


def member(name: str, *, kind: bytes = tarfile.REGTYPE, data: bytes = b"", target: str = "", **more: object) -> Member:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname, made.mode = kind, len(data), target, 0o640
    made.mtime, made.uid, made.gid = MTIME_S, 1234, 4321
    for attribute, value in more.items():
        setattr(made, attribute, value)
    return made, data


Member = tuple[tarfile.TarInfo, bytes]


def archive(*members: Member) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|") as made:
        for info, data in members:
            made.addfile(info, io.BytesIO(data))
    return io.BytesIO(stream.getvalue())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """The directory to unpack into; nothing may change beside it."""
    (tmp_path / "outside").write_text("mine")
    path = tmp_path / "tree"
    path.mkdir(0o700)
    yield path
    assert {each.name for each in tmp_path.iterdir()} == {"outside", "tree"}
    assert (tmp_path / "outside").read_text() == "mine"


def unpacked(stream: io.BytesIO, place: Path, *, everything: bool = False) -> Unpacked:
    return unpacking.unpack(stream, place, keep=Keep(everything, 0o027), check=lambda: None)


def test_tree_of_all_kinds(place: Path) -> None:
    stream = archive(
        member("./", kind=tarfile.DIRTYPE, mode=0o755),
        member("./d", kind=tarfile.DIRTYPE, mode=0o777),
        member("./d/file", data=b"content", mode=0o6755),
        member("./d/same", kind=tarfile.LNKTYPE, target="./d/file"),
        member("./link", kind=tarfile.SYMTYPE, target="/etc/passwd"),
        member("./alias", kind=tarfile.LNKTYPE, target="./link"),
        member("./missing/parent", data=b"x"),
        member("./null", kind=tarfile.CHRTYPE),
        member("./fifo", kind=tarfile.FIFOTYPE),
    )
    done = unpacked(stream, place)
    assert (place / "d" / "file").read_bytes() == b"content"
    assert (place / "d" / "same").samefile(place / "d" / "file")
    assert str((place / "link").readlink()) == str((place / "alias").readlink()) == "/etc/passwd"
    assert (place / "missing" / "parent").read_bytes() == b"x"
    assert stat.S_IMODE((place / "d" / "file").stat().st_mode) == 0o750
    assert stat.S_IMODE((place / "d").stat().st_mode) == 0o750
    assert (place / "d" / "file").stat().st_uid == os.geteuid()
    assert (place / "d" / "file").stat().st_mtime > MTIME_S
    assert (done.files, done.size_bytes) == (7, 8)
    assert [each.partition(":")[0] for each in done.left_out] == ["./null", "./fifo"]


def test_everything_is_kept_by_root_and_what_can_be_by_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners: list[tuple[Path, int, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid, **_: owners.append((path, uid, gid)))
    tree = (
        member("d", kind=tarfile.DIRTYPE, mode=0o555),
        member("d/program", data=b"x", mode=0o4755),
        member("d/link", kind=tarfile.SYMTYPE, target="program"),
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    unpacked(archive(*tree), place, everything=True)
    assert stat.S_IMODE((place / "d" / "program").stat().st_mode) == 0o4755
    assert {path.name: (uid, gid) for path, uid, gid in owners} == dict.fromkeys(("program", "link", "d"), (1234, 4321))
    assert {int(path.lstat().st_mtime) for path in place.rglob("*")} == {MTIME_S}
    assert stat.S_IMODE((place / "d").stat().st_mode) == 0o555
    owners.clear()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (place / "other").mkdir()
    unpacked(archive(*tree), place / "other", everything=True)
    assert owners == []
    assert stat.S_IMODE((place / "other" / "d" / "program").stat().st_mode) == 0o755  # set-user-id was another's
    assert int((place / "other" / "d" / "program").stat().st_mtime) == MTIME_S


@pytest.mark.parametrize("name", ["/outside", "../outside", "d/../../outside", "./../outside"])
def test_name_that_leads_out_is_left_out(place: Path, name: str) -> None:
    done = unpacked(archive(member(name, data=b"evil"), member("good", data=b"good")), place)
    assert [each.partition(":")[0] for each in done.left_out] == [name]
    assert [path.name for path in place.iterdir()] == ["good"]


@pytest.mark.parametrize("target", ["..", "../outside", "/"])
def test_nothing_is_written_through_a_link(place: Path, target: str) -> None:
    name = "outside" if target != "../outside" else ""
    done = unpacked(
        archive(
            member("a", kind=tarfile.SYMTYPE, target=target),
            member(f"a/{name}".rstrip("/"), data=b"evil"),
            member("b", kind=tarfile.LNKTYPE, target=f"a/{name}x"),
            member("c", kind=tarfile.LNKTYPE, target="../outside"),
        ),
        place,
    )
    assert len(done.left_out) == 3
    assert all(place in path.absolute().parents for path in place.rglob("*"))


def test_names_that_are_taken(place: Path) -> None:
    done = unpacked(
        archive(
            member("file", data=b"first"),
            member("file", data=b"second" * 100_000),
            member("file/below", data=b"x"),
            member("file", kind=tarfile.SYMTYPE, target="x"),
            member("x" * 300, data=b"long"),
            member("last", data=b"last"),
        ),
        place,
    )
    assert (place / "file").read_bytes() == b"first"
    assert (place / "last").read_bytes() == b"last"
    assert len(done.left_out) == 4


def test_zeros_are_holes_and_the_length_is_right(tmp_path: Path) -> None:
    for content in (bytes(4 * MIB), b"x" + bytes(3 * MIB + 5), bytes(MIB) + b"end", b""):
        path = tmp_path / f"file{len(content)}"
        length = unpacking.write_file(io.BytesIO(content), path, check=lambda: None)
        assert length == path.stat().st_size == len(content)
        assert path.read_bytes() == content
        assert path.stat().st_blocks * 512 <= 128 * 1024
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("data", [b"no archive" * 100, b""])
def test_what_is_no_archive(place: Path, data: bytes) -> None:
    with pytest.raises(UnsuitableError, match="no whole tar archive"):
        unpacked(io.BytesIO(data), place)


def test_archive_that_is_cut_off(place: Path) -> None:
    whole = archive(member("a", data=b"x" * 100_000)).getvalue()
    with pytest.raises(UnsuitableError, match="no whole tar archive"):
        unpacked(io.BytesIO(whole[:50_000]), place)


def test_full_disk_and_signal_end_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise InterruptedBySignalError(15)

    with pytest.raises(InterruptedBySignalError):
        unpacking.unpack(archive(member("a", data=b"x")), place, keep=Keep(False, 0), check=stop)

    def fail(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpacking, "write_file", fail)
    with pytest.raises(StorageError, match="no space left"):
        unpacked(archive(member("a", data=b"x")), place)


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(StorageError, match="already exists"):
        unpacking.refuse_taken(tmp_path / "dangling")
    unpacking.refuse_taken(tmp_path / "free")
