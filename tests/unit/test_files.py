"""Only regular files are opened; files are digested in pieces, and errors of the storage say what to do."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.builders import patience
from vbackup import files
from vbackup.errors import NoSpaceError, Status, StorageError, VbackupError
from vbackup.files import open_regular


def test_digest_is_sha256_and_tells_its_progress(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    told: list[int] = []
    assert files.digest(tmp_path / "f", check=lambda: None, progress=told.append) == (
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert told == [3]


def test_digest_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")

    def stop() -> None:
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        files.digest(tmp_path / "f", check=stop)


def test_digest_of_a_missing_file_is_an_error_of_the_target(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        files.digest(tmp_path / "f", check=lambda: None)


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, NoSpaceError, "no space left"),
        (errno.EDQUOT, NoSpaceError, "no space left"),
        (errno.EACCES, StorageError, "as a user with permission to do this"),
        (errno.EROFS, StorageError, "mounted read-only"),
        (errno.EIO, StorageError, "Input/output error"),
    ],
)
def test_error_of_the_system_becomes_one_of_the_target(number: int, kind: type[VbackupError], said: str) -> None:
    with pytest.raises(kind, match=said) as caught, files.storage_errors("write /r"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith("Cannot write /r: ")
    assert caught.value.status == 7


def test_file_replaced_after_the_look_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.touch()
    seen = path.lstat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "lstat", lambda _path: seen)
    with patience(), pytest.raises(OSError, match="a FIFO"):
        open_regular(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Path.mkdir, "a directory"),
        (os.mkfifo, "a FIFO"),
        (lambda path: path.symlink_to("/dev/zero"), "a symbolic link"),
        (lambda path: path.symlink_to("nothing"), "a symbolic link"),
    ],
    ids=["directory", "FIFO", "link", "dangling link"],
)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT], ids=["read", "create"])
def test_only_a_regular_file_is_opened(tmp_path: Path, make: Callable[[Path], object], said: str, flags: int) -> None:
    make(tmp_path / "file")
    with patience(), pytest.raises(OSError, match=f"it is {said}, not a regular file"):
        files.open_regular(tmp_path / "file", flags)
    assert not files.is_regular(tmp_path / "file")


def test_file_that_is_created_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        files.open_regular(path)
    os.close(files.open_regular(path, os.O_WRONLY | os.O_CREAT))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert files.is_regular(path)


def test_file_larger_than_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert files.read_regular(path, max_bytes=3) == b"abc"
    with pytest.raises(OSError, match="larger than any file that vbackup writes"):
        files.read_regular(path, max_bytes=2)


def test_link_to_a_directory_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert files.is_directory(tmp_path)
    assert not files.is_directory(tmp_path / "link")
    assert not files.is_directory(tmp_path / "none")


def test_digest_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000  # more than one piece
    (tmp_path / "f").write_bytes(data)
    assert files.digest(tmp_path / "f", check=lambda: None) == files.digest_of(data)


def test_text_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails, the old text stays and nothing is beside it."""
    path = tmp_path / "domain.json"
    files.replace_text(path, "old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.replace_text(path, "new")
    monkeypatch.undo()
    assert (path.read_text(), [one.name for one in tmp_path.iterdir()]) == ("old", [path.name])
    files.replace_text(path, "new")
    assert (path.read_text(), [one.name for one in tmp_path.iterdir()]) == ("new", [path.name])


def test_link_put_there_after_the_look_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious").touch()
    seen = (tmp_path / "precious").lstat()
    (tmp_path / "file").symlink_to("precious")
    monkeypatch.setattr(Path, "lstat", lambda _path: seen)
    with pytest.raises(OSError, match="symbolic link"):
        files.open_regular(tmp_path / "file")


# permission


@pytest.fixture
def nobody() -> Iterator[None]:
    """This process has the rights of nobody."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    groups, gid = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    yield
    os.seteuid(0)
    os.setegid(gid)
    os.setgroups(groups)


@pytest.fixture
def shut() -> Iterator[Path]:
    """A directory of root's that others may only enter, with a file and a closed directory."""
    path = Path(tempfile.mkdtemp(prefix="vbackup-shut-", dir="/tmp"))
    path.chmod(0o711)
    (path / "file").touch(mode=0o600)
    (path / "closed dir").mkdir(mode=0o700)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("name", "barrier", "what", "right"),
    [
        ("file", "file", "read and write", "rw"),
        ("closed dir/file", "closed dir", "enter the directory", "x"),
        ("new", "", "write to the directory", "wx"),
        ("new/file", "", "write to the directory", "wx"),
    ],
)
def test_denied_right_is_told_with_who_what_and_how_to_mend_it(
    shut: Path, nobody: None, name: str, barrier: str, what: str, right: str
) -> None:
    assert files.why_denied(shut / name) == (
        f"vbackup runs as nobody, who may not {what} {shut / barrier} (owner root, mode"
        f" {(shut / barrier).stat().st_mode & 0o7777:04o}). Run vbackup as root, or as root run: setfacl -m"
        f" u:nobody:{right} {shlex.quote(str(shut / barrier))}."
    )


