"""The form of a stream: any tar lists it, and the reader takes nothing that the writer does not write."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vbackup.errors import StreamError
from vbackup.repository import stream_tar
from vbackup.repository.stream_tar import BLOCK_BYTES, RECORD_BYTES, SUMS, Reader, Writer

FILES = {"manifest.json": b"{}", "empty": b"", "block": b"b" * 512, "image": bytes(range(256)) * 5000}
LARGE_BYTES = 1 << 33


def stream(files: dict[str, bytes] = FILES) -> bytes:
    written = io.BytesIO()
    writer = Writer(written.write, "u/i", time_s=1_700_000_000)
    for name, data in files.items():
        writer.add(name, len(data), iter([data[:1000], data[1000:]]))
    writer.end()
    return written.getvalue()


def reader(data: bytes, *, piece: int = 1 << 20) -> Reader:
    source = io.BytesIO(data)
    return Reader(lambda size: source.read(min(size, piece)))


def received(data: bytes, *, piece: int = 1 << 20) -> list[tuple[str, bytes]]:
    """All members of a stream with as many as FILES has, and its end."""
    reading, found = reader(data, piece=piece), []
    member = reading.first()
    for _ in FILES:
        assert member is not None
        found.append((member.name, b"".join(reading.content(member))))
        member = reading.next()
    assert member is not None
    assert member.name == f"u/i/{SUMS}"
    reading.check_sums(member)
    reading.end()
    return found


@pytest.mark.parametrize("piece", [1 << 20, 700, 1])
def test_what_is_written_is_read_again(piece: int) -> None:
    """However few bytes a pipe gives at a time."""
    files = {**FILES, "image": FILES["image"][:2000]}
    assert received(stream(files), piece=piece) == [(f"u/i/{name}", data) for name, data in files.items()]


def test_stock_tar_and_sha256sum_read_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "stream.tar"
    path.write_bytes(stream())
    assert path.stat().st_size % RECORD_BYTES == 0
    listed = subprocess.run(["tar", "-tvf", path], check=True, capture_output=True, text=True)
    assert [line.split()[-1] for line in listed.stdout.splitlines()] == [
        *(f"u/i/{name}" for name in FILES),
        f"u/i/{SUMS}",
    ]
    assert listed.stderr == ""
    subprocess.run(["tar", "-xf", path, "-C", tmp_path], check=True)
    subprocess.run(["sha256sum", "--check", "--strict", f"u/i/{SUMS}"], check=True, cwd=tmp_path, capture_output=True)
    with tarfile.open(path, "r|") as archive:
        assert {member.mode for member in archive} == {0o600}


def test_member_of_8_gib_has_its_size_in_an_extended_header() -> None:
    header = Writer(io.BytesIO().write, "u/i", time_s=0)._header("image", LARGE_BYTES)
    member = reader(header).first()
    assert member is not None
    assert (member.name, member.size_bytes) == ("u/i/image", LARGE_BYTES)
    assert tarfile.TarInfo.frombuf(header[:512], "utf-8", "strict").type == tarfile.XHDTYPE


@pytest.mark.parametrize("size_bytes", [9, 11])
def test_file_that_changes_while_it_is_sent_breaks_the_stream(size_bytes: int) -> None:
    with pytest.raises(StreamError, match="it was changed"):
        Writer(io.BytesIO().write, "u/i", time_s=0).add("image", size_bytes, iter([b"0123456789"]))


def test_several_streams_follow_each_other() -> None:
    reading = reader(stream() + stream({"manifest.json": b"2"}))
    for name in (*FILES, SUMS):
        member = reading.first() if name == "manifest.json" else reading.next()
        assert member is not None
        reading.check_sums(member) if name == SUMS else [*reading.content(member)]
    reading.end()
    second = reading.first()
    assert second is not None
    assert b"".join(reading.content(second)) == b"2"
    reading.check_sums(reading.next())
    reading.end()
    assert reading.first() is None


@pytest.mark.parametrize("kept", [1, 511, 512, 1023, 2047, -RECORD_BYTES, -1024 - 511])
def test_stream_that_is_cut_is_refused(kept: int) -> None:
    data = stream()
    whole = data.rstrip(b"\0")
    end = len(whole) + -len(whole) % BLOCK_BYTES
    with pytest.raises(StreamError, match=r"cut|ends without"):
        received(data[: kept if kept > 0 else end + kept + 1024])


def test_every_flipped_bit_of_content_is_found() -> None:
    data = bytearray(stream())
    data[data.index(FILES["image"][:256]) + 777] ^= 4
    with pytest.raises(StreamError, match="'u/i/image' is damaged in the stream"):
        received(bytes(data))


def test_digests_that_are_damaged_are_found() -> None:
    data = bytearray(stream())
    data[data.index(b"  u/i/block") - 3] ^= 1
    with pytest.raises(StreamError, match="'u/i/block' is damaged"):
        received(bytes(data))


def test_archive_that_ends_before_the_digests_is_refused() -> None:
    data = stream()
    header = data.index(f"u/i/{SUMS}".encode())
    with pytest.raises(StreamError, match="ends without SHA256SUMS"):
        received(data[:header] + bytes(1024))


def test_what_follows_the_digests_is_refused() -> None:
    data = stream()
    end = len(data.rstrip(b"\0"))
    end += -end % BLOCK_BYTES
    with pytest.raises(StreamError, match="Something follows SHA256SUMS"):
        received(data[:end] + stream())


def header(**changes: object) -> bytes:
    member = tarfile.TarInfo("u/i/manifest.json")
    for name, value in changes.items():
        setattr(member, name, value)
    return member.tobuf(tarfile.PAX_FORMAT)


def with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def sparse() -> bytes:
    block = bytearray(tarfile.TarInfo("u/i/vda.qcow2").tobuf(tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    return with_checksum(block)


def extended(records: bytes, *, size: int | None = None) -> bytes:
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = f"{len(records) if size is None else size:011o}\0".encode()
    block[156:157] = tarfile.XHDTYPE
    return with_checksum(block) + records.ljust(512, b"\0") + header()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "link": lambda: header(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": lambda: header(type=tarfile.LNKTYPE, linkname="../x"),
    "directory": lambda: header(type=tarfile.DIRTYPE),
    "device": lambda: header(type=tarfile.CHRTYPE),
    "fifo": lambda: header(type=tarfile.FIFOTYPE),
    "contiguous": lambda: header(type=tarfile.CONTTYPE),
    "old": lambda: header(type=tarfile.AREGTYPE),
    "sparse": sparse,
    "long name of GNU": lambda: tarfile.TarInfo("u/" * 200).tobuf(tarfile.GNU_FORMAT),
    "long name": lambda: header(name="u/" * 200),
    "global header": lambda: tarfile.TarInfo.create_pax_global_header({"comment": "x"}),
    "other time": lambda: header(mtime=1.5),
    "large extended header": lambda: extended(b"", size=1 << 33),
    "empty extended header": lambda: extended(b"", size=0),
    "another path": lambda: extended(b"20 path=/etc/passwd\n"),
    "sparse of pax": lambda: extended(b"22 GNU.sparse.major=1\n"),
    "two records": lambda: extended(b"9 size=1\n9 size=2\n"),
    "negative size": lambda: extended(b"10 size=-1\n"),
    "endless size": lambda: extended(b"90 size=" + b"9" * 81 + b"\n"),
    "wrong length": lambda: extended(b"8 size=1\n"),
    "negative size in the header": lambda: with_checksum(bytearray(header()[:124] + b"\xff" * 12 + header()[136:])),
    "huge size": lambda: with_checksum(bytearray(header()[:124] + b"\x80\xff" + b"\xff" * 10 + header()[136:])),
    "wrong checksum": lambda: header()[:100] + b"7" + header()[101:],
    "no tar": lambda: b"QFI\xfb".ljust(512, b"\1"),
    "text": lambda: b"vbackup: error\n" * 100,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_headers_that_the_writer_never_writes_are_refused(name: str) -> None:
    with pytest.raises(StreamError):
        reader(HOSTILE[name]() + bytes(2048)).first()


def test_memory_is_given_only_to_what_is_small() -> None:
    reading = reader(header(size=1 << 40) + bytes(2048))
    member = reading.first()
    assert member is not None
    with pytest.raises(StreamError, match="more than vbackup ever writes"):
        reading.small(member, max_bytes=1 << 24)


def test_nothing_is_no_stream() -> None:
    assert reader(b"").first() is None
    assert reader(bytes(RECORD_BYTES)).first() is None


def test_zeros_without_an_end_are_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_tar, "MAX_ZEROS_BYTES", 4 * RECORD_BYTES)
    with pytest.raises(StreamError, match="only zeros"):
        Reader(bytes).first()


def test_pieces_are_of_any_length() -> None:
    def pieces() -> Iterator[bytes]:
        yield from (b"", b"ab", b"", b"c")

    written = io.BytesIO()
    Writer(written.write, "u/i", time_s=0).add("x", 3, pieces())
    reading = reader(written.getvalue())
    member = reading.first()
    assert member is not None
    assert b"".join(reading.content(member)) == b"abc"
    assert len(written.getvalue()) < stream_tar.PIECE_BYTES
