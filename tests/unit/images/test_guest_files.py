"""What guestfish says of files, with a fake of it; end_to_end has the real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_guestfish import FakeGuestfish
from vbackup.errors import UnsuitableError
from vbackup.images import appliance, guest_files
from vbackup.images.appliance import word_list
from vbackup.images.guest_files import Entry, GuestFiles
from vbackup.stop import Stop


def struct(*, mode: int, size: int = 0, ino: int = 1, mtime: int = 1000) -> str:
    fields = {"dev": 1, "ino": ino, "mode": mode, "nlink": 2, "uid": 7, "gid": 8, "rdev": 0, "size": size}
    fields |= {"mtime_sec": mtime, "mtime_nsec": 5}
    return "".join(f"  st_{name}: {number}\n" for name, number in fields.items())


def structs(*each: str) -> str:
    return "".join(f"[{number}] = {{\n{one}}}\n" for number, one in enumerate(each))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGuestfish:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return FakeGuestfish(tmp_path / "bin")


@pytest.fixture
def guest(fake: FakeGuestfish) -> Iterator[GuestFiles]:
    """The answers have to be set before: guestfish reads them as it starts."""
    with appliance.session([], stop=Stop()) as session:
        yield GuestFiles(session)


def test_file(fake: FakeGuestfish, request: pytest.FixtureRequest) -> None:
    fake.answer("lstatns", "/a/b/", with_=struct(mode=0o100644, size=5))
    fake.answer("lstatns", "/link", with_=struct(mode=0o120777, size=3))
    fake.answer("readlink", "/link", with_="to \x1b\n\n")
    fake.answer("lstatns", "/no", with_=OSError("lstatns: /no: No such file or directory"))
    fake.answer("statns", "/no", with_=OSError("statns: /no: Input/output error"))
    guest = request.getfixturevalue("guest")
    found = guest.find("/a/b/")
    assert found == Entry("/a/b/", 0o100644, 7, 8, 2, 5, 1000 * 10**9 + 5)
    assert (found.name, found.is_regular, found.is_directory, found.is_link) == ("b", True, False, False)
    assert guest.find("/link").target == "to \x1b\n"
    with pytest.raises(UnsuitableError, match="There is no /no in the guest"):
        guest.find("/no")
    with pytest.raises(UnsuitableError, match=r"/no of the guest cannot be read: .*Input/output error\.$"):
        guest.find("/no", follow=True)


NO = OSError("statns: No such file or directory")


@pytest.mark.parametrize(
    ("path", "listed", "said"),
    [
        ("/etc/fstap", b"passwd\0fstab\0", ": /etc has fstab, passwd."),
        ("/etc/fstap/x/y", b"passwd\0fstab\0", ": /etc has fstab, passwd."),
        ("/etc/x", b"", ": /etc is empty."),
        ("/etc/x", b"".join(b"n%d\0" % number for number in range(20)), "n15 and 12 more."),
        ("/etc/x", b"y" * 255 + b"\0", f"has {'y' * 64}."),
        ("/etc/x", OSError("ls0: Input/output error"), "no /etc/x in the guest."),
        ("/file/x", b"", ": /file is no directory."),
    ],
)
def test_missing_path_is_answered_with_what_there_is(
    fake: FakeGuestfish, request: pytest.FixtureRequest, path: str, listed: bytes | OSError, said: str
) -> None:
    fake.answer("lstatns", with_=NO)
    fake.answer("statns", with_=NO)
    fake.answer("statns", "/etc", with_=struct(mode=0o40755))
    fake.answer("statns", "/file", with_=struct(mode=0o100644))
    fake.answer("ls0", "/etc", with_=listed)
    guest = request.getfixturevalue("guest")
    for follow in (False, True):
        with pytest.raises(UnsuitableError) as caught:
            guest.find(path, follow=follow)
        assert str(caught.value).startswith(f"There is no {path} in the guest")
        assert str(caught.value).endswith(said)


def test_entries_of_a_directory(fake: FakeGuestfish, request: pytest.FixtureRequest) -> None:
    names = ["a\nb", "it's", "gone", "link", "other"]
    fake.answer("ls0", "/d", with_=b"a\nb\0it's\0link\0\xff\0")
    each = [struct(mode=0o100600), struct(mode=0o40700), struct(mode=0, ino=-1), *[struct(mode=0o120777)] * 2]
    fake.answer("lstatnslist", "/d", word_list(names), with_=structs(*each))
    fake.answer("readlinklist", with_="x\ny\nz\n")
    fake.answer("readlink", "/d/link", with_="x\ny\n")
    fake.answer("readlink", "/d/other", with_="z\n")
    guest = request.getfixturevalue("guest")
    assert guest.names("/d") == ["a\nb", "it's", "link", "\udcff"]
    found = list(guest.entries("/d/", names, with_targets=True))
    assert [(one.path, one.target) for one in found] == [
        ("/d/a\nb", None),
        ("/d/it's", None),
        ("/d/link", "x\ny"),
        ("/d/other", "z"),
    ]
    assert [one.target for one in guest.entries("/d/", names)] == [None] * 4


def test_many_names_are_asked_for_in_several_commands(fake: FakeGuestfish, guest: GuestFiles) -> None:
    assert list(guest.entries("/", [f"{'x' * 200}{number}" for number in range(100)])) == []
    told = [line for line in fake.told() if line.startswith("('lstatnslist'")]
    assert len(told) > 4
    assert sum(line.count("x" * 200) for line in told) == 100


def test_content_is_only_that_of_regular_files(fake: FakeGuestfish, request: pytest.FixtureRequest) -> None:
    for path, mode in (("/f", 0o100600), ("/d", 0o40700), ("/p", 0o10600), ("/null", 0o20600)):
        fake.answer("statns", path, with_=struct(mode=mode))
    fake.answer("download", "/f", with_=b"\0content")
    guest = request.getfixturevalue("guest")
    with guest.content("/f") as stream:
        assert stream.read() == b"\0content"
    for path, why in (("/d", "is a directory; 'vbackup ls'"), ("/p", "is a FIFO"), ("/null", "is a character device")):
        with pytest.raises(UnsuitableError, match=why), guest.content(path):
            pass
    assert not any("download" in line and "/f" not in line for line in fake.told())


def test_links_of_a_directory_are_resolved_in_the_guest(fake: FakeGuestfish, request: pytest.FixtureRequest) -> None:
    fake.answer("realpath", "/link", with_="/real\n")
    fake.answer("find0", "/real", with_=b"a\0a/b\0")
    fake.answer("tar-out", "/real", "numericowner:true", with_=b"archive")
    guest = request.getfixturevalue("guest")
    assert guest.below("/link") == ["a", "a/b"]
    with guest.archive("/link") as stream:
        assert stream.read() == b"archive"


def test_paths_are_asked_for_by_directory(fake: FakeGuestfish, request: pytest.FixtureRequest) -> None:
    for directory, names in (("/", ["b"]), ("/a", ["y", "x"]), ("/a/x", ["1"])):
        answer = structs(*[struct(mode=0o100600)] * len(names))
        fake.answer("lstatnslist", directory, word_list(names), with_=answer)
    guest = request.getfixturevalue("guest")
    found = guest.entries("/", ["b", "a/y", "a/x/1", "a/x"])
    assert [one.path for one in found] == ["/a/x", "/a/x/1", "/a/y", "/b"]


@pytest.mark.parametrize("second", [-(2**63), 2**63 - 1])
def test_time_that_no_calendar_has(second: int) -> None:
    assert Entry("/x", 0, 0, 0, 1, 0, second * 10**9).mtime.year in (1, 9999)


def test_kinds() -> None:
    assert guest_files.kind(0o140000) == "a socket"
    assert guest_files.kind(0o60000) == "a block device"
    assert guest_files.kind(0) == "no regular file"
