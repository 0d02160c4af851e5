"""Files out of a backup with libguestfs's appliance: ``vbackup ls``, ``cp``, ``cat``, ``search``; operations.inside.

The appliance takes 10 s to start under TCG. So one is shared by what looks at file systems, and few commands are run.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import guest_disk
from tests.conftest import Command
from tests.end_to_end.test_mount import COMMAND, daemons, digests
from tests.guest_disk import BIG, MTIME_S, NAMES, PASSPHRASE
from tests.recorded import KIB, Recorded
from vbackup.copies import parts
from vbackup.errors import UnsuitableError
from vbackup.images import unpacking
from vbackup.images.unpacking import Keep
from vbackup.operations import inside, search
from vbackup.operations.inside import Inside
from vbackup.operations.search import SearchRequest
from vbackup.repository.choice import Wanted
from vbackup.stop import Stop

pytestmark = pytest.mark.skipif(shutil.which("guestfish") is None, reason="needs guestfish (libguestfs-tools)")
#: /dev/kvm can be there and not work.
FORCE_TCG = {"LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}


class Warnings:
    """A reporter that keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def step(self, message: str) -> None:
        """Drop it."""

    def warning(self, message: str) -> None:
        self.warnings.append(message)

    def progress(self, *_: Any) -> None:
        """Drop it."""


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return guest_disk.repository(tmp_path_factory.mktemp("guest") / "repository")


@pytest.fixture(scope="module")
def first(guests: Recorded) -> Iterator[Inside]:
    """The first backup, in an appliance that all tests share."""
    asked: list[str] = []

    def key(name: str, attempt: int) -> bytes | None:
        asked.append(name)
        return [b"wrong", PASSPHRASE.encode()][attempt] if attempt < 2 else None

    before = os.environ.get("LIBGUESTFS_BACKEND_SETTINGS")
    os.environ.update(FORCE_TCG)
    with inside.opened(
        "web",
        Wanted(guests.backups[0].id),
        where=None,
        keys=key,
        repository=guests.repository,
        reporter=Warnings(),
        stop=Stop(),
    ) as there:
        yield there
    os.environ.pop("LIBGUESTFS_BACKEND_SETTINGS")
    if before is not None:
        os.environ["LIBGUESTFS_BACKEND_SETTINGS"] = before


