"""``vbackup cp`` and vbackup.operations.cp: copies of files of a guest, with a fake of guestfish."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vbackup.images import unpacking
from vbackup.stop import Stop

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.unit.cli.handlers.conftest import InsideGuest

FILES = {
    "file": (0o100640, 7, "content"),
    "link": (0o120777, 4, "file"),
    "pipe": (0o10644, 0, ""),
    "tree": (0o40750, 4096, ""),
}


def archive(*members: tuple[str, bytes, bytes]) -> bytes:
    """A tar archive as the appliance's: name, type, and content or target."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|") as made:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.uid, info.gid, info.mode, info.mtime = kind, 7, 1000, 0o750, 1_700_000_000
            info.linkname = "" if kind == tarfile.REGTYPE else content.decode()
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            made.addfile(info, io.BytesIO(content))
    return stream.getvalue()


TREE = archive(
    (".", tarfile.DIRTYPE, b""),
    ("./a", tarfile.REGTYPE, b"in a"),
    ("./b", tarfile.LNKTYPE, b"./a"),
    ("./null", tarfile.CHRTYPE, b""),
    ("./escape", tarfile.SYMTYPE, b"../../../outside"),
    ("../outside", tarfile.REGTYPE, b"evil"),
)


@pytest.fixture(autouse=True)
def etc(guest: InsideGuest) -> None:
    guest.tree("/etc", FILES)
    guest.fake.answer("realpath", "/etc/tree", with_="/etc/tree\n")
    guest.fake.answer("tar-out", "/etc/tree", "numericowner:true", with_=TREE)


def test_file_gets_a_new_name_or_its_own_in_a_directory(command: Command, filled: Path, tmp_path: Path) -> None:
    os.umask(0o027)
    done = command("cp", "web", "/etc/file", tmp_path / "new", "-r", filled)
    assert f"is copied to {tmp_path}/new: 7 B" in done.stdout
    assert (tmp_path / "new").read_text() == "content"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert (tmp_path / "new").stat().st_uid == os.geteuid()
    (tmp_path / "into").mkdir()
    command("cp", "web", "-q", "/etc/file", "/etc/tree", "-r", filled, tmp_path / "into")
    assert sorted(path.name for path in (tmp_path / "into").iterdir()) == ["file", "tree"]


def test_nothing_is_overwritten_and_nothing_is_left(
    command: Command, filled: Path, tmp_path: Path, guest: InsideGuest
) -> None:
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "file").write_text("mine")
    for target in (tmp_path / "into", tmp_path / "into" / "file"):
        assert "already exists" in command("cp", "web", "/etc/file", target, "-r", filled, status=7).stderr
    assert (
        "missing; create it" in command("cp", "web", "/etc/file", tmp_path / "x" / "y", "-r", filled, status=7).stderr
    )
    assert "no directory" in command("cp", "web", "/etc/a", "/etc/b", tmp_path / "z", "-r", filled, status=2).stderr
    assert "has no name" in command("cp", "web", "/", tmp_path / "into", "-r", filled, status=2).stderr
    assert guest.opened == []
    guest.fake.answer("download", "/etc/file", with_=OSError("download: Input/output error"))
    assert "cannot be read" in command("cp", "web", "/etc/file", tmp_path / "new", "-r", filled, status=5).stderr
    guest.fake.answer("tar-out", "/etc/tree", "numericowner:true", with_=TREE[:1500])
    assert "no whole tar" in command("cp", "web", "/etc/tree", tmp_path / "new", "-r", filled, status=5).stderr
    assert (tmp_path / "into" / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} >= {"into"}
    assert not [path for path in tmp_path.iterdir() if "new" in path.name or ".vbackup" in path.name]


