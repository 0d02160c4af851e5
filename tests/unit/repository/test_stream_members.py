"""Which members the stream of a backup has, and how large each may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.recorded import Recorded
from tests.unit.builders import UUID, Recorder, backup, backup_id
from vbackup.errors import InterruptedBySignalError, StorageError, StreamError
from vbackup.model import MachineFile, MachineKind
from vbackup.repository import block_list, stream_members
from vbackup.repository.stream_members import Origin
from vbackup.repository.stream_tar import Member
from vbackup.stop import Stop


def send(recorded: Recorded, *, check: Callable[[], None] = lambda: None, recorder: Recorder | None = None) -> bytes:
    written = bytearray()
    one = recorded.backups[0]
    directory = recorded.repository.directory(UUID, one.id)
    stream_members.send(one, directory, written.extend, reporter=recorder or Recorder(), check=check)
    return bytes(written)


def test_first_member_names_the_backup() -> None:
    assert stream_members.origin(Member(f"{UUID}/{backup_id(1)}/manifest.json", 1)) == Origin(UUID, backup_id(1))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "manifest.json",
        f"{UUID}/{backup_id(1)}/vda.qcow2",
        f"{UUID}/{backup_id(1)}/x/manifest.json",
        f"/{UUID}/{backup_id(1)}/manifest.json",
        f"./{UUID}/{backup_id(1)}/manifest.json",
        f"../{backup_id(1)}/manifest.json",
        f"{UUID}/../manifest.json",
        f"{UUID.upper()}/{backup_id(1)}/manifest.json",
    ],
)
def test_any_other_first_member_is_refused(name: str) -> None:
    with pytest.raises(StreamError, match="not with a manifest"):
        stream_members.origin(Member(name, 1))


def test_files_of_the_machine_have_their_size(untouched: Recorded) -> None:
    nvram = MachineFile(MachineKind.NVRAM, 9, "sha256:1", None)
    one = replace(untouched.backups[0], machine=(nvram,))
    found = {one.file: (one.max_bytes, one.is_exact) for one in stream_members.expected(one)}
    assert found["nvram"] == (9, True)
    assert found["domain.xml"][1] is False
    assert found["vda.qcow2"] == (one.disks[0].file_size_bytes, True)


def test_block_list_is_never_larger_than_its_blocks_need(untouched: Recorded) -> None:
    for one in untouched.backups:
        for expected in stream_members.expected(one):
            if expected.file.endswith(block_list.SUFFIX):
                assert untouched.path(one, expected.file).stat().st_size <= expected.max_bytes <= 1 << 20


def test_backup_without_block_lists_is_no_stream() -> None:
    with pytest.raises(StreamError, match="no block list"):
        [*stream_members.expected(backup(1))]


def test_progress_of_each_image_is_reported(untouched: Recorded, recorder: Recorder) -> None:
    send(untouched, recorder=recorder)
    sizes = {disk.dev: disk.file_size_bytes for disk in untouched.backups[0].disks}
    assert {dev: told[-1] for dev, told in recorder.told.items()} == {dev: (size, size) for dev, size in sizes.items()}


def test_file_that_is_missing_ends_the_stream(recorded: Recorded) -> None:
    recorded.path(recorded.backups[0], "vda.blocks").unlink()
    with pytest.raises(StorageError, match="Cannot read"):
        send(recorded)


def test_request_to_stop_ends_the_stream(untouched: Recorded) -> None:
    stop = Stop()
    stop.request(15)
    with pytest.raises(InterruptedBySignalError):
        send(untouched, check=stop.check)


def test_unpacked_stream_is_a_directory_of_a_repository(untouched: Recorded) -> None:
    one = untouched.backups[0]
    assert Path(Origin(UUID, one.id).prefix) == untouched.path(one).parent.relative_to(untouched.repository.path)