@pytest.fixture(autouse=True)
def _nothing_mounted(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "first" in request.fixturenames:
        request.getfixturevalue("first").guest.session.run("umount-all")


# file systems


def content(there: Inside, path: str) -> bytes:
    with there.files.content(path) as stream:
        return stream.read()


@pytest.mark.parametrize(
    ("where", "path", "expected"),
    [
        ("vda/1", "/vmlinuz", b"in ext4\n"),
        ("vg0/root", "/etc/changed", b"before\n"),
        ("vg0/home", "/user/notes", b"in XFS\n"),
        ("vdb/1", "/Grüße/fat.txt", b"in FAT\n"),
        ("vdb/2", "/Users/Grüße.txt", b"in NTFS\n"),
        ("vdb/3", "/sub/b.txt", b"in btrfs\n"),
        ("vdb/4", "/hidden", b"in LUKS\n"),
    ],
)
def test_file_of_each_file_system(first: Inside, where: str, path: str, expected: bytes) -> None:
    first.guest.mount(where)
    assert content(first, path) == expected


def test_unknown_one_is_answered_with_what_there_is(first: Inside) -> None:
    with pytest.raises(UnsuitableError) as caught:
        first.guest.mount("vg0/nix")
    for each in ("vda/1 (ext4)", "vg0/home (xfs)", "vdb/1 (vfat)", "vdb/2 (ntfs)", "vdb/3 (btrfs)", "vdb/4 ("):
        assert each in str(caught.value)


def test_names_are_those_of_the_guest(first: Inside) -> None:
    first.guest.mount("vg0/root")
    names = first.files.names("/etc/names")
    assert sorted(names) == sorted(NAMES)
    found = list(first.files.entries("/etc/names", names))
    assert {each.name for each in found} == set(NAMES)
    for name in NAMES:
        assert content(first, f"/etc/names/{name}") == os.fsencode(name)


def test_big_file_links_and_what_is_no_file(first: Inside) -> None:
    first.guest.mount("vg0/root")
    assert content(first, "/srv/big") == BIG
    assert content(first, "/srv/tree/absolute") == b"root:x:0:0:root:/root:/bin/sh\n"  # not the appliance's
    assert content(first, "/srv/link/escape") == b"root:x:0:0:root:/root:/bin/sh\n"
    assert first.files.find("/srv/tree/absolute").target == "/etc/passwd"
    assert first.files.find("/srv/tree/program").mode == 0o104755
    assert sorted(first.files.below("/srv/link")) == sorted(first.files.below("/srv/tree"))
    links = {each.path: each.target for each in first.files.entries("/srv", ["tree/escape", "link"], with_targets=True)}
    assert links == {"/srv/tree/escape": "../../../../../../../etc/passwd", "/srv/link": "tree"}
    for path in ("/srv/tree/fifo", "/srv/tree/null", "/srv/tree", "/nix"):
        with pytest.raises(UnsuitableError, match=path):
            content(first, path)


def test_tree_is_unpacked_as_it_is(first: Inside, tmp_path: Path) -> None:
    first.guest.mount("vg0/root")
    (tmp_path / "tree").mkdir()
    with first.files.archive("/srv/link") as stream:
        done = unpacking.unpack(stream, tmp_path / "tree", keep=Keep(True, 0o022), check=lambda: None)
    program = tmp_path / "tree" / "program"
    assert program.samefile(tmp_path / "tree" / "deep" / "same")
    assert (program.stat().st_mtime, (tmp_path / "tree").stat().st_mtime) == (MTIME_S, MTIME_S)
    assert stat.S_IMODE((tmp_path / "tree" / "deep").stat().st_mode) == 0o750
    if os.geteuid() == 0:
        assert (program.stat().st_uid, program.stat().st_gid) == (1000, 1001)
        assert stat.S_IMODE(program.stat().st_mode) == 0o4755
    assert str((tmp_path / "tree" / "escape").readlink()) == "../../../../../../../etc/passwd"
    assert (tmp_path / "tree" / "sparse").stat().st_size == 4 * 1024 * 1024
    assert (tmp_path / "tree" / "sparse").stat().st_blocks == 0
    assert sorted(each.partition(":")[0] for each in done.left_out) == ["./fifo", "./null"]


def test_search_finds_what_matches(first: Inside) -> None:
    request = SearchRequest("/etc/[acr]*ed", "vg0/root")
    found = {str(one.address): one.entry for one in search._matching(first, request, "x")}
    assert {path: entry.size_bytes for path, entry in found.items()} == {
        "vg0/root:/etc/changed": 7,
        "vg0/root:/etc/removed": 10,
    }


# a command


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that nobody else than its owner needs."""
    path = Path(tempfile.mkdtemp(prefix="vb-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


def run(repository: Path, *words: str | Path, status: int = 0) -> subprocess.CompletedProcess[bytes]:
    argv = [*COMMAND, "-r", repository, *words]
    done = subprocess.run(argv, capture_output=True, check=False, env=os.environ | FORCE_TCG, timeout=300)
    assert done.returncode == status, done
    return done


@pytest.mark.long
def test_file_at_a_target_is_read_without_its_image(
    guests: Recorded, place: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size_bytes in (("SMALL_BYTES", 0), ("PART_BYTES", 64 * KIB), ("MAX_BYTES", 256 * KIB)):
        monkeypatch.setattr(parts, name, size_bytes)
    monkeypatch.setenv(*next(iter(FORCE_TCG.items())))
    fetched_bytes = []
    close = parts.Parts.close

    def closed(served: parts.Parts) -> None:
        fetched_bytes.append(served.fetched_bytes)
        close(served)

    monkeypatch.setattr(parts.Parts, "close", closed)
    shutil.copytree(guests.repository.path, place / "repository")
    command("copy", "web", "-r", place / "repository", "--to", place / "target")
    first = guests.backups[0].id
    [image] = (place / "target").glob(f"*/{first}/vda.qcow2")
    at = ("--from", place / "target", "--cache", place / "cache")
    assert command("cat", "web", "vda/1:/vmlinuz", "--backup", first, "--disk", "vda", *at).stdout == "in ext4\n"
    assert 0 < fetched_bytes[0] < image.stat().st_size // 2
    assert not list((place / "cache").glob("*/run-*"))


@pytest.mark.long
def test_copy_of_the_system_s_files_changes_nothing_and_leaves_nothing(guests: Recorded, place: Path) -> None:
    before, running = digests(guests.repository.path), daemons(guests.repository.path)
    temporary = place / "tmp"
    temporary.mkdir()
    os.environ["TMPDIR"] = str(temporary)
    try:
        done = run(guests.repository.path, "cp", "web", "vda:/etc/changed", "vda:/home/user", "vda:/boot/vmlinuz", "-")
    finally:
        del os.environ["TMPDIR"]
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert archive.getnames() == ["changed", "user", "user/notes", "vmlinuz"]
        found = archive.extractfile("changed")
        assert found is not None
        assert found.read() == b"after\n"
    assert digests(guests.repository.path) == before
    assert list(temporary.iterdir()) == []
    assert daemons(guests.repository.path) == running
