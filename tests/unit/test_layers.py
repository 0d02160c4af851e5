"""States of files are written down and read back, and compared as far as they prove something."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbackup.errors import ChainError
from vbackup.fields import Fields
from vbackup.layers import TOO_NEW, ChainState, FileState, LayerState

FILE = FileState("/images/base.qcow2", 1, 2, size_bytes=3, mtime_ns=4)

numbers, texts = st.integers(0, 2**63 - 1), st.text(max_size=10)
files = st.builds(
    FileState,
    texts,
    numbers,
    numbers,
    size_bytes=numbers,
    mtime_ns=numbers,
    ctime_ns=st.none() | numbers,
    digest=st.none() | texts,
) | st.builds(FileState, texts)
layers = st.builds(LayerState, texts, files, st.none() | files)
chains = st.builds(
    ChainState,
    st.lists(layers, max_size=3).map(tuple),
    device_mark=st.none() | texts,
    boot_id=st.none() | texts,
)


@given(chains)
def test_what_is_written_is_read_back(chain: ChainState) -> None:
    document = json.loads(json.dumps(chain.document()))
    assert ChainState.read(Fields({**document, "new": 1}, "chain", ChainError)) == chain


@pytest.mark.parametrize("missing", ["device", "inode", "size_bytes", "mtime_ns"])
def test_state_of_which_a_part_is_missing_proves_nothing(missing: str) -> None:
    document = FILE.document()
    del document[missing]
    assert FileState.read(Fields(document, "file", ChainError)) == FILE.unproven()


@pytest.mark.parametrize("damage", [{"inode": "2"}, {"inode": -1}, {"path": None}])
def test_damaged_state_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(ChainError):
        FileState.read(Fields({**FILE.document(), **damage}, "file", ChainError))


@pytest.mark.parametrize(
    ("other", "same_file", "unchanged"),
    [
        (FILE, True, True),
        (replace(FILE, path="/another/name"), True, True),
        (replace(FILE, inode=9), False, False),
        (replace(FILE, device=9), False, False),
        (replace(FILE, size_bytes=9), True, False),
        (replace(FILE, mtime_ns=9), True, False),
        (FILE.unproven(), False, False),
    ],
)
def test_files_are_compared_by_device_inode_size_and_time(
    other: FileState, *, same_file: bool, unchanged: bool
) -> None:
    assert FILE.is_same_file(other, same_boot=True) == same_file
    assert FILE.is_unchanged(other, same_boot=True) == unchanged
    assert other.is_unchanged(FILE, same_boot=True) == unchanged


KNOWN = replace(FILE, ctime_ns=5, digest="sha256-bytes:aa")


@pytest.mark.parametrize(
    ("then", "now", "unchanged", "undecided"),
    [
        (KNOWN, replace(FILE, ctime_ns=5), True, False),
        # libvirt gave it another owner, or it was overwritten and given back its time: the content tells.
        (KNOWN, replace(FILE, ctime_ns=6), False, True),
        (KNOWN, replace(KNOWN, ctime_ns=6), True, False),
        (KNOWN, replace(KNOWN, ctime_ns=6, digest="sha256-bytes:bb"), False, False),
        # Bitmaps of vbackup, or a new time and nothing else.
        (KNOWN, replace(FILE, size_bytes=9, mtime_ns=9, ctime_ns=9), False, True),
        (KNOWN, replace(KNOWN, size_bytes=9, mtime_ns=9, ctime_ns=9), True, False),
        # No note in the file counts for more than a digest.
        (KNOWN, replace(FILE, mtime_ns=9, ctime_ns=9, earlier=((3, 4),)), False, True),
        (replace(KNOWN, digest=None), replace(FILE, ctime_ns=6), False, False),
        (replace(KNOWN, digest=None), replace(KNOWN, ctime_ns=6), False, False),
        (KNOWN, replace(FILE, inode=9, ctime_ns=5), False, False),
        (KNOWN, replace(KNOWN, inode=9), False, False),
        # A further change could have left the same ctime.
        (replace(KNOWN, ctime_ns=TOO_NEW), replace(FILE, ctime_ns=TOO_NEW), False, True),
        (KNOWN, replace(FILE, ctime_ns=TOO_NEW), False, True),
        # Recorded by a version that knew no ctime, or of a file that could not be read.
        (FILE, KNOWN, True, False),
        (FILE, replace(KNOWN, mtime_ns=9, earlier=((3, 4),)), True, False),
        (FILE, replace(KNOWN, mtime_ns=9), False, False),
    ],
)
def test_digest_decides_where_ctime_has_changed(
    then: FileState, now: FileState, *, unchanged: bool, undecided: bool
) -> None:
    assert then.is_unchanged(now, same_boot=True) == unchanged
    assert then.is_undecided(now, same_boot=True) == undecided


def test_device_numbers_mean_nothing_after_a_reboot() -> None:
    assert FILE.is_unchanged(replace(FILE, device=9), same_boot=False)


def test_two_names_without_an_inode_prove_nothing() -> None:
    assert not FILE.unproven().is_unchanged(FILE.unproven(), same_boot=True)
