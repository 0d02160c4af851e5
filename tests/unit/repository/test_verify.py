"""The files of a chain are compared with their manifests before anything opens them."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.builders import SIZE_BYTES, UUID, Recorder, backup, image, incremental, qcow2_image
from vbackup import files
from vbackup.errors import ChainError, InterruptedBySignalError
from vbackup.model import Backup
from vbackup.repository import verify
from vbackup.repository.history import History, Link
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

ONE = backup(1)
TWO = incremental(2, ONE)


def header(one: Backup, **changes: bytes) -> bytes:
    """An image without data, which names the image of the base as its backing file."""
    base = one.disks[0].base
    return qcow2_image(SIZE_BYTES, backing=None if base is None else f"../{base}/vda.qcow2", **changes)


def put(repository: Repository, one: Backup, data: bytes) -> Backup:
    """Write the image of vda; return the backup with its digest."""
    path = repository.directory(UUID, one.id) / "vda.qcow2"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    disk = replace(one.disks[0], file_size_bytes=len(data), digest=files.digest_of(data))
    return replace(one, disks=(disk,))


def links_of(repo: Repository, *, newest: bytes | None = None) -> tuple[Link, ...]:
    made = [put(repo, ONE, header(ONE)), put(repo, TWO, header(TWO) if newest is None else newest)]
    return History(made).links(TWO.id, "vda")


def check(repo: Repository, links: tuple[Link, ...], recorder: Recorder, stop: Stop | None = None) -> None:
    verify.check_chains({"vda": links}, repo, reporter=recorder, stop=stop or Stop())


def test_chain_that_nobody_changed_passes_with_its_progress(repo: Repository, recorder: Recorder) -> None:
    check(repo, links_of(repo), recorder)
    assert recorder.steps == ["Disk vda: 2 images checked."]
    total_bytes = 2 * 65536
    assert recorder.told["vda"][-1] == (total_bytes, total_bytes)
    assert sorted(recorder.told["vda"]) == recorder.told["vda"]


@pytest.mark.parametrize("which", [ONE, TWO], ids=["base", "newest"])
def test_flipped_bit_is_an_error_that_names_the_image(repo: Repository, recorder: Recorder, which: Backup) -> None:
    links = links_of(repo)
    path = repo.directory(UUID, which.id) / "vda.qcow2"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChainError, match=f"{path} of backup {which.id} was altered or is damaged"):
        check(repo, links, recorder)
    assert recorder.steps == []


def test_damage_of_an_image_without_a_list_is_told_without_reading_all_the_others(
    repo: Repository, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are read several at a time, and the others may be large."""
    links = links_of(repo)
    newest = repo.directory(UUID, TWO.id) / "vda.qcow2"

    def slowly(path: Path, *, check: Callable[[], None], progress: Callable[[int], None]) -> str:
        if path == newest:
            return "sha256:" + "0" * 64
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            check()
            time.sleep(0.01)  # as long as it takes until somebody says that it is in vain
        pytest.fail("the other one was read as a whole")

    monkeypatch.setattr(files, "digest", slowly)
    with pytest.raises(ChainError, match=f"the image {newest} of backup {TWO.id} was altered or is damaged"):
        check(repo, links, recorder)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (header(ONE), "names the backing file None, its manifest"),
        (header(TWO, offset_1024=b"/"), "names the backing file '/"),
        (header(TWO, offset_112=b"raw\0\0"), "names the backing file"),
        (header(TWO, offset_24=struct.pack(">Q", SIZE_BYTES // 2)), f"is an image of {SIZE_BYTES // 2} bytes"),
        (header(TWO, offset_32=struct.pack(">I", 2)), "is encrypted"),
        (header(TWO, offset_72=struct.pack(">Q", 1 << 2)), "keeps its data in another file"),
    ],
    ids=["no backing file", "another backing file", "another format", "another size", "encrypted", "data file"],
)
def test_header_that_differs_from_the_manifest_ends_it_before_any_digest(
    repo: Repository, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, data: bytes, said: str
) -> None:
    links = links_of(repo, newest=data)
    monkeypatch.setattr(files, "digest", lambda *_args, **_more: pytest.fail("an image was read"))
    with pytest.raises(ChainError, match=said):
        check(repo, links, recorder)


def test_request_to_stop_ends_the_reading(repo: Repository, recorder: Recorder) -> None:
    stop = Stop()
    stop.request(15)
    with pytest.raises(InterruptedBySignalError):
        check(repo, links_of(repo), recorder, stop)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(b"<other/>"), "was altered or is damaged"),
        (lambda path: os.truncate(path, verify.MAX_FURTHER_BYTES + 1), "cannot be read: it is larger"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "cannot be read: it is a symbolic link"),
    ],
    ids=["missing", "altered", "huge", "a link"],
)
def test_further_file_is_read_only_as_it_was_recorded(
    repo: Repository, damage: Callable[[Path], object], said: str
) -> None:
    one = backup(1, image(), files={"domain.xml": files.digest_of(b"<domain/>")})
    path = repo.directory(UUID, one.id) / "domain.xml"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"<domain/>")
    assert verify.read_file(repo, one, "domain.xml") == b"<domain/>"
    damage(path)
    with pytest.raises(ChainError, match=f"{path} of backup {one.id} {said}"):
        verify.read_file(repo, one, "domain.xml")