def test_owner_of_a_directory_that_he_may_not_write_changes_its_mode(shut: Path, nobody: None) -> None:
    """An access control list is not asked about the owner."""
    os.seteuid(0)
    os.chown(shut, 65534, -1)
    shut.chmod(0o500)
    os.seteuid(65534)
    assert files.why_denied(shut / "new").endswith(f"(owner nobody, mode 0500). Run: chmod u+wx {shut}.")


def test_right_that_root_is_denied_is_the_storage_s(shut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "access", lambda place, *_more, **_options: Path(place) != shut)
    assert "export it with no_root_squash, or run vbackup as root" in files.why_denied(shut / "file")


def test_right_that_no_mode_denies_is_looked_for_elsewhere(shut: Path) -> None:
    assert "whether AppArmor or SELinux does" in files.why_denied(shut / "file")


@pytest.mark.parametrize("barrier", [Path("/etc"), Path("/"), Path("/root")])
def test_nobody_is_let_into_what_root_runs(monkeypatch: pytest.MonkeyPatch, barrier: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setattr(os, "access", lambda path, mode, **_more: path != barrier or not mode & os.W_OK)
    assert files.why_denied(barrier / "no-such-file").endswith("Run vbackup as root.")


def test_directory_that_may_not_be_written_is_told_with_the_remedy(shut: Path, nobody: None) -> None:
    with pytest.raises(StorageError, match=f"Cannot write: Permission denied. .* setfacl -m u:nobody:wx {shut}"):  # noqa: SIM117
        with files.storage_errors("write"):
            (shut / "new").mkdir()


def test_directory_that_cannot_be_made_or_written_is_refused_with_the_remedy(shut: Path, nobody: None) -> None:
    for directory in (shut, shut / "new" / "newer"):
        with pytest.raises(StorageError, match=f"Cannot write to {directory}: Permission denied.* setfacl -m u:"):
            files.refuse_unwritable(directory)
    assert not (shut / "new").exists()


def test_directory_on_a_read_only_filesystem_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.refuse_unwritable(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda *_args, **_more: False)
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_flag=os.ST_RDONLY))
    with pytest.raises(StorageError, match=f"Cannot write to {tmp_path}: Read-only .* It is mounted read-only"):
        files.refuse_unwritable(tmp_path)


def test_private_directory_is_made_with_those_above_it(tmp_path: Path) -> None:
    made = tmp_path / "a" / "b"
    for _ in range(2):
        files.make_private(made)
    assert [stat.S_IMODE(one.stat().st_mode) for one in (made, made.parent)] == [0o700, 0o700]
    made.chmod(0o1777)  # as /tmp: what is in it is its owner's
    files.make_private(made)


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_directory_in_which_others_could_replace_something_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(StorageError, match="Others can replace"):
        files.make_private(tmp_path)


def test_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(Path, "stat", lambda _path: os.stat_result((0o40700, 0, 0, 1, 4712, 0, 0, 0, 0, 0)))
    with pytest.raises(StorageError, match="chown 4711"):
        files.make_private(tmp_path)


def test_directories_that_only_their_owner_can_enter_are_found_from_the_outside_in(tmp_path: Path) -> None:
    inner = tmp_path / "one" / "two" / "three"
    inner.mkdir(parents=True)
    for path, mode in ((tmp_path / "one", 0o750), (tmp_path / "one" / "two", 0o711), (inner, 0o700)):
        path.chmod(mode)
    closed = files.closed_directories(inner)
    assert [path for path in closed if tmp_path in path.parents] == [tmp_path / "one", inner]


def test_nothing_can_be_at_a_path_that_no_file_has(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "loop").symlink_to("loop")
    gone = ("x", "x" * 300, "f/x", "loop", "a\0b", "\udcff\ud800")
    assert {name: files.is_missing(f"{tmp_path}/{name}") for name in ("f", *gone)} == {
        "f": False,
        **dict.fromkeys(gone, True),
    }


def test_what_cannot_be_looked_at_may_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    assert not files.is_missing("/root/x")


def test_new_file_is_nobody_elses_and_replaces_none(tmp_path: Path) -> None:
    files.write_new(tmp_path / "f", b"abc")
    assert ((tmp_path / "f").read_bytes(), stat.S_IMODE((tmp_path / "f").stat().st_mode)) == (b"abc", 0o600)
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "f", b"other")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left. Free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/r/x"), "No space left for /r/x. Free"),
        (OSError(errno.ESTALE, "Stale file handle", "/r/x"), "Cannot access /r/x: Stale file handle. The network"),
        (OSError(errno.EBADF, "Bad file descriptor"), "Unexpected OSError: .* This is a bug in vbackup"),
    ],
)
def test_storage_that_fails_anywhere_is_no_bug(error: OSError, said: str) -> None:
    reported = files.reported(error)
    assert re.match(said, str(reported)), reported
    assert reported.status == (Status.FAILED if "bug" in said else Status.STORAGE)
