"""A restored image is what the block lists say, or the error names what is damaged: an image, or the output itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.recorded import BLOCK, MIB, Recorded, Write, flip, flip_block
from tests.unit.builders import Recorder
from vbackup.errors import ChainError, DamagedError, OutputDiffersError
from vbackup.images import restoring
from vbackup.model import Backup, ImageFormat
from vbackup.operations import restore
from vbackup.operations.restore import RestoreRequest
from vbackup.report import Phase
from vbackup.repository.choice import Wanted
from vbackup.stop import Stop


def restored(
    recorded: Recorded,
    one: Backup,
    output: Path,
    image_format: ImageFormat = ImageFormat.RAW,
    recorder: Recorder | None = None,
) -> dict[str, bytes]:
    request = RestoreRequest("web", output, Wanted(one.id), image_format=image_format)
    done = restore.run(request, repository=recorded.repository, reporter=recorder or Recorder(), stop=Stop())
    return {dev: path.read_bytes() for dev, path in done.images.items()}


@pytest.mark.parametrize("image_format", ImageFormat)
def test_damage_that_a_restore_needs_is_named(recorded: Recorded, tmp_path: Path, image_format: ImageFormat) -> None:
    image = recorded.path(recorded.backups[0])
    flip_block(image, 2)
    said = f"the image {image} of backup {recorded.backups[0].id} was altered or is damaged"
    with pytest.raises(DamagedError, match=said) as caught:
        restored(recorded, recorded.backups[1], tmp_path / "out", image_format)
    assert caught.value.status == 6
    assert (caught.value.dev, caught.value.start_bytes, caught.value.length_bytes) == ("vda", 2 * BLOCK, BLOCK)
    assert not (tmp_path / "out").exists()


def test_compressed_cluster_that_cannot_be_read_is_named_if_it_is_needed(recorded: Recorded, tmp_path: Path) -> None:
    """A bit in the middle of the stream: QEMU reports an I/O error for it."""
    image = recorded.path(recorded.backups[1])
    flip_block(image, 48)
    with pytest.raises(DamagedError, match=f"bytes {3 * MIB} to"):
        restored(recorded, recorded.backups[3], tmp_path / "out")
    newest = recorded.add({"vda": [Write(3 * MIB, BLOCK, 33)]}, size_bytes=9 * MIB + 3 * 512)
    assert restored(recorded, newest, tmp_path / "good") == recorded.expected(newest)


@pytest.mark.parametrize("at", [3, -1], ids=["data", "zeros"])
def test_output_that_is_not_what_was_written_is_no_damage_of_the_repository(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    flattened = restoring.flatten

    def spoil(layers: Any, path: Path, *more: Any, **options: Any) -> None:
        flattened(layers, path, *more, **options)
        flip(path, at % path.stat().st_size)

    monkeypatch.setattr(restoring, "flatten", spoil)
    with pytest.raises(OutputDiffersError, match="does not contain what was written to it, from byte") as caught:
        restored(recorded, recorded.backups[1], tmp_path / "out")
    assert caught.value.status == 6
    assert not (tmp_path / "out").exists()


def test_output_of_another_size_is_refused(recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flattened = restoring.flatten

    def cut(layers: Any, path: Path, *more: Any, **options: Any) -> None:
        flattened(layers, path, *more, **options)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 512)

    monkeypatch.setattr(restoring, "flatten", cut)
    with pytest.raises(OutputDiffersError):
        restored(recorded, recorded.backups[1], tmp_path / "out")


def test_both_writing_and_checking_are_reported(recorded: Recorded, tmp_path: Path, recorder: Recorder) -> None:
    restored(recorded, recorded.backups[3], tmp_path / "out", recorder=recorder)
    assert recorder.phases == {Phase.WRITE, Phase.CHECK}
    assert recorder.steps == ["Disk vda: restored and checked.", "Disk vdb: restored and checked."]
    done, total = recorder.told["vda"][-1]
    assert done == total


def test_list_of_the_chain_is_checked_before_anything_is_written(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(recorded.path(recorded.backups[0], "vda.blocks"), 100)
    monkeypatch.setattr(restoring, "flatten", lambda *_more, **_options: pytest.fail("something was written"))
    with pytest.raises(ChainError, match=r"the block list .*vda\.blocks"):
        restored(recorded, recorded.backups[3], tmp_path / "out")