def test_all_paths_are_looked_up_before_the_first_copy(command: Command, filled: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    for options in ([], ["-a"]):
        done = command("cp", "web", *options, "/etc/file", "/etc/no", into, "-r", filled, status=5)
        assert "no /etc/no in the guest" in done.stderr
        assert list(into.iterdir()) == []


def test_copies_that_were_made_before_an_error_are_named(
    command: Command, filled: Path, tmp_path: Path, guest: InsideGuest
) -> None:
    into = tmp_path / "into"
    into.mkdir()
    guest.fake.answer("download", "/etc/file", with_=OSError("download: Input/output error"))
    done = command("cp", "web", "/etc/tree", "/etc/file", into, "-r", filled, status=5)
    assert f"Input/output error. 1 of 2 were copied before: {into}/tree." in done.stderr
    assert [path.name for path in into.iterdir()] == ["tree"]


def test_copies_that_were_made_before_a_signal_are_named(
    command: Command, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = tmp_path / "into"
    into.mkdir()
    monkeypatch.setattr(unpacking, "write_file", lambda *_, check: Stop.check(stopped()))
    done = command("cp", "web", "/etc/link", "/etc/file", "-a", into, "-r", filled, "--json", status=130)
    assert done.document["retry"] == "never"
    assert f"Stopped by SIGINT; 1 of 2 were copied before: {into}/link." in done.stderr
    assert [path.name for path in into.iterdir()] == ["link"]


def stopped() -> Stop:
    stop = Stop()
    stop.request(2)
    return stop


def test_tree_is_copied_and_stays_in_its_place(command: Command, filled: Path, tmp_path: Path) -> None:
    done = command("cp", "web", "/etc/tree", tmp_path / "copy", "-r", filled, "--json")
    assert (tmp_path / "copy" / "b").samefile(tmp_path / "copy" / "a")
    assert str((tmp_path / "copy" / "escape").readlink()) == "../../../outside"
    assert not (tmp_path / "outside").exists()
    [copied] = json.loads(done.stdout)["copied"]
    assert (copied["source"], copied["files"], copied["size_bytes"]) == ("/etc/tree", 4, 4)
    assert len(copied["left_out"]) == 2
    assert "Left out ../outside: its name is no path in this directory." in done.stderr
    assert "Left out ./null: it is a device, a FIFO or a socket." in done.stderr


def test_link_is_followed_or_kept(
    command: Command, filled: Path, tmp_path: Path, guest: InsideGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "chown", lambda *_, **__: None)
    command("cp", "web", "/etc/link", tmp_path / "kept", "--archive", "-r", filled)
    assert str((tmp_path / "kept").readlink()) == "file"
    assert (tmp_path / "kept").lstat().st_mtime == 1_700_000_000
    guest.fake.answer("statns", "/etc/link", with_=guest.fake.answers["statns", "/etc/file"])
    guest.fake.answer("download", "/etc/link", with_=b"followed")
    command("cp", "web", "/etc/link", tmp_path / "file", "-r", filled)
    assert (tmp_path / "file").read_text() == "followed"


def test_tar_to_standard_output(filled: Path, printed: Callable[..., bytes], capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["/etc/tree", "/etc/file", "/etc/link", "/etc/pipe", "-"], ["--tar", "/etc/tree"]):
        written = printed("cp", "web", *words, "-r", filled)
        said = capfd.readouterr().err
        with tarfile.open(fileobj=io.BytesIO(written)) as made:
            found = {each.name: each for each in made}
            assert list(found)[:5] == ["tree", "tree/a", "tree/b", "tree/null", "tree/escape"]
            assert (found["tree/b"].islnk(), found["tree/b"].linkname) == (True, "tree/a")
            assert (found["tree/a"].uid, found["tree/a"].mode, found["tree/a"].mtime) == (7, 0o750, 1_700_000_000)
            content = made.extractfile("tree/a")
            assert content is not None
            assert content.read() == b"in a"
            if "-" in words:
                assert list(found)[5:] == ["file", "link"]
                assert (found["file"].uid, found["file"].mode, found["file"].size) == (7, 0o640, 7)
                assert found["link"].linkname == "file"
                assert "/etc/pipe: it is a FIFO" in said
        assert "../outside: its name is no path" in said


def test_header_cannot_bring_a_name_back(filled: Path, guest: InsideGuest, printed: Callable[..., bytes]) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as made:
        info = tarfile.TarInfo("./good")
        info.pax_headers = {"path": "./good", "linkpath": "/etc/passwd", "comment": "x"}
        made.addfile(info)
    guest.fake.answer("tar-out", "/etc/tree", "numericowner:true", with_=stream.getvalue())
    with tarfile.open(fileobj=io.BytesIO(printed("cp", "web", "/etc/tree", "-", "-r", filled))) as written:
        assert [(each.name, each.linkname, each.pax_headers) for each in written] == [("tree/good", "", {})]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(OSError("download: /etc/file: Input/output error"), "Input/output error"), (b"cont", "before its 7 bytes")],
)
def test_file_with_a_bad_block_is_no_whole_member(
    command: Command, filled: Path, guest: InsideGuest, answer: object, reason: str
) -> None:
    guest.fake.answer("download", "/etc/file", with_=answer)
    said = command("cp", "web", "/etc/file", "-", "-r", filled, status=5).stderr
    assert "/etc/file of the guest cannot be read" in said
    assert reason in said


def test_bad_input_is_refused(command: Command, filled: Path, guest: InsideGuest, tmp_path: Path) -> None:
    assert "No target given" in command("cp", "web", "/etc/file", "-r", filled, status=2).stderr
    assert "No file given" in command("cp", "web", "-r", filled, status=2).stderr
    assert "No file given" in command("cp", "web", "--tar", "-r", filled, status=2).stderr
    assert "different file systems" in command("cp", "web", "vda:/a", "/b", tmp_path, "-r", filled, status=2).stderr
    assert "no place for JSON" in command("cp", "web", "/a", "-", "--json", "-r", filled, status=2).stderr
    assert guest.opened == []
