"""What the guest reads from a file below is digested, and remembered while nobody touches the file."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vbackup.domain import file_contents
from vbackup.domain.file_contents import PIECE_BYTES, TICK_NS
from vbackup.errors import VbackupError
from vbackup.layers import FileState

SIZE_BYTES = 3 * PIECE_BYTES + 12345


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "run" / "contents"
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(file_contents, "directory", lambda: path)
    forget(monkeypatch)
    return path


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another process."""
    monkeypatch.setattr(file_contents, "_known", {})


def settle() -> None:
    """Until a further change gets another ctime."""
    time.sleep(2 * TICK_NS / 1e9)


def state(path: Path) -> FileState:
    status = path.stat()
    return FileState(str(path), status.st_dev, status.st_ino, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)


class Reading:
    """Calls with this file; ``files`` has those that were read."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.during: Callable[[], None] = lambda: None

    def __call__(self, path: Path, *, is_qcow2: bool = False, of: FileState | None = None) -> str | None:
        def progress(done_bytes: int, total_bytes: int) -> None:
            assert done_bytes <= total_bytes == path.stat().st_size
            if done_bytes == 0:
                self.files.append(path.name)
            else:
                self.during()

        return file_contents.digest(of or state(path), is_qcow2=is_qcow2, check=lambda: None, progress=progress)


@pytest.fixture
def read() -> Reading:
    return Reading()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One with a hole in front, and bytes in the first and last piece."""
    path = tmp_path / "file"
    with path.open("wb") as opened:
        opened.truncate(SIZE_BYTES)
        for at in (PIECE_BYTES // 2, SIZE_BYTES - 1):
            opened.seek(at)
            opened.write(b"x")
    settle()
    return path


def change(path: Path, at: int, byte: bytes = b"y") -> None:
    """In place, and with its former time of modification: ``touch -r``."""
    status = path.stat()
    with path.open("r+b") as opened:
        opened.seek(at)
        opened.write(byte)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_same_content_has_the_same_digest_whatever_holes_it_has(
    place: Path, file: Path, read: Reading, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    whole.write_bytes(file.read_bytes())
    assert whole.stat().st_blocks > file.stat().st_blocks
    assert read(file) == read(whole)
    assert read.files == ["file", "whole"]
    first = read(file)
    assert first is not None
    assert first.startswith("sha256-bytes:")
    assert len(first) == len("sha256-bytes:") + 64


@pytest.mark.parametrize("at", [0, PIECE_BYTES // 2, PIECE_BYTES, 2 * PIECE_BYTES + 7, SIZE_BYTES - 1])
def test_every_byte_counts_although_its_time_was_set_back(place: Path, file: Path, read: Reading, at: int) -> None:
    before, then = read(file), state(file)
    change(file, at)
    assert state(file) == then
    settle()
    assert read(file) != before
    change(file, at, b"x" if at in (PIECE_BYTES // 2, SIZE_BYTES - 1) else b"\0")
    assert read(file) == before


def test_size_and_place_count(place: Path, read: Reading, tmp_path: Path) -> None:
    made = set()
    for number, (size_bytes, at) in enumerate(((10, 0), (11, 0), (PIECE_BYTES * 2, 0), (PIECE_BYTES * 2, PIECE_BYTES))):
        path = tmp_path / f"{number}"
        path.touch()
        os.truncate(path, size_bytes)
        change(path, at)
        made.add(read(path))
    empty = tmp_path / "empty"
    empty.touch()
    made.add(read(empty))
    assert len(made - {None}) == 5


def test_file_that_nobody_touched_is_read_once_also_by_other_processes(
    place: Path, file: Path, read: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read(file)
    assert read(file) == first
    forget(monkeypatch)
    assert read(file) == first
    assert read.files == ["file"]
    assert {entry.stat().st_mode & 0o777 for entry in place.iterdir()} == {0o600}
    assert place.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"boot_id": "another"}', b"\xff"])
def test_memory_that_is_not_of_this_boot_or_damaged_does_not_count(
    place: Path, file: Path, read: Reading, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    first = read(file)
    (entry,) = place.iterdir()
    entry.write_bytes(damage)
    forget(monkeypatch)
    assert read(file) == first
    assert len(read.files) == 2


def test_touched_file_is_read_again(place: Path, file: Path, read: Reading) -> None:
    """libvirt changes the owner, or the mode; vbackup cannot know that it was only that."""
    first = read(file)
    file.chmod(0o640)
    settle()
    assert read(file) == first
    assert len(read.files) == 2


def test_state_in_which_a_further_change_leaves_no_trace_is_not_remembered(
    place: Path, file: Path, read: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: file.stat().st_ctime_ns + 1)
    read(file)
    read(file)
    assert len(read.files) == 2
    assert not place.exists()


def test_without_a_directory_the_process_remembers(
    place: Path, file: Path, read: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory in (None, Path("/proc/no/such")):
        forget(monkeypatch)
        monkeypatch.setattr(file_contents, "directory", lambda directory=directory: directory)
        assert read(file) == read(file)
    assert len(read.files) == 2


def test_number_of_files_that_are_remembered_is_limited(
    place: Path, read: Reading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_contents, "MAX_KNOWN", 2)
    paths = [tmp_path / f"{number}" for number in range(4)]
    for path in paths:
        path.write_text("x")
    settle()
    for path in paths:
        read(path)
        settle()
    assert {entry.name for entry in place.iterdir()} == {
        f"{path.stat().st_dev}-{path.stat().st_ino}-sha256-bytes" for path in paths[2:]
    }


@pytest.mark.parametrize(
    ("uid", "runtime", "expected"),
    [
        (0, "/run/user/0", Path("/run/vbackup/contents")),
        (1000, "/run/user/1000", Path("/run/user/1000/vbackup/contents")),
        (1000, "", None),
        (1000, "relative", None),
    ],
)
def test_place_ends_with_the_boot_or_the_session(
    monkeypatch: pytest.MonkeyPatch, uid: int, runtime: str, expected: Path | None
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    assert file_contents.directory() == expected


# what cannot be read


def test_file_that_cannot_be_read_has_no_digest(
    place: Path, file: Path, read: Reading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        assert read(path) is None
    assert read(file, of=FileState("/no/such", 1, 2, size_bytes=3, mtime_ns=4)) is None
    assert read(file, of=FileState("\0", 1, 2, size_bytes=3, mtime_ns=4)) is None

    def deny(*_arguments: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "preadv", deny)
    assert read(file) is None


def test_file_that_is_not_in_the_state_that_was_seen_has_no_digest(place: Path, file: Path, read: Reading) -> None:
    then = state(file)
    os.utime(file, ns=(1, 1))
    assert read(file, of=then) is None
    assert read.files == []
    read.during = lambda: os.utime(file, ns=(2, 2))
    assert read(file) is None
    assert len(read.files) == 1


def test_read_ends_when_it_is_asked_to(place: Path, file: Path) -> None:
    def check() -> None:
        raise VbackupError("stop")

    with pytest.raises(VbackupError, match="stop"):
        file_contents.digest(state(file), is_qcow2=False, check=check, progress=lambda _done, _total: None)


def test_two_threads_read_a_file_once(place: Path, file: Path, read: Reading) -> None:
    others: list[str | None] = []
    thread = threading.Thread(target=lambda: others.append(read(file)))
    read.during = lambda: None if thread.ident else thread.start()
    mine = read(file)
    thread.join()
    assert others == [mine]
    assert read.files == ["file"]


# qcow2


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "8M"], check=True)
    write(path, "write -P 1 0 5M")
    settle()
    return path


def write(path: Path, command: str) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, str(path)], check=True, capture_output=True)


def test_bitmaps_do_not_count_and_data_does(place: Path, image: Path, read: Reading) -> None:
    first = read(image, is_qcow2=True)
    assert first is not None
    assert first.startswith("sha256-qcow2:")
    subprocess.run(["qemu-img", "bitmap", "--add", str(image), "b"], check=True)
    assert read(image, is_qcow2=True) == first
    assert read(image) != first  # for a guest whose raw disk it is
    write(image, "write -P 2 4M 512")
    second = read(image, is_qcow2=True)
    write(image, "write -z 1M 64k")
    assert len({first, second, read(image, is_qcow2=True)}) == 3


def test_image_that_is_not_understood_is_digested_as_it_is(place: Path, file: Path, read: Reading) -> None:
    assert read(file, is_qcow2=True) == read(file)


def test_bitmaps_of_vbackup_leave_known_what_was_known(
    place: Path, image: Path, read: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, before = read(image, is_qcow2=True), image.stat()
    subprocess.run(["qemu-img", "bitmap", "--add", str(image), "b"], check=True)
    file_contents.carry_over(image, before, image.stat())
    forget(monkeypatch)
    assert read(image, is_qcow2=True) == first
    assert read.files == ["image.qcow2"]


def test_nothing_is_carried_over_that_was_not_known_or_is_of_another_state(
    place: Path, image: Path, file: Path, read: Reading, tmp_path: Path
) -> None:
    before = image.stat()
    file_contents.carry_over(image, before, image.stat())
    read(image, is_qcow2=True)
    read(file, is_qcow2=True)
    count = len(list(place.iterdir()))
    for path in (image, file, tmp_path / "gone"):
        file_contents.carry_over(path, before, before if path == image else image.stat())
    assert len(list(place.iterdir())) == count
    known = image.stat()
    change(image, 100)
    file_contents.carry_over(image, known, known)
    settle()
    read(image, is_qcow2=True)
    assert read.files == ["image.qcow2", "file", "image.qcow2"]


def test_file_that_may_not_be_read_is_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "base"
    path.touch()
    assert not file_contents.is_denied(FileState(str(path)))
    assert not file_contents.is_denied(FileState(str(tmp_path / "missing")))

    def refuse(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert file_contents.is_denied(FileState(str(path)))
